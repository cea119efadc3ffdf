"""How a network is called: the samples in a call, whatever it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from featherweight.errors import InputError


def samples_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The first dimension of the first tensor of a call that has one, positional inputs first; in nested containers, mappings,
    dataclasses and objects too. Raises InputError where there is none."""
    return first_tensor(args, kwargs).shape[0]


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The first tensor of a call that has a dimension, as `samples_in` finds it."""
    for tensor in tensors_in((args, kwargs)):
        if tensor.ndim:
            return tensor
    named = ", ".join([*(type(value).__name__ for value in args), *(f"{k}: {type(v).__name__}" for k, v in kwargs.items())])
    raise InputError(
        f"the network was called without a tensor that has a batch dimension (with {named or 'nothing'}), so the samples of a "
        "batch cannot be counted: give it its inputs as tensors, batch first"
    )


def tensors_in(value: Any, around: tuple[int, ...] = ()) -> Iterator[Tensor]:
    """All tensors in a value, in order."""
    if isinstance(value, Tensor):
        yield value
        return
    if id(value) in around:  # an object that holds itself
        return
    inside: list[Any] = []
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, (list, tuple)):
        inside = list(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inside = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        inside = list(vars(value).values())
    for part in inside:
        yield from tensors_in(part, (*around, id(value)))
