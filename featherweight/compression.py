"""The program: recipe -> plan -> edits -> file. `compress` is a straight line; read it and you have read the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.files import artifact, storage
from featherweight.files.edits import Snapshot
from featherweight.lowrank.factor import materialise
from featherweight.network import generators
from featherweight.network.devices import chosen, placed
from featherweight.recipe.plan import resolve
from featherweight.recipe.schema import Recipe
from featherweight.run.contract import check_distillation, check_task, check_trained
from featherweight.run.fingerprint import of_task
from featherweight.run.report import Row
from featherweight.run.stage import StageRun
from featherweight.run.state import Memory, Monitor, Partial, silent
from featherweight.task import Task
from featherweight.version import __version__
from featherweight.weights.optimizers import check_codes
from featherweight.weights.parametrized import plain
from featherweight.weights.targets import weights_of


@dataclass(frozen=True)
class Compressed:
    """What `compress` gives back. `rows`: one a stage, measured after it."""

    model: nn.Module
    snapshot: Snapshot
    recipe: Recipe
    rows: list[Row]

    def save(self, folder: str | Path, *, model: str | None = None, data: str | None = None) -> dict[str, int]:
        """Write the artifact; its files' sizes in bytes. `model` and `data`: built-in names, for `featherweight inspect`."""
        report = [row.to_dict() for row in self.rows]
        described = artifact.Description(
            featherweight=__version__,
            model=model,
            data=data,
            edits=self.snapshot.edits,
            recipe=self.recipe.to_dict(),
            report=report,
        )
        return artifact.save(folder, self.snapshot, described)


def compress(
    model: nn.Module,
    recipe: Recipe,
    task: Task,
    *,
    workdir: str | Path | None = None,
    monitor: Monitor = silent,
    checkpoint_seconds: float = 30.0,
    identity: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
) -> Compressed:
    """Run every stage of `recipe` on a copy of `model`, where `model` is, or on `device`.

    The example of the task goes to `device` too; its batches, loss and score move their own tensors, as the built-in ones do that
    are made with `device=`. A checkpoint goes on on any device, then with the bits of that one.

    With `workdir`, a checkpoint is written there every `checkpoint_seconds` and after each stage; the same call takes it up
    again and ends with bit-identical weights. It is taken up only for the same network (names, shapes, values, kinds of modules),
    the same stages so far, and a task with the same example, optimizer and number of batches; `identity` is plain data that must
    be the same, too. One run at a time works in a folder. `monitor` is told of every step; a KeyboardInterrupt it raises is saved
    first. Global random generators stand afterwards where they stood before.

    Raises InputError before anything is trained if the task or a rule does not fit the network, if `workdir` holds the run of
    something else, or if another run is going on there; ArtifactError for a checkpoint that is damaged or of another version.
    """
    place = Path(workdir) if workdir is not None else None
    with generators.kept(), storage.claimed(place) if place else contextlib.nullcontext():
        original = plain(model)
        if device is not None:
            there = chosen(device)
            original, task = original.to(there), replace(task, example=placed(task.example, there))
        baseline = Snapshot.of(original, [])  # refuses what no file could hold
        checked = check_task(task, original)
        check_distillation(recipe, task, original, checked.batch)
        for stage in recipe.stages:
            targets = resolve(stage, original, example=task.example).targets
            weights_of(original, targets)
            check_trained(targets, checked.trained, stage)
            if targets and stage.retrain.epochs:
                check_codes(task.optimizer, original, targets.keys())
        about = of_task(task, original) | {"run": dict(identity or {})} if place else None
        memory = Memory.open(place, recipe, baseline, checkpoint_seconds, about)
        if not memory.proven:
            with memory.trusted():  # networks that a stage looks at late, or that no stage still to come looks at
                for partial in [Partial(memory.baseline), *memory.pool, *memory.results]:
                    partial.snapshot.build(original)
        while memory.stage < len(recipe.stages):
            stage = recipe.stages[memory.stage]
            for start in memory.starts(recipe.candidates):
                with memory.trusted():
                    result = StageRun(stage, start, original, task, memory, monitor).finish()
                memory.finish(result)
            memory.advance(stage.imposes, stage.epochs, recipe.candidates)
        final = memory.pool[memory.newest]
        with memory.trusted():
            network = final.snapshot.build(original)
            rows = [Row.from_dict(row) for row in final.rows]
        thin = materialise(network, example=task.example)
        snapshot = Snapshot.of(network, final.snapshot.structural() + thin.edits)
        return Compressed(network, snapshot, recipe, rows)
