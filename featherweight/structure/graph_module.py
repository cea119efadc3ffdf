"""A rewritten graph as a module of its own: parameters and buffers under the names they had in the user's network.

It is called as the network is, by position or by name, and gives what the network gives, in dicts, lists and tuples.
"""

from __future__ import annotations

import functools
import keyword
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from featherweight.structure.capture import Captured
from featherweight.structure.errors import NotExact


class Movable(fx.GraphModule):
    """A graph that moves whole: its code names a device for each tensor that it makes, which `to` would leave where it was."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Movable:
        before = self._devices()
        super()._apply(fn, recurse)
        after = self._devices()
        if after != before and len(after) == 1:
            (device,) = after
            for node in self.graph.nodes:
                node.args, node.kwargs = (_on(device, part) for part in (node.args, node.kwargs))
            self.recompile()
        return self

    def _devices(self) -> set[torch.device]:
        return {tensor.device for tensor in (*self.parameters(), *self.buffers())}


def _on(device: torch.device, arguments: Any) -> Any:
    return fx.node.map_aggregate(arguments, lambda value: device if isinstance(value, torch.device) else value)


def module_of(captured: Captured, rewritten: fx.GraphModule, tensors: dict[str, Tensor]) -> fx.GraphModule:
    """The rewritten graph as a module of its own. Raises NotExact where a name of the network has no place in it."""
    root = nn.Module()
    graph = fx.Graph()
    replaced: dict[fx.Node, fx.Node] = {}
    sources = iter(captured.sources)
    for name, part in rewritten.named_children():
        root.add_module(name, part)
    for name, buffer in rewritten._buffers.items():
        root.register_buffer(name, buffer)
    made: dict[str, str] = {}
    pending = []
    placeholders = [node for node in rewritten.graph.nodes if node.op == "placeholder"]
    inputs = [n for n, (kind, _) in zip(placeholders, captured.sources, strict=True) if kind in ("input", "other")]
    replaced.update(zip(inputs, _inputs(captured, graph, inputs), strict=True))
    for node in inputs:
        replaced[node].meta = dict(node.meta)
    for node in rewritten.graph.nodes:
        if node.op == "placeholder":
            kind, name = next(sources)
            if kind not in ("input", "other") and node.users:
                pending.append((node, kind, name))
    for node, kind, name in pending:
        if name not in made:
            _check_name(name)
            trains = kind == "parameter" and captured.tensors[name].requires_grad
            made[name] = register(root, name, tensors[name], kind == "parameter", trains)
        replaced[node] = graph.get_attr(made[name])
        replaced[node].meta = dict(node.meta)
    for node in rewritten.graph.nodes:
        if node.op == "output":
            form = captured.program.call_spec.out_spec
            graph.output(fx.node.map_arg(_pytree.tree_unflatten(node.args[0], form), replaced.__getitem__))
        elif node.op != "placeholder":  # tensors that nothing reads are left out
            replaced[node] = graph.node_copy(node, replaced.__getitem__)
            replaced[node].meta = dict(node.meta)
    return Movable(root, graph)


@functools.cache
def _taken() -> frozenset[str]:
    """What a graph module has of its own, where a network may have a part of that name."""
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))


def _check_name(name: str) -> None:
    """A graph module is written out as Python and has attributes of its own."""
    first, *_ = parts = name.split(".")
    taken = first if first in _taken() else next((part for part in parts if keyword.iskeyword(part)), None)
    if taken is not None:
        raise NotExact(
            f"the exported module cannot have a part named {taken!r}, as the network has ({name}): torch.fx needs that name. "
            "Give the part another name, or cut what the network's own class can express (where='class')"
        )


def _inputs(captured: Captured, graph: fx.Graph, old: list[fx.Node]) -> list[fx.Node]:
    """Placeholders as the network's inputs are, and what is picked out of those that hold several, in the old order."""
    args, kwargs = _parts(captured.program.call_spec.in_spec)
    names = dict(zip(kwargs.context, _parts(kwargs), strict=True))
    leaves = iter(old)
    first = [next(leaves) for _ in range(args.num_leaves)]
    named = [next(leaves) for _ in range(kwargs.num_leaves)]

    def made(wanted: str, form: Any, nodes: Iterator[fx.Node]) -> list[tuple[fx.Node, Any, list[fx.Node]]]:
        mine = [next(nodes) for _ in range(form.num_leaves)]
        alone = str(mine[0].target) if form.is_leaf() and wanted == "" else wanted
        return [(graph.placeholder(alone or _common(mine)), form, mine)]

    parts, each = [], iter(first)
    for form in _parts(args):
        parts += made("", form, each)
    each = iter(named)
    for name, form in names.items():
        parts += made(name, form, each)
    return [leaf for place, form, _ in parts for leaf in _picked(graph, place, form)]


def _parts(form: Any) -> list[Any]:
    """What a TreeSpec holds, which earlier versions of torch have as a field alone."""
    return list(form.children() if hasattr(form, "children") else form.children_specs)


def _common(nodes: list[fx.Node]) -> str:
    """What the input is called whose parts are `both_0`, `both_1_a`."""
    return str(nodes[0].target).rsplit("_", 1)[0] if nodes else "unused"


def _picked(graph: fx.Graph, place: fx.Node, form: Any) -> Iterator[fx.Node]:
    """The leaves of an input, in order."""
    if form.is_leaf():
        yield place
        return
    inside = _parts(form)
    keys = form.context if form.type is dict else range(len(inside))
    for key, inner in zip(keys, inside, strict=True):
        yield from _picked(graph, graph.call_function(operator.getitem, (place, key)), inner)


def register(root: nn.Module, name: str, tensor: Tensor, parameter: bool, trains: bool) -> str:
    """Put `tensor` at the dotted path `name` under `root`, with the modules on the way; the name."""
    *path, leaf = name.split(".")
    module = root
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if parameter:
        module.register_parameter(leaf, nn.Parameter(tensor.detach(), requires_grad=trains))
    else:
        module.register_buffer(leaf, tensor.detach())
    return name
