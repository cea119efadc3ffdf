"""Coding: codes put on a network's parameters, found there, and taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherweight.errors import InputError
from featherweight.network.copies import copied, hooked
from featherweight.weights.codes import Code
from featherweight.weights.views import View


class Viewed(nn.Module):
    """A code seen through a view: the parametrization that stands on a parameter of `shape`.

    `channels_last`: decode into that memory layout, without which a convolution runs at half its speed on some processors.
    `blank`: the next refit gives zeros, since a state will be loaded.
    """

    def __init__(self, view: View, shape: tuple[int, ...], code: Code, channels_last: bool = False, blank: bool = False):
        super().__init__()
        self.view, self.shape, self.code, self.channels_last, self.blank = view, tuple(shape), code, channels_last, blank

    def forward(self, *free: Tensor) -> Tensor:
        # under autocast a product of factors would be rounded to bfloat16 in training and not in scoring
        with torch.autocast(free[0].device.type, enabled=False):
            weight = self.view.to_weight(self.code(*free), self.shape)
            return weight.clone(memory_format=torch.channels_last) if self.channels_last else weight

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.blank:
            self.blank = False
            zeros = tuple(weight.new_zeros(shape) for shape in self.code.free())
            return zeros if len(zeros) > 1 else zeros[0]
        return self.code.right_inverse(self.view.to_matrix(weight))


def attach(model: nn.Module, name: str, view: View, code: Code, *, blank: bool = False) -> None:
    """Put `code` on parameter `name`, refitted to its present value; the parameter becomes the code's free part.

    `blank`: not refitted but zero, for a code whose discrete part and values are still to be loaded.
    """
    module, attribute = owner(model, name)
    if isinstance(module, parametrize.ParametrizationList):
        raise InputError(f"{name!r} is stored for a weight that the network's own parametrization computes: take that off first")
    weight = getattr(module, attribute)
    marks = dict(vars(weight))
    if weight.device.type != "meta":
        code.to(weight.device)  # one that is still to be loaded was made on the CPU
    viewed = Viewed(view, tuple(weight.shape), code, is_channels_last(weight), blank)
    parametrize.register_parametrization(module, attribute, viewed, unsafe=blank)  # unsafe: without decoding for a look
    for free in module.parametrizations[attribute].parameters(recurse=False):  # type: ignore[union-attr, index]
        vars(free).update(marks)
        free.grad = None  # torch keeps the parameter and gives it another shape, and its gradient is of the old one


def detach(model: nn.Module, name: str) -> None:
    """Turn a coded parameter back into a plain one that holds the decoded weight; its gradient history is dropped, its marks
    (Python attributes) and whether it is trained are kept.
    """
    module, attribute = owner(model, name)
    free = list(module.parametrizations[attribute].parameters(recurse=False))  # type: ignore[union-attr, index]
    with torch.no_grad():
        weight = getattr(module, attribute).clone()
    # a deep copy shares its class with the original, and removal deletes the property from that class: take a class of its own
    shared = type(module)
    body = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, body)
    # `remove_parametrizations` would keep the first original's storage, whose shape differs from the weight's
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    made = nn.Parameter(weight, any(part.requires_grad for part in free))
    vars(made).update(*(vars(part) for part in free[:1]))
    setattr(module, attribute, made)


def plain(model: nn.Module) -> nn.Module:
    """A copy of `model`, out of its wrappers, whose coded parameters are ordinary ones that hold the decoded weights."""
    network = copied(model)
    for name in list(coded(network)):
        detach(network, name)
    return network


def coded(model: nn.Module) -> dict[str, Viewed]:
    """Parameter name -> the code that stands on it."""
    found: dict[str, Viewed] = {}
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], Viewed):
            prefix, _, attribute = path.rpartition("parametrizations.")
            found[prefix + attribute] = module[0]
    return found


@dataclass(frozen=True)
class Computed:
    """A weight that the user's own parametrization, mask or hook computes from what is stored.

    by      what computes it: the names of classes
    stored  the parameters that it is computed from
    masked  0 in it where a pruning mask says so, and else what is stored
    remove  the call that makes it an ordinary parameter
    """

    by: str
    stored: tuple[str, ...]
    masked: bool
    remove: str


def computed(model: nn.Module) -> dict[str, Computed]:
    """Weight name -> how it is computed, for parametrizations that are no codes of ours, pruning masks and torch's old norms."""
    found: dict[str, Computed] = {}
    for path, module in model.named_modules():
        dot = path + "." * bool(path)
        where = f"network.get_submodule({path!r})" if path else "network"
        for attribute, listed in module.parametrizations.items() if parametrize.is_parametrized(module) else ():
            if not isinstance(listed[0], Viewed):
                by = ", ".join(type(step).__name__.lstrip("_") for step in listed)
                stored = tuple(f"{dot}parametrizations.{attribute}.{name}" for name, _ in listed.named_parameters())
                call = f"torch.nn.utils.parametrize.remove_parametrizations({where}, {attribute!r})"
                found[dot + attribute] = Computed(by, stored, False, call)
        for attribute, (by, remove) in hooked(module).items():
            own = [name for name, _ in module.named_parameters(recurse=False)]
            stored = tuple(dot + name for name in own if name.rpartition("_")[0] == attribute)
            found[dot + attribute] = Computed(
                by, stored, remove == "prune.remove", f"torch.nn.utils.{remove}({where}, {attribute!r})"
            )
    return found


def is_channels_last(weight: Tensor) -> bool:
    """Has it exactly the strides of that layout? (Of one input channel, `is_contiguous` says yes to both layouts.)"""
    if weight.ndim != 4:
        return False
    return weight.stride() == torch.empty(weight.shape, device="meta").to(memory_format=torch.channels_last).stride()


@contextlib.contextmanager
def layouts_kept(model: nn.Module) -> Iterator[None]:
    """Parameters that are channels-last on entry are so on leaving, though surgery replaced their tensors."""
    before = {name for name, weight in model.named_parameters() if is_channels_last(weight)}
    yield
    for name, weight in model.named_parameters():
        if name in before and not is_channels_last(weight):
            weight.data = weight.data.clone(memory_format=torch.channels_last)


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds parameter `name`, and its attribute name there."""
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


@torch.no_grad()
def decoded(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> its values as the network computes with them, tied ones once and what lies in the same memory once.

    Coded parameters under their own names. Parameters of the user's own parametrizations as they are stored, under their stored
    names (see `computed`); those under a pruning mask, masked.
    """
    codes = coded(model)
    inside = tuple(prefix(name) for name in codes)
    held: dict[str, Tensor] = {}
    places: set[tuple[object, ...]] = set()
    for name, parameter in model.named_parameters():
        place = _place(parameter)
        if not f".{name}".startswith(inside) and place not in places:
            places.add(place)
            held[name] = parameter.detach()
    for computed_from in computed(model).values():
        if computed_from.masked:
            for name in (stored for stored in computed_from.stored if stored in held):
                held[name] = held[name] * model.get_buffer(name.removesuffix("_orig") + "_mask")
    for name in codes:
        path, _, attribute = name.rpartition(".")
        held[name] = getattr(model.get_submodule(path), attribute).detach()
    return dict(sorted(held.items()))


def prefix(name: str) -> str:
    """How the names of all that belongs to the code on parameter `name` begin, after a dot."""
    path, _, attribute = f".{name}".rpartition(".")
    return f"{path}.parametrizations.{attribute}."


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same entries of the same memory."""
    if (
        tensor.is_meta
        or tensor.layout != torch.strided
        or type(tensor) is not nn.Parameter
        or not tensor.untyped_storage().nbytes()
    ):
        return (id(tensor),)
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
