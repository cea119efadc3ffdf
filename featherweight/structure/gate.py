"""The exactness gate: a cut must compute what the original computes when the removed slices are 0, in float64.

The comparison knows nothing of how the cut was found: producers' rows, biases, affine parameters and consumers' columns of the
removed units are
set to 0 in a copy, the copy is run, then cut, then run again. Cost: one copy of the network in float64 and two runs on the
example.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.structure.capture import evaluation, float64, outputs_of, to_float64
from featherweight.structure.edit import all_tensors
from featherweight.structure.entries import clear

TOLERANCE = 1e-9
RUN_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    ZeroDivisionError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Check:
    """What the gate found.

    error       largest difference over the largest output; None where it could not be run (`reason` says why)
    seconds     what the check cost
    operations  how many operations ran, also where one failed
    """

    error: float | None
    seconds: float
    reason: str = ""
    operations: int = 0

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= TOLERANCE


def double_copy(model: nn.Module) -> nn.Module:
    """A float64 copy. Tensors that were computed and not given (old weight norm keeps one) cannot be copied with their history:
    detached.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    twin = copy.deepcopy(model, memo).double()
    for module in twin.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                vars(module)[name] = value.double()
    return twin


def run(model: nn.Module, inputs: Sequence[Any]) -> list[Tensor]:
    """All floating outputs of the network in float64, eval mode."""
    with evaluation(model), float64():
        return [o.detach().clone() for o in outputs_of(model(*(to_float64(v) for v in inputs)))]


def zero_slices(
    tensors: Mapping[str, Tensor], masks: Mapping[tuple[str, int], NDArray[np.bool_]], parameters: Sequence[str]
) -> None:
    """Set to 0 what goes, in place, for the parameters named (statistics in buffers go with their channel but are not zeroed)."""
    with torch.no_grad():
        for (name, dim), mask in masks.items():
            if name in parameters:
                clear(tensors[name], dim, len(mask), np.flatnonzero(~mask).tolist())


def difference(reference: Sequence[Tensor], result: Sequence[Tensor]) -> float:
    """Largest difference relative to the largest value; infinite for other shapes or where one has no number."""
    if len(reference) != len(result) or any(a.shape != b.shape for a, b in zip(reference, result, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(reference, result, strict=True):
        if not a.numel():
            continue
        finite = torch.isfinite(a)
        if not torch.equal(finite, torch.isfinite(b)):
            return float("inf")
        if bool(finite.any()):
            scale = max(float(a[finite].abs().max()), 1e-30)
            worst = max(worst, float((a[finite] - b[finite]).abs().max()) / scale)
    return worst


class Reference:
    """A float64 copy of a network whose removed slices are 0, what it computes, and cuts of it to compare."""

    def __init__(
        self,
        model: nn.Module,
        masks: Mapping[tuple[str, int], NDArray[np.bool_]],
        parameters: Sequence[str],
        inputs: Sequence[Any],
    ) -> None:
        start = time.perf_counter()
        self.inputs = inputs
        self.model = double_copy(model)
        zero_slices(all_tensors(self.model), masks, parameters)
        self.outputs = run(self.model, inputs)
        self.seconds = time.perf_counter() - start

    def compare(self, candidate: nn.Module) -> Check:
        """Run a network cut from (a copy of) this one."""
        start = time.perf_counter()
        result = None
        with evaluation(candidate), float64() as mode:
            try:
                result = outputs_of(candidate(*(to_float64(v) for v in self.inputs)))
            except RUN_FAILURES as error:
                text = str(error).strip() or type(error).__name__
                reason = f"it does not run: {type(error).__name__}: {text.splitlines()[0]}"
        seconds = self.seconds + time.perf_counter() - start
        if result is None:
            return Check(None, seconds, reason, mode.operations)
        size = difference(self.outputs, result)
        reason = "" if size <= TOLERANCE else f"its output differs by {size:.1e} of the largest output"
        return Check(size, seconds, reason, mode.operations)
