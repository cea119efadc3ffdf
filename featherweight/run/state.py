"""A run's memory: what is finished, what is alive, and the stage in progress, so that a killed run goes on where it was."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from featherweight.budget.costs import Spent
from featherweight.errors import ArtifactError, FeatherweightError, InputError, shortened
from featherweight.files import checkpoint
from featherweight.files.edits import Edit, Snapshot
from featherweight.network import generators
from featherweight.recipe.schema import Recipe, Stage, from_dict
from featherweight.run import fingerprint
from featherweight.run.fingerprint import Fingerprint
from featherweight.run.validate import problem, shape_problem
from featherweight.training.fit import Step
from featherweight.version import __version__

CHECKPOINT = "checkpoint.pt"
FIRST_KEYS = {
    "recipe",
    "stage",
    "newest",
    "epochs",
    "random",
    "pool",
    "results",
    "baseline",
    "work",
}  # before it told its version
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


class Guide(Protocol):
    """What guides a stage's training and has a state of its own: `drivers.Imposed`, `learn_units.Proportions`."""

    def residuals(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...


def silent(progress: Progress) -> None:
    """The monitor that shows nothing."""


@dataclass
class Partial:
    """A network after some stage: itself, the rows measured on the way (plain data), and the last mean training loss."""

    snapshot: Snapshot
    rows: list[dict[str, Any]] = field(default_factory=list)
    loss: float = float("inf")


@dataclass
class Work:
    """The stage in progress, as last saved."""

    phase: str
    steps: int
    snapshot: Snapshot
    optimizer: dict[str, Any]
    imposed: dict[str, Any] | None
    residuals: dict[str, float]
    seconds: float
    random: generators.States
    began: generators.States  # the generators when the epoch in progress began
    losses: list[float]  # of that epoch
    spent: dict[str, Any] | None = None  # what was made of the budget of the stage's units
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)  # the states of auxiliary heads


@dataclass
class Memory:
    """All that a run knows. `pool`: the partial networks kept alive; `results`: this stage's, one for each start finished."""

    path: Path | None
    every: float  # seconds between checkpoints
    recipe: dict[str, Any]
    baseline: Snapshot  # the dense network, for distillation: as it was given, or as a stage that imposes nothing trained it
    pool: list[Partial]
    stage: int = 0
    newest: int = 0  # index in `pool` of the last stage's result
    results: list[Partial] = field(default_factory=list)
    epochs: int = 0  # finished epochs on this path; batches are a function of it
    work: Work | None = None
    random: generators.States = field(default_factory=generators.states)  # where the stage in progress began
    fingerprint: Fingerprint = field(default_factory=dict)  # of the network and the task
    proven: bool = True  # has what was read from a file been trained on?

    @classmethod
    def open(
        cls, workdir: Path | None, recipe: Recipe, original: Snapshot, every: float, about: Fingerprint | None = None
    ) -> Memory:
        """A new memory, or the one that an earlier run left in `workdir`. `about`: what more the run is of than the network.

        The recipe may have grown or changed in stages that had not begun. Raises InputError if it differs in others, or if the
        network or the task is another one, and ArtifactError for a checkpoint that is damaged or of another version.
        """
        described = recipe.to_dict()
        path = workdir / CHECKPOINT if workdir else None
        same = {"network": fingerprint.of_network(original.state)} | (about or {}) if path else {}
        saved = checkpoint.read(path, *_bounds(original, recipe)) if path else None
        if saved is None:
            return cls(path, every, described, original, [Partial(original)], fingerprint=same)
        assert path is not None
        earlier = _checked(saved, path)
        if differing := fingerprint.differences(saved["fingerprint"], same):
            state = "a finished" if saved["stage"] == len(earlier["stages"]) else "an unfinished"
            advice = "Give the same to go on, delete the folder to start over, or choose another --workdir"
            raise InputError(f"{workdir} holds {state} run of something else ({'; '.join(differing)}). {advice}")
        begun = saved["stage"] + bool(saved["work"] or saved["results"])
        if _begun(earlier, begun) != _begun(described, begun):
            raise InputError(
                f"{workdir} holds a run of another recipe; give the same one to go on, or another --workdir to start over"
            )
        return cls(
            path, every, described, Snapshot(**saved["baseline"]), [_partial(p) for p in saved["pool"]], saved["stage"],
            saved["newest"], [_partial(p) for p in saved["results"]],
            saved["epochs"],
            Work(**(saved["work"] | {"snapshot": Snapshot(**saved["work"]["snapshot"])})) if saved["work"] else None,
            saved["random"], same, proven=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def trusted(self) -> Iterator[None]:
        """Errors of any kind inside are the checkpoint's, until a step was made on what was read from it.

        Its fields are checked when it is opened; but the state of an optimizer, of a driver or of a parametrization can be judged
        only by the one that takes it, and each has errors of its own. Raises ArtifactError.
        """
        try:
            yield
        except Exception as error:
            if self.proven or (isinstance(error, FeatherweightError) and not isinstance(error, ArtifactError)):
                raise
            said = (str(error).strip().splitlines() or [""])[0][:300]
            raise ArtifactError(
                f"{self.path} does not fit this network and task, or the task fails at its first step "
                f"({type(error).__name__}: {said}); delete it to start over"
            ) from error

    def save(self) -> None:
        if self.path is None:
            return
        payload = {name: getattr(self, name) for name in ("recipe", "stage", "newest", "epochs", "random", "fingerprint")}
        payload |= {"featherweight": __version__}
        payload |= {"pool": [vars(p) | {"snapshot": vars(p.snapshot)} for p in self.pool]}
        payload |= {"results": [vars(p) | {"snapshot": vars(p.snapshot)} for p in self.results]}
        payload |= {"baseline": vars(self.baseline)}
        payload |= {"work": vars(self.work) | {"snapshot": vars(self.work.snapshot)} if self.work else None}
        checkpoint.write(self.path, payload)

    def starts(self, candidates: int) -> list[Partial]:
        """The partial networks that this stage still has to start from: the newest while the pool fills, then all."""
        chosen = self.pool if len(self.pool) == candidates else [self.pool[self.newest]]
        return chosen[len(self.results) :]

    def finish(self, result: Partial) -> None:
        """One start of this stage is done."""
        self.results.append(result)
        self.work, self.random = None, generators.states()
        self.save()

    def advance(self, imposed: bool, epochs: int, candidates: int) -> None:
        """The stage is done: its best result joins the pool, or replaces the partial network that it came from.

        A stage that imposes nothing replaces always: a dense network is no partial one, it is the teacher.
        """
        best = min(range(len(self.results)), key=lambda i: self.results[i].loss)
        if len(self.pool) < candidates and imposed and self.newest_is_partial():
            self.pool.append(self.results[best])
            self.newest = len(self.pool) - 1
        else:
            self.newest = best if len(self.pool) == candidates else self.newest
            self.pool[self.newest] = self.results[best]
        if not imposed:
            self.baseline = self.results[best].snapshot
        self.results, self.stage, self.epochs = [], self.stage + 1, self.epochs + epochs
        self.save()

    def newest_is_partial(self) -> bool:
        return any(edit["edit"] == "code" for edit in self.pool[self.newest].snapshot.edits)


class Watch:
    """Follows one stage from one start: saves when it is time, tells the monitor, and keeps the clock."""

    def __init__(
        self,
        memory: Memory,
        monitor: Monitor,
        stage: Stage,
        start: Partial,
        steps_an_epoch: int,
        spent: Spent | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ):
        self.memory, self.monitor, self.stage, self.start = memory, monitor, stage, start
        self.steps_an_epoch, self.spent, self.heads = steps_an_epoch, spent, heads or {}
        self.residuals: dict[str, float] = memory.work.residuals if memory.work else {}
        self.earlier = memory.work.seconds if memory.work else 0.0
        self.began = self.saved = time.monotonic()
        self.looked = -math.inf
        self.steps = 0  # in this process

    def over(
        self, phase: str, model: nn.Module, structural: list[Edit], optimizer: Optimizer, imposed: Guide | None
    ) -> Callable[[Step], None]:
        """The `after_step` for `fit`."""

        def save(step: Step) -> None:
            self.memory.work = Work(
                phase, step.done, Snapshot.of(model, structural), optimizer.state_dict(),
                imposed.state_dict() if imposed else None, self.residuals, self.seconds(), generators.states(),
                step.began, list(step.losses), asdict(self.spent) if self.spent else None,
                {pivot: head.state_dict() for pivot, head in self.heads.items()},
            )  # fmt: skip
            self.memory.save()
            self.saved = time.monotonic()

        def after(step: Step) -> None:
            now = time.monotonic()
            self.steps += 1
            self.memory.proven = True
            if imposed and now - self.looked >= SECONDS_BETWEEN_LOOKS:
                self.residuals, self.looked = imposed.residuals(), now
            if self.memory.path and now - self.saved >= self.memory.every:
                save(step)
            if self.monitor is silent:  # to tell the loss would wait for the device at every step
                return
            score = self.start.rows[-1]["measured"]["score"] if self.start.rows else None
            progress = Progress(
                self.stage.name, phase, step.done, step.total, step.loss, score, self.residuals, self._left(phase, step)
            )
            try:
                self.monitor(progress)
            except KeyboardInterrupt:
                if self.memory.path:
                    save(step)
                raise

        return after

    def seconds(self) -> float:
        """Wall time of the stage so far, interrupted runs included."""
        return self.earlier + time.monotonic() - self.began

    def _left(self, phase: str, step: Step) -> float:
        """Seconds to the end of the recipe at this process's pace."""
        later = sum(s["train"]["epochs"] + s["retrain"]["epochs"] for s in self.memory.recipe["stages"][self.memory.stage + 1 :])
        if phase == "train":
            later += self.stage.retrain.epochs
        steps = step.total - step.done + later * self.steps_an_epoch
        return steps * (time.monotonic() - self.began) / self.steps


def _partial(saved: dict[str, Any]) -> Partial:
    return Partial(Snapshot(**saved["snapshot"]), saved["rows"], saved["loss"])


def _bounds(original: Snapshot, recipe: Recipe) -> tuple[int, int]:
    """Bytes and tensors that no checkpoint of this network exceeds.

    A network in codes takes up to three times its bytes; the pool and the results hold one a candidate; and the one in training
    has an optimizer's and a driver's states beside it, some of each for every parameter.
    """
    networks = 6 * recipe.candidates + 32
    size = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in original.state.values())
    return 2**26 + networks * size, 1000 + 2 * networks * len(original.state)


def _checked(saved: Any, path: Path) -> dict[str, Any]:
    """The recipe of a checkpoint whose every field is what it should be. Raises ArtifactError."""
    advice = "delete it to start over"
    if isinstance(saved, dict) and saved.keys() == FIRST_KEYS:
        raise ArtifactError(
            f"{path} is not a checkpoint of this version of featherweight ({__version__}), but of one before it told its version "
            f"and the network that it is of; {advice}, or end its run with that version"
        )
    if wrong := shape_problem(saved):
        version = saved.get("featherweight") if isinstance(saved, dict) else None
        by = f" (it was written by {version[:100]!r})" if isinstance(version, str) and version != __version__ else ""
        raise ArtifactError(f"{path} is not a checkpoint of this version of featherweight{by}: {wrong}; {advice}")
    try:
        recipe = from_dict(saved["recipe"])  # fields that a newer version has brought take their defaults
    except (InputError, RecursionError) as error:
        said = shortened(str(error), 500)
        raise ArtifactError(f"{path} is not a checkpoint of this version of featherweight: {said}; {advice}") from error
    if wrong := problem(saved, recipe):
        raise ArtifactError(f"{path} is damaged: {wrong}; {advice}")
    return recipe.to_dict()


def _begun(recipe: dict[str, Any], stages: int) -> tuple[Any, ...]:
    """What a run of this many stages depends on."""
    return recipe["stages"][:stages], recipe["candidates"]
