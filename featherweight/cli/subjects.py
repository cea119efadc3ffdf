"""What a command is pointed at: an artifact, a packed file, a built-in network or the user's own; and the task it is for."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from featherweight.cli import console, inputs, jobs, remembered, usercode
from featherweight.cli.inputs import BUILT_IN_DATA
from featherweight.cli.jobs import HINT, Job
from featherweight.errors import ArtifactError, FeatherweightError, InputError, did_you_mean
from featherweight.files import artifact, packed
from featherweight.files.artifact import Description
from featherweight.measurement import Measurement, measure
from featherweight.network.devices import chosen
from featherweight.task import Task
from featherweight.zoo import own_data, sources
from featherweight.zoo.networks import NETWORKS

PACKED = ".fwz"
_CLAIMED: TypeAdapter[Measurement] = TypeAdapter(Measurement)  # made here: nothing is compiled while a file is read


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


class CodeNeeded(InputError):
    """An artifact of a class, or for a task, that has to be given on the command line.

    `options`: what the command needs besides, and what to give: what the artifact holds, as a hint, or a form to fill in.
    """

    def __init__(self, path: Path, options: dict[str, str | None]):
        hints = {option: _hint(text, path) for option, text in options.items()}
        self.options = {option: hint or FORMS[option] for option, hint in hints.items()}
        wanted = " and ".join(options)
        said = f"{path} holds no code: give {wanted}, as a built-in name or file.py:name."
        if all(hints.values()):
            said += f" It says that it was made with {' and '.join(filter(None, hints.values()))}; if that is your own file, run:"
        else:
            said += " Run, with your own file in place of FILE.py:"
        super().__init__(said)


FORMS = {"--model": "FILE.py:FUNCTION", "--data": "FILE.py:TASK", "--input": "1x3x224x224"}


def _hint(text: str | None, path: Path) -> str | None:
    """`text` where it is plain, and names no file that came along with the artifact: that would be its code, not the user's."""
    if text is None or HINT.fullmatch(text) is None:
        return None
    file = Path(text.rpartition(":")[0])
    foreign = file.is_absolute() or ".." in file.parts or path.resolve() in file.resolve().parents
    return None if foreign else text


def load(
    target: str,
    model: str | None = None,
    data: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    *,
    also: Collection[str] = (),
    shapes: Sequence[str] = (),
    device: str = "cpu",
) -> Subject:
    """The network and the task of `target`, on `device`: an artifact's folder, a packed file, or a MODEL.

    `model` and `data`: those of a target that does not name its own. `also`: what else the command line names; an artifact of
    a network that stands there needs no `model`. `shapes`: of the inputs, in place of data. Raises ArtifactError for damaged
    files, CodeNeeded where code has to be named, and InputError where network and task are not made for each other.
    """
    path = Path(target)
    if path.is_file():
        usercode.split(target)  # file.py without a name says so
    if is_model(target):
        data = data or (None if shapes else data_for(target))
        made = Job.load(target, data, None, seed, threads, shapes=shapes, device=device)
        return Subject(made.network, made.network, made.task, None, target, made.data)
    if path.suffix == PACKED:
        if not path.is_file():
            raise ArtifactError(f"there is no file {path}")
        _require(path, model, data, shapes, None, None)
        assert model is not None
        made = Job.load(model, data, None, seed, threads, shapes=shapes, device=device)
        return Subject(packed.load(path, made.network), made.network, made.task, None, model, made.data)
    if not os.path.lexists(path):
        raise ArtifactError(f"{path} is not an artifact: there is no folder of that name.{did_you_mean(target, NETWORKS)}")
    described = artifact.describe(path)
    # A path such as file.py:Net is code: it is taken from the command line only, whatever the artifact says.
    typed = _typed_here(path, described)
    if typed is not None and data is None and not shapes:
        data, shapes = typed.data, typed.shapes
    if not shapes and described.data in BUILT_IN_DATA:
        data = data or described.data
    if described.exported is not None:
        if threads is not None:
            torch.set_num_threads(threads)
        _require(path, target, data, shapes, None, described.data)
        place = chosen(device)
        network = artifact.load(path).to(place)
        task, data = inputs.work(data, shapes, seed, place)
        inputs.check_fit(network, task, target, data)
        return Subject(network, None, task, described, model or target, data)
    built = None
    if described.model in NETWORKS or (described.model in also and ".py:" in (described.model or "")):
        model = model or described.model
    elif model is None and described.source is not None:
        model, built = typed.model if typed is not None else str(described.source), artifact.built(path)
    elif model is None and typed is not None:
        model = typed.model
        console.note(f"note: {path} was made here of {model}, which is used again; --model names another")
    if scored(described) or built is None:
        _require(path, model, data, shapes, described.model, described.data, "--data" if scored(described) else "--input")
    assert model is not None
    made = Job.load(model, data, None, seed, threads, shapes=shapes, device=device, built=built)
    network = artifact.load(path, made.network)
    inputs.check_fit(network, made.task, model, made.data)
    return Subject(network, made.network, made.task, described, model, made.data)


def _typed_here(path: Path, described: Description) -> remembered.Typed | None:
    """What was typed when this artifact was made here; None where another has taken its place since."""
    typed = remembered.of(path)
    if typed is None or described.exported is not None:
        return None
    held = str(described.source) if described.source is not None else described.model
    named = sources.is_source(typed.model) if described.source is not None else _told(typed.model, described.model)
    return typed if held is not None and named else None


def _told(typed: str, said: str | None) -> bool:
    """Is `said`, of an artifact, what it would hold of `typed`, a path that is whole now?"""
    noted = jobs.noted(typed, NETWORKS)
    return noted is not None and said is not None and Path(noted).name == Path(said).name


def scored(described: Description) -> bool:
    """Does its report hold a score? What was made without data holds none."""
    try:
        return described.report[-1]["measured"]["score"] is not None
    except (IndexError, KeyError, TypeError):
        return True


def _require(
    path: Path,
    model: str | None,
    data: str | None,
    shapes: Sequence[str],
    said_model: str | None,
    said_data: str | None,
    option: str = "--data",
) -> None:
    """Raises CodeNeeded for what is lacking of the two. `option`: what is asked for where there is neither data nor shapes."""
    lacking = {"--model": said_model} if model is None else {}
    if data is None and not shapes:
        lacking[option] = said_data if option == "--data" else None
    if lacking:
        raise CodeNeeded(path, lacking)


def original_of(folder: Path, model: str | None) -> nn.Module:
    """The network that an artifact was made of: as given, as it names it, or as it was typed here. Raises CodeNeeded."""
    described = artifact.describe(folder)
    if model is None and (built := artifact.built(folder)) is not None:
        return built
    said = described.model
    typed = _typed_here(folder, described)
    model = model or (said if said in NETWORKS else typed.model if typed is not None else None)
    _require(folder, model, "", (), said, None)
    assert model is not None
    return inputs.network(model)


def is_model(target: str) -> bool:
    """Is it a built-in network, one of a library's, or file.py:function, and no file or folder?"""
    return not Path(target).is_dir() and (target in NETWORKS or ".py:" in target or sources.is_source(target))


def is_packed(target: str) -> bool:
    """Is it a packed file, by its name, and there?"""
    return Path(target).suffix == PACKED and Path(target).is_file()


def unpacked(target: str, model: str, seed: int, device: str) -> tuple[nn.Module, nn.Module]:
    """The network of a packed file, and the one of its class before: for what is counted without an input."""
    torch.manual_seed(seed)
    original = inputs.network(model).to(chosen(device))
    return packed.load(Path(target), original), original


def takes_shapes(target: str) -> bool:
    """Is the shape of an input enough, as of a MODEL that is looked at, a packed file, and an artifact made without data?"""
    path = Path(target)
    return is_model(target) or path.suffix == PACKED or not scored(artifact.describe(path))


def data_for(model: str) -> str | None:
    """The built-in task whose images, or sequences, a built-in network takes; None where a network's library gives an example."""
    if sources.is_source(model):
        return None
    if model not in NETWORKS:
        raise InputError(
            f"nothing is known of the inputs of {model}: give their shape, such as --input 1x3x224x224, or --data, one of "
            f"{', '.join((*BUILT_IN_DATA, *own_data.FORMS))}, or file.py:task"
        )
    if model.startswith("deepmotif"):
        return "tfbs:planted"
    return "cifar10" if "res" in model or "vgg" in model else "digits"


def claimed(description: Description, folder: Path) -> Measurement:
    """What the last row of an artifact's report says. Raises ArtifactError."""
    try:
        return _CLAIMED.validate_python(description.report[-1]["measured"])
    except (IndexError, KeyError, TypeError, ValidationError):
        where = folder / artifact.DESCRIPTION
        raise ArtifactError(f"{where} is damaged: its report has no measurement in its last row") from None


def measured(held: Subject, target: str) -> Measurement:
    """The network measured anew. Raises InputError where the task cannot score it."""
    without = held.data.startswith("--input") or (held.description is not None and not scored(held.description))
    try:
        return measure(held.network, held.task.example_inputs, None if without else held.task.evaluate)
    except FeatherweightError:
        raise
    except Exception as error:
        said = usercode.excerpt(error) or usercode.shortened(f"{type(error).__name__}: {error}")
        raise InputError(f"{target} cannot be scored by {held.data}; give the --data that it was made for:\n{said}") from error
