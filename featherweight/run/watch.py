"""A stage is watched while it trains: saved when it is time, its monitor told of every step, the clock kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from featherweight.budget.costs import Spent
from featherweight.files.edits import Edit, Snapshot
from featherweight.network import generators
from featherweight.recipe.schema import Stage
from featherweight.run.in_shards import snapshot_of
from featherweight.run.state import Result, RunState, Unfinished
from featherweight.training.engine import Engine
from featherweight.training.fit import Step
from featherweight.training.shards import whole

SECONDS_BETWEEN_LOOKS = 1.0  # at the residuals: a look costs as much as a step of a small network


@dataclass(frozen=True)
class Progress:
    """What a monitor is told after each step. `score` is that of the last finished stage; residuals are of the last look."""

    stage: str
    phase: str  # "train" or "retrain"
    step: int
    steps: int
    loss: float
    score: float | None
    residuals: dict[str, float]
    seconds_left: float  # of the whole run, from the steps so far


Monitor = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The monitor that shows nothing."""


class Guide(Protocol):
    """What guides a stage's training and has a state of its own: `constrained.Constrained`, `learn_units.Proportions`."""

    def residuals(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...


class Watch:
    """Follows one stage from one start."""

    def __init__(self, state: RunState, monitor: Monitor, stage: Stage, start: Result, steps_an_epoch: int, engine: Engine):
        self.state, self.monitor, self.stage, self.start, self.steps_an_epoch = state, monitor, stage, start, steps_an_epoch
        self.engine = engine
        self.residuals: dict[str, float] = state.unfinished.residuals if state.unfinished else {}
        self.course = list(state.unfinished.course) if state.unfinished else []
        self.earlier = state.unfinished.seconds if state.unfinished else 0.0
        self.began = self.saved = time.monotonic()
        self.looked = -math.inf
        self.steps = 0  # in this process

    def over(
        self,
        phase: str,
        model: nn.Module,
        structural: list[Edit],
        optimizer: Optimizer,
        guide: Guide | None,
        spent: Spent | None,
        heads: Mapping[str, nn.Module],
    ) -> Callable[[Step], None]:
        """The `after_step` for `fit`."""

        def save(step: Step) -> None:
            if self.engine.shard:  # process 0 writes what it has gathered
                snapshot = snapshot_of(model, structural, self.engine.is_main)
            else:
                snapshot = Snapshot.of(model, structural)
            held = whole(optimizer.state_dict(), self.engine.is_main) if self.engine.shard else optimizer.state_dict()
            self.state.unfinished = Unfinished(
                phase, step.done, snapshot, held, guide.state_dict() if guide else None,
                self.residuals, self.seconds(), generators.states(), step.began, list(step.losses),
                asdict(spent) if spent else None, {pivot: head.state_dict() for pivot, head in heads.items()},
                list(self.course),
            )  # fmt: skip
            self.state.save()
            self.saved = time.monotonic()

        def after(step: Step) -> None:
            now = time.monotonic()
            self.steps += 1
            self.state.proven = True
            if step.done % self.steps_an_epoch == 0:
                self._epoch_ended(step, guide)
            if guide and now - self.looked >= SECONDS_BETWEEN_LOOKS and not self.engine.shard:  # all would have to look at once
                self.residuals, self.looked = guide.residuals(), now
            stopped = self._told(phase, step)
            if self.engine.agreed(self.state.place is not None and (stopped is not None or now - self.saved >= self.state.every)):
                save(step)
            if stopped is not None:
                raise stopped

        return after

    def _told(self, phase: str, step: Step) -> KeyboardInterrupt | None:
        """The monitor, which may ask to stop."""
        if self.monitor is silent:  # to tell the loss would wait for the device at every step
            return None
        score = self.start.rows[-1]["measured"]["score"] if self.start.rows else None
        told = Progress(self.stage.name, phase, step.done, step.total, step.loss, score, self.residuals, self._left(phase, step))
        try:
            self.monitor(told)
        except KeyboardInterrupt as stopped:
            return stopped
        return None

    def _epoch_ended(self, step: Step, guide: Guide | None) -> None:
        self.residuals = guide.residuals() if guide else self.residuals
        residuals = self.residuals.values() if guide else ()
        self.course.append((sum(step.losses) / len(step.losses), max(residuals, default=None)))

    def seconds(self) -> float:
        """Wall time of the stage so far, interrupted runs included."""
        return self.earlier + time.monotonic() - self.began

    def _left(self, phase: str, step: Step) -> float:
        """Seconds to the end of the recipe at this process's pace."""
        later = sum(stage.epochs for stage in self.state.recipe.stages[self.state.stage + 1 :])
        if phase == "train":
            later += self.stage.epochs - self.stage.train.epochs
        steps = step.total - step.done + later * self.steps_an_epoch
        return steps * (time.monotonic() - self.began) / self.steps
