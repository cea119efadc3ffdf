"""What was chosen to reach a goal and why, and what came of it: as data, as text, and as the file that is shipped."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from featherweight.errors import StorageError
from featherweight.files import artifact, storage
from featherweight.network.calls import Inputs
from featherweight.recipe.schema import Recipe
from featherweight.run import fingerprint
from featherweight.run.compressed import Compressed
from featherweight.run.goals import CLOSE, FINAL_ROUNDS, Costs, Goal
from featherweight.ship import c, export
from featherweight.ship.activations import FromFile, Integers, calibration
from featherweight.ship.bench import Runtime
from featherweight.ship.runtimes import onnx_runner
from featherweight.task import Task

CHOICE = "choice.json"  # in a run's folder
LARGEST_CHOICE = 1 << 24  # bytes of it that are read


@dataclass(frozen=True)
class Tried:
    """A way, and what was found out about it.

    cost     of the network that is not trained, in what the goal is of; None where the way does not get there
    loss     on the training batches held out, after the probe; seconds: of the search and the probe
    why      it was not taken further, "" where it was
    """

    way: str
    cost: float | None
    loss: float | None
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class Attempt:
    """A full run: how far its way went, what came of it in what the goal is of, and the points of the score it cost."""

    way: str
    amount: float | None
    measured: float
    lost: float


@dataclass(frozen=True)
class Choice:
    """What is to be done, and why.

    now, limit, cost  of the network as it was given, the goal's, and what the untrained network of this recipe measured; of a
                      recipe that was tightened after a full run, what it is to come to
    fastest, ms       for a goal of time: the runtime in which the network as it was given is fastest, its milliseconds in each
    refused           runtime -> why it was not used
    dense_loss        of the network as it was given, on the batches held out; None without probes
    minutes           that the full run will take, by the pace of the probe
    amount, epochs    of the way: what its recipe was made from
    before            the full runs that missed the goal, of which this one is the next
    """

    goal: Goal
    recipe: Recipe
    way: str
    runtime: Runtime | None
    now: float
    limit: float
    cost: float
    table: tuple[Tried, ...]
    fastest: Runtime = "eager"
    ms: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    dense_loss: float | None = None
    minutes: float | None = None
    amount: float | None = None
    epochs: int = 0
    before: tuple[Attempt, ...] = ()

    def __str__(self) -> str:
        goal = self.goal
        lines = [f"goal      at most {goal.shown(self.limit)}; as given {goal.shown(self.now)}"]
        if self.ms:
            lines.append(f"as given  {', '.join(f'{name} {ms:.3g} ms' for name, ms in self.ms.items())} an example, one thread")
        lines += [f"not used  {name}: {why}" for name, why in self.refused.items()]
        for one in self.table:
            found = "does not get there" if one.cost is None else f"{goal.shown(one.cost)} before training"
            loss = "" if one.loss is None else f", loss {one.loss:.4g} on held-out batches after a probe"
            lines.append(f"tried     {one.way}: {found}{loss}{f' ({one.why})' if one.why else ''}")
        if self.dense_loss is not None:
            lines.append(f"          (as given: loss {self.dense_loss:.4g})")
        about = "" if self.minutes is None else f", about {max(1, round(self.minutes))} min"
        return "\n".join([*lines, f"chosen    {self.way}; {self.recipe.epochs()} epochs{about}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return asdict(self) | {"recipe": self.recipe.to_dict()}


@dataclass(frozen=True)
class Shrunk:
    """What came of a goal.

    measured  of the compressed network, in what the goal is of; spread: of the times, over their median, for a goal of time
    before    the score of the network as it was given; score: of the network as it is shipped; lose: the points that it may cost
    runs      all in full, this one among them, where the first missed the goal
    """

    compressed: Compressed
    choice: Choice
    task: Task
    measured: float
    spread: float | None
    before: float
    score: float
    lose: float | None = None
    runs: tuple[Attempt, ...] = ()

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.choice.way, self.choice.amount, self.measured, self.before - self.score)

    @property
    def met(self) -> bool:
        """Is the goal met as measured, to 1 %?"""
        return meets(self.choice, self.measured)

    @property
    def kept(self) -> bool:
        """Did it cost no more points than it may?"""
        return self.lose is None or self.before - self.score <= self.lose

    def __str__(self) -> str:
        goal, limit, lost = self.choice.goal, self.choice.limit, self.before - self.score
        spread = ""
        if self.spread is not None:  # only the ratio was measured now: the time beside it is that of when the goal was read
            faster = self.choice.now / self.measured
            spread = f" ({faster:.3g}x as fast as the network as given, timed in turns; times spread by {self.spread:.0%})"
        met = "met" if self.met else f"NOT met, {self.measured / limit - 1:.1%} above it; the nearest that was found"
        bound = "" if self.lose is None else f", {'within' if self.kept else 'MORE than'} the {self.lose:g} allowed"
        several = [f"run {number}     {told(one, goal)}" for number, one in enumerate(self.runs, 1)] if len(self.runs) > 1 else []
        several += [f"kept      {self.choice.way}"] if several else []
        return "\n".join(
            (
                *several,
                f"goal      at most {goal.shown(limit)}: measured {goal.shown(self.measured)}{spread}, {met}",
                f"score     {self.score:.4g} of {self.before:.4g}, {abs(lost):.3g} {'lost' if lost > 0 else 'gained'}{bound}",
            )
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        found = {"measured": self.measured, "spread": self.spread, "met": self.met, "before": self.before, "score": self.score}
        runs = [asdict(one) for one in self.runs]
        return found | {"lose": self.lose, "kept": self.kept, "runs": runs, "choice": self.choice.to_dict()}

    def save(self, folder: str | Path) -> dict[str, int]:
        """Write the artifact, and the file that reaches the goal beside it; the files' sizes in bytes. Raises StorageError."""
        return self.compressed.save(folder) | self.ship(folder)

    def ship(self, folder: str | Path, *, any_length: bool = False) -> dict[str, int]:
        """Write the file that reaches the goal into an artifact's folder: packed, ONNX or C; the sizes of what was written.
        `any_length`: of ONNX, for inputs of other lengths too, where the network can."""
        place, runtime = Path(folder), self.choice.runtime
        if self.choice.goal.what == "bytes":
            return {"model.fwz": self.compressed.pack(place / "model.fwz")}
        if runtime not in ("onnx", "integers", "c"):
            return {}
        network, example = self.compressed.model, self.compressed.example_inputs
        if runtime == "c":
            wrote: c.ExportedC | export.Exported = c.export_c(network, example, place / "model.c")
        else:
            asked = Integers(calibration(network, self.task)) if runtime == "integers" else None
            path = place / "model.onnx"
            lengths = export.for_lengths(network, example, path, integers=asked)[0] if any_length else None
            wrote = lengths or export.export(network, example, path, integers=asked)
        name = Path(wrote.path).name
        artifact.note_export(place, name, wrote.to_dict())
        return {name: wrote.bytes}


def meets(choice: Choice, measured: float) -> bool:
    """Is the goal met, to 1 %?"""
    return measured <= (1 + CLOSE) * choice.limit


def told(one: Attempt, goal: Goal) -> str:
    """A full run in words."""
    points = f"{abs(one.lost):.3g} points {'lost' if one.lost > 0 else 'gained'}"
    return f"{one.way}: measured {goal.shown(one.measured)}, {points}"


def settled(choice: Choice, done: Compressed, task: Task, lose: float | None) -> Shrunk:
    """What the full run of a choice has come to, measured as it is shipped."""
    before, after = done.rows[0].measured.score, done.rows[-1].measured.score
    assert before is not None and after is not None
    spread = None
    with Costs(choice.goal, done.original, task, (choice.fastest,)) as costs:
        if choice.goal.what == "latency_ms":
            assert choice.runtime is not None
            took, spread = costs.time(done.model, choice.runtime, FINAL_ROUNDS)
            measured = (
                choice.now * took / costs.ms[choice.fastest]
            )  # in turns with the network that took `now` when it was chosen
        else:
            measured = costs.of(done, None)
    if choice.runtime == "integers":
        after = score_in_integers(done.model, task)
    return Shrunk(done, choice, task, measured, spread, before, after, lose)


def score_in_integers(network: nn.Module, task: Task) -> float:
    """The score of `network` as an ONNX file in integers, calibrated on training batches."""
    with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
        path = Path(folder) / "model.onnx"
        export.export(network, task.example_inputs, path, integers=Integers(calibration(network, task)))
        return task.evaluate(FromFile(onnx_runner(path), network, Inputs.of(task.example_inputs)))


# --- a choice kept for a run that goes on --------------------------------------------------------------------------------


def remember(choice: Choice, workdir: Path, about: Mapping[str, Any], network: nn.Module) -> None:
    """Keep a choice in a run's folder. `about`: plain data that it depends on beside the network. Raises StorageError."""
    held = {"about": _about(about, network), "choice": _CHOICE.dump_python(choice, mode="json")}
    try:
        storage.replace(workdir / CHOICE, lambda file: file.write(json.dumps(held).encode()))
    except OSError as error:
        raise StorageError(f"cannot write {workdir / CHOICE}: {error.strerror}. Choose another --workdir") from error


def taken_up(workdir: Path, about: Mapping[str, Any], network: nn.Module) -> Choice | None:
    """The choice that an interrupted run made for the same goal and network; None where there is none. A file that is damaged is
    none: choosing again is all that it costs."""
    try:
        with storage.opened(workdir / CHOICE) as file:
            held = json.loads(file.read(LARGEST_CHOICE))
        if held["about"] != json.loads(json.dumps(_about(about, network))):
            return None
        return _CHOICE.validate_python(held["choice"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _about(about: Mapping[str, Any], network: nn.Module) -> dict[str, Any]:
    return {**about, "network": fingerprint.of_network({name: p.detach() for name, p in network.named_parameters()})}


_CHOICE: TypeAdapter[Choice] = TypeAdapter(Choice)
