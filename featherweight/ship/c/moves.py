"""Where the entries of a value lie: what moves them, and what every rule makes its steps with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from featherweight.ship.c.steps import CError, Copy, Fill, Map, Step, Value, number


class Moves:
    """The steps so far, and the rules of operations that only move entries: each adds what is needed to get them there."""

    def __init__(self, exported: Any) -> None:
        self.exported = exported
        self.sizes: list[int] = []
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Any] = {}  # Value, Tensor (known now), or a tuple of these
        self.made: dict[fx.Node, Step] = {}

    # --- what the rules below use ---

    def value(self, shape: Sequence[int]) -> Value:
        """A new array."""
        self.sizes.append(math.prod(shape))
        return Value(len(self.sizes) - 1, tuple(shape))

    def of(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self.of(part) for part in argument]
        return argument

    def step(self, node: fx.Node | None, step: Step) -> None:
        self.steps.append(step)
        if node is not None:
            self.made[node] = step

    def alone(self, node: Any) -> Step | None:
        """The step that made this node's value, where nothing else reads it."""
        return self.made.get(node) if isinstance(node, fx.Node) and len(node.users) == 1 else None

    def mapped(self, node: fx.Node, expression: str, shape: tuple[int, ...], operands: Sequence[Any]) -> Value:
        made, step = self.value(shape), Map(where(node), [], [], expression=expression, shape=shape)
        texts = []
        for operand in operands:
            if isinstance(operand, Value):
                texts.append(f"{{a{len(step.reads)}}}")
                step.reads.append(operand.array)
                step.strides.append(broadcast(operand.shape, shape))
            elif isinstance(operand, Tensor) and operand.numel() > 1:
                texts.append(f"{{c{len(step.constants)}}}")
                step.constants.append((operand.float().contiguous(), broadcast(tuple(operand.shape), shape)))
            else:
                texts.append(number(float(operand)))
        step.expression = expression.format(*texts) if texts else expression
        step.writes.append(made.array)
        self.step(node, step)
        return made

    def copied(
        self, node: fx.Node, value: Value, shape: Sequence[int], source: tuple[int, tuple[int, ...]],
        target: tuple[int, tuple[int, ...]] | None = None, into: Value | None = None,
    ) -> Value:  # fmt: skip
        into = into or self.value(shape)
        self.step(
            None,
            Copy(where(node), [value.array], [into.array], shape=tuple(shape), source=source,
                 target=target or (0, strides_of(shape))),
        )  # fmt: skip
        return into

    # --- what moves entries ---

    def op_permute(self, node: fx.Node, shape: Any, x: Value, order: Any) -> Value:
        strides = strides_of(x.shape)
        return self.copied(node, x, shape, (0, tuple(strides[d] for d in order)))

    def op_transpose(self, node: fx.Node, shape: Any, x: Value, one: int, other: int) -> Value:
        order = list(range(len(x.shape)))
        order[one], order[other] = order[other], order[one]
        return self.op_permute(node, shape, x, order)

    def op_t(self, node: fx.Node, shape: Any, x: Value) -> Value:
        return self.op_permute(node, shape, x, list(range(len(x.shape)))[::-1])

    def op_slice(
        self, node: fx.Node, shape: Any, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> Value:
        dim, size, strides = dim % len(x.shape), x.shape[dim], list(strides_of(x.shape))
        start = 0 if start is None else max(0, start + size) if start < 0 else min(start, size)
        offset = start * strides[dim]
        strides[dim] *= step
        if tuple(shape) == x.shape and step == 1:
            return x
        return self.copied(node, x, shape, (offset, tuple(strides)))

    def op_select(self, node: fx.Node, shape: Any, x: Value, dim: int, index: int) -> Value:
        dim, strides = dim % len(x.shape), list(strides_of(x.shape))
        offset = (index % x.shape[dim]) * strides.pop(dim)
        return self.copied(node, x, shape, (offset, tuple(strides)))

    def op_split(self, node: fx.Node, shape: Any, x: Value, size: Any, dim: int = 0) -> list[Value]:
        dim = dim % len(x.shape)
        if isinstance(size, int):
            size = [min(size, x.shape[dim] - at) for at in range(0, x.shape[dim], size)]
        found, at, strides = [], 0, strides_of(x.shape)
        for count in size:
            part = (*x.shape[:dim], count, *x.shape[dim + 1 :])
            found.append(self.copied(node, x, part, (at * strides[dim], strides)))
            at += count
        return found

    op_split_with_sizes = op_split

    def op_chunk(self, node: fx.Node, shape: Any, x: Value, chunks: int, dim: int = 0) -> list[Value]:
        return self.op_split(node, shape, x, -(-x.shape[dim] // chunks), dim)

    def op_expand(self, node: fx.Node, shape: Any, x: Value, *rest: Any, **named: Any) -> Value:
        return x if x.size == math.prod(shape) else self.copied(node, x, shape, (0, broadcast(x.shape, shape)))

    def op_flip(self, node: fx.Node, shape: Any, x: Value, dims: Any) -> Value:
        strides, offset = list(strides_of(x.shape)), 0
        for dim in dims:
            offset += (x.shape[dim] - 1) * strides[dim]
            strides[dim] = -strides[dim]
        return self.copied(node, x, shape, (offset, tuple(strides)))

    def op_cat(self, node: fx.Node, shape: Any, parts: Any, dim: int = 0) -> Value:
        made, strides, at = self.value(shape), strides_of(shape), 0
        dim = dim % len(shape)
        for part in parts:
            if isinstance(part, Tensor):
                part = self.mapped(node, "{0}", tuple(part.shape), [part])
            self.copied(node, part, part.shape, (0, strides_of(part.shape)), (at * strides[dim], strides), made)
            at += part.shape[dim]
        return made

    def op_stack(self, node: fx.Node, shape: Any, parts: Any, dim: int = 0) -> Value:
        dim = dim % len(shape)
        wide = [Value(part.array, (*part.shape[:dim], 1, *part.shape[dim:])) for part in parts]
        return self.op_cat(node, shape, wide, dim)

    def op_pad(self, node: fx.Node, shape: Any, x: Value, sizes: Any, mode: str = "constant", value: Any = None) -> Value:
        if mode != "constant" or min(sizes) < 0:
            raise CError(f"{where(node)}: padding of this kind ({mode}, {list(sizes)}) has no form in C")
        made, strides = self.value(shape), strides_of(shape)
        self.step(None, Fill(where(node), [], [made.array], count=made.size, value=float(value or 0.0)))
        offset = sum(low * strides[-1 - i] for i, low in enumerate(sizes[0::2]))
        return self.copied(node, x, x.shape, (0, strides_of(x.shape)), (offset, strides), made)

    op_constant_pad_nd = op_pad


def where(node: fx.Node) -> str:
    """The module that an operation is of, for messages and comments."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"{path or node.name}"


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def broadcast(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    lacking = len(wanted) - len(shape)
    held = strides_of(shape)
    return tuple(0 if i < lacking or shape[i - lacking] == 1 else held[i - lacking] for i in range(len(wanted)))
