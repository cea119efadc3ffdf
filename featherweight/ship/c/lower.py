"""A network as a list of simple steps over float32 arrays, for a batch of one: what the C writer works from.

Every value is contiguous. Batch norms are folded into the layer in front, ReLUs into whatever makes their input; views cost
nothing; what depends on weights alone is computed here. What an operation becomes stands in `rules`, what moves entries in
`moves`, what a step is in `steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from featherweight.errors import shortened
from featherweight.network.calls import Inputs
from featherweight.ship.c.moves import where
from featherweight.ship.c.rules import EXPRESSIONS, Rules
from featherweight.ship.c.steps import CError, Program, Value
from featherweight.structure.capture import quiet

SAME = (
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "clone", "contiguous", "dropout"),
    *("detach", "alias", "feature_dropout", "alpha_dropout", "lift_fresh_copy", "_to_copy", "to"),
)


def lower(network: nn.Module, example: Inputs) -> Program:
    """Raises CError where the network cannot be exported or has an operation that is not known here, which it names."""
    try:
        with torch.no_grad(), quiet():
            exported = torch.export.export(network, example.args, example.kwargs or None, strict=False).run_decompositions({})
    except Exception as error:  # torch.export lets through whatever the traced code raises
        said = shortened(str(error).strip().splitlines()[0] if str(error).strip() else "")
        raise CError(f"torch.export cannot capture the network: {type(error).__name__}: {said}") from error
    return _Lowering(exported).program()


class _Lowering(Rules):
    @torch.no_grad()
    def program(self) -> Program:
        exported, inputs = self.exported, []
        nodes = list(exported.graph.nodes)
        places = iter(node for node in nodes if node.op == "placeholder")
        for spec, node in zip(exported.graph_signature.input_specs, places, strict=True):
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                held = exported.state_dict if spec.target in exported.state_dict else exported.constants
                self.values[node] = held[spec.target].detach().cpu()
            elif isinstance(node.meta.get("val"), Tensor):
                kind = node.meta["val"].dtype
                if kind != torch.float32:
                    raise CError(f"input {node.name} is of {kind}: C is written for inputs in float32")
                self.values[node] = self.value(tuple(node.meta["val"].shape))
                inputs.append(self.values[node])
            else:
                self.values[node] = node.meta.get("val")
        for node in nodes:
            if node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "get_attr":
                self.values[node] = getattr(exported.graph_module, str(node.target)).detach().cpu()
        outputs = []
        for node in nodes[-1].args[0]:
            value = self.values.get(node)
            if isinstance(value, Tensor):
                raise CError("an output of the network does not depend on its inputs")
            if not isinstance(value, Value):
                raise CError("an output of the network is no tensor")
            outputs.append(value)
        if not inputs or not outputs:
            raise CError("the network has no input or no output")
        return Program(self.sizes, self.steps, inputs, outputs)

    def call(self, node: fx.Node) -> Any:
        target = node.target
        if getattr(target, "__name__", "") == "getitem":
            value = self.of(node.args[0])[node.args[1]]
            if value is None:
                raise CError(f"{where(node)}: this output of the operation (an LSTM's last cells) has no form in C")
            return value
        kind = getattr(target, "overloadpacket", None)
        name = str(kind).rpartition(".")[2] if kind is not None else str(target)
        arguments = [self.of(argument) for argument in node.args]
        named = {key: self.of(argument) for key, argument in node.kwargs.items()}
        if not _depends(arguments) and not _depends(list(named.values())):
            return _plain(target(*arguments, **named))  # type: ignore[operator]
        shape = tuple(node.meta["val"].shape) if isinstance(node.meta.get("val"), Tensor) else ()
        if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dtype != torch.float32:
            raise CError(f"{where(node)}: {name} gives {node.meta['val'].dtype}; C is written for float32")
        if name in SAME:
            value = arguments[0]
            if value.size != math.prod(shape):
                raise CError(f"{where(node)}: {name} changes the number of entries")
            step = self.alone(node.args[0])
            if step is not None and name in ("clone", "contiguous", "dropout", "detach", "alias"):
                self.made[node] = step
            return Value(value.array, shape)
        rule: Callable[..., Any] | None = getattr(self, f"op_{name}", None)
        if rule is not None:
            return rule(node, shape, *arguments, **named)
        if name in EXPRESSIONS:
            return self.mapped(node, EXPRESSIONS[name], shape, arguments)
        raise CError(f"{where(node)}: C has no form of {shortened(str(target))}")


def _depends(value: Any) -> bool:
    return any(map(_depends, value)) if isinstance(value, (list, tuple)) else isinstance(value, Value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
