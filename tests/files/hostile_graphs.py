"""Stored graphs grown from the table of operations: arguments of the right kinds, near what is usual and far from it.

While a graph grows, each of its operations is tried without memory. In most graphs one that does not fit is drawn again a few
times, so that many graphs run to their end; in the others it stays.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.structure import costs, exported, interpreted, operations

FEW = (0, 1, 2, 3, 4, -1, -2)
MANY = (5, 7, 16, 64, 1000, 2**15, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -3, -(2**31), -(2**63))
REALS = (0.0, 0.5, 1.0, 2.0, -1.0, 1e-5, 1e-30, 1e-300, 1e30, 1e300)
TEXTS = (
    "none",
    "tanh",
    "constant",
    "reflect",
    "replicate",
    "circular",
    "floor",
    "trunc",
    "ij",
    "xy",
    "same",
    "valid",
    "ortho",
    "add",
)
EQUATIONS = (
    "ij,jk->ik",
    "bij,bjk->bik",
    "...i,...i->...",
    "...i,ji->...j",
    "bchw,oc->bohw",
    "ab,cd,ef->abcdef",
    "aa->a",
    "i,j->",
    "bhqd,bhkd->bhqk",
    ",->",
    "ij,jk",
)
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "int64", "int32", "uint8", "bool")
SHAPES = ((2, 3, 6, 6), (1, 4, 5, 7), (2, 5, 6), (4, 3, 8), (2, 6), (5, 4), (3,), (2, 3, 4, 4, 4), (1,), (), (2, 0, 3))
EXTREMES = (float("inf"), float("nan"), -1e30, 1e-40)
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
TRIES, NAMES = 5, 3  # of the arguments of one operation, and of operations
FITS = "fits"
META = torch.device("meta")


@functools.cache
def overloads() -> tuple[str, ...]:
    """Every operation that a stored graph may hold, by name."""
    found = []
    for name in sorted(operations._ALLOWED):
        for overload in getattr(torch.ops.aten, name).overloads():
            try:
                operations.find(f"aten.{name}.{overload}")
            except operations.BadArgument:
                continue
            found.append(f"aten.{name}.{overload}")
    return (*found, *operations.ARITHMETIC)


@functools.cache
def schema(name: str) -> tuple[tuple[Any, str], ...]:
    """The arguments of an operation with their kinds."""
    return tuple((argument, str(argument.real_type)) for argument in operations.find(name)._schema.arguments)


@dataclass(frozen=True)
class Graph:
    """What the file holds (`exported` of a description, and the weights), and inputs to run it on."""

    written: dict[str, Any]
    state: dict[str, Tensor]
    inputs: tuple[Tensor, ...]


class Grower:
    """Grows one graph. `odd`: how often an argument is far from what is usual."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.odd = dice.choice((0.01, 0.02, 0.1, 0.4))
        self.tries = TRIES if dice.random() < 0.85 else 1
        self.values: dict[str, Any] = {}  # what the nodes so far give, without memory
        self.nodes: list[Any] = []
        self.state: dict[str, Tensor] = {}

    def graph(self) -> Graph:
        dice = self.dice
        inputs = tuple(self.tensor(dice.choice(SHAPES)) for _ in range(dice.choice((1, 1, 1, 2))))
        for name, tensor in zip("xy", inputs, strict=False):
            self.put("placeholder", name, name, [], {}, bare(tensor))
        for number in range(dice.randint(0, 5)):
            self.weight(f"w{number}", self.usual(tuple(inputs[0].shape)))
        if dice.random() < 0.05:
            self.recurrence(inputs[0])
        for _ in range(dice.randint(1, 7)):
            self.step()
        outputs = [{"node": self.node()} for _ in range(dice.randint(1, 2))]
        last: Any = outputs if len(outputs) > 1 else outputs[0]
        self.nodes.append(["output", "output", "output", [{"dict": [["a", last]]} if dice.random() < 0.05 else last], {}])
        types = {
            name: [t.is_floating_point(), list(t.shape), operations.type_name(t.dtype), False] for name, t in self.state.items()
        }
        data = {"format": 1, "tensors": types, "nodes": self.nodes}
        return Graph(self.damaged(data) if dice.random() < 0.08 else data, self.state, inputs)

    # --- tensors ---------------------------------------------------------------------------------------------------------

    def tensor(self, shape: tuple[int, ...]) -> Tensor:
        """Mostly ordinary numbers; some of another type, some with entries that few expect."""
        dice = self.dice
        kind = dice.random()
        if kind < 0.7:
            made = torch.linspace(-1, 2, math.prod(shape)).reshape(shape)
        elif kind < 0.85:
            high = dice.choice((1, 2, 3, 6, 2**40 if dice.random() < self.odd else 4))
            made = (torch.arange(math.prod(shape)) % high).reshape(shape) - (1 if dice.random() < 0.1 else 0)
        else:
            made = torch.ones(shape, dtype=operations.named("dtype", dice.choice(DTYPES)))
        if made.is_floating_point() and made.numel() and dice.random() < self.odd:
            made.view(-1)[0] = dice.choice(EXTREMES)
        return made

    def usual(self, shape: tuple[int, ...]) -> Tensor:
        """A weight that fits an input of this shape somehow: a kernel, a matrix, one number a channel, places."""
        dice = self.dice
        if not shape or dice.random() < 0.1:
            return self.tensor(dice.choice(SHAPES))
        out = dice.choice((1, 2, 4, *shape))
        kernel = (out, shape[1], *[dice.choice((1, 2, 3))] * (len(shape) - 2)) if len(shape) > 2 else (out, shape[-1])
        choices = (kernel, (out, shape[-1]), (shape[-1], out), (shape[min(1, len(shape) - 1)],), (shape[-1],), shape)
        return self.tensor(dice.choice(choices))

    def weight(self, name: str, tensor: Tensor) -> None:
        self.state[name] = tensor
        self.put("get_attr", name, name, [], {}, bare(tensor))

    def recurrence(self, given: Tensor) -> None:
        """A recurrent layer with its weights, one of which may be of another shape than it says."""
        dice = self.dice
        if given.dim() != 3:
            return
        kind, hidden, layers, both = dice.choice(list(GATES)), dice.randint(1, 4), dice.randint(1, 2), dice.random() < 0.3
        first, biases = dice.random() < 0.5, dice.random() < 0.7
        directions = 2 if both else 1
        samples = given.shape[0] if first else given.shape[1]
        shapes = []
        for layer in range(layers):
            width = given.shape[-1] if layer == 0 else hidden * directions
            own = [(GATES[kind] * hidden, width), (GATES[kind] * hidden, hidden), *[(GATES[kind] * hidden,)] * (2 * biases)]
            shapes += own * directions
        states = [(layers * directions, samples, hidden)] * (2 if kind == "lstm" else 1)
        if dice.random() < 0.5:
            broken = dice.choice((shapes, states))
            place = dice.randrange(len(broken))
            broken[place] = tuple(dice.choice((0, 1, size, size + 1, size * 4)) for size in broken[place])
        for number, shape in enumerate([*shapes, *states]):
            self.weight(f"r{number}", torch.full(shape, 0.1))
        names = [{"node": f"r{number}"} for number in range(len(shapes) + len(states))]
        held = names[len(shapes) :] if kind == "lstm" else names[-1]
        args = [{"node": "x"}, held, names[: len(shapes)], biases, layers, 0.0, False, both, first]
        self.call(f"aten.{kind}.input", args, {})

    # --- operations ------------------------------------------------------------------------------------------------------

    def put(self, op: str, name: str, target: str, args: list[Any], by_name: dict[str, Any], value: Any) -> None:
        self.nodes.append([op, name, target, args, by_name])
        self.values[name] = value

    def call(self, name: str, args: list[Any], by_name: dict[str, Any]) -> None:
        node = f"n{len(self.nodes)}"
        value = self.tried(name, args, by_name)
        self.put("call_function", node, name, args, by_name, value[1] if isinstance(value, tuple) else 0)

    def step(self) -> None:
        """One more operation."""
        for _ in range(NAMES if self.tries > 1 else 1):
            name = self.dice.choice(overloads())
            for _ in range(self.tries):
                args, by_name = self.arguments(name)
                found = self.tried(name, args, by_name)
                if found is not None:
                    self.put("call_function", f"n{len(self.nodes)}", name, args, by_name, found[1])
                    return
        if self.tries == 1:
            self.put("call_function", f"n{len(self.nodes)}", name, args, by_name, 0)

    def tried(self, name: str, args: list[Any], by_name: dict[str, Any]) -> tuple[str, Any] | None:
        """What the operation gives; None where it does not fit."""
        slots = {node: operations.Slot(place) for place, node in enumerate(self.values)}
        values = [*self.values.values()]
        try:
            operation = operations.find(name)
            given = [exported._value(value, slots, exported.DEEPEST_ARGUMENT) for value in args]
            named = {key: exported._value(value, slots, exported.DEEPEST_ARGUMENT) for key, value in by_name.items()}
            positional, keywords = operations.bound(operation, given, named)
            filled = [interpreted._filled(value, values, META) for value in positional]
            kept = {key: interpreted._filled(value, values, META) for key, value in keywords.items()}
            if operations.makes_tensors(operation):
                kept["device"] = META
            costs.check_call(operation, filled, kept)
            result = interpreted._result(operation, filled, kept)
        except Exception:  # noqa: BLE001  it does not fit: what a reader does about it is judged later
            return None
        if any(tensor.numel() > 10**6 for tensor in interpreted._tensors(result)) and self.dice.random() > self.odd:
            return None
        return FITS, result

    def arguments(self, name: str) -> tuple[list[Any], dict[str, Any]]:
        dice = self.dice
        self.first: Any = None
        if name == "getitem":
            several = [node for node, value in self.values.items() if isinstance(value, (tuple, list))]
            return [{"node": dice.choice(several)} if several else self.any_value(), dice.choice((0, 0, 1, -1))], {}
        if name in operations.ARITHMETIC:
            return [self.number() for _ in range(1 if name == "neg" else 2)], {}
        args: list[Any] = []
        by_name: dict[str, Any] = {}
        for argument, kind in schema(name):
            if argument.has_default_value() and dice.random() < 0.6:
                continue
            value = self.argument(argument, kind)
            if by_name or argument.kwarg_only or argument.has_default_value():
                by_name[argument.name] = value
            else:
                args.append(value)
        return args, by_name

    def argument(self, argument: Any, kind: str) -> Any:
        dice, name = self.dice, argument.name
        if dice.random() < self.odd / 4:
            return self.any_value()
        if kind.startswith("Optional["):
            return None if dice.random() < 0.5 else self.argument(argument, kind[9:-1])
        if kind == "List[int]":
            return self.sizes(name, argument.N)
        if kind.startswith("List["):
            return [self.argument(argument, kind[5:-1]) for _ in range(argument.N or dice.choice((1, 2, 2, 3, 4)))]
        if kind == "Tensor":
            return self.operand(name) if dice.random() < 0.98 else self.number()
        if kind == "int":
            return self.whole(name)
        if kind in ("float", "number"):
            return self.number()
        if kind == "bool":
            return dice.random() < 0.5
        if kind == "str":
            return dice.choice(EQUATIONS if name == "equation" else operations._MODES.get(name, TEXTS))
        if kind == "ScalarType":
            return {"dtype": dice.choice(DTYPES if dice.random() < 0.5 else DTYPES[:2])}
        if kind == "MemoryFormat":
            return {"memory_format": dice.choice(("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"))}
        if kind == "Layout":
            return {"layout": "strided"}
        return {"device": "cpu"} if kind == "Device" else None

    def operand(self, name: str) -> dict[str, str]:
        """A tensor; places, masks and weights where the argument is called so."""
        tensors = {node: value for node, value in self.values.items() if isinstance(value, Tensor)}
        fitting = list(tensors)
        if name in ("index", "indices"):
            fitting = [node for node, value in tensors.items() if value.dtype in (torch.int64, torch.int32)]
        elif name in ("mask", "condition", "attn_mask"):
            fitting = [node for node, value in tensors.items() if value.dtype == torch.bool]
        elif self.first is not None and self.dice.random() < 0.7:  # of the same type
            fitting = [node for node, value in tensors.items() if value.dtype == self.first.dtype]
            if name in ("weight", "bias", "running_mean", "running_var"):
                fitting = [node for node in fitting if node in self.state]
            elif self.dice.random() < 0.5:
                fitting = [node for node in fitting if tensors[node].shape == self.first.shape]
        if not fitting or self.dice.random() < self.odd / 4:
            fitting = list(tensors)
        node = self.dice.choice(fitting[-3:] if self.dice.random() < 0.5 else fitting)
        if self.first is None:
            self.first = tensors[node]
        return {"node": node}

    def node(self) -> str:
        made = list(self.values)
        return self.dice.choice(made[-3:] if self.dice.random() < 0.7 else made)

    # --- numbers ---------------------------------------------------------------------------------------------------------

    def whole(self, name: str) -> int:
        dice = self.dice
        if dice.random() < self.odd:
            return dice.choice(MANY)
        rank = self.first.dim() if isinstance(self.first, Tensor) else 1
        if "dim" in name:
            return dice.randrange(-rank, rank) if rank else 0
        if name in ("groups", "num_groups", "dilation", "upscale_factor", "downscale_factor", "step", "k"):
            return dice.choice((1, 1, 1, 2, 3))
        return dice.choice((*FEW, *(self.first.shape if rank and isinstance(self.first, Tensor) else ())))

    def sizes(self, name: str, count: int | None) -> list[int]:
        dice, shape = self.dice, list(self.first.shape) if isinstance(self.first, Tensor) else [2, 3]
        if dice.random() < self.odd:
            return [dice.choice(FEW + MANY) for _ in range(count or dice.randint(0, 4))]
        spatial = count or max(1, len(shape) - 2)
        if name in ("kernel_size", "stride", "dilation"):
            return [dice.choice((1, 2, 2, 3) if name == "kernel_size" else (1, 1, 2)) for _ in range(spatial)]
        if name in ("padding", "output_padding"):
            return [dice.choice((0, 0, 1))] * spatial
        if name == "pad":
            return [dice.choice((0, 1, 2, -1)) for _ in range(2 * dice.randint(1, max(1, spatial)))] if not count else [1] * count
        if name in ("dims", "dim"):
            every = list(range(len(shape)))
            dice.shuffle(every)
            return every if dice.random() < 0.6 else every[: dice.randint(1, 2)]
        if name == "normalized_shape":
            return shape[-dice.randint(1, 2) :]
        if name == "output_size" or "upsample" in name:
            return [dice.choice((1, 2, 3, 5)) for _ in range(spatial)]
        whole = math.prod(shape)
        options = [
            shape,
            [whole],
            [-1],
            [1, *shape],
            [shape[0] if shape else 1, -1],
            [2, *shape],
            shape[::-1],
            [*shape, 1],
            [1] * len(shape),
        ]
        return list(dice.choice(options))

    def number(self) -> Any:
        if self.dice.random() < 0.5:
            return self.dice.choice(REALS if self.dice.random() < max(0.3, self.odd) else REALS[:5])
        return self.dice.choice(MANY if self.dice.random() < self.odd else FEW)

    def any_value(self) -> Any:
        node = {"node": self.node()} if self.values else None
        choices = [
            node,
            self.number(),
            True,
            None,
            "text",
            [node] * 3,
            [self.number()] * 2,
            {"float": "inf"},
            {"slice": [1, 2, 3]},
        ]
        return self.dice.choice([*choices, {"dtype": "quint8"}, [[[1]]], [], {}, "a" * 300, 10**25, {"k" * 5000: 1}])

    def damaged(self, data: dict[str, Any]) -> dict[str, Any]:
        """The same with one place changed to something of another kind."""
        place = self.dice.randrange(len(data["nodes"]))
        nodes = [list(node) for node in data["nodes"]]
        nodes[place][self.dice.randrange(5)] = self.any_value()
        return {**data, "nodes": nodes}


def bare(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
