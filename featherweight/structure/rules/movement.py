"""Operations that only move entries: the same operation is run on the labels.

Reshapes look only at the smallest group of dimensions that holds the labelled one; operations along one dimension look only at
that one.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from featherweight.structure.labels import Vector
from featherweight.structure.nodes import as_int, shape_of
from featherweight.structure.rules.names import table
from featherweight.structure.values import ALWAYS, NEVER, Proof, Value, both
from featherweight.structure.walk import Walk


def segments(before: tuple[int, ...], after: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest groups of dimensions with equal products."""
    result = []
    i = j = 0
    while i < len(before) or j < len(after):
        i0, j0 = i, j
        p = q = 1
        if i < len(before):
            p, i = before[i], i + 1
        if j < len(after):
            q, j = after[j], j + 1
        while p != q:
            if p < q:
                p, i = p * before[i], i + 1
            else:
                q, j = q * after[j], j + 1
        result.append((list(range(i0, i)), list(range(j0, j))))
    return result


def reshaped(walk: Walk, node: fx.Node, value: Value, shape: tuple[int, ...]) -> Value:
    """The value after a reshape."""
    result = Value.plain(shape)
    if prod(shape) == 0 or prod(value.shape) == 0:
        walk.freeze(value, range(len(value.shape)), node, "a tensor without entries")
        return result
    for ins, outs in segments(value.shape, shape):
        wide_in, wide_out = [d for d in ins if value.shape[d] > 1], [d for d in outs if shape[d] > 1]
        if len(wide_in) == 1 and len(wide_out) == 1:
            d, e = wide_in[0], wide_out[0]
            result.planes[e], result.zero[e], result.constant[e] = value.planes[d], value.zero[d], value.constant[d]
            continue
        small = tuple(value.shape[d] for d in ins)
        zero: Proof = ALWAYS
        constant: Proof = ALWAYS
        for position, d in enumerate(ins):
            if not walk.live(value, d):
                for reason in walk.labels.reasons(value.planes[d])[:1]:  # what is tied to it hears why
                    for e in outs:
                        result.planes[e] = [*result.planes[e], walk.labels.frozen(shape[e], reason)]
                continue
            zero, constant = both(zero, value.zero[d]), both(constant, value.constant[d])
            for plane in value.planes[d]:
                spread = np.broadcast_to(plane.reshape([-1 if i == position else 1 for i in range(len(small))]), small)
                grid = np.ascontiguousarray(spread).reshape(tuple(shape[e] for e in outs))
                for e, planes in zip(
                    outs, walk.labels.normal(grid, f"one unit would be all of the tensor ({walk.where(node)})"), strict=True
                ):
                    result.planes[e] = result.planes[e] + planes
        for e in outs:
            if result.planes[e]:
                result.zero[e], result.constant[e] = zero, constant
    return result


def _reshape(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    shape = shape_of(node)
    assert shape is not None
    return reshaped(walk, node, bound["self"], shape)


def _permute(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """transpose, permute, movedim, t: found by running the operation on a tensor whose strides name the dimensions."""
    value: Value = bound["self"]
    n = len(value.shape)
    probe = torch.empty([2 + d for d in range(n)], device="meta")
    moved = _replay(node, probe)
    order = [size - 2 for size in moved.shape]
    return Value(
        tuple(value.shape[d] for d in order),
        [value.planes[d] for d in order],
        [value.zero[d] for d in order],
        [value.constant[d] for d in order],
    )


def _replay(node: fx.Node, tensor: Tensor) -> Any:
    """The node's operation with its own arguments on another tensor; symbolic sizes by their example values."""

    def plain(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            meta = argument.meta.get("val")
            return as_int(meta)
        return argument

    rest = fx.node.map_aggregate(node.args[1:], plain)
    kwargs = fx.node.map_aggregate(node.kwargs, plain)
    target: Any = node.target
    return target(tensor, *rest, **kwargs)


def _generic(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Any movement: run it on a label tensor per plane."""
    value: Value = bound["self"] if "self" in bound else bound["input"]
    return moved(walk, node, value, lambda labels: _replay(node, labels))


def _flip(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """What is left of a flipped box is the flipped rest of the box."""
    return _generic(walk, node, bound)


def _spatial(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """pixel_shuffle, pixel_unshuffle, im2col: channels may go, positions not, on either side."""
    value: Value = bound["self"]
    channel = max(0, len(value.shape) - 3)
    walk.freeze(value, [d for d in range(len(value.shape)) if d > channel], node, "positions that are rearranged")
    result = _generic(walk, node, bound)
    walk.freeze(result, [d for d in range(len(result.shape)) if d > channel], node, "positions that are rearranged")
    return result


def _shifted(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """roll, unfold, diagonal: the dimensions they work along stay, since the amount they shift by is a number of entries."""
    value: Value = bound["self"]
    n = len(value.shape)
    given = bound.get("dims") or bound.get("dimension")
    dims = [int(d) % n for d in (given if isinstance(given, list) else [given])] if given is not None else list(range(n))
    if "dim1" in bound:
        dims = [int(bound["dim1"]) % n, int(bound["dim2"]) % n]
    walk.freeze(value, dims, node, "entries are shifted by a number of entries")
    return _generic(walk, node, bound)


def _channel_shuffle(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """(groups, places) become (places, groups): whole groups and the same place of every group may go."""
    value: Value = bound["self"]
    groups = int(bound["groups"])
    split = (value.shape[0], groups, value.shape[1] // groups, *value.shape[2:])
    wide = reshaped(walk, node, value, split)
    order = [0, 2, 1, *range(3, len(split))]
    turned = Value(
        tuple(split[d] for d in order),
        [wide.planes[d] for d in order],
        [wide.zero[d] for d in order],
        [wide.constant[d] for d in order],
    )
    return reshaped(walk, node, turned, value.shape)


def moved(walk: Walk, node: fx.Node, value: Value, move: Any) -> Any:
    results: list[Value] | None = None
    single = True
    for d in range(len(value.shape)):
        for plane in walk.live(value, d):
            labels = torch.from_numpy(plane).reshape([-1 if i == d else 1 for i in range(len(value.shape))]).expand(value.shape)
            out = move(labels)
            single = isinstance(out, Tensor)
            outs = [out] if single else list(out)
            if results is None:
                results = [Value.plain(tuple(o.shape)) for o in outs]
            for result, part in zip(results, outs, strict=True):
                found = walk.labels.normal(part.numpy(), f"one unit would be all of the tensor ({walk.where(node)})")
                for e, planes in enumerate(found):
                    if planes:
                        fresh = not result.planes[e]
                        result.zero[e] = value.zero[d] if fresh else both(result.zero[e], value.zero[d])
                        result.constant[e] = value.constant[d] if fresh else both(result.constant[e], value.constant[d])
                        result.planes[e] = result.planes[e] + planes
    if results is None:
        return walk.fresh_outputs(node)
    return results[0] if single else results


def _along(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Operations along the one dimension `dim` that keep all others: slice, split, chunk, narrow, select, unbind."""
    value: Value = bound["self"]
    dim = int(bound.get("dim") or 0) % len(value.shape)
    outputs = walk.fresh_outputs(node)
    single = isinstance(outputs, Value)
    outs: list[Value] = [outputs] if single else outputs
    dropped = len(outs[0].shape) < len(value.shape)
    pieces: list[list[Vector]] = [[] for _ in outs]
    bare: Any = node.target
    arguments = {name: value for name, value in bound.items() if name not in ("self", "dim")}

    def parts(line: Vector) -> list[Vector]:
        found = bare(torch.from_numpy(line), dim=0, **arguments)
        return [part.numpy().reshape(-1).copy() for part in ([found] if single else found)]

    if planes := walk.live(value, dim):
        walk.take(node, dim, np.concatenate(parts(np.arange(value.shape[dim]))))
    for plane in planes:
        for piece, found in zip(pieces, parts(plane), strict=True):
            piece.append(found)
    for out, piece in zip(outs, pieces, strict=True):
        rest = [d for d in range(len(value.shape)) if not (dropped and d == dim)]
        for e, d in enumerate(rest):
            if d != dim:
                out.planes[e], out.zero[e], out.constant[e] = value.planes[d], value.zero[d], value.constant[d]
        if dropped or (out.shape[dim] == 1):
            walk.labels.freeze(piece, f"one unit is taken by its number ({walk.where(node)})")
        else:
            out.planes[dim], out.zero[dim], out.constant[dim] = piece, value.zero[dim], value.constant[dim]
    return outs[0] if single else outs


def _copied(node: fx.Node, value: Value) -> tuple[Value, list[tuple[int, int, int]]]:
    """The result of copying along dimensions, and per dimension of it (place, size, place in `value`: negative for new ones)."""
    shape = shape_of(node)
    assert shape is not None
    return Value.plain(shape), [(e, size, e - len(shape) + len(value.shape)) for e, size in enumerate(shape)]


def _expand(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """New copies are units of their own: that is what gives the repeats of grouped-query attention."""
    value: Value = bound["self"]
    result, places = _copied(node, value)
    for e, size, d in places:
        if d >= 0 and value.shape[d] == size:
            result.planes[e], result.zero[e], result.constant[e] = value.planes[d], value.zero[d], value.constant[d]
        elif size > 1:
            result.planes[e] = [walk.labels.fresh(size)]
    return result


def _repeat(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """Tiling along each dimension: the copies are units of their own, as in `expand`."""
    value: Value = bound["self"]
    result, places = _copied(node, value)
    for e, size, d in places:
        before = value.shape[d] if d >= 0 else 1
        copies = size // before if before else 0
        if d >= 0:
            result.planes[e] = [np.tile(plane, copies) for plane in value.planes[d]]
            result.zero[e], result.constant[e] = value.zero[d], value.constant[d]
        if copies > 1:
            result.planes[e] = [*result.planes[e], np.repeat(walk.labels.fresh(copies), before)]
            result.zero[e] = result.constant[e] = NEVER
    return result


def _repeat_interleave(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    value = bound.get("self")
    repeats, dim = bound.get("repeats"), bound.get("dim")
    if not isinstance(value, Value) or not isinstance(repeats, int) or dim is None:
        return walk.opaque(node, "entries are repeated by the values of a tensor")
    result = value.like()
    dim %= len(value.shape)
    result.shape = tuple(s * repeats if d == dim else s for d, s in enumerate(value.shape))
    result.planes[dim] = [np.repeat(plane, repeats) for plane in value.planes[dim]]
    if repeats > 1:
        result.planes[dim].append(np.tile(walk.labels.fresh(repeats), value.shape[dim]))
        result.zero[dim] = result.constant[dim] = NEVER
    return result


def joined(walk: Walk, node: fx.Node, values: list[Value], dim: int) -> Value:
    """Concatenation along `dim`."""
    size = sum(v.shape[dim] for v in values)
    result = Value.plain(tuple(size if d == dim else s for d, s in enumerate(values[0].shape)))
    for d in range(len(result.shape)):
        if d != dim:
            result.planes[d] = walk.equal([(v, d) for v in values], node, "tensors of one shape are put together")
            result.zero[d], result.constant[d] = values[0].zero[d], NEVER
            for v in values[1:]:
                result.zero[d] = both(result.zero[d], v.zero[d])
            continue
        lists = [walk.live(v, d) for v in values]
        most = max(map(len, lists))
        result.planes[d] = [
            np.concatenate(
                [
                    planes[k] if k < len(planes) else np.zeros(v.shape[d], dtype=np.int64)
                    for v, planes in zip(values, lists, strict=True)
                ]
            )
            for k in range(most)
        ]
        zero, constant = ALWAYS, ALWAYS
        for v, planes in zip(values, lists, strict=True):
            if planes:
                zero, constant = both(zero, v.zero[d]), both(constant, v.constant[d])
        result.zero[d], result.constant[d] = zero, constant
    return result


def _cat(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    values = [v for v in bound["tensors"] if v.shape != (0,)]
    return joined(walk, node, values, int(bound.get("dim") or 0) % len(values[0].shape))


def _stack(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """The parts of a stack stay; their other dimensions lose the same entries."""
    values: list[Value] = bound["tensors"]
    dim = int(bound.get("dim") or 0) % (len(values[0].shape) + 1)
    wide = [
        Value(
            (*v.shape[:dim], 1, *v.shape[dim:]),
            [*v.planes[:dim], [], *v.planes[dim:]],
            [*v.zero[:dim], NEVER, *v.zero[dim:]],
            [*v.constant[:dim], NEVER, *v.constant[dim:]],
        )
        for v in values
    ]
    return joined(walk, node, wide, dim)


def _pad(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """Constant padding gets labels of its own, so that padded channels can go with the channels they are added to."""
    value: Value = bound["self"]
    pads: list[int] = [int(p) for p in bound["pad"]]
    constant_mode = bound.get("mode", "constant") == "constant"
    fill = bound.get("value") or 0
    result = value.like()
    shape = list(value.shape)
    for k in range(len(pads) // 2):
        d = len(shape) - 1 - k
        low, high = pads[2 * k], pads[2 * k + 1]
        if not low and not high:
            continue
        if not constant_mode or low < 0 or high < 0 or d == 0:
            walk.freeze(value, [d], node, "padded along this dimension")
            result.planes[d] = []
        else:
            planes = walk.live(value, d)
            if planes:
                edges = walk.labels.fresh(low), walk.labels.fresh(high)
                blank = np.zeros(low, dtype=np.int64), np.zeros(high, dtype=np.int64)
                result.planes[d] = [np.concatenate([edges[0], planes[0], edges[1]])]
                result.planes[d] += [np.concatenate([blank[0], plane, blank[1]]) for plane in planes[1:]]
                result.zero[d] = value.zero[d] if fill == 0 else NEVER
        shape[d] += low + high
    # other dimensions now hold the fill value beside the units' own entries
    if fill != 0:
        result.zero = [NEVER] * len(shape)
    result.constant = [NEVER] * len(shape)
    result.shape = tuple(shape)
    return result


def _same(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Copies, casts and operations that do nothing at inference."""
    value = next((v for v in bound.values() if isinstance(v, Value)), None)
    if value is None:
        return walk.fresh_outputs(node)
    result = value.like()
    result.known = value.known
    return result


def _tensor_split(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    return (
        _along(walk, node, bound)
        if "tensor_indices_or_sections" not in bound
        else walk.opaque(node, "split by the values of a tensor")
    )


RULES = {
    **table(
        _reshape,
        "view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as reshape_as squeeze_ unsqueeze_ _reshape_alias",
    ),
    **table(_permute, "permute transpose t movedim moveaxis swapaxes swapdims numpy_T mT transpose_ t_"),
    **table(
        _along,
        "slice narrow select split split_with_sizes chunk unbind unsafe_split unsafe_chunk unsafe_split_with_sizes slice_copy "
        "select_copy",
    ),
    **table(_tensor_split, "tensor_split"),
    **table(_flip, "flip fliplr flipud"),
    **table(_spatial, "pixel_shuffle pixel_unshuffle im2col"),
    **table(_shifted, "roll unfold diagonal"),
    **table(_channel_shuffle, "channel_shuffle native_channel_shuffle"),
    **table(_expand, "expand expand_as broadcast_to"),
    **table(_repeat, "repeat tile"),
    **table(_repeat_interleave, "repeat_interleave"),
    **table(_cat, "cat concat concatenate"),
    **table(_stack, "stack"),
    **table(_pad, "pad constant_pad_nd"),
    **table(
        _same,
        "contiguous clone detach detach_ alias lift_fresh lift_fresh_copy to _to_copy type_as dropout dropout_ feature_dropout "
        "alpha_dropout "
        "feature_alpha_dropout requires_grad_ float double half positive resolve_conj resolve_neg identity",
    ),
}
