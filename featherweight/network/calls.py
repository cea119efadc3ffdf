"""How a network is called and what it gives: inputs by position and by name, and the tensors in outputs of any form."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from featherweight.errors import InputError

Example = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Inputs:
    """What a network is called with: `network(*args, **kwargs)`. Beside tensors there may be None, numbers, and nests of them."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(example: Example | Inputs) -> Inputs:
        """A tensor: the only input. A tuple or list: the inputs by position. A mapping: the inputs by name. Raises InputError."""
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Tensor):
            return Inputs((example,))
        if isinstance(example, (tuple, list)):
            return Inputs(tuple(example))
        if isinstance(example, Mapping) and all(isinstance(name, str) for name in example):
            return Inputs((), dict(example))
        raise InputError(
            f"the example is a {type(example).__name__}; give the network's inputs as a tuple by position, for instance "
            "(torch.randn(1, 3, 224, 224),), or as a dict by name"
        )

    def call(self, network: Callable[..., Any]) -> Any:
        return network(*self.args, **self.kwargs)

    def leaves(self) -> list[Any]:
        """Everything in the inputs, tensors and others, in order."""
        return list(_pytree.tree_leaves((self.args, self.kwargs)))

    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves() if isinstance(leaf, Tensor)]

    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(tensor.shape) for tensor in self.tensors()]

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""
        return Inputs(*_pytree.tree_map_only(Tensor, change, (self.args, self.kwargs)))

    @property
    def batch(self) -> int:
        """How many samples: the first size of the first tensor that has one, inputs by position first; 1 where none has."""
        first = first_tensor((self.args, self.kwargs))
        return 1 if first is None else first.shape[0]

    def has_batch(self, tensor: Any) -> bool:
        """Is this input's first dimension the batch? Where its size is that of the first tensor."""
        return isinstance(tensor, Tensor) and tensor.dim() > 0 and tensor.shape[0] == self.batch

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else repr(value)

        named = [f"{name}={_pytree.tree_map(shown, value)}" for name, value in self.kwargs.items()]
        return ", ".join([*(str(_pytree.tree_map(shown, value)) for value in self.args), *named])


def inputs_in(batch: Any, example: Example | Inputs) -> Inputs:
    """The network's inputs in a batch: itself, its first entries, or those of their names. Raises InputError."""
    wanted = Inputs.of(example)
    if isinstance(batch, Mapping):
        found = Inputs.of({name: batch[name] for name in wanted.kwargs if name in batch} if wanted.kwargs else batch)
    else:
        entries = batch if isinstance(batch, (tuple, list)) else (batch,)
        found = Inputs(tuple(entries[: len(wanted.args)]), {})
    if [tensor.shape[1:] for tensor in found.tensors()] != [tensor.shape[1:] for tensor in wanted.tensors()]:
        raise InputError(f"a batch of data does not begin with the network's inputs ({wanted}): it gives {found}")
    return found


def varied(inputs: Inputs, rows: Mapping[int, int] | None = None, seed: int = 0) -> Inputs:
    """Other values of the same kind: numbers drawn from a normal distribution of the example's own size (1 where it is 0), and
    the example's own whole numbers in another order.

    rows  number of a leaf -> the numbers below this are allowed there: whole numbers that an embedding looks up
    """
    dice = torch.Generator().manual_seed(seed)
    leaves, form = _pytree.tree_flatten((inputs.args, inputs.kwargs))

    def other(place: int, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type == "meta" or not value.numel() or value.layout != torch.strided:
            return value
        if value.is_floating_point() or value.is_complex():
            kind = torch.complex128 if value.is_complex() else torch.float64
            size = float(value.detach().abs().to(torch.float64).square().mean().sqrt().nan_to_num(1, 1, 1)) or 1.0
            return (size * torch.randn(value.shape, generator=dice, dtype=kind)).to(value.device, value.dtype)
        if rows and place in rows:
            return torch.randint(rows[place], value.shape, generator=dice).to(value)
        return value.reshape(-1)[torch.randperm(value.numel(), generator=dice).to(value.device)].reshape(value.shape)

    return Inputs(*_pytree.tree_unflatten([other(place, value) for place, value in enumerate(leaves)], form))


def plain(output: Any) -> Any:
    """An output as dicts, lists and tuples: of mappings, dataclasses, named tuples and other objects that hold tensors."""
    return _plain(output, ())


def _plain(output: Any, around: tuple[int, ...]) -> Any:
    if id(output) in around or isinstance(output, (Tensor, nn.Module, type)):
        return output
    around = (*around, id(output))
    if isinstance(output, Mapping):
        return {name if isinstance(name, (str, int)) else str(name): _plain(part, around) for name, part in output.items()}
    if isinstance(output, tuple):
        return tuple(_plain(part, around) for part in output)
    if isinstance(output, (list, set, frozenset)):
        return [_plain(part, around) for part in output]
    if dataclasses.is_dataclass(output):
        return {part.name: _plain(getattr(output, part.name), around) for part in dataclasses.fields(output)}
    if hasattr(output, "__dict__"):
        parts = {name: _plain(part, around) for name, part in vars(output).items()}
        return {name: part for name, part in parts.items() if _holds_tensors(part)} or output
    return output


def _holds_tensors(part: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in _pytree.tree_leaves(part))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in a value, such as an output or a batch, of whatever kind of number and whatever holds them, in order."""
    return [leaf for leaf in _pytree.tree_leaves(plain(value)) if isinstance(leaf, Tensor)]


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in a value that has a dimension; None where none has."""
    return next((tensor for tensor in tensors_of(value) if tensor.dim()), None)


def changed(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same output with every tensor changed, in objects of the same classes as `plain` looks into."""
    return _changed(output, change, ())


def _changed(output: Any, change: Callable[[Tensor], Tensor], around: tuple[int, ...]) -> Any:
    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if id(value) in around or isinstance(value, (nn.Module, type)):
            return value
        names = [part.name for part in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else _names(value)
        if not names:
            return value
        twin = copy.copy(value)
        for name in names:  # by object's own way, as a frozen dataclass has none
            object.__setattr__(twin, name, _changed(getattr(value, name), change, (*around, id(value))))
        return twin

    return _pytree.tree_map(leaf, output)


def _names(value: Any) -> list[str]:
    return list(vars(value)) if hasattr(value, "__dict__") and not callable(value) else []


@contextmanager
def plain_outputs(network: nn.Module) -> Iterator[None]:
    """Inside, the network gives its outputs as dicts, lists and tuples, which `torch.export` knows."""
    handle = network.register_forward_hook(lambda module, given, output: plain(output))
    try:
        yield
    finally:
        handle.remove()
