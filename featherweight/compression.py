"""The program: recipe -> plan -> edits -> file. `compress` is a straight line; read it and you have read the rest. `shrink` finds
the recipe to a goal first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featherweight.recipe.schema import Constrain, CutUnits, DropBlocks, LearnUnits, Recipe, Stage, Train
from featherweight.recipe.way import Way
from featherweight.recipes.goals import ways_to
from featherweight.run.again import until_met, workdir_of
from featherweight.run.choose import choose
from featherweight.run.compressed import Compressed
from featherweight.run.constrain import constrain
from featherweight.run.cut_units import cut_units
from featherweight.run.drop_blocks import drop_blocks
from featherweight.run.goals import Goal
from featherweight.run.ground import Ground, engine_of, ground_of, outcome, working
from featherweight.run.learn_units import learn_units
from featherweight.run.shrunk import Choice, Shrunk, settled
from featherweight.run.stage import train
from featherweight.run.state import Result
from featherweight.run.watch import Monitor, silent
from featherweight.task import Task

RUN: dict[type[Stage], Callable[[Any, Result, Ground, Monitor], Result]] = {
    Train: train,
    Constrain: constrain,
    CutUnits: cut_units,
    DropBlocks: drop_blocks,
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
    engine: Any = None,
) -> Compressed:
    """Run every stage of `recipe` on a copy of `model`, where `model` is, or on `device`.

    The example of the task goes to `device` too; its batches, loss and score move their own tensors, as the built-in ones do that
    are made with `device=`. A checkpoint goes on on any device, then with the bits of that one.

    With `workdir`, a checkpoint is written there every `checkpoint_seconds` and after each stage; the same call takes it up
    again and ends with bit-identical weights. It is taken up only for the same network (names, shapes, values, kinds of modules),
    the same stages so far, and a task with the same example, optimizer and number of batches; `identity` is plain data that must
    be the same, too. One run at a time works in a folder. `monitor` is told of every step; a KeyboardInterrupt it raises is saved
    first. Global random generators stand afterwards where they stood before.

    `engine`: accelerate's Accelerator, a process group of torch.distributed, or `fw.Processes`, which can keep weights in shards;
    every process makes the same call. Each takes its share of every batch (the first dimension of its tensors; the loss is the
    mean over samples), so that a step is one process's but for the order of sums. The first process decides, scores and writes;
    all get the result. See docs/scale.md.

    Raises InputError before anything is trained if the task or a rule does not fit the network, if `workdir` holds the run of
    something else, or if another run is going on there; ArtifactError for a checkpoint that is damaged or of another version.
    """
    place = Path(workdir) if workdir is not None else None
    asked = engine_of(engine)
    with working(place, asked):
        ground = ground_of(model, recipe, task, place, checkpoint_seconds, identity, device, asked)
        state = ground.state
        while state.stage < len(recipe.stages):
            stage = recipe.stages[state.stage]
            for start in state.starts():
                with state.trusted():
                    result = RUN[type(stage)](stage, start, ground, monitor)
                state.finish(result)
            state.advance()
        return outcome(ground)


def shrink(
    model: nn.Module,
    task: Task,
    to: str,
    *,
    lose: float | None = None,
    epochs: int = 20,
    runtimes: Sequence[Any] = (),
    told: Callable[[str], None] = lambda line: None,
    **run: Any,
) -> Shrunk:
    """Reach a goal: at most "100kB", "2ms", "macs=50%", "weights=10x" (fewer), "parameters=25%", or "faster=2x" than the fastest
    runtime runs `model` as it is; at the cost of at most `lose` points of the task's score, which is checked at the end.

    Ways are measured untrained, a few are probed on training batches of which others are held out, and the best is run once with
    `epochs` of training; its recipe is in `choice`. Where that misses the goal as measured, and points are left, it is tightened
    and run again, twice at most, in folders 2 and 3 of `workdir`; the nearest is kept, and all are in `runs`. The task's score
    is asked of the dense network and of those that were run in full.
    `runtimes`: for a goal of time, of "eager", "onnx", "integers" and "c" those that may be used. `told` hears of each step;
    `run`: further arguments of `compress`. Raises OutOfReach, with the least that can be reached.
    """

    def choose_here() -> Choice:
        return chosen(model, task, Goal.of(to), epochs=epochs, runtimes=runtimes, told=told, device=run.get("device"))

    def in_full(choice: Choice) -> Shrunk:
        place = run.get("workdir")
        inside = run | {"workdir": workdir_of(Path(place), choice)} if place is not None else run
        return settled(choice, compress(model, choice.recipe, task, **inside), task, lose)

    decided = engine_of(run.get("engine")).decided
    choice = decided(choose_here)
    told(str(choice))
    found = until_met(choice, in_full, ways_of(choice), told, lose, decided=decided)
    assert found is not None  # nothing was run before
    return found


def ways_of(choice: Choice) -> Sequence[Way]:
    """Those that end in the runtime of a choice, its own among them."""
    return ways_to(choice.goal.what, () if choice.runtime is None else (choice.runtime,), choice.fastest)


def chosen(
    model: nn.Module,
    task: Task,
    goal: Goal,
    *,
    epochs: int = 20,
    runtimes: Sequence[Any] = (),
    told: Callable[[str], None] = lambda line: None,
    device: torch.device | str | None = None,
) -> Choice:
    """The first half of `shrink`: what to do, and why; nothing is run in full."""

    def run(recipe: Recipe, part: Task) -> Compressed:
        return compress(model, recipe, part, device=device)

    return choose(model, task, goal, run, functools.partial(ways_to, goal.what), epochs=epochs, runtimes=runtimes, told=told)
