"""The exported module as data: what a network becomes whose class cannot express a cut.

`to_dict` gives plain JSON (nodes, operations by name, sizes, names and shapes of tensors), `from_dict` builds the module from
it; the weights
travel separately as a state dict, for instance in a safetensors file. Reading runs no code, imports nothing and unpickles
nothing: operations are
looked up by name among torch's ATen operations, and everything else is refused. (torch's own .pt2 files are zip archives of
JSON and raw weights,
but the loader falls back to pickle for inputs and constants and evaluates size expressions as Python, so a file from elsewhere
is not safe.)
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from featherweight.structure.errors import EditMismatch, StructureError
from featherweight.structure.unlift import Movable, register

FORMAT = 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# arithmetic on sizes and picking one of several results
_PYTHON: dict[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
# operations that reach beyond the tensors they are given
_REFUSED = {"from_file", "set_", "set_data", "data", "record_stream", "resize_", "resize_as_", "_resize_output_"}
_TYPES: dict[str, type] = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}


class NotStorable(StructureError):
    """The exported module holds something that the format has no word for."""


def to_dict(module: fx.GraphModule) -> dict[str, Any]:
    """The structure of an exported module; raises NotStorable for operations that are not torch's own."""
    tensors = {
        **{n: [True, list(p.shape), _type_name(p.dtype), p.requires_grad] for n, p in module.named_parameters()},
        **{n: [False, list(b.shape), _type_name(b.dtype), False] for n, b in module.named_buffers()},
    }
    nodes = []
    for node in module.graph.nodes:
        if node.op == "call_function":
            target: Any = node.target
            if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
                name = f"aten.{target.overloadpacket.__name__}.{target._overloadname}"
            elif target in _PYTHON.values():
                name = next(word for word, known in _PYTHON.items() if known is target)
            else:
                raise NotStorable(
                    f"the operation {target} ({node.name}) is not one of torch's ATen operations; keep the module in memory "
                    f"instead"
                )
        elif node.op in ("placeholder", "get_attr"):
            name = str(node.target)
        elif node.op == "output":
            name = "output"
        else:
            raise NotStorable(f"{node.op} {node.name} has no place in the format")
        nodes.append([node.op, node.name, name, _plain(node.args), {k: _plain(v) for k, v in node.kwargs.items()}])
    return {"format": FORMAT, "tensors": tensors, "nodes": nodes}


def _type_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """An argument as JSON: anything that JSON has not is a one-entry object that names its kind."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    for kind, known in _TYPES.items():
        if isinstance(value, known):
            return {kind: _type_name(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, slice):
        return {"slice": [_plain(value.start), _plain(value.stop), _plain(value.step)]}
    raise NotStorable(f"an argument of type {type(value).__name__} has no place in the format")


def from_dict(data: Mapping[str, Any]) -> fx.GraphModule:
    """The module, with weights that are still to be filled by `load_state_dict`. Raises EditMismatch for anything that is not
    such data.
    """
    try:
        return _build(data)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise EditMismatch(f"not an exported module: {type(error).__name__}: {error}") from error


def _build(data: Mapping[str, Any]) -> fx.GraphModule:
    if set(data) != {"format", "tensors", "nodes"} or data["format"] != FORMAT:
        raise ValueError(
            f"expected format {FORMAT} with tensors and nodes, found {sorted(data)} of format {data.get('format')!r}"
        )
    root = nn.Module()
    for name, (trainable, shape, kind, gradient) in data["tensors"].items():
        if not _PATH.fullmatch(name) or not all(isinstance(n, int) and 0 <= n < 1 << 40 for n in shape):
            raise ValueError(f"{name!r} {shape!r} is not a tensor's name and shape")
        tensor = torch.zeros(shape, dtype=_named("dtype", kind), device="meta")
        register(root, name, tensor, bool(trainable), bool(gradient) and tensor.is_floating_point())
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs in data["nodes"]:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a node's name")
        arguments = tuple(_value(a, made) for a in args)
        named = {str(k): _value(v, made) for k, v in kwargs.items()}
        if op == "placeholder":
            if not _NAME.fullmatch(target):
                raise ValueError(f"{target!r} is not an input's name")
            made[name] = graph.placeholder(target)
        elif op == "get_attr":
            if target not in data["tensors"]:
                raise ValueError(f"no tensor {target!r}")
            made[name] = graph.get_attr(target)
        elif op == "output":
            graph.output(arguments[0])
        elif op == "call_function":
            made[name] = graph.call_function(_operation(target), arguments, named)
        else:
            raise ValueError(f"unknown node {op!r}")
    graph.lint()
    module = Movable(root, graph)
    return module.to_empty(device="cpu")


def _operation(name: str) -> Any:
    if name in _PYTHON:
        return _PYTHON[name]
    parts = name.split(".")
    if (
        len(parts) != 3
        or parts[0] != "aten"
        or not all(_NAME.fullmatch(p) for p in parts)
        or parts[1] in _REFUSED
        or parts[1].startswith("__")
    ):
        raise ValueError(f"{name!r} is not an operation that may be loaded")
    found = getattr(getattr(torch.ops.aten, parts[1]), parts[2])
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"{name!r} is not an operation")
    return found


def _named(kind: str, name: str) -> Any:
    found = getattr(torch, name, None) if _NAME.fullmatch(name) else None
    if not isinstance(found, _TYPES[kind]):
        raise ValueError(f"{name!r} is not a {kind}")
    return found


def _value(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_value(v, made) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(f"{value!r} is not an argument")
    ((kind, inner),) = value.items()
    if kind == "node":
        return made[inner]
    if kind == "float" and inner in ("inf", "-inf"):
        return float(inner)
    if kind == "device" and isinstance(inner, str) and _NAME.fullmatch(inner):
        return torch.device("cpu")  # where the module is made; both move together
    if kind == "slice" and isinstance(inner, list) and len(inner) == 3:
        return slice(*(_value(v, made) for v in inner))
    if kind in _TYPES:
        return _named(kind, inner)
    raise ValueError(f"{value!r} is not an argument")
