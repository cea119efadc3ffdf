"""Ranks: what two thin layers cost, and which rank each layer gets under one budget of multiplications."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherweight.budget.choices import Choices, lagrangian
from featherweight.errors import InputError, did_you_mean
from featherweight.network.calls import Example, Inputs
from featherweight.network.evaluating import evaluating
from featherweight.structure.count import count_macs
from featherweight.weights.parametrized import decoded
from featherweight.weights.svd import squared_values
from featherweight.weights.views import View

Conv = nn.Conv1d | nn.Conv2d

CHANNEL = View("o i h w -> o (i h w)")
SPATIAL = View("o i h w -> (i h) (o w)")

NOTHING = 1e-12  # a dropped share of the squared norm that is rounding
KERNEL_AXES = {2: "", 3: "w", 4: "h w"}  # dimensions of a weight -> its axes after `o i`


class FactorError(InputError):
    """A layer, view, rank or budget that two thin layers cannot have; says why and what to do."""


# --- what a view means ---------------------------------------------------------------------------------------------------


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


# --- what it costs -------------------------------------------------------------------------------------------------------


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


def convolutions(model: nn.Module) -> tuple[str, ...]:
    """The weights that Trained Rank Pruning takes: of every ungrouped convolution with a kernel above 1 but the first."""
    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv)]
    return tuple(f"{name}.weight" for name, conv in convs[1:] if name and conv.groups == 1 and math.prod(conv.kernel_size) > 1)


# --- which rank ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Allocation:
    """`ranks`: parameter -> rank, of the layers to factor; `whole`: those for which no rank pays; MACs of one example."""

    ranks: dict[str, int]
    whole: tuple[str, ...]
    macs: int
    macs_before: int

    @property
    def speedup(self) -> float:
        """MACs before over MACs after: a count, not a measured time."""
        return self.macs_before / self.macs


def choices(model: nn.Module, example: Example | Inputs, targets: Mapping[str, View]) -> dict[str, Choices]:
    """Every rank below break-even of each target, and None for whole: the share of the weight's squared norm that is dropped,
    and the MACs of one example, exact, from the shapes that `example` meets.
    """
    weights, shapes = decoded(model), input_shapes(model, example)
    for name in targets:
        if name not in weights:
            raise FactorError(f"no parameter is named {name!r}.{did_you_mean(name, weights)}")
        layer, attribute = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if not isinstance(layer, Conv | nn.Linear) and not (isinstance(layer, nn.RNNBase) and attribute == "weight_ih_l0"):
            raise FactorError(
                f"{name!r} is no weight of a convolution or linear layer, and not the first input matrix of a recurrent one: "
                "only their MACs are counted; leave it out"
            )
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in targets}
    found = {}
    for name, view in targets.items():
        layer, matrix = layers[name], view.to_matrix(weights[name])
        met = shapes.get(name.rpartition(".")[0])
        if not met:
            raise FactorError(f"{name!r} was not used on the example, so its MACs are not known: leave it out")
        examples = Inputs.of(example).batch
        dense, a_rank = (sum(macs(layer, view, rank, shape) for shape in met) // examples for rank in (None, 1))
        squares = squared_values(matrix, name)
        shares = squares.flip(0).cumsum(0).flip(0) / squares.sum().clamp_min(torch.finfo(torch.float64).tiny)
        left = torch.where(shares > NOTHING, shares, 0.0).tolist()
        ranks = range(1, min(break_even(layer, view, met), len(left) + 1))
        errors = [left[rank] if rank < len(left) else 0.0 for rank in ranks]
        found[name] = Choices((*ranks, None), (*errors, 0.0), (*(rank * a_rank for rank in ranks), dense))
    return found


def allocate(model: nn.Module, example: Example | Inputs, targets: Mapping[str, View], keep: float) -> Allocation:
    """The rank of each target such that the whole network keeps at most the share `keep` of its MACs and drops least.

    What is dropped counts relative to each weight's own norm, which batch norm makes meaningless. Raises FactorError where
    `keep` is out of range or out of reach, with the least that is within.
    """
    if not 0 < keep <= 1:
        raise FactorError(f"keep is a share of the network's MACs in (0, 1], such as 0.5 for 2x fewer; given {keep}")
    if not targets:
        raise FactorError(
            "there are no layers to give a rank to: name some, such as featherweight.lowrank.ranks.convolutions(model)"
        )
    menus = choices(model, example, targets)
    before, reasons = count_macs(model, example)
    if before is None:
        raise FactorError(f"the network's MACs cannot be counted, so no share of them can be kept: {'; '.join(reasons)}")
    fixed = before - sum(menu.costs[-1] for menu in menus.values())
    least = fixed + sum(menu.costs[0] for menu in menus.values())
    if int(keep * before) < least:
        raise FactorError(
            f"keep={keep:g} of {before:,} MACs is out of reach: rank 1 in all {len(menus)} targets still takes {least:,} "
            f"({least / before:.3g} of them). Ask for more, or name more layers"
        )
    chosen = {name: menus[name].sizes[index] for name, index in lagrangian(menus, int(keep * before) - fixed).items()}
    after = fixed + sum(menus[name].costs[menus[name].sizes.index(rank)] for name, rank in chosen.items())
    ranks = {name: rank for name, rank in chosen.items() if rank is not None}
    return Allocation(ranks, tuple(name for name, rank in chosen.items() if rank is None), after, before)


# --- small questions about a layer ---------------------------------------------------------------------------------------


def kind_of(layer: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(layer)


def weight_of(layer: nn.Module) -> Tensor:
    return cast(Tensor, layer.weight_ih_l0 if isinstance(layer, nn.RNNBase) else layer.weight)


def split(layer: nn.Module, view: View) -> Split:
    found = split_of(view, weight_of(layer).ndim)
    if found is None:
        raise FactorError(f"a low rank through {view.pattern!r} is not two layers of a {kind_of(layer).__name__}")
    return found
