"""The program: recipe -> plan -> edits -> file. `compress` is a straight line; read it and you have read the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.files import storage
from featherweight.files.edits import Snapshot
from featherweight.lowrank.factor import materialise
from featherweight.network import generators
from featherweight.network.devices import chosen, placed
from featherweight.recipe.schema import Constrain, CutUnits, LearnUnits, Recipe, Stage, Train
from featherweight.run.compressed import Compressed
from featherweight.run.constrain import constrain
from featherweight.run.contract import check_run
from featherweight.run.cut_units import cut_units
from featherweight.run.fingerprint import of_task
from featherweight.run.learn_units import learn_units
from featherweight.run.report import Row
from featherweight.run.stage import Ground, train
from featherweight.run.state import Result, RunState
from featherweight.run.watch import Monitor, silent
from featherweight.task import Task
from featherweight.weights.parametrized import plain

RUN: dict[type[Stage], Callable[[Any, Result, Ground], Result]] = {
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
    with generators.kept(), storage.claimed(place) if place else contextlib.nullcontext():
        original = plain(model)
        if device is not None:
            there = chosen(device)
            original, task = original.to(there), replace(task, example_inputs=placed(task.example_inputs, there))
        baseline = Snapshot.of(original, [])  # refuses what no file could hold
        check_run(recipe, task, original)
        about = of_task(task, original) | {"run": dict(identity or {})} if place else None
        state = RunState.open(place, recipe, baseline, checkpoint_seconds, about)
        ground = Ground(original, task, state, monitor)
        if not state.proven:
            with state.trusted():  # networks that a stage looks at late, or that no stage still to come looks at
                for snapshot in state.written.values():
                    snapshot.build(original)
        while state.stage < len(recipe.stages):
            stage = recipe.stages[state.stage]
            for start in state.starts():
                with state.trusted():
                    result = RUN[type(stage)](stage, start, ground)
                state.finish(result)
            state.advance()
        final = state.pool[state.newest]
        with state.trusted():
            network = final.snapshot.build(original)
            rows = [Row.from_dict(row) for row in final.rows]
        thin = materialise(network, example=task.example_inputs)
        snapshot = Snapshot.of(network, final.snapshot.structural() + thin.edits)
        return Compressed(network, snapshot, recipe, rows, original, task.example_inputs)
