"""In which numbers a comparison is made: all operations in one type, also where the network's code names a shorter one.

float64 hides nothing behind rounding. Operations that have no float64 (quantised ones, some kernels of experts) are run in
float32, and what has neither in the network's own types, each with a bound of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featherweight.network.calls import Inputs
from featherweight.network.copies import copied_whole

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Precision:
    """name       how it is named to the user
    real       what shorter floats become; None: everything stays as it is
    tolerance  largest difference, of the largest output, that is taken for rounding
    """

    name: str
    real: torch.dtype | None
    tolerance: float

    def of(self, dtype: torch.dtype) -> torch.dtype:
        """What this type becomes."""
        if self.real is None or not (dtype.is_floating_point or dtype.is_complex):
            return dtype
        wide = self.real.to_complex() if dtype.is_complex else self.real
        return wide if wide.itemsize > dtype.itemsize else dtype

    def cast(self, value: Any) -> Any:
        """A tensor in it; everything else as it is."""
        if not isinstance(value, Tensor):
            return value
        wanted = self.of(value.dtype)
        return value if wanted == value.dtype else value.to(wanted)

    def inputs(self, given: Inputs) -> Inputs:
        return given.map(self.cast)

    def copy(self, model: nn.Module) -> nn.Module:
        """A copy of a network in it."""
        made = copied_whole(model)
        made._apply(self.cast)
        for module in made.modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    vars(module)[name] = self.cast(value)
        return made


FLOAT64 = Precision("float64", torch.float64, TOLERANCE)
PRECISIONS = (FLOAT64, Precision("float32", torch.float32, 1e-4), Precision("its own types", None, 2e-2))


class Watched(TorchDispatchMode):
    """Every operation that asks for a shorter float gets the precision's: hides no difference behind the casts inside norms.

    operations  how many were run: how far a network that fails got
    random      those that drew random numbers, with the shape of what they drew
    decisions   the numbers that whole numbers and truth values were decided from, where `decides` asks for them
    """

    def __init__(self, precision: Precision, decides: bool = False) -> None:
        super().__init__()
        self.precision, self.decides = precision, decides
        self.operations = 0
        self.random: list[tuple[str, tuple[int, ...]]] = []
        self.decisions: list[tuple[str, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: self._wide(value) for name, value in (kwargs or {}).items()}
        result = func(*(self._wide(value) for value in args), **kwargs)
        self.operations += 1
        name = func.overloadpacket.__name__
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name:
            self.random += [(name, tuple(part.shape)) for part in _parts(result) if isinstance(part, Tensor)]
        if self.decides:
            of = next((value for value in args if _is_real(value)), None)
            if of is not None and any(isinstance(r, Tensor) and not _is_real(r) for r in _parts(result)):
                self.decisions.append((name, of))
        return result

    def _wide(self, value: Any) -> Any:
        return self.precision.of(value) if isinstance(value, torch.dtype) else value


def _parts(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


@contextlib.contextmanager
def computed_in(precision: Precision, decides: bool = False) -> Iterator[Watched]:
    """Inside, computations are done in `precision`, without gradients."""
    before = torch.get_default_dtype()
    if precision.real is not None:
        torch.set_default_dtype(precision.real)
    try:
        with torch.no_grad(), Watched(precision, decides) as mode:
            yield mode
    finally:
        torch.set_default_dtype(before)


def float64() -> contextlib.AbstractContextManager[Watched]:
    """Inside, computations are done in float64, also where the network's code names a shorter type."""
    return computed_in(FLOAT64)


def to_float64(value: Any) -> Any:
    """Floating tensors in float64; everything else as it is."""
    return FLOAT64.cast(value)
