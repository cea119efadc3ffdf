"""Goals: what a network is to come down to, read from text, and what a network costs in it, measured."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from featherweight.budget import amounts
from featherweight.errors import FeatherweightError, InputError, did_you_mean, short, shortened
from featherweight.measurement import Measurement
from featherweight.network.devices import on_threads
from featherweight.run.compressed import Compressed
from featherweight.ship.activations import calibration
from featherweight.ship.bench import RUNTIMES, Runtime, interleaved, judge, ready
from featherweight.task import Task

What = Literal["weights", "macs", "parameters", "bytes", "latency_ms"]
NAMES: dict[What, str] = {
    "weights": "non-zero weights",
    "macs": "multiply-accumulates",
    "parameters": "parameters",
    "bytes": "bytes of the packed file",
    "latency_ms": "ms",
}
FORMS = "100kB, 2ms, macs=50%, weights=10x (fewer), parameters=25% or bytes=4x"
MARGIN: dict[What, float] = {"bytes": 0.03, "latency_ms": 0.05}  # aimed below: training moves a file's size, and times are noisy
CLOSE = 0.01  # above a goal that still meets it
ROUNDS, FINAL_ROUNDS = 15, 40
NOISY, MORE = 0.3, 4  # times that spread more widely than this share of them are taken again, over so many times the rounds


class OutOfReach(InputError):
    """No way leads to the goal; the message says what the least is that one can."""


@dataclass(frozen=True)
class Goal:
    """At most `amount` of `what`: a number of it, or with `share` a share of what the network has as it is given.

    weights: those of all parameters that are not zero; bytes: of the packed file (`.fwz`), buffers included; latency_ms: of one
    example on this machine, one thread, in the fastest of the runtimes that are allowed.
    """

    what: What
    amount: float
    share: bool

    @classmethod
    def of(cls, text: str) -> Goal:
        """`100kB`, `2ms`, `macs=50%`, `weights=10x`, `parameters=25%`, `bytes=4x`, `faster=2x`. Raises InputError."""
        named, given, amount = (part.strip() for part in text.partition("="))
        told = amounts.parts(text)
        if not given and told is not None and told[1] in {**amounts.BYTES, **amounts.MILLISECONDS}:
            named, amount = "bytes" if told[1] in amounts.BYTES else "latency_ms", text
        elif not given or named not in (*NAMES, "faster"):
            what = "" if told is None else f"{text} of what? "
            raise InputError(f"{what}A goal is {FORMS}, given {short(text)}.{did_you_mean(named[:80], NAMES)}")
        if named == "faster":
            told = amounts.parts(amount)
            if told is None or told[1] not in ("x", "") or not told[0] > 1:
                raise InputError(f"faster is so many times, above 1, such as 2x, given {short(amount)}")
            return cls("latency_ms", 1 / told[0], True)
        what_ = next(name for name in NAMES if name == named)
        read = {"bytes": amounts.size, "latency_ms": amounts.milliseconds}.get(what_, amounts.share)
        try:
            number = float(read(amount))
        except InputError:
            raise
        except (TypeError, ValueError):
            raise InputError(f"a goal is {FORMS}, given {short(text)}") from None
        if not 0 < number < math.inf:
            raise InputError(f"a goal is an amount above 0, given {short(text)}")
        share = what_ != "latency_ms" and number <= 1
        if (not share and what_ not in ("bytes", "latency_ms")) or (what_ == "bytes" and 1 < number < amounts.LEAST_SIZE):
            raise InputError(
                f"{named} is a share to keep, such as {named}=50%, or so many times fewer, 4x, given {short(amount)}"
            )
        return cls(what_, number, share)

    def limit(self, now: float) -> float:
        """The most there may be, of a network that has `now`."""
        return self.amount * now if self.share else self.amount

    def shown(self, amount: float) -> str:
        """An amount of what the goal is of, in words."""
        if self.what == "latency_ms":
            return f"{amount:.3g} ms"
        if self.what == "bytes":
            return f"{amount / 1000:,.4g} kB" if amount >= 1000 else f"{amount:.0f} bytes"
        return f"{amount:,.0f} {NAMES[self.what]}"


class Costs:
    """What networks cost, measured: counts from the network, bytes from its packed file, milliseconds in turns with the network
    as it was given. Used as a context, which keeps the files that are timed."""

    def __init__(self, goal: Goal, network: nn.Module, task: Task, runtimes: Sequence[Runtime] = ()) -> None:
        self.goal, self.network, self.task, self.asked = goal, network, task, tuple(runtimes)
        self.ms: dict[str, float] = {}  # of the network as it was given
        self.refused: dict[str, str] = {}
        self.fastest: Runtime = "eager"
        self._stack = ExitStack()

    def __enter__(self) -> Costs:
        if self.goal.what == "latency_ms":
            self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="featherweight-"))
            self._stack.enter_context(on_threads(1))
            self._time_as_given()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _time_as_given(self) -> None:
        calls: dict[str, Callable[[], object]] = {}
        those: tuple[Runtime, ...] = self.asked or ("eager", "onnx", "c")
        for runtime in those:
            if runtime == "integers":  # loses something: it is a way, and no measure of what is there
                continue
            try:
                calls[runtime] = ready(self.network, self.task.example_inputs, runtime, self._folder)
            except FeatherweightError as error:  # this network, or this machine, cannot: said, and the others are taken
                self.refused[runtime] = shortened(str(error))
        if not calls:
            calls["eager"] = ready(self.network, self.task.example_inputs, "eager", self._folder)
        times = interleaved(calls, FINAL_ROUNDS)
        self.ms = {runtime: 1000 * statistics.median(seconds) for runtime, seconds in times.items()}
        self.fastest = min((name for name in RUNTIMES if name in self.ms), key=lambda name: self.ms[name])
        self._base = calls[self.fastest]

    @property
    def runtimes(self) -> set[Runtime]:
        """Those that a way may use: what runs the network as it is, and integers where ONNX Runtime does."""
        integers: set[Runtime] = {"integers"} if "integers" in self.asked or (not self.asked and "onnx" in self.ms) else set()
        return {*(name for name in RUNTIMES if name in self.ms and (not self.asked or name in self.asked)), *integers}

    def of(self, done: Compressed, runtime: Runtime | None) -> float:
        """Of a compressed network, as it would be shipped."""
        if self.goal.what == "bytes":
            with tempfile.TemporaryDirectory(prefix="featherweight-") as folder:
                return float(done.pack(Path(folder) / "model.fwz"))
        if self.goal.what == "latency_ms":
            assert runtime is not None
            return self.time(done.model, runtime)[0]
        return counted(self.goal.what, done.rows[-1].measured)

    def time(self, network: nn.Module, runtime: Runtime, rounds: int = ROUNDS) -> tuple[float, float]:
        """Milliseconds of an example, what the given network took at first times the ratio of the two now, in turns; and the
        spread of the times over their median. Where that is wide they are taken again, over more rounds."""
        seen = calibration(network, self.task) if runtime == "integers" else ()
        call = ready(network, self.task.example_inputs, runtime, self._folder, seen)
        for taken in (rounds, MORE * rounds):
            times = interleaved({"given": self._base, "small": call}, taken)
            ratio, spread, _ = judge(times["given"], times["small"])
            if spread <= NOISY:
                break
        return self.ms[self.fastest] / ratio, spread


def counted(what: What, measured: Measurement) -> float:
    """Raises InputError where the network's multiply-accumulates are not known."""
    if what == "macs":
        if measured.macs is None:
            raise InputError(f"the network's multiply-accumulates cannot be counted: {'; '.join(measured.uncounted)}")
        return measured.macs
    return measured.nonzeros if what == "weights" else measured.parameters
