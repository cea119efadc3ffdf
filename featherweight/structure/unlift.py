"""A rewritten graph as a module of its own: parameters and buffers under the names they had in the user's network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from featherweight.structure.capture import Captured


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
    """The rewritten graph as a module of its own: parameters and buffers under the names they had in the user's network."""
    root = nn.Module()
    graph = fx.Graph()
    replaced: dict[fx.Node, fx.Node] = {}
    sources = iter(captured.sources)
    for name, part in rewritten.named_children():
        root.add_module(name, part)
    for name, buffer in rewritten._buffers.items():
        root.register_buffer(name, buffer)
    made: dict[str, str] = {}
    inputs = []
    pending = []
    for node in rewritten.graph.nodes:
        if node.op == "placeholder":
            kind, name = next(sources)
            if kind in ("input", "other"):
                replaced[node] = graph.node_copy(node, replaced.__getitem__)
                replaced[node].meta = dict(node.meta)
                inputs.append(node)
            else:
                if node.users:
                    pending.append((node, kind, name))
    for node, kind, name in pending:
        if name not in made:
            trains = kind == "parameter" and captured.tensors[name].requires_grad
            made[name] = register(root, name, tensors[name], kind == "parameter", trains)
        replaced[node] = graph.get_attr(made[name])
        replaced[node].meta = dict(node.meta)
    for node in rewritten.graph.nodes:
        if node.op == "output":
            results = node.args[0]
            graph.output(fx.node.map_arg(results[0] if len(results) == 1 else tuple(results), replaced.__getitem__))
        elif node.op != "placeholder":  # tensors that nothing reads are left out
            replaced[node] = graph.node_copy(node, replaced.__getitem__)
            replaced[node].meta = dict(node.meta)
    return Movable(root, graph)


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
