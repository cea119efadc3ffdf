"""Stored graphs grown from the table of operations: arguments of the right kinds, near what is usual and far from it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from featherweight.structure import operations

FEW = (0, 1, 2, 3, 4, -1, -2)
MANY = (5, 7, 16, 64, 1000, 2**15, 2**20, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -3, -(2**31), -(2**63))
REALS = (0.0, 0.5, 1.0, 2.0, -1.0, 1e-5, 1e-30, 1e-300, 1e30, 1e300)
TEXTS = ("none", "tanh", "constant", "reflect", "replicate", "circular", "floor", "trunc", "ij", "xy", "same", "valid", "ortho")
EQUATIONS = (
    "ij,jk->ik",
    "bij,bjk->bik",
    "...i,...i->...",
    "ab,cd,ef->abcdef",
    "aa->a",
    "i,j->",
    "bhqd,bhkd->bhqk",
    ",->",
    "ij,jk",
)
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "int64", "int32", "uint8", "bool")


def overloads() -> list[str]:
    """Every operation that a stored graph may hold, by name."""
    found = []
    for name in sorted(operations._ALLOWED):
        for overload in getattr(torch.ops.aten, name).overloads():
            try:
                operations.find(f"aten.{name}.{overload}")
            except operations.BadArgument:
                continue
            found.append(f"aten.{name}.{overload}")
    return [*found, *operations.ARITHMETIC]


class Grower:
    """Grows graphs from a generator of numbers. `odd`: how often an argument is far from what is usual."""

    def __init__(self, dice: random.Random, names: list[str]) -> None:
        self.dice, self.names = dice, names

    def graph(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The `exported` part of a description whose weights are `state`."""
        dice = self.dice
        self.odd = dice.choice((0.02, 0.1, 0.4))
        self.made = ["x", *state]
        nodes: list[Any] = [["placeholder", "x", "x", [], {}]]
        nodes += [["get_attr", name, name, [], {}] for name in state]
        for number in range(dice.randint(1, 7)):
            name = dice.choice(self.names)
            args, by_name = self.call(name)
            nodes.append(["call_function", f"n{number}", name, args, by_name])
            self.made.append(f"n{number}")
        outputs = [{"node": self.node()["node"]} for _ in range(dice.randint(1, 2))]
        nodes.append(["output", "output", "output", [outputs if len(outputs) > 1 else outputs[0]], {}])
        tensors = {
            name: [t.is_floating_point(), list(t.shape), operations.type_name(t.dtype), False] for name, t in state.items()
        }
        data = {"format": 1, "tensors": tensors, "nodes": nodes}
        return self.damaged(data) if dice.random() < 0.1 else data

    def call(self, name: str) -> tuple[list[Any], dict[str, Any]]:
        dice = self.dice
        if name in operations.ARITHMETIC:
            return [self.any_value() for _ in range(dice.choice((1, 2, 2, 2)))], {}
        args: list[Any] = []
        by_name: dict[str, Any] = {}
        for argument in operations.find(name)._schema.arguments:
            if argument.has_default_value() and dice.random() < 0.6:
                continue
            value = self.argument(argument, str(argument.real_type))
            if by_name or argument.kwarg_only or argument.has_default_value():
                by_name[argument.name] = value
            else:
                args.append(value)
        return args, by_name

    def argument(self, argument: Any, kind: str) -> Any:
        dice = self.dice
        if dice.random() < self.odd / 4:
            return self.any_value()
        if kind.startswith("Optional["):
            return None if dice.random() < 0.5 else self.argument(argument, kind[9:-1])
        if kind.startswith("List["):
            count = argument.N or dice.choice((1, 2, 2, 3, 4))
            return [self.argument(argument, kind[5:-1]) for _ in range(count)]
        if kind == "Tensor":
            return self.node() if dice.random() < 0.97 else self.number()
        if kind == "int":
            return self.whole()
        if kind in ("float", "number"):
            return self.number()
        if kind == "bool":
            return dice.random() < 0.5
        if kind == "str":
            return dice.choice(EQUATIONS if argument.name == "equation" else TEXTS)
        if kind == "ScalarType":
            return {"dtype": dice.choice(DTYPES)}
        if kind == "MemoryFormat":
            return {"memory_format": dice.choice(("contiguous_format", "preserve_format", "channels_last", "channels_last_3d"))}
        if kind == "Layout":
            return {"layout": "strided"}
        return {"device": "cpu"} if kind == "Device" else None

    def node(self) -> dict[str, str]:
        return {"node": self.dice.choice(self.made[-3:] if self.dice.random() < 0.5 else self.made)}

    def whole(self) -> int:
        return self.dice.choice(MANY if self.dice.random() < self.odd else FEW)

    def number(self) -> Any:
        return self.dice.choice(REALS) if self.dice.random() < 0.5 else self.whole()

    def any_value(self) -> Any:
        choices = [self.node(), self.whole(), self.number(), True, None, "text", [self.node()] * 3, [self.whole()] * 2]
        return self.dice.choice([*choices, {"float": "inf"}, {"slice": [1, 2, 3]}, {"dtype": "quint8"}, [[[1]]], [], {}])

    def damaged(self, data: dict[str, Any]) -> dict[str, Any]:
        """The same with one place changed to something of another kind."""
        node = self.dice.choice(data["nodes"])
        node[self.dice.randrange(len(node))] = self.any_value()
        return data


def state(dice: random.Random) -> dict[str, Tensor]:
    """Weights as a file holds them: a few, of usual shapes."""
    shapes = {"w": (4, 3, 2, 2), "m": (4, 6), "v": (4,), "i": (3,)}
    made = {name: torch.ones(shape) for name, shape in shapes.items() if dice.random() < 0.8}
    if "i" in made:
        made["i"] = torch.tensor([0, 2, 1])
    return made


INPUTS = (torch.ones(2, 3, 6, 6), torch.ones(2, 5, 6), torch.ones(2, 6), torch.ones(3), torch.ones(2, 3, 4, 4, 4))
