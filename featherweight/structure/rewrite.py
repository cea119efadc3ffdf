"""Surgery on the exported graph: only the numbers that name a labelled size are rewritten; everything else follows from the
shapes.

This always works, since every operation with a rule can be cut to a box. It also says which numbers changed at which operation:
that is what surgery in place looks for among the attributes of the user's modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from featherweight.structure.graph import Graph
from featherweight.structure.nodes import operation, shape_of
from featherweight.structure.values import Value

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Change:
    """A number in the code that a cut changes: `before` -> `after` at an operation made by the modules of `modules` (outermost
    first).
    """

    operation: str
    modules: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True)
class Rewritten:
    """The graph after a cut. `module` has the placeholders of the original; `constants` are index tensors that the cut brought
    in.
    """

    module: fx.GraphModule
    changes: tuple[Change, ...]


class _Rewriter:
    """One pass over a copy of the graph."""

    def __init__(self, graph: Graph, gone: Mask) -> None:
        self.graph = graph
        self.walk = graph.walk
        self.mask_of = graph.node_masks(gone)
        self.new = fx.Graph()
        self.root = nn.Module()
        self.changes: list[Change] = []
        self.map: dict[fx.Node, fx.Node] = {}
        source = graph.captured.module
        for name, part in source.named_children():
            self.root.add_module(name, part)
        for name, tensor in source._buffers.items():
            self.root.register_buffer(name, tensor)

    def run(self) -> Rewritten:
        source = self.graph.captured.module
        for node in source.graph.nodes:
            if node.op == "get_attr" and not isinstance(self._fetch(source, node.target), nn.Module):
                leaf = str(node.target).replace(".", "_")
                self.root.register_buffer(leaf, self._fetch(source, node.target))
                self.map[node] = self.new.get_attr(leaf)
                self.map[node].meta = dict(node.meta)
                continue
            rewriter = _REWRITERS.get(operation(node)) if node.op == "call_function" else None
            done = rewriter(self, node) if rewriter is not None else None
            if done is None:
                done = self.new.node_copy(node, self.map.__getitem__)
            done.meta = dict(node.meta)
            self.map[node] = done
        module = fx.GraphModule(self.root, self.new)
        return Rewritten(module, tuple(self.changes))

    @staticmethod
    def _fetch(module: Any, path: Any) -> Any:
        for part in str(path).split("."):
            module = getattr(module, part)
        return module

    # ---- helpers

    def value(self, node: fx.Node) -> Value | None:
        value = self.walk.values.get(node)
        return value if isinstance(value, Value) else None

    def mask(self, value: Value | None, dim: int) -> Mask | None:
        return None if value is None else self.mask_of(value, dim)

    def kept(self, value: Value, dim: int) -> int:
        mask = self.mask_of(value, dim)
        return value.shape[dim] if mask is None else int(mask.sum())

    def argument(self, node: fx.Node, name: str) -> Any:
        """The raw argument of that name (nodes are not replaced)."""
        target: Any = node.target
        for i, argument in enumerate(target._schema.arguments):
            if argument.name == name:
                if i < len(node.args):
                    return node.args[i]
                return node.kwargs.get(name, argument.default_value if argument.has_default_value() else None)
        return None

    def change(self, node: fx.Node, before: int, after: int) -> None:
        if before == after:
            return
        stack = node.meta.get("nn_module_stack") or {}
        self.changes.append(Change(operation(node), tuple(str(path) for path, _ in stack.values()), int(before), int(after)))

    def emit(self, node: fx.Node, replaced: dict[str, Any], target: Any = None) -> fx.Node:
        """The node with some arguments replaced, by name; all others as they were."""
        chosen: Any = target or node.target
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        given = {name: fx.node.map_arg(value, self.map.__getitem__) for name, value in given.items()} | replaced
        args, kwargs, positional = [], {}, True
        for argument in chosen._schema.arguments:
            if argument.name not in given:
                positional = False
                continue
            if positional and not argument.kwarg_only:
                args.append(given[argument.name])
            else:
                kwargs[argument.name] = given[argument.name]
        return self.new.call_function(chosen, tuple(args), kwargs)

    def constant(self, places: NDArray[np.int64], node: fx.Node) -> fx.Node:
        """An index on the device of what the node gives: a buffer, so that it moves with the module."""
        name = f"_index_{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, torch.from_numpy(places.copy()).to(node.meta["val"].device))
        return self.new.get_attr(name)

    def sizes(self, node: fx.Node, raw: Sequence[Any], value: Value, offset: int = 0, infer: bool = True) -> list[Any]:
        """Rewrite a list of sizes for the dimensions offset, offset + 1, ... of a value."""
        result = []
        for i, size in enumerate(raw):
            e = offset + i
            after = self.kept(value, e)
            if after == value.shape[e]:
                result.append(fx.node.map_arg(size, self.map.__getitem__))
                continue
            if isinstance(size, int) and size >= 0:
                self.change(node, size, after)
                result.append(after)
            elif isinstance(size, int):
                result.append(size)
            else:
                result.append(-1)  # a product of the batch and a size that changed
        return result


def _resize(name: str) -> Callable[[_Rewriter, fx.Node], fx.Node | None]:
    """Operations that are given the sizes of their result in the argument `name`."""

    def rewrite(r: _Rewriter, node: fx.Node) -> fx.Node | None:
        value, raw = r.value(node), r.argument(node, name)
        if value is None or not isinstance(raw, (list, tuple)) or all(r.mask(value, e) is None for e in range(len(value.shape))):
            return None
        lead = len(value.shape) - len(raw)
        return r.emit(node, {name: r.sizes(node, raw, value, lead)})

    return rewrite


def _unflatten(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    value, raw = r.value(node), r.argument(node, "sizes")
    if value is None:
        return None
    source = shape_of(node.args[0])  # type: ignore[arg-type]
    assert source is not None
    return r.emit(node, {"sizes": r.sizes(node, raw, value, int(r.argument(node, "dim")) % len(source))})


def _source(r: _Rewriter, node: fx.Node, name: str = "self") -> Value:
    value = r.walk.values[r.argument(node, name)]
    assert isinstance(value, Value)
    return value


def _repeat(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    value, source = r.value(node), _source(r, node)
    raw = list(r.argument(node, "repeats") or r.argument(node, "dims"))
    assert value is not None
    lead = len(value.shape) - len(source.shape)
    result: list[Any] = []
    for e, number in enumerate(raw):
        before = source.shape[e - lead] if e >= lead else 1
        after = r.kept(source, e - lead) if e >= lead else 1
        copies = r.kept(value, e) // after
        if not isinstance(number, int) or copies == value.shape[e] // before:
            result.append(fx.node.map_arg(number, r.map.__getitem__))
        else:
            r.change(node, number, copies)
            result.append(copies)
    return r.emit(node, {"repeats" if r.argument(node, "repeats") is not None else "dims": result})


def _repeat_interleave(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    value, source, raw = r.value(node), _source(r, node), r.argument(node, "repeats")
    if value is None or not isinstance(raw, int):
        return None
    dim = int(r.argument(node, "dim")) % len(value.shape)
    copies = r.kept(value, dim) // r.kept(source, dim)
    r.change(node, raw, copies)
    return r.emit(node, {"repeats": copies})


def _ranks(mask: Mask | None, size: int) -> NDArray[np.int64]:
    """Where each entry lies after the cut (entries that go: where they would)."""
    kept = np.ones(size, dtype=bool) if mask is None else mask
    return np.cumsum(kept) - 1


def _slice(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    """slice and narrow along a cut dimension: the bounds move; where no slice gives the entries, they are picked."""
    value, source = r.value(node), _source(r, node)
    dim = int(r.argument(node, "dim") or 0) % len(source.shape)
    mask = r.mask(source, dim)
    if value is None or mask is None:
        return None
    places = np.arange(source.shape[dim])
    line = torch.from_numpy(places)
    target: Any = node.target
    rest = {a.name: r.walk._value(r.argument(node, a.name)) for a in target._schema.arguments if a.name not in ("self", "dim")}
    taken = target(line, dim=0, **rest).numpy()
    wanted = _ranks(mask, len(mask))[taken[mask[taken]]]
    for name in ("start", "end", "length"):
        raw = rest.get(name)
        if isinstance(raw, int) and 0 < raw < (1 << 60):
            after = (
                int(mask[: rest["start"] + raw].sum() - mask[: rest["start"]].sum())
                if name == "length"
                else int(mask[:raw].sum())
            )
            r.change(node, raw, after)
    first = r.map[node.args[0]]  # type: ignore[index]
    if len(wanted) and (np.diff(wanted) == 1).all():
        return r.new.call_function(torch.ops.aten.slice.Tensor, (first, dim, int(wanted[0]), int(wanted[-1]) + 1))
    return r.new.call_function(torch.ops.aten.index_select.default, (first, dim, r.constant(wanted, node)))


def _select(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    source = _source(r, node)
    dim, index = int(r.argument(node, "dim")) % len(source.shape), r.argument(node, "index")
    mask = r.mask(source, dim)
    if mask is None or not isinstance(index, int):
        return None
    after = int(_ranks(mask, len(mask))[index])
    r.change(node, index % len(mask), after)
    return r.emit(node, {"index": after})


def _split(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    source = _source(r, node)
    dim = int(r.argument(node, "dim") or 0) % len(source.shape)
    if r.mask(source, dim) is None:
        return None
    parts = [v for v in r.walk.values[node] if isinstance(v, Value)]
    after = [r.kept(v, dim) for v in parts]
    for v, size in zip(parts, after, strict=True):
        r.change(node, v.shape[dim], size)
    return r.new.call_function(torch.ops.aten.split_with_sizes.default, (r.map[node.args[0]], after, dim))  # type: ignore[index]


def _index(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Indices known from the code are renumbered; the dimension keeps the entries its own planes keep."""
    source, value = _source(r, node), r.value(node)
    if operation(node) == "index":
        indices = list(r.argument(node, "indices"))
        used = [d for d, index in enumerate(indices) if index is not None]
        if len(used) != 1:
            return None
        dim, index = used[0], indices[used[0]]
    else:
        dim, index = int(r.argument(node, "dim")) % len(source.shape), r.argument(node, "index")
    mask = r.mask(source, dim)
    known = r.walk.values[index].known
    if mask is None or value is None or known is None:
        return None
    taken = known.cpu().numpy().reshape(-1)
    wanted = _ranks(mask, len(mask))[taken[mask[taken]]]
    new = r.constant(wanted, node)
    if operation(node) == "index":
        return r.emit(node, {"indices": [None] * dim + [new]})
    return r.emit(node, {"index": new})


def _conv(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    groups = int(r.argument(node, "groups") or 1)
    weight = _source(r, node, "weight")
    mask = r.mask(weight, 0)
    if groups == 1 or mask is None:
        return None
    after = int(mask.reshape(groups, -1).any(axis=1).sum())
    r.change(node, groups, after)
    return r.emit(node, {"groups": after})


def _group_norm(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    groups = int(r.argument(node, "num_groups"))
    mask = r.mask(_source(r, node, "input"), 1)
    if mask is None:
        return None
    after = int(mask.reshape(groups, -1).any(axis=1).sum())
    r.change(node, groups, after)
    return r.emit(node, {"num_groups": after})


def _norm(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    x = _source(r, node, "input")
    raw = list(r.argument(node, "normalized_shape"))
    return r.emit(node, {"normalized_shape": r.sizes(node, raw, x, len(x.shape) - len(raw))})


def _attention(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    """The scale is 1 / sqrt(head size) by default: it stays what it was."""
    query = _source(r, node, "query")
    if r.argument(node, "scale") is not None or r.mask(query, len(query.shape) - 1) is None:
        return None
    return r.emit(node, {"scale": 1 / math.sqrt(query.shape[-1])})


def _pad(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    value, source, raw = r.value(node), _source(r, node), list(r.argument(node, "pad"))
    if value is None:
        return None
    result = list(raw)
    for k in range(len(raw) // 2):
        d = len(source.shape) - 1 - k
        mask = r.mask(value, d)
        if mask is None:
            continue
        low, high = int(raw[2 * k]), int(raw[2 * k + 1])
        result[2 * k], result[2 * k + 1] = int(mask[:low].sum()), int(mask[len(mask) - high :].sum()) if high else 0
        r.change(node, low, result[2 * k])
        r.change(node, high, result[2 * k + 1])
    return r.emit(node, {"pad": [fx.node.map_arg(p, r.map.__getitem__) for p in result]})


def _channel_shuffle(r: _Rewriter, node: fx.Node) -> fx.Node | None:
    source, groups = _source(r, node), int(r.argument(node, "groups"))
    mask = r.mask(source, 1)
    if mask is None:
        return None
    after = int(mask.reshape(groups, -1).any(axis=1).sum())
    r.change(node, groups, after)
    return r.emit(node, {"groups": after})


_REWRITERS: dict[str, Callable[[_Rewriter, fx.Node], fx.Node | None]] = {
    **dict.fromkeys(("view", "zeros", "ones", "full", "expand", "broadcast_to", "new_zeros", "new_ones", "new_full", "empty",
    "new_empty", "_unsafe_view", "_reshape_alias"), _resize("size")),
    "reshape": _resize("shape"),
    "unflatten": _unflatten,
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_interleave,
    **dict.fromkeys(("slice", "narrow"), _slice),
    "select": _select,
    **dict.fromkeys(("split", "chunk", "split_with_sizes", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes",
    "tensor_split"), _split), **dict.fromkeys(("index", "index_select"), _index),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
    _conv), "group_norm": _group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    "channel_shuffle": _channel_shuffle,
    "native_channel_shuffle": _channel_shuffle,
}  # fmt: skip


def rewrite(graph: Graph, gone: Mask) -> Rewritten:
    """The exported graph after the labels in `gone` went. The tensors are not touched: slice them with `Graph.keep_masks`."""
    return _Rewriter(graph, gone).run()
