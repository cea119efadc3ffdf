"""What every stage of a run stands on, made before the first and read out after the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.files import storage
from featherweight.files.edits import Snapshot
from featherweight.lowrank.factor import materialise
from featherweight.network import generators
from featherweight.network.devices import chosen, placed
from featherweight.recipe.schema import Recipe
from featherweight.run import in_shards
from featherweight.run.compressed import Compressed
from featherweight.run.contract import check_run
from featherweight.run.fingerprint import of_task
from featherweight.run.report import Row
from featherweight.run.state import RunState
from featherweight.structure.exported import is_exported
from featherweight.task import Task
from featherweight.training.engine import ALONE as ALONE
from featherweight.training.engine import Engine as Engine
from featherweight.training.engine import Processes as Processes
from featherweight.training.engine import engine_of as engine_of
from featherweight.training.engine import launched as launched
from featherweight.training.engine import local as local
from featherweight.weights.parametrized import plain


@dataclass(frozen=True)
class Ground:
    """`original`: the network as it was given, plain and on the device of the run."""

    original: nn.Module
    task: Task
    state: RunState
    engine: Engine = ALONE


@contextlib.contextmanager
def working(place: Path | None, engine: Engine = ALONE) -> Iterator[None]:
    """One run at a time in a folder, and the caller's random generators where they stood. Raises InputError."""
    with generators.kept(), contextlib.ExitStack() as inside, engine.answered():
        if place is not None:
            engine.decided(lambda: inside.enter_context(storage.claimed(place)))
        yield


def ground_of(
    model: nn.Module,
    recipe: Recipe,
    task: Task,
    place: Path | None,
    seconds: float,
    identity: Mapping[str, Any] | None,
    device: torch.device | str | None,
    engine: Engine = ALONE,
) -> Ground:
    """A run that is checked whole and has not begun, or one that goes on. `seconds`: between checkpoints."""
    original = plain(model)
    device = engine.device if device is None else device
    if device is not None:
        there = chosen(device)
        original, task = original.to(there), replace(task, example_inputs=placed(task.example_inputs, there))

    def opened() -> RunState:
        baseline = Snapshot.of(original, [])  # refuses what no file could hold
        check_run(recipe, task, original)
        about = of_task(task, original) | {"run": dict(identity or {})} if place else None
        state = RunState.open(place, recipe, baseline, seconds, about)
        if not state.proven:
            with state.trusted():  # networks that a stage looks at late, or that no stage still to come looks at
                for snapshot in state.written.values():
                    snapshot.build(original)
        return state

    state = engine.decided(opened)
    if not engine.is_main:
        state.place = None  # one process writes
    engine.same([*original.parameters(), *original.buffers()])
    if engine.shard:
        in_shards.check(recipe, task, original, engine)
    return Ground(original, task, state, engine)


def outcome(ground: Ground) -> Compressed:
    """What came of the run: thin factors are two plain layers."""
    final = ground.state.pool[ground.state.newest]
    with ground.state.trusted():
        network = final.snapshot.build(ground.original)
        rows = [Row.from_dict(row) for row in final.rows]
    thin = materialise(network, example=ground.task.example_inputs)
    edits = [] if is_exported(network) else final.snapshot.structural() + thin.edits
    snapshot = Snapshot.of(network, edits)
    return Compressed(network, snapshot, ground.state.recipe, rows, ground.original, ground.task.example_inputs)
