"""Where a run stands: what is finished, what is alive, and the stage in progress, so that a killed run goes on where it was.

In the run's folder, `checkpoint.pt` holds all but the networks that a stage has finished; each of those lies in a file
`network-N.pt`, written once. A network is written before the checkpoint that names it, and removed after the last one that did.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight.errors import ArtifactError, FeatherweightError, InputError, shortened
from featherweight.files import checkpoint
from featherweight.files.description import WRITER
from featherweight.files.edits import Snapshot
from featherweight.network import generators
from featherweight.recipe.reading import from_dict
from featherweight.recipe.schema import Recipe
from featherweight.run import fingerprint, validate
from featherweight.run.fingerprint import Fingerprint

CHECKPOINT = "checkpoint.pt"
NETWORK = "network-{}.pt"
FIRST_KEYS = {"recipe", "stage", "newest", "epochs", "random", "pool", "results", "baseline", "work"}  # told no version
ADVICE = "delete it to start over"


@dataclass
class Result:
    """A network after some stage: itself, the rows measured on the way (plain data), and the last mean training loss."""

    snapshot: Snapshot
    rows: list[dict[str, Any]] = field(default_factory=list)
    loss: float = float("inf")


@dataclass
class Unfinished:
    """The stage in progress, as last saved."""

    phase: str
    steps: int
    snapshot: Snapshot
    optimizer: dict[str, Any]
    guide: dict[str, Any] | None
    residuals: dict[str, float]
    seconds: float
    random: generators.States
    began: generators.States  # the generators when the epoch in progress began
    losses: list[float]  # of that epoch
    spent: dict[str, Any] | None = None  # what was made of the budget of the stage's units
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)  # the states of auxiliary heads
    course: list[tuple[float, float | None]] = field(default_factory=list)  # of the stage's finished epochs, see `report.Row`


@dataclass
class RunState:
    """All that a run knows. `pool`: the networks kept alive; `results`: this stage's, one for each start finished."""

    place: Path | None
    every: float  # seconds between checkpoints
    recipe: Recipe
    baseline: Snapshot  # the dense network, for distillation: as it was given, or as a stage that imposes nothing trained it
    pool: list[Result]
    stage: int = 0
    newest: int = 0  # index in `pool` of the last stage's result
    results: list[Result] = field(default_factory=list)
    epochs: int = 0  # finished epochs on this path; batches are a function of it
    unfinished: Unfinished | None = None
    random: generators.States = field(default_factory=generators.states)  # where the stage in progress began
    fingerprint: Fingerprint = field(default_factory=dict)  # of the network and the task
    proven: bool = True  # has what was read from a file been trained on?
    written: dict[int, Snapshot] = field(default_factory=dict)  # number of a file -> the network in it

    @classmethod
    def open(
        cls, workdir: Path | None, recipe: Recipe, original: Snapshot, every: float, about: Fingerprint | None = None
    ) -> RunState:
        """A new state, or the one that an earlier run left in `workdir`. `about`: what more the run is of than the network.

        The recipe may have grown or changed in stages that had not begun. Raises InputError if it differs in others, or if the
        network or the task is another one, and ArtifactError for a checkpoint that is damaged or of another version.
        """
        same = {"network": fingerprint.of_network(original.state)} | (about or {}) if workdir else {}
        limits = _limits(original, recipe)
        saved = checkpoint.read(workdir / CHECKPOINT, *limits) if workdir else None
        if saved is None:
            return cls(workdir, every, recipe, original, [Result(original)], fingerprint=same)
        assert workdir is not None
        earlier = _recipe_of(saved, workdir / CHECKPOINT)
        if differing := fingerprint.differences(saved["fingerprint"], same):
            state = "a finished" if saved["stage"] == len(earlier.stages) else "an unfinished"
            advice = "Give the same to go on, delete the folder to start over, or choose another --workdir"
            raise InputError(f"{workdir} holds {state} run of something else ({'; '.join(differing)}). {advice}")
        begun = saved["stage"] + bool(saved["unfinished"] or saved["results"])
        if _begun(earlier, begun) != _begun(recipe, begun):
            raise InputError(
                f"{workdir} holds a run of another recipe; give the same one to go on, or another --workdir to start over"
            )
        return cls.from_dict(saved, workdir, every, recipe, limits)

    def to_dict(self) -> dict[str, Any]:
        """Plain data and tensors; a finished network is the number of its file."""
        numbers = {id(snapshot): number for number, snapshot in self.written.items()}

        def result(one: Result) -> dict[str, Any]:
            return {"network": numbers[id(one.snapshot)], "rows": one.rows, "loss": one.loss}

        return {
            "featherweight": WRITER,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe.to_dict(),
            "stage": self.stage,
            "newest": self.newest,
            "epochs": self.epochs,
            "random": self.random,
            "pool": [result(one) for one in self.pool],
            "results": [result(one) for one in self.results],
            "baseline": numbers[id(self.baseline)],
            "unfinished": vars(self.unfinished) | {"snapshot": vars(self.unfinished.snapshot)} if self.unfinished else None,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any], place: Path, every: float, recipe: Recipe, limits: tuple[int, int]) -> RunState:
        """The state of a run of `recipe` in `place`; `saved` has been checked. Raises ArtifactError at a network that is not."""
        numbers = {one["network"] for one in [*saved["pool"], *saved["results"]]} | {saved["baseline"]}
        written = {number: _network(place / NETWORK.format(number), limits) for number in sorted(numbers)}
        unfinished = saved["unfinished"]

        def result(one: dict[str, Any]) -> Result:
            return Result(written[one["network"]], one["rows"], one["loss"])

        return cls(
            place, every, recipe, written[saved["baseline"]], [result(one) for one in saved["pool"]], saved["stage"],
            saved["newest"], [result(one) for one in saved["results"]], saved["epochs"],
            Unfinished(**(unfinished | {"snapshot": Snapshot(**unfinished["snapshot"])})) if unfinished else None,
            saved["random"], saved["fingerprint"], proven=False, written=written,
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
                f"{self.place and self.place / CHECKPOINT} does not fit this network and task, or the task fails at its first "
                f"step ({type(error).__name__}: {said}); {ADVICE}"
            ) from error

    def save(self) -> None:
        if self.place is None:
            return
        alive = {id(snapshot): snapshot for snapshot in (self.baseline, *(one.snapshot for one in [*self.pool, *self.results]))}
        there = {id(snapshot) for snapshot in self.written.values()}
        for snapshot in (alive[key] for key in alive if key not in there):
            number = max([-1, *self.written, *files_of(self.place)]) + 1
            checkpoint.write(self.place / NETWORK.format(number), vars(snapshot))
            self.written[number] = snapshot
        self.written = {number: snapshot for number, snapshot in self.written.items() if id(snapshot) in alive}
        checkpoint.write(self.place / CHECKPOINT, self.to_dict())
        for number, path in files_of(self.place).items():
            if number not in self.written:
                path.unlink(missing_ok=True)

    def starts(self) -> list[Result]:
        """The networks that this stage still has to start from: the newest while the pool fills, then all."""
        chosen = self.pool if len(self.pool) == self.recipe.candidates else [self.pool[self.newest]]
        return chosen[len(self.results) :]

    def finish(self, result: Result) -> None:
        """One start of this stage is done."""
        self.results.append(result)
        self.unfinished, self.random = None, generators.states()
        self.save()

    def advance(self) -> None:
        """The stage is done: its best result joins the pool, or replaces the network that it came from.

        A stage that imposes nothing replaces always: a dense network is no candidate, it is the teacher.
        """
        stage, candidates = self.recipe.stages[self.stage], self.recipe.candidates
        best = min(range(len(self.results)), key=lambda i: self.results[i].loss)
        if len(self.pool) < candidates and stage.imposes and self._newest_is_coded():
            self.pool.append(self.results[best])
            self.newest = len(self.pool) - 1
        else:
            self.newest = best if len(self.pool) == candidates else self.newest
            self.pool[self.newest] = self.results[best]
        if not stage.imposes:
            self.baseline = self.results[best].snapshot
        self.results, self.stage, self.epochs = [], self.stage + 1, self.epochs + stage.epochs
        self.save()

    def _newest_is_coded(self) -> bool:
        return any(edit["edit"] == "code" for edit in self.pool[self.newest].snapshot.edits)


def files_of(place: Path) -> dict[int, Path]:
    """Number -> file of a finished network in a run's folder."""
    pattern = re.compile(re.escape(NETWORK).replace(r"\{\}", "([0-9]{1,9})"))
    found = {path: pattern.fullmatch(path.name) for path in place.iterdir()} if place.is_dir() else {}
    return {int(match[1]): path for path, match in found.items() if match}


def _network(path: Path, limits: tuple[int, int]) -> Snapshot:
    saved = checkpoint.read(path, *limits)
    if saved is None:
        raise ArtifactError(f"{path} is missing, which the checkpoint beside it names; delete the folder to start over")
    if wrong := validate.network_problem(saved):
        raise ArtifactError(f"{path} is damaged: {wrong}; delete the folder to start over")
    return Snapshot(**saved)


def _limits(original: Snapshot, recipe: Recipe) -> tuple[int, int]:
    """Bytes and tensors that no file of a run of this network exceeds.

    A network in codes takes up to three times its bytes; and the one in training has an optimizer's and a driver's states beside
    it, some of each for every parameter.
    """
    networks = 38
    size = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in original.state.values())
    return 2**26 + networks * size, 1000 + 2 * networks * len(original.state)


def _recipe_of(saved: Any, path: Path) -> Recipe:
    """The recipe of a checkpoint whose every field is what it should be. Raises ArtifactError."""
    if isinstance(saved, dict) and saved.keys() == FIRST_KEYS:
        raise ArtifactError(
            f"{path} is not a checkpoint of this version of featherweight ({WRITER}), but of one before it told its version "
            f"and the network that it is of; {ADVICE}, or end its run with that version"
        )
    if wrong := validate.shape_problem(saved):
        version = saved.get("featherweight") if isinstance(saved, dict) else None
        by = f" (it was written by {version[:100]!r})" if isinstance(version, str) and version != WRITER else ""
        raise ArtifactError(f"{path} is not a checkpoint of this version of featherweight{by}: {wrong}; {ADVICE}")
    try:
        recipe = from_dict(saved["recipe"])  # fields that a newer version has brought take their defaults
    except (InputError, RecursionError) as error:
        said = shortened(str(error), 500)
        raise ArtifactError(f"{path} is not a checkpoint of this version of featherweight: {said}; {ADVICE}") from error
    if wrong := validate.problem(saved, recipe):
        raise ArtifactError(f"{path} is damaged: {wrong}; {ADVICE}")
    return recipe


def _begun(recipe: Recipe, stages: int) -> tuple[Any, ...]:
    """What a run of this many stages depends on."""
    return recipe.stages[:stages], recipe.candidates
