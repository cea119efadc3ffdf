"""Tensors made by the code: uniform ones have units of their own (their sizes are rewritten), all others stay as they are."""

from __future__ import annotations

from typing import Any

from torch import fx

from featherweight.structure.nodes import operation, shape_of
from featherweight.structure.rules.names import table
from featherweight.structure.values import ALWAYS, NEVER, Value
from featherweight.structure.walk import Walk


def _uniform(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """zeros, ones, full and their `new_` forms."""
    shape = shape_of(node)
    if shape is None:
        return walk.fresh_outputs(node)
    result = Value.plain(shape)
    name = operation(node)
    zero = "zeros" in name or ("full" in name and bound.get("fill_value") == 0)
    for d, size in enumerate(shape):
        if size > 1:
            result.planes[d] = [walk.labels.fresh(size)]
            result.zero[d] = ALWAYS if zero else NEVER
            result.constant[d] = ALWAYS
    return result


def _like(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """zeros_like and its kin take their size from a tensor."""
    value: Value = bound["self"]
    result = value.like()
    zero, empty = "zero" in operation(node), "empty" in operation(node)
    result.zero = [ALWAYS if zero else NEVER] * len(value.shape)
    result.constant = [NEVER if empty else ALWAYS] * len(value.shape)
    return result


def _fixed(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """arange, eye, ...: entry i is not like entry j, so nothing of it goes."""
    return walk.fresh_outputs(node)


def _check(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Assertions on sizes or types: no tensor comes out of them."""
    return walk.fresh_outputs(node)


RULES = {
    **table(_uniform, "zeros ones full new_zeros new_ones new_full empty new_empty"),
    **table(_like, "zeros_like ones_like full_like empty_like fill_ zero_ fill zero"),
    **table(_fixed, "arange linspace eye scalar_tensor tril_indices triu_indices hann_window"),
    **table(
        _check, "sym_size sym_numel sym_stride _assert_tensor_metadata _assert_async _assert_scalar sym_constrain_range_for_size"
    ),
}
