"""What a low rank through a view means as two thin layers: which they are, what they cost, and from which rank on they pay."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherweight.errors import InputError
from featherweight.network.calls import Example, Inputs
from featherweight.network.evaluating import evaluating
from featherweight.weights.views import View

Conv = nn.Conv1d | nn.Conv2d

CHANNEL = View("o i h w -> o (i h w)")
SPATIAL = View("o i h w -> (i h) (o w)")

KERNEL_AXES = {2: "", 3: "w", 4: "h w"}  # dimensions of a weight -> its axes after `o i`


class FactorError(InputError):
    """A layer, view, rank or budget that two thin layers cannot have; says why and what to do."""


@dataclass(frozen=True)
class Split:
    """Which kernel axes the first layer takes, and whether the rows of the matrix are the second layer's (o and its axes)."""

    first: tuple[bool, ...]
    rows_out: bool


def split_of(view: View, dimensions: int) -> Split | None:
    """The two layers that a low rank through `view` means for a weight of 2 to 4 dimensions; None where it means none."""
    if dimensions not in KERNEL_AXES:
        return None
    shape = (2, 3, 5, 7)[:dimensions]  # every axis its own size, so that the views below differ
    probe = torch.arange(math.prod(shape)).reshape(shape)
    try:
        matrix = view.to_matrix(probe)
    except InputError:
        return None
    axes = KERNEL_AXES[dimensions].split()
    for first in itertools.product((True, False), repeat=len(axes)):
        one = " ".join(["i", *itertools.compress(axes, first)])
        two = " ".join(["o", *itertools.compress(axes, (not taken for taken in first))])
        for rows_out, right in ((True, f"({two}) ({one})"), (False, f"({one}) ({two})")):
            if torch.equal(matrix, View(f"{' '.join(['o', 'i', *axes])} -> {right}").to_matrix(probe)):
                return Split(first, rows_out)
    return None


def macs(layer: nn.Module, view: View, rank: int | None, shape: Sequence[int]) -> int:
    """MACs of one call on an input of `shape`, batch included: of the two layers at `rank`, or for None of the layer itself.

    Of a recurrent layer, those of its first input matrix.
    """
    weight = weight_of(layer)
    kernel = weight.ndim - 2
    if not isinstance(layer, Conv):
        return math.prod(shape[:-1]) * _macs_at(layer, view, rank, (), ())
    before = tuple(shape[len(shape) - kernel :])
    after = tuple(_length(layer, axis, size) for axis, size in enumerate(before))
    return math.prod(shape[: len(shape) - kernel - 1]) * _macs_at(layer, view, rank, before, after)


def break_even(layer: nn.Module, view: View, shapes: Iterable[Sequence[int]] = ()) -> int:
    """The least rank at which the two layers take as many MACs as the one: factor only below it.

    `shapes`: those of the layer's inputs, one a call, for the exact answer; without them that for an image so large that its
    border does not count. Raises FactorError if the view means no two layers.
    """
    calls = [(macs(layer, view, None, shape), macs(layer, view, 1, shape)) for shape in shapes]
    if not calls:
        stride = layer.stride if isinstance(layer, Conv) else ()
        ones = (1,) * len(stride)
        calls = [(_macs_at(layer, view, None, stride, ones), _macs_at(layer, view, 1, stride, ones))]
    dense, a_rank = (sum(column) for column in zip(*calls, strict=True))
    return -(-dense // max(a_rank, 1))


def _macs_at(layer: nn.Module, view: View, rank: int | None, before: Sequence[int], after: Sequence[int]) -> int:
    """MACs of one call on one example whose kernel axes are `before` long, and `after` long in the output."""
    outputs, inputs, *kernel = weight_of(layer).shape
    if rank is None:
        return outputs * inputs * math.prod(kernel) * math.prod(after)
    first = split(layer, view).first
    one = math.prod(k * a if taken else b for taken, k, a, b in zip(first, kernel, after, before, strict=True))
    two = math.prod(a if taken else k * a for taken, k, a in zip(first, kernel, after, strict=True))
    return rank * (inputs * one + outputs * two)


def _length(conv: Conv, axis: int, size: int) -> int:
    """Length of the output of a convolution along one axis."""
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    padding = {"same": reach, "valid": 0}[conv.padding] if isinstance(conv.padding, str) else 2 * conv.padding[axis]
    return (size + padding - reach - 1) // conv.stride[axis] + 1


def input_shapes(model: nn.Module, example: Example | Inputs) -> dict[str, list[tuple[int, ...]]]:
    """Module name -> the shapes of its first input, one a call, as `model` runs on `example` in eval mode."""
    found: dict[str, list[tuple[int, ...]]] = {}
    handles = []
    for name, module in model.named_modules():

        def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
            first = next(iter((*inputs, *named.values())), None)
            if isinstance(first, Tensor):
                found.setdefault(name, []).append(tuple(first.shape))

        if not isinstance(module, parametrize.ParametrizationList):
            handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
    try:
        with evaluating(model), torch.no_grad():
            Inputs.of(example).call(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def kind_of(layer: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(layer)


def weight_of(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight_ih_l0 if isinstance(layer, nn.RNNBase) else layer.weight)


def split(layer: nn.Module, view: View) -> Split:
    found = split_of(view, weight_of(layer).ndim)
    if found is None:
        raise FactorError(f"a low rank through {view.pattern!r} is not two layers of a {kind_of(layer).__name__}")
    return found
