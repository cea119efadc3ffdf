"""One job of the command line: a network, a task and a recipe brought together, planned, run, taken up again and saved."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight import artifact, checkpoint, console, given
from featherweight.coding import coded
from featherweight.compress import Compressed, compress
from featherweight.devices import chosen
from featherweight.errors import ArtifactError, InputError, StorageError
from featherweight.measure import decoded
from featherweight.plan import matches, resolve
from featherweight.recipe import Recipe
from featherweight.run import CHECKPOINT
from featherweight.tasks import TASKS
from featherweight.training import Task
from featherweight.zoo import NETWORKS

RUN = "run.json"  # in a workdir: what the run there was started with
SHOWN_APART = ("name", "rules", "keep", "allocate", "driver", "train", "retrain", "units", "adaptive")  # of a stage in a plan


@dataclass(frozen=True)
class Job:
    """The network and the task that a command works on, and the names they were given by."""

    model: str
    data: str
    network: nn.Module
    task: Task
    trained: bool  # are the weights given, or a built-in network's first random ones?
    identity: dict[str, Any]  # what must be the same for a run to be taken up again

    @classmethod
    def load(
        cls, model: str, data: str, weights: Path | None = None, seed: int = 0, threads: int | None = None, device: str = "cpu"
    ) -> Job:
        """Bring them together on `device` after seeding torch. Raises InputError where they are not made for each other."""
        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        place = chosen(device)
        network, task = given.network(model, weights).to(place), given.task(data, seed, place)
        given.check_fit(network, task, model, data)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else None
        identity = {"model": model, "data": data, "seed": seed, "weights": digest}
        return cls(model, data, network, task, weights is not None or model not in NETWORKS, identity)


def run(job: Job, recipe: Recipe, out: Path, workdir: Path, keep_workdir: bool) -> tuple[Compressed, dict[str, int]]:
    """Compress and save, going on from a checkpoint in `workdir`: what was done, and the sizes of the files written.

    Raises KeyboardInterrupt after saving, and every FeatherweightError.
    """
    _check_output(out)
    resumed = _claim(workdir, job.identity)
    first = recipe.stages[0]
    if resumed:
        console.note(f"going on from the checkpoint in {workdir}")
    elif not job.trained and (first.rules or not first.train.epochs):
        hint = "give --weights FILE, or let the recipe train it first (progressive_admm: --set dense_epochs=20)"
        console.note(f"note: {job.model} starts from random weights, and no stage trains it before it is compressed; {hint}")
    with console.Display([stage.name for stage in recipe.stages]) as display:
        done = compress(job.network, recipe, job.task, workdir=workdir, monitor=display)
    display.finished(done.rows[-1].stage, done.rows[-1].measured.score)
    # A path such as file.py:Net is code, and an artifact names no code: only built-in names are recorded.
    model = job.model if job.model in NETWORKS else None
    data = job.data if job.data in TASKS else None
    files = done.save(out, model=model, data=data)
    if not keep_workdir:
        _remove(workdir)
    return done, files


def beside(out: Path) -> Path:
    """The default workdir."""
    return out.resolve().with_name(f"{out.resolve().name}.work")


def _check_output(out: Path) -> None:
    """Fail before the work and not after it. Raises InputError, StorageError."""
    if out.exists() and not (out / artifact.DESCRIPTION).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an artifact of featherweight: choose another output folder")
    try:
        parent = out.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror}. Choose another output folder") from error


def _claim(place: Path, identity: dict[str, Any]) -> bool:
    """Note in `place` what the run there is of; is there a checkpoint to go on from? Raises InputError if it is another run's."""
    note, resumed = place / RUN, (place / CHECKPOINT).exists()
    if resumed and note.exists():
        try:
            before = json.loads(note.read_text())
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise ArtifactError(f"{note} is damaged; delete {place} to start over")
        changed = [
            f"{key} {before.get(key)!r} then, {value!r} now" for key, value in identity.items() if before.get(key) != value
        ]
        if changed:
            advice = "Give the same to go on, delete the folder to start over, or choose another --workdir"
            raise InputError(f"{place} holds an unfinished run of something else ({'; '.join(changed)}). {advice}")
        return True
    try:
        place.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(".part")
        part.write_text(json.dumps(identity))
        os.replace(part, note)
        checkpoint.sync_folder(place)
    except OSError as error:
        raise StorageError(f"cannot write to the workdir {place}: {error.strerror}") from error
    return resumed


def _remove(place: Path) -> None:
    """Remove our own files, and the folder if nothing else is in it."""
    for name in (CHECKPOINT, f"{CHECKPOINT}.part", RUN):
        (place / name).unlink(missing_ok=True)
    if not any(place.iterdir()):
        shutil.rmtree(place)


def plan(job: Job, recipe: Recipe) -> list[dict[str, Any]]:
    """Every stage as plain data. A size that an allocator will choose on weights, or gradients, still to come is None."""
    steps = len(job.task.batches(0))
    stages = []
    changed = False  # will the weights be others than now when the stage starts?
    for stage in recipe.stages:
        resolved = resolve(stage, job.network, example=job.task.example)
        targets = []
        budget = {"size": 0, "of": 0}
        for name, target in resolved.targets.items():
            rule = next(rule for rule in stage.rules if matches(rule.targets, name))
            size, of = resolved.sizes.get(name, (None, None))
            allocated = rule.keep is None and not rule.set.complete()
            if allocated and size is not None and of is not None:
                budget = {"size": budget["size"] + size, "of": budget["of"] + of}
            described = {"set": console.described(rule.set), "view": target.view.pattern}
            later = allocated and (changed or stage.fisher > 0 or stage.respread)
            targets.append({"parameter": name, **described, "size": None if later else size, "of": of})
        options: dict[str, Any] = {"keep": stage.keep, "allocate": stage.allocate} if budget["of"] else {}
        everything = asdict(stage)
        options |= {name: value for name, value in everything.items() if name not in SHOWN_APART and value}
        stages.append(
            {
                "stage": stage.name,
                "train": asdict(stage.train) | {"steps": stage.train.epochs * steps},
                "retrain": asdict(stage.retrain) | {"steps": stage.retrain.epochs * steps},
                "units": asdict(stage.units) if stage.units else None,
                "adaptive": asdict(stage.adaptive) if stage.adaptive else None,
                "driver": console.described(stage.driver),
                "options": options,
                "targets": targets,
                "budget": budget if budget["of"] else None,
            }
        )
        changed = changed or bool(targets) or stage.epochs > 0
    return stages


def weights_left(network: nn.Module, original: nn.Module) -> dict[str, dict[str, Any]]:
    """Coded parameter -> its code, its non-zero weights, and its weights in the original network."""
    now, before = decoded(network), decoded(original)
    return {
        name: {"code": viewed.code.kind, "nonzeros": int(now[name].count_nonzero()), "of": before[name].numel()}
        for name, viewed in sorted(coded(network).items())
    }
