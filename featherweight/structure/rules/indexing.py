"""Entries picked by number, and tensors written into others.

Numbers that the code fixes (the order of a channel shuffle) make a movement; numbers that depend on the input keep the
dimension they index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from featherweight.structure.nodes import shape_of
from featherweight.structure.rules.names import table
from featherweight.structure.values import NEVER, Value, both
from featherweight.structure.walk import Walk


def _index(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """`x[..., index, ...]`: a movement where the index is known from the code, else the indexed dimensions stay."""
    value: Value = bound["self"]
    indices: list[Any] = bound["indices"]
    used = [d for d, index in enumerate(indices) if index is not None]
    known = all(isinstance(indices[d], Value) and indices[d].known is not None for d in used)
    labelled = any(walk.live(value, d) for d in used)
    for d in used:
        walk.freeze(indices[d], range(len(indices[d].shape)), node, "its entries are used as numbers of entries")
    if known and labelled and len(used) == 1:
        d = used[0]
        index = indices[d].known.cpu()
        if index.dim() == 1 and index.dtype == torch.int64:
            return _taken(walk, node, value, d, index)
    walk.freeze(value, used, node, "entries are picked by number")
    outputs = walk.fresh_outputs(node)
    if not isinstance(outputs, Value):
        return outputs
    consecutive = used == list(range(used[0], used[-1] + 1)) if used else True
    rank = len(outputs.shape) - (len(value.shape) - len(used))
    start = used[0] if consecutive and used else 0
    rest = [d for d in range(len(value.shape)) if d not in used]
    places = [e for e in range(len(outputs.shape)) if not start <= e < start + rank]
    for e, d in zip(places, rest, strict=True):
        if outputs.shape[e] == value.shape[d]:
            outputs.planes[e], outputs.zero[e] = value.planes[d], value.zero[d]
        else:
            walk.freeze(value, [d], node, "entries are picked by number")
    return outputs


def _taken(walk: Walk, node: fx.Node, value: Value, dim: int, index: Tensor) -> Value:
    shape = shape_of(node)
    assert shape is not None
    walk.take(node, dim, index.numpy())
    result = value.like()
    result.shape = shape
    result.planes[dim] = [plane[index.numpy()] for plane in walk.live(value, dim)]
    return result


def _index_select(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    value: Value = bound["self"]
    dim = int(bound["dim"]) % len(value.shape)
    index = bound["index"]
    if isinstance(index, Value) and index.known is not None and index.known.dtype == torch.int64:
        return _taken(walk, node, value, dim, index.known.cpu().reshape(-1))
    walk.freeze(value, [dim], node, "entries are picked by number")
    if isinstance(index, Value):
        walk.freeze(index, range(len(index.shape)), node, "its entries are used as numbers of entries")
    result = value.like()
    shape = shape_of(node)
    assert shape is not None
    result.shape = shape
    return result


def _embedding(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    weight, indices = bound["weight"], bound["indices"]
    walk.freeze(weight, [0], node, "rows of an embedding are picked by number")
    walk.freeze(indices, range(len(indices.shape)), node, "its entries are used as numbers of entries")
    result = Value.plain((*indices.shape, weight.shape[1]))
    result.planes[-1], result.zero[-1] = weight.planes[1], weight.zero[1]
    return result


def _copy_(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """Writing `src` into `self`: what is left of both must fit."""
    target, source = bound["self"], bound["src"]
    result = target.like()
    lead = len(target.shape) - len(source.shape)
    for d in range(len(target.shape)):
        if d - lead >= 0 and source.shape[d - lead] == target.shape[d]:
            result.planes[d] = walk.equal([(target, d), (source, d - lead)], node, "one tensor is written into another")
            result.zero[d] = source.zero[d - lead]
        else:
            result.zero[d] = NEVER
        result.constant[d] = NEVER
    return result


def _index_put(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """`x[..., index, ...] = values`: the indexed dimensions stay, the others lose the same entries."""
    target, source, indices = bound["self"], bound["values"], bound["indices"]
    used = [d for d, index in enumerate(indices) if index is not None]
    rest = [d for d in range(len(target.shape)) if d not in used]
    for index in (indices[d] for d in used):
        walk.freeze(index, range(len(index.shape)), node, "its entries are used as numbers of entries")
    walk.freeze(target, used, node, "entries are picked by number")
    if used != list(range(len(used))):
        walk.freeze(target, range(len(target.shape)), node, "entries are picked by number")
        walk.freeze(source, range(len(source.shape)), node, "entries are picked by number")
        return target.like()
    return _written(walk, node, target, source, rest, len(target.shape) - len(source.shape))


def _index_add(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Rows of `source` added to rows of `self` by number."""
    target, source, dim = bound["self"], bound["source"], int(bound["dim"]) % max(1, len(bound["self"].shape))
    walk.freeze(bound["index"], [0], node, "its entries are used as numbers of entries")
    walk.freeze(target, [dim], node, "entries are picked by number")
    walk.freeze(source, [dim], node, "entries are picked by number")
    return _written(walk, node, target, source, [d for d in range(len(target.shape)) if d != dim], 0)


def _written(walk: Walk, node: fx.Node, target: Value, source: Value, rest: list[int], lead: int) -> Value:
    """`rest` of the target's dimensions lose what those of the source lose, which stand `lead` places before them."""
    result = target.like()
    result.zero, result.constant = [NEVER] * len(target.shape), [NEVER] * len(target.shape)
    inside = {d - lead for d in rest}
    walk.freeze(source, [d for d in range(len(source.shape)) if d not in inside], node, "entries are picked by number")
    for d in rest:
        if d - lead >= 0 and source.shape[d - lead] == target.shape[d]:
            result.planes[d] = walk.equal([(target, d), (source, d - lead)], node, "one tensor is written into another")
            result.zero[d] = both(target.zero[d], source.zero[d - lead])
    return result


def _numbers(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """histc, bincount, diff, ...: what is made of whole numbers, entry by entry or all together."""
    for value in bound.values():
        if isinstance(value, Value):
            walk.freeze(value, range(len(value.shape)), node, "its entries are counted or compared")
    return walk.fresh_outputs(node)


RULES = {
    **table(_index_put, "index_put index_put_"),
    **table(_index_add, "index_add index_add_"),
    **table(_numbers, "histc bincount one_hot diff"),
    **table(_index, "index"),
    **table(_index_select, "index_select"),
    **table(_embedding, "embedding"),
    **table(_copy_, "copy_"),
}
