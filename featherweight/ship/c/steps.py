"""What a lowered network is made of: values in numbered arrays, and steps over them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from featherweight.errors import FeatherweightError


class CError(FeatherweightError):
    """A network that cannot be written as C, or C that computes something else."""


@dataclass(frozen=True)
class Value:
    """`shape`, of array number `array`."""

    array: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Step:
    """`reads` and `writes`: numbers of arrays."""

    name: str
    reads: list[int]
    writes: list[int]
    relu: bool = False


@dataclass
class Conv(Step):
    """weight (outputs, inputs / groups, kernel height, width); of one row where it is one-dimensional; bias (outputs,), float64
    while it is folded."""

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: Tensor = field(default_factory=lambda: torch.empty(0))
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)  # above, to the left; what is read below and to the right of the input is 0 too
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int, int] = (0, 0, 0)  # of the input: channels, height, width
    out: tuple[int, int] = (0, 0)


@dataclass
class Linear(Step):
    """weight (outputs, inputs), bias (outputs,): applied to each of `rows`."""

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: int = 1


@dataclass
class Map(Step):
    """An expression of C over `shape`, whose operands {0}, {1} .. are the arrays read (with their strides, 0 where broadcast) and
    the constants."""

    expression: str = ""
    shape: tuple[int, ...] = ()
    strides: list[tuple[int, ...]] = field(default_factory=list)
    constants: list[tuple[Tensor, tuple[int, ...]]] = field(default_factory=list)


@dataclass
class Copy(Step):
    """Entries at `source` + strides go to `target` + strides."""

    shape: tuple[int, ...] = ()
    source: tuple[int, tuple[int, ...]] = (0, ())
    target: tuple[int, tuple[int, ...]] = (0, ())


@dataclass
class Fill(Step):
    count: int = 0
    value: float = 0.0


@dataclass
class Pool(Step):
    """kind: max; mean over the entries inside or over `divisor`; `adaptive`: the windows of torch's adaptive pooling."""

    kind: str = "max"
    size: tuple[int, int, int] = (0, 0, 0)
    out: tuple[int, int] = (0, 0)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    divide: str = "inside"  # inside, padded, or a number
    adaptive: bool = False


@dataclass
class Reduce(Step):
    """Over the middle of (outer, count, inner): sum, mean, max or softmax, logsoftmax, norm (layer norm without weights)."""

    kind: str = "mean"
    outer: int = 1
    count: int = 1
    inner: int = 1
    eps: float = 0.0


@dataclass
class Recurrent(Step):
    """One direction of one layer. weights: (gates, inputs), (gates, hidden), of which the biases are (gates,)."""

    kind: str = "lstm"
    weights: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
    biases: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
    steps: int = 1
    backward: bool = False
    offset: int = 0  # of this direction in a row of the output
    width: int = 1  # of a row of the output


@dataclass
class Program:
    sizes: list[int]  # of the arrays, in floats
    steps: list[Step]
    inputs: list[Value]
    outputs: list[Value]

    def layers(self) -> dict[str, int]:
        """Layer -> its weights that are not zero."""
        found: dict[str, int] = {}
        for step in self.steps:
            weights = step.weights if isinstance(step, Recurrent) else (step.weight,) if isinstance(step, (Conv, Linear)) else ()
            for weight in weights:
                found[step.name] = found.get(step.name, 0) + int(weight.count_nonzero())
        return found

    def multiplications(self) -> int:
        """By weights that are not zero, of one run."""
        count = 0
        for step in self.steps:
            if isinstance(step, Conv):
                count += math.prod(step.out) * int(step.weight.count_nonzero())
            elif isinstance(step, Linear):
                count += step.rows * int(step.weight.count_nonzero())
            elif isinstance(step, Recurrent):
                count += step.steps * sum(int(weight.count_nonzero()) for weight in step.weights)
        return count


def number(value: float) -> str:
    """A float32 as a constant of C, to the bit. Raises CError where it is none."""
    single = float(torch.tensor(value, dtype=torch.float32))
    if not math.isfinite(single):
        raise CError(f"a constant of the network is {single}, which C has no constant for")
    for digits in range(6, 10):
        text = f"{single:.{digits}g}"
        if float(torch.tensor(float(text), dtype=torch.float32)) == single:
            break
    return (text if "." in text or "e" in text else f"{text}.0") + "f"
