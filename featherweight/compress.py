"""The program: recipe -> plan -> edits -> file. `compress` is a straight line; read it and you have read the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from featherweight import artifact
from featherweight.coding import plain
from featherweight.devices import chosen, placed
from featherweight.edits import Snapshot
from featherweight.factor import materialise
from featherweight.plan import resolve
from featherweight.recipe import Recipe
from featherweight.report import Row
from featherweight.run import Memory, Monitor, silent
from featherweight.stage import StageRun
from featherweight.training import Task
from featherweight.version import __version__


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
    device: torch.device | str | None = None,
) -> Compressed:
    """Run every stage of `recipe` on a copy of `model`, where `model` is, or on `device`.

    The example of the task goes to `device` too; its batches, loss and score move their own tensors, as the built-in ones do that
    are made with `device=`. A checkpoint goes on on any device, then with the bits of that one.

    With `workdir`, a checkpoint is written there every `checkpoint_seconds` and after each stage; the same call takes it up
    again and ends with bit-identical weights. `monitor` is told of every step; a KeyboardInterrupt it raises is saved first.
    Raises RecipeError before anything runs if a rule does not fit the network.
    """
    original = plain(model)
    if device is not None:
        place = chosen(device)
        original, task = original.to(place), replace(task, example=placed(task.example, place))
    for stage in recipe.stages:
        resolve(stage, original, example=task.example)
    memory = Memory.open(Path(workdir) if workdir else None, recipe, Snapshot.of(original, []), checkpoint_seconds)
    while memory.stage < len(recipe.stages):
        stage = recipe.stages[memory.stage]
        for start in memory.starts(recipe.candidates):
            memory.finish(StageRun(stage, start, original, task, memory, monitor).finish())
        memory.advance(stage.imposes, stage.epochs, recipe.candidates)
    final = memory.pool[memory.newest]
    network = final.snapshot.build(original)
    thin = materialise(network, example=task.example)
    snapshot = Snapshot.of(network, final.snapshot.structural() + thin.edits)
    return Compressed(network, snapshot, recipe, [Row.from_dict(row) for row in final.rows])
