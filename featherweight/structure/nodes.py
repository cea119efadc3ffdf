"""What a node of an exported graph says of itself: its shape, in numbers, and the name of its operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx


def as_int(size: Any) -> int:
    """A size as a number; a symbolic one by the example's value."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else int(size)
    return int(size)


def ints(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(as_int(s) for s in shape)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node that is a single tensor."""
    meta = node.meta.get("val")
    return ints(meta.shape) if isinstance(meta, Tensor) else None


def operation(node: fx.Node) -> str:
    """The operation's name as torch has it: `softmax`, `conv2d`; `output` for the end of the graph."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))
