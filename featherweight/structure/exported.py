"""An exported network as data: what a network becomes whose class cannot express a cut.

`to_dict` gives plain JSON (nodes, operations by name, sizes, names and shapes of tensors), `from_dict` gives the module that runs
it (`interpreted`); the weights travel separately as a state dict. Reading runs no code, imports nothing and unpickles nothing:
operations come from the table in `operations`, with their arguments checked, and everything else is refused. (torch's own .pt2
files fall back to pickle for inputs and constants and evaluate size expressions as Python: a file from elsewhere is not safe.)

    tensors   name -> [is it a parameter?, shape, dtype, does it train?]
    nodes     [kind, name, operation or tensor or input, arguments, arguments by name], in order; the last is the output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from featherweight.errors import short
from featherweight.structure import operations
from featherweight.structure.errors import EditMismatch, StructureError
from featherweight.structure.graph_module import register
from featherweight.structure.interpreted import Instruction, Interpreted, Program
from featherweight.structure.operations import DEVICE, BadArgument, Slot
from featherweight.structure.plain import NotPlain, check_plain

FORMAT = 1
MOST_NODES, MOST_TENSORS = 50_000, 100_000
LONGEST_NAME, DEEPEST_NAME = 512, 64
MOST_MODULES = 50_000  # that the names of the tensors stand in
DEEPEST_ARGUMENT = 2  # lists in a list
DEEPEST_OUTPUT = 8  # tuples and dicts in each other
MOST_SHARED = 8  # times its own size that a memory may be held by tensors which share it, as tied weights do


class NotStorable(StructureError):
    """The exported module holds something that the format has no word for."""


# --- writing -------------------------------------------------------------------------------------------------------------


def to_dict(module: nn.Module) -> dict[str, Any]:
    """The structure of an exported module. Raises NotStorable for an operation that is not in the table of `operations`, and for
    a network that is no exported module."""
    tensors = {
        **{n: [True, list(p.shape), operations.type_name(p.dtype), p.requires_grad] for n, p in module.named_parameters()},
        **{n: [False, list(b.shape), operations.type_name(b.dtype), False] for n, b in module.named_buffers()},
    }
    if isinstance(module, Interpreted):
        nodes = module._program.written
    elif isinstance(module, fx.GraphModule):
        nodes = [_node(node) for node in module.graph.nodes]
    else:
        raise NotStorable(f"a {type(module).__name__} is no exported module")
    written = {"format": FORMAT, "tensors": tensors, "nodes": nodes}
    try:
        check_plain(written)
        _program(nodes, tensors)
    except _UNREADABLE as error:
        raise NotStorable(f"the exported module cannot be stored: {error}; keep it in memory instead") from error
    return written


def _node(node: fx.Node) -> list[Any]:
    if node.target is torch.ops.aten._reshape_alias.default:  # a view by strides, which nothing checks; it is one of these sizes
        return [node.op, node.name, "aten.reshape.default", _plain(node.args[:2]), {}]
    if node.op == "call_function":
        name = operations.written_name(node.target)
        if name is None:
            raise NotStorable(
                f"the operation {node.target} ({node.name}) is not one that a file may hold; keep the module in memory instead"
            )
    elif node.op in ("placeholder", "get_attr"):
        name = str(node.target)
    elif node.op == "output":
        name = "output"
    else:
        raise NotStorable(f"{node.op} {node.name} has no place in the format")
    by_name = {k: _plain(v) for k, v in node.kwargs.items()}
    if name.split(".")[-2:-1] == ["zeros"]:
        by_name.pop("memory_format", None)  # of an `empty` that is written as zeros
    return [node.op, node.name, name, _plain(node.args), by_name]


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
    if (kind := operations.kind_of(value)) is not None:
        return {kind: operations.type_name(value)}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, dict):  # outputs by name
        return {"dict": [[str(name), _plain(part)] for name, part in value.items()]}
    raise NotStorable(f"an argument of type {type(value).__name__} has no place in the format")


# --- reading -------------------------------------------------------------------------------------------------------------

_UNREADABLE = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, NotStorable)


def from_dict(data: Any, state: Mapping[str, Tensor]) -> Interpreted:
    """The module, with the tensors of `state` as its own. Raises EditMismatch for anything that is not such data, that is more
    than a file holds, or that claims other tensors than `state` holds.

    Every way from a file to a graph goes through here, and so do its limits: those on the data (`plain`) and on the graph, before
    anything is made, and those on each call (`interpreted.limits`).
    """
    try:
        check_plain(data)
        if not isinstance(data, dict) or set(data) != {"format", "tensors", "nodes"} or data["format"] != FORMAT:
            raise BadArgument(f"expected format {FORMAT} with tensors and nodes")
        tensors = _tensors(data["tensors"], state)
        module = Interpreted(_program(data["nodes"], tensors))
        for name, (trainable, _, _, gradient) in tensors.items():
            tensor = state[name]
            learns = bool(gradient) and (tensor.is_floating_point() or tensor.is_complex())
            register(module, name, tensor, bool(trainable), learns)
        return module
    except _UNREADABLE as error:
        kind = "" if isinstance(error, BadArgument | NotPlain) else f"{type(error).__name__}: "
        raise EditMismatch(f"not an exported module: {kind}{str(error)[:300]}") from error


def _tensors(claimed: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    if not isinstance(claimed, dict) or len(claimed) > MOST_TENSORS:
        raise BadArgument(f"tensors are an object of at most {MOST_TENSORS} entries")
    if differing := claimed.keys() ^ state.keys():
        raise BadArgument(f"the module and its weights disagree about {short(min(differing))}")
    _check_shared(state)
    modules: set[str] = set()
    for name, (trainable, shape, kind, _) in claimed.items():
        dtype = operations.named("dtype", kind)
        if not _is_path(name):
            raise BadArgument(f"{short(name)} is not a tensor's name")
        path = name.rpartition(".")[0]
        while path and path not in modules:
            modules.add(path)
            path = path.rpartition(".")[0]
        if len(modules) > MOST_MODULES:
            raise BadArgument(f"the tensors are in more than {MOST_MODULES} modules")
        if list(state[name].shape) != shape or any(type(size) is not int for size in shape) or state[name].dtype != dtype:
            raise BadArgument(f"the module and its weights disagree about {short(name)}")
        if trainable and not (dtype.is_floating_point or dtype.is_complex):
            raise BadArgument(f"{short(name)} is a parameter of type {kind}")
    return claimed


def _check_shared(state: Mapping[str, Tensor]) -> None:
    """What a call may take is so many times the weights, and a copy of them takes their sizes: a file that names one memory many
    times must not make much of little."""
    memories = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in state.values()}
    held = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if held > MOST_SHARED * sum(memories.values()):
        raise BadArgument(f"the weights take {held} bytes of {sum(memories.values())} in memory, more than {MOST_SHARED} times")


def _is_path(name: Any) -> bool:
    """A tensor's name: parts between dots, none empty."""
    return (
        isinstance(name, str)
        and len(name) <= LONGEST_NAME
        and name.isprintable()
        and name.count(".") < DEEPEST_NAME
        and all(name.split("."))
    )


def _program(nodes: Any, tensors: Mapping[str, Any]) -> Program:
    """The nodes, checked. Raises BadArgument and what else _UNREADABLE names."""
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MOST_NODES:
        raise BadArgument(f"nodes are a list of 1 to {MOST_NODES}")
    made: dict[str, Slot] = {}
    inputs: dict[str, int] = {}
    held: list[tuple[str, int]] = []
    steps: list[Instruction] = []
    for place, (op, name, target, args, by_name) in enumerate(nodes[:-1]):
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable() or name in made:
            raise BadArgument(f"{short(name)} is not a new name of a node")
        if op == "placeholder":
            if not isinstance(target, str) or not target.isidentifier() or len(target) > LONGEST_NAME or target in inputs:
                raise BadArgument(f"{short(target)} is not a new name of an input")
            inputs[target] = place
        elif op == "get_attr":
            if not isinstance(target, str) or target not in tensors:
                raise BadArgument(f"there is no tensor {short(target)}")
            held.append((target, place))
        elif op == "call_function":
            if not isinstance(target, str) or not isinstance(args, list) or not isinstance(by_name, dict):
                raise BadArgument(f"node {short(name)} is not an operation with its arguments")
            operation = operations.find(target)
            given = [_value(argument, made, DEEPEST_ARGUMENT) for argument in args[: operations.LONGEST_LIST]]
            named = {key: _value(argument, made, DEEPEST_ARGUMENT) for key, argument in by_name.items()}
            steps.append(Instruction(operation, *operations.bound(operation, given, named), place, name))
        else:
            raise BadArgument(f"{short(op)} is not a kind of node")
        made[name] = Slot(place)
    op, _, _, args, _ = nodes[-1]
    if op != "output" or not isinstance(args, list) or len(args) != 1:
        raise BadArgument("the last node is not the output")
    output = _output(args[0], made, DEEPEST_OUTPUT)
    return Program(
        tuple(inputs.items()), tuple(held), _freeing(steps, output, len(nodes)), output, len(nodes), nodes
    )  # fmt: skip


def _freeing(steps: Sequence[Instruction], output: Any, slots: int) -> tuple[Instruction, ...]:
    """Each instruction with the slots that nothing reads after it."""
    last = [-1] * slots
    for number, step in enumerate(steps):
        last[step.result] = number
        for slot in _slots((step.args, tuple(step.kwargs.values()))):
            last[slot] = number
    for slot in _slots(output):
        last[slot] = -1
    frees: list[list[int]] = [[] for _ in steps]
    for slot, number in enumerate(last):
        if number >= 0:
            frees[number].append(slot)
    return tuple(replace(step, frees=tuple(gone)) for step, gone in zip(steps, frees, strict=True))


def _slots(value: Any) -> list[int]:
    if isinstance(value, Slot):
        return [value.number]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [slot for part in parts for slot in _slots(part)]


def _value(value: Any, made: Mapping[str, Slot], depth: int) -> Any:
    if isinstance(value, list):
        if not depth or len(value) > operations.LONGEST_LIST:
            raise BadArgument(f"an argument is a list of at most {operations.LONGEST_LIST}, of single values")
        return [_value(v, made, depth - 1) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise BadArgument(f"{short(value)} is not an argument")
    ((kind, inner),) = value.items()
    if kind == "node":
        if not isinstance(inner, str) or inner not in made:
            raise BadArgument(f"there is no earlier node {short(inner)}")
        return made[inner]
    if kind == "float" and inner in ("inf", "-inf"):
        return float(inner)
    if kind == "device" and isinstance(inner, str):
        return DEVICE
    if kind in ("dtype", "memory_format", "layout"):
        return operations.named(kind, inner)
    raise BadArgument(f"{short(kind)} is not a kind of argument")


def _output(value: Any, made: Mapping[str, Slot], depth: int) -> Any:
    """What the network gives: results, in tuples and in dicts by name."""
    if isinstance(value, list) and depth and len(value) <= operations.LONGEST_LIST:
        return tuple(_output(part, made, depth - 1) for part in value)
    if isinstance(value, dict) and list(value) == ["dict"] and depth and len(value["dict"]) <= operations.LONGEST_LIST:
        named = {name: _output(part, made, depth - 1) for name, part in value["dict"]}
        if any(not isinstance(name, str) or len(name) > LONGEST_NAME for name in named) or len(named) != len(value["dict"]):
            raise BadArgument("the names of an output are not short texts, each once")
        return named
    return _value(value, made, 0)


def is_exported(network: nn.Module) -> bool:
    """Is it a module that `to_dict` takes?"""
    return isinstance(network, (fx.GraphModule, Interpreted))
