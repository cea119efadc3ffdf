"""Dead units, cut before a network is written: what pruning weight by weight leaves without effect is neither stored nor run.

A recipe's stages cut them where they ask for that; a packed file, or a network that was pruned elsewhere, still has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from featherweight import structure
from featherweight.network.calls import Inputs
from featherweight.ship.integers import Stored
from featherweight.structure.errors import StructureError
from featherweight.weights.parametrized import layouts_kept

Masks = Mapping[tuple[str, int], Tensor]  # (tensor, dimension) -> bool, of the entries that stay


def without_dead(network: nn.Module, example: Inputs) -> Masks:
    """Cut the dead units of a network without codes, in place, and say what went. It computes the same, compared in float64.

    Nothing goes where the network cannot be traced, where its class has no smaller form, or where no slice of a weight is zero,
    which is looked at first: a network that was not pruned is not traced.
    """
    if not _may_have(network):
        return {}
    with layouts_kept(network):
        try:
            result = structure.sweep(network, structure.trace(network, example))
        except StructureError:
            return {}
    if result.where != "class":
        return {}
    return {key: torch.from_numpy(mask) for key, mask in result.masks.items()}


def _may_have(network: nn.Module) -> bool:
    """Is a row or a column of some weight zero, or one factor of a norm? Rows of embeddings often are, and make no unit."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            held = weight.detach() != 0
            if isinstance(module, nn.Embedding) or name.startswith("bias") or not held.dim() or not held.numel():
                continue
            columns = held.transpose(0, 1) if held.dim() > 1 else held
            if not all(bool(part.reshape(len(part), -1).any(1).all()) for part in (held, columns)):
                return True
    return False


def cut_codes(held: Mapping[str, Stored], network: nn.Module, masks: Masks) -> dict[str, Stored]:
    """How the weights that were cut are stored; without those whose values are others now, which a constant was folded into."""
    weights, found = dict(network.named_parameters()), {}
    for name, one in held.items():
        own = {dim: mask for (tensor, dim), mask in masks.items() if tensor == name}
        if any(len(mask) != one.weight.shape[dim] for dim, mask in own.items()):
            continue  # the columns of a grouped convolution
        smaller = _cut(one, own) if own else one
        if name in weights and torch.equal(smaller.weight, weights[name].detach().cpu()):
            found[name] = smaller
    return found


def _cut(one: Stored, masks: Mapping[int, Tensor]) -> Stored:
    def kept(tensor: Tensor) -> Tensor:
        for dim, mask in masks.items():
            if tensor.shape[dim] > 1 or len(mask) == 1:  # one for all of them stays
                tensor = tensor.index_select(dim, mask.nonzero()[:, 0])
        return tensor.contiguous()

    support = torch.ones(one.weight.shape, dtype=torch.bool) if one.support is None else one.support
    number = torch.full(one.weight.shape, -1).masked_scatter_(support, torch.arange(int(support.sum())))
    stay = kept(number)
    places = stay[stay >= 0]
    return replace(
        one,
        weight=kept(one.weight),
        support=None if one.support is None else stay >= 0,
        index=None if one.index is None else one.index[places],
        values=None if one.values is None else one.values[places],
        scale=None if one.scale is None else kept(one.scale),
    )
