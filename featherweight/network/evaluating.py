"""Modes and buffers for a while: evaluation, training, and forward passes that leave no trace; and whether training mode is
anything else to a network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


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


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Inside, a language model gives no keys and values for later calls, unless it is called with `use_cache=True`: `use_cache`
    of its configuration is False. They are no result of its own, and as outputs they would keep every entry."""
    configurations = {id(held): held for module in model.modules() if (held := vars(module).get("config")) is not None}
    found = [held for held in configurations.values() if getattr(held, "use_cache", None) is True]
    for held in found:
        held.use_cache = False
    try:
        yield
    finally:
        for held in found:
            held.use_cache = True


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


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Inside, the network trains, but for what its owner keeps in eval mode (see `kept_in_eval`). Every module's own mode is
    restored on exit, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    kept = kept_in_eval(model)
    model.train()  # not `training = True` by hand: a class may override it to freeze what it wants
    for module in kept:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def kept_in_eval(model: nn.Module) -> list[nn.Module]:
    """The modules that training must leave in eval mode.

    Of a network in training mode, all that are in eval mode nevertheless: somebody put them there. A network that is in eval mode
    as a whole, as scoring leaves it, does not tell; then they are the norms whose own parameters are all frozen.
    """
    if model.training:
        return [module for module in model.modules() if not module.training]
    return [module for module in model.modules() if isinstance(module, _NormBase) and _frozen(module)]


def _frozen(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return bool(own) and not any(parameter.requires_grad for parameter in own)


@contextmanager
def buffers_kept(model: nn.Module, besides: Collection[nn.Module] = ()) -> Iterator[set[nn.Module]]:
    """Inside, forward passes may move buffers, such as running statistics; on exit every buffer is what it was before.

    besides  modules that no pass changes, whose buffers are not copied
    Modules that are put into the set that is given keep what has become of their buffers, unless an error ends the block.
    """
    skipped = set(besides)
    earlier = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in model.modules()
        if module not in skipped
        for name, buffer in module._buffers.items()
    ]
    spared: set[nn.Module] = set()
    try:
        yield spared
    except BaseException:
        spared.clear()
        raise
    finally:
        with torch.no_grad():
            for module, name, buffer, value in earlier:
                if module in spared:
                    continue
                if buffer is not None and value is not None:
                    module._buffers[name] = buffer.copy_(value) if buffer.shape == value.shape else value
                else:
                    module._buffers[name] = buffer
