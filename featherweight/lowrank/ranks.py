"""Ranks: which rank each layer gets under one budget of multiplications."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from featherweight.budget.choices import Choices, lagrangian
from featherweight.errors import did_you_mean
from featherweight.lowrank.layers import Conv, FactorError, break_even, input_shapes, macs
from featherweight.network.calls import Example, Inputs
from featherweight.structure.count import count_macs
from featherweight.weights.parametrized import decoded
from featherweight.weights.svd import squared_values
from featherweight.weights.views import View

NOTHING = 1e-12  # a dropped share of the squared norm that is rounding


def convolutions(model: nn.Module) -> tuple[str, ...]:
    """The weights that Trained Rank Pruning takes: of every ungrouped convolution with a kernel above 1 but the first."""
    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, Conv)]
    return tuple(f"{name}.weight" for name, conv in convs[1:] if name and conv.groups == 1 and math.prod(conv.kernel_size) > 1)


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
