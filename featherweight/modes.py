"""Eval mode for a while; and whether training mode is anything else to a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode: no sample sees another. Every module's own mode is restored on exit, also after an
    error: they may differ, as where batch norms are frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def asks_for_its_mode(model: nn.Module) -> bool:
    """May code of the network's own do something else in training mode? torch's layers (dropout, norms) read and write the same
    tensors in both modes; all other code is searched for `training`, and for a `train` of its own."""
    kinds: list[Any] = [type(module) for module in model.modules()]
    return any(_asks(kind) for kind in kinds) or any("forward" in vars(module) for module in model.modules())


@cache
def _asks(kind: Any) -> bool:
    seen: set[CodeType] = set()
    own = [part for part in kind.__mro__ if not part.__module__.startswith(("torch.nn.modules.", "builtins", "typing", "abc"))]
    if any("train" in vars(part) for part in own):
        return True
    return any(_mentions(value, seen) for part in own for value in vars(part).values())


def _mentions(value: Any, seen: set[CodeType]) -> bool:
    """Does this function, or one that it calls by name, read an attribute or a name `training`?"""
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if not isinstance(function, FunctionType) or function.__code__ in seen or function.__module__.startswith("torch."):
        return False
    seen.add(function.__code__)
    names = _names(function.__code__)
    return "training" in names or any(_mentions(function.__globals__.get(name), seen) for name in names)


def _names(code: CodeType) -> set[str]:
    inner: Callable[[CodeType], set[str]] = _names
    return set(code.co_names).union(*(inner(part) for part in code.co_consts if isinstance(part, CodeType)), ("",))
