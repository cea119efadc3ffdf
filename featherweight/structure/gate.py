"""The exactness gate: a cut must compute what the original computes when the removed slices are 0, in eval and in training mode.

The comparison knows nothing of how the cut was found: producers' rows, biases, affine parameters and consumers' columns of the
removed units are set to 0 in a copy, the copy is run, then cut, then run again. Every tensor of the outputs is compared, on the
example, on other values of the same kind and on inputs of another size where the network takes one; whole numbers and truth
values together with the numbers they were decided from.
Both networks draw the same random numbers. Parameters that are 0 throughout (a last layer that starts at 0) get other values in
both networks, since a cut behind them would not be seen. A check that compared nothing has not passed.

Cost: one copy of the network in float64 and up to three runs of it, and of the cut one, on the example, and one or two on
inputs of at most twice its size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.network.calls import Inputs, varied
from featherweight.network.evaluating import asks_for_its_mode
from featherweight.structure.capture import Captured, first_line
from featherweight.structure.edit import all_tensors
from featherweight.structure.entries import clear
from featherweight.structure.observe import RUN_FAILURES, Observed, Runner, in_eval, observe, run_in_training
from featherweight.structure.precision import FLOAT64, PRECISIONS, TOLERANCE, Precision

TRAINING_TOLERANCE = 1e-6  # batch norms over two samples enlarge rounding


@dataclass(frozen=True)
class Check:
    """What the gate found.

    error       largest difference over the largest output; of whole numbers and truth values, the share that differs.
                None where nothing could be compared (`reason` says why)
    seconds     what the check cost
    operations  how many operations ran, also where one failed
    mode        in which mode the network failed, where it did
    precision   what was computed in: "float64" wherever the network has it
    tolerance   what `error` is held against: 1e-9 in float64, 1e-4 in float32, 2e-2 in shorter types
    note        what is to be known of a check that passed: random numbers were drawn, with equal seeds
    """

    error: float | None
    seconds: float
    reason: str = ""
    operations: int = 0
    mode: Literal["eval", "training"] = "eval"
    precision: str = FLOAT64.name
    tolerance: float = TOLERANCE
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.tolerance


def double_copy(model: nn.Module) -> nn.Module:
    """A float64 copy."""
    return FLOAT64.copy(model)


def zero_slices(
    tensors: Mapping[str, Tensor], masks: Mapping[tuple[str, int], NDArray[np.bool_]], parameters: Sequence[str]
) -> None:
    """Set to 0 what goes, in place, for the parameters named (statistics in buffers go with their channel but are not zeroed)."""
    with torch.no_grad():
        for (name, dim), mask in masks.items():
            if name in parameters:
                clear(tensors[name], dim, len(mask), np.flatnonzero(~mask).tolist())


def fill_zeros(tensors: Mapping[str, Tensor], parameters: Sequence[str]) -> None:
    """Give parameters that are 0 throughout small values of their own, in place: they would hide what lies before them."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in {id(tensors[name]): tensors[name] for name in parameters if name in tensors}.values():
            if tensor.is_floating_point() and tensor.numel() and not bool(tensor.any()):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=dice))


# --- comparison ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """error   as in `Check`; infinite for other shapes, None where nothing was compared
    reason     what is wrong, where something is
    numbers    was there any value other than 0 among what was compared?
    """

    error: float | None
    reason: str = ""
    numbers: bool = False


def difference(wanted: Observed, got: Observed) -> Difference:
    """Largest difference of all outputs. Infinite for other shapes or kinds of numbers, and where one has no number and the other
    has; None where there is nothing to compare: no tensor, or an output without a single number."""
    if got.failure is not None:
        return Difference(None, f"it does not run: {type(got.failure).__name__}: {first_line(got.failure)}")
    if not any(tensor.numel() for tensor in wanted.outputs):
        return Difference(None, "the network gives no tensor: there is nothing to compare")
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (got.outputs, wanted.outputs)]
    if shapes[0] != shapes[1]:
        return Difference(float("inf"), f"its outputs have the shapes {shapes[0]}, the network's {shapes[1]}")
    worst, reason, numbers = 0.0, "", False
    for place, (a, b) in enumerate([*zip(wanted.outputs, got.outputs, strict=True), *_decisions(wanted, got)]):
        if not a.numel():
            continue
        gap = _gap(a, b)
        if gap is None:
            return Difference(None, f"output {place} of the network is NaN throughout: there is no number to compare")
        numbers |= bool(torch.nan_to_num(a.abs()).any()) if a.dtype != torch.bool else bool(a.any())
        if gap > worst:
            real = a.is_floating_point() or a.is_complex()
            worst = gap
            reason = (
                f"its output differs by {gap:.1e} of the largest output" if real else f"{gap:.0%} of its whole numbers differ"
            )
    return Difference(worst, reason, numbers)


def _gap(a: Tensor, b: Tensor) -> float | None:
    """How far b is from a, by the largest of a; whole numbers: the share that differs; None where a has no number at all."""
    real, other = (t.is_floating_point() or t.is_complex() for t in (a, b))
    if real != other or a.is_complex() != b.is_complex():
        return float("inf")
    if not real:
        return float((a != b).double().mean())
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    if bool(torch.isnan(a).all()):
        return None
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(torch.isnan(a), torch.isnan(b)):
        return float("inf")
    endless = ~finite & ~torch.isnan(a)
    if not torch.equal(a[endless], b[endless]):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    return float((a[finite] - b[finite]).abs().max()) / max(float(a[finite].abs().max()), 1e-30)


def _decisions(wanted: Observed, got: Observed) -> Iterator[tuple[Tensor, Tensor]]:
    """What the outputs were decided from, from the end on, as far as both networks did the same."""
    for (name, a), (other, b) in zip(reversed(wanted.decisions), reversed(got.decisions), strict=False):
        if name != other:
            return
        if a.shape == b.shape and bool(torch.isfinite(a).any()):
            yield a, b


class Expected:
    """What a network computes on its example and, where it accepts them, on other values: what another network is held against.

    make     a precision -> what runs the network in it
    inputs   the example first
    decides  compare what whole numbers were decided from
    """

    def __init__(self, make: Callable[[Precision], Runner], inputs: Sequence[Inputs], decides: bool) -> None:
        self.decides = decides
        first: Exception | None = None
        for precision in PRECISIONS:
            try:
                self.runner = make(precision)
                seen = self._observe(self.runner, inputs[0], precision)
            except RUN_FAILURES as error:
                seen = Observed(failure=error)
            if seen.failure is None:
                break
            first = first or seen.failure
        else:
            assert first is not None
            raise first
        self.precision = precision
        self.draws: bool | None = None  # do two runs differ? Not known as long as nobody asked
        self.seen = [(inputs[0], seen)]
        self._waiting = list(inputs[1:])  # run when they are needed: what differs on the example is held against nothing else

    def _all(self) -> Iterator[tuple[Inputs, Observed]]:
        """The inputs that the network takes, with what it gave."""
        place = 0
        while place < len(self.seen) or self._waiting:
            if place < len(self.seen):
                yield self.seen[place]
                place += 1
                continue
            given = self._waiting.pop(0)
            seen = self._observe(self.runner, given, self.precision)
            if seen.failure is None and difference(seen, seen).error == 0:
                self.seen.append((given, seen))

    @property
    def last(self) -> Inputs:
        """The last inputs of the example's own sizes that the network took."""
        return next(given for given, _ in reversed([*self._all()]) if given.shapes() == self.seen[0][0].shapes())

    def _observe(self, runner: Runner, given: Inputs, precision: Precision, seed: int = 0) -> Observed:
        return observe(lambda: runner(precision.inputs(given)), precision, self.decides, seed)

    def compare(self, runner: Runner) -> Check:
        """Run another network on the same; it must be in the same precision."""
        start = time.perf_counter()
        worst, numbers, operations, drawn, ran = Difference(0.0), False, 0, set(), True
        for given, wanted in self._all():
            got = self._observe(runner, given, self.precision)
            found = difference(wanted, got)
            if got.failure is None and wanted.random != got.random:  # agreement would be luck
                found = Difference(None, "it draws other random numbers in eval mode than the network")
            operations, ran = operations + got.operations, ran and got.failure is None
            numbers |= found.numbers
            drawn |= {name for name, _ in wanted.random}
            if found.error is None or found.error > (worst.error or 0.0):
                worst = found
                if found.reason and given.shapes() != self.seen[0][0].shapes():
                    worst = replace(found, reason=f"on inputs of another size ({given}) {found.reason}")
            if found.error is None or found.error > self.precision.tolerance:
                break
        else:
            if not numbers:
                worst = Difference(None, "every output is 0, on the example and on other values: there is nothing to compare")
        error, reason, note = worst.error, worst.reason, ""
        if error is None or error > self.precision.tolerance:
            reason = (ran and self._drawn(drawn)) or reason
        else:
            reason = ""
            note = (
                f"it draws random numbers in eval mode ({', '.join(sorted(drawn))}): compared with equal seeds" if drawn else ""
            )
        name, tolerance = self.precision.name, self.precision.tolerance
        return Check(error, time.perf_counter() - start, reason, operations, "eval", name, tolerance, note)

    def _drawn(self, operations: set[str]) -> str:
        """Are two runs of the network itself alike? What is to be said where they are not."""
        if self.draws is None:
            given, wanted = self.seen[0]
            apart = difference(wanted, self._observe(self.runner, given, self.precision, seed=1))
            self.draws = apart.error is not None and apart.error > self.precision.tolerance
        if not self.draws:
            return ""
        by = f" ({', '.join(sorted(operations))})" if operations else ""
        return (
            f"the network draws random numbers in eval mode{by}: two runs of it differ, so that a cut cannot be compared; switch "
            "that off in eval mode, or trace the part after it"
        )


class Reference:
    """A copy of a network whose removed slices are 0, what it computes, and cuts of it to compare."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[tuple[str, int], NDArray[np.bool_]],
        parameters: Sequence[str],
        captured: Captured,
        inputs: Sequence[Inputs],
    ) -> None:
        """`inputs`: what is compared on, some of the example's own sizes first."""
        start = time.perf_counter()

        def make(precision: Precision) -> Runner:
            self.model = precision.copy(model)
            tensors = all_tensors(self.model)
            fill_zeros(tensors, parameters)
            zero_slices(tensors, masks, parameters)
            return in_eval(self.model)

        self.expected = Expected(make, inputs, captured.decides())
        self.trained: Observed | None = None
        self.trains_otherwise = trains_otherwise(model, captured)
        self.seconds = time.perf_counter() - start

    def compare(self, candidate: nn.Module) -> Check:
        """Run a network cut from (a copy of) this one, in eval mode and, if that is exact or at least runs, in training mode."""
        start = time.perf_counter()
        check = self.expected.compare(in_eval(candidate))
        reason = ""
        if check.error is not None and check.error != float("inf"):
            reason = self.breaks_training(candidate, check.passed)
        seconds = self.seconds + time.perf_counter() - start
        if reason:
            return replace(check, error=None, seconds=seconds, reason=reason, mode="training")
        return replace(check, seconds=seconds)

    def breaks_training(self, candidate: nn.Module, exact: bool) -> str:
        """Why a cut network cannot be trained as this one; "" where it can, or where this one cannot either."""
        if not self.trains_otherwise:
            return ""
        given = self.expected.last
        if self.trained is None:
            self.trained = run_in_training(self.model, given, self.expected.precision)
        return training_failure(self.model, self.trained, candidate, given, self.expected.precision, exact)


def trains_otherwise(model: nn.Module, captured: Captured) -> bool:
    """May training mode read or do something that eval mode does not?"""
    return captured.unread or asks_for_its_mode(model)


def training_failure(
    model: nn.Module, wanted: Observed, candidate: nn.Module, given: Inputs, precision: Precision, exact: bool
) -> str:
    """Why `candidate` does not train as `model`, which gave `wanted`. What draws random numbers in training (dropout) is only
    held against in the shapes of its outputs, and so is a cut that is not `exact`."""
    if wanted.failure is not None:
        return ""
    got = run_in_training(candidate, given, precision)
    if got.failure is not None:
        return f"in training mode it does not run: {type(got.failure).__name__}: {first_line(got.failure)}"
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (got.outputs, wanted.outputs)]
    if shapes[0] != shapes[1]:
        return f"in training mode its outputs have the shapes {shapes[0]}, the network's {shapes[1]}"
    bound = max(precision.tolerance, TRAINING_TOLERANCE)
    if not exact or _within(wanted, got, bound):
        return ""
    if wanted.random or not _within(wanted, run_in_training(model, given, precision, seed=1), bound):
        return ""
    return f"in training mode {difference(wanted, got).reason}"


def _within(wanted: Observed, got: Observed, bound: float) -> bool:
    error = difference(wanted, got).error
    return error is None or error <= bound


def exercises(captured: Captured) -> list[Inputs]:
    """The example, and other values of the same kind: an example of zeros, or of positive numbers only, shows little."""
    return [captured.inputs, varied(captured.inputs, captured.looked_up())]
