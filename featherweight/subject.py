"""What a command is pointed at: an artifact, a packed file, a built-in network or the user's own; and the task it is for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from featherweight import artifact, given, packed
from featherweight.artifact import Description
from featherweight.devices import chosen
from featherweight.errors import ArtifactError, InputError
from featherweight.job import Job
from featherweight.measure import Measurement
from featherweight.tasks import TASKS
from featherweight.training import Task
from featherweight.zoo import NETWORKS

PACKED = ".fwz"


@dataclass(frozen=True)
class Subject:
    """A network as its files hold it.

    network       with the edits replayed, in an artifact or a packed file
    original      of the class that was compressed; None for an exported module, which needs none
    description   of an artifact
    model, data   the names that the network and the task were given by, or that the artifact holds
    """

    network: nn.Module
    original: nn.Module | None
    task: Task
    description: Description | None
    model: str
    data: str


def load(
    target: str,
    model: str | None = None,
    data: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    also: Collection[str] = (),
    device: str = "cpu",
) -> Subject:
    """The network and the task of `target`, on `device`: an artifact's folder, a packed file, or a MODEL.

    `model` and `data`: those of a target that does not name its own. `also`: what else the command line names; an artifact of
    a network that stands there needs no `model`. Raises ArtifactError for damaged files, and InputError where something is not
    named or network and task are not made for each other.
    """
    path = Path(target)
    if is_model(target):
        made = Job.load(target, data or data_for(target), None, seed, threads, device)
        return Subject(made.network, made.network, made.task, None, target, made.data)
    if path.suffix == PACKED:
        if model is None or data is None:
            raise InputError(f"{path} names no network and no data: give --model and --data")
        made = Job.load(model, data, None, seed, threads, device)
        return Subject(packed.load(path, made.network), made.network, made.task, None, model, data)
    described = artifact.describe(path)
    # A path such as file.py:Net is code: it is taken from the command line only, whatever the artifact says.
    if described.exported is not None:
        if threads is not None:
            torch.set_num_threads(threads)
        data = data or recorded(described.data, TASKS, "--data", path)
        place = chosen(device)
        network, task = artifact.load(path).to(place), given.task(data, seed, place)
        given.check_fit(network, task, target, data)
        return Subject(network, None, task, described, model or target, data)
    named = [*NETWORKS, *(other for other in also if ".py:" in other)]
    model = model or recorded(described.model, named, "--model", path)
    made = Job.load(model, data or recorded(described.data, TASKS, "--data", path), None, seed, threads, device)
    network = artifact.load(path, made.network)
    given.check_fit(network, made.task, model, made.data)
    return Subject(network, made.network, made.task, described, model, made.data)


def is_model(target: str) -> bool:
    """Is it a built-in network or file.py:function, and no file or folder?"""
    return not Path(target).is_dir() and (target in NETWORKS or ".py:" in target)


def data_for(model: str) -> str:
    """The built-in task whose images a built-in network takes."""
    if model not in NETWORKS:
        raise InputError(f"no data is known for {model}: give --data, one of {', '.join(TASKS)}, or file.py:task")
    return "cifar10" if "res" in model or "vgg" in model else "digits"


def recorded(name: str | None, known: Collection[str], option: str, folder: Path) -> str:
    """A name that an artifact holds and that is `known`: built in, or given on the command line, too. Raises InputError for any
    other: a path is code, and is never taken from a file."""
    if name is not None and name in known:
        return name
    said = "names none" if name is None else f"names {name!r}, which is not built in"
    raise InputError(f"{folder} {said}: give {option}, one of {', '.join(known)}, or file.py:name")


def claimed(description: Description, folder: Path) -> Measurement:
    """What the last row of an artifact's report says. Raises ArtifactError."""
    try:
        return TypeAdapter(Measurement).validate_python(description.report[-1]["measured"])
    except (IndexError, KeyError, TypeError, ValidationError):
        where = folder / artifact.DESCRIPTION
        raise ArtifactError(f"{where} is damaged: its report has no measurement in its last row") from None
