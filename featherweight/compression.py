"""The program: recipe -> plan -> edits -> file. `compress` is a straight line; read it and you have read the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.recipe.schema import Constrain, CutUnits, LearnUnits, Recipe, Stage, Train
from featherweight.run.compressed import Compressed
from featherweight.run.constrain import constrain
from featherweight.run.cut_units import cut_units
from featherweight.run.ground import Ground, ground_of, outcome, working
from featherweight.run.learn_units import learn_units
from featherweight.run.stage import train
from featherweight.run.state import Result
from featherweight.run.watch import Monitor, silent
from featherweight.task import Task

RUN: dict[type[Stage], Callable[[Any, Result, Ground, Monitor], Result]] = {
    Train: train,
    Constrain: constrain,
    CutUnits: cut_units,
    LearnUnits: learn_units,
}


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
    with working(place):
        ground = ground_of(model, recipe, task, place, checkpoint_seconds, identity, device)
        state = ground.state
        while state.stage < len(recipe.stages):
            stage = recipe.stages[state.stage]
            for start in state.starts():
                with state.trusted():
                    result = RUN[type(stage)](stage, start, ground, monitor)
                state.finish(result)
            state.advance()
        return outcome(ground)
