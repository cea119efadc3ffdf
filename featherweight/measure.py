"""Measuring: what a network holds and costs, counted from the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from featherweight.calls import Example, Inputs
from featherweight.codes import FLOAT_BITS
from featherweight.coding import coded, computed, owner, plain
from featherweight.copies import UnsupportedNetwork, unwrapped
from featherweight.structure import trace
from featherweight.structure.errors import StructureError


@dataclass(frozen=True)
class Measurement:
    """One network, measured.

    score        the task's score (the built-in tasks: accuracy in percent)
    parameters   entries of all parameters, tied ones once: coded ones at their dense shapes, those that the user's own
                 parametrization computes a weight from as they are stored
    nonzeros     of those, entries that are not zero; where a pruning mask lies on them, after the mask
    bits         what the codes hold, and each parameter without a code at its own precision; buffers are not in it
    macs         multiply-accumulates of one example, dense (zeros are multiplied too); None if the network cannot be exported
    uncounted    what `macs` leaves out: operations without a counting rule, or why there is no count
    notes        what the sizes leave out, and how they count what is no ordinary parameter, in words
    """

    score: float
    parameters: int
    nonzeros: int
    bits: int
    macs: int | None
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def measure(model: nn.Module, example: Example | Inputs, score: Callable[[nn.Module], float]) -> Measurement:
    """Score, sizes and MACs of `model`. Raises UnsupportedNetwork for one that is sharded or lazy."""
    network = unwrapped(model)
    weights = decoded(network)
    if empty := [name for name, weight in weights.items() if weight.is_meta]:
        raise UnsupportedNetwork(f"{empty[0]!r} is on the meta device and has no values to measure: load weights first")
    macs, uncounted = count_macs(network, example)
    return Measurement(
        score=float(score(model)),
        parameters=sum(weight.numel() for weight in weights.values()),
        nonzeros=sum(_nonzeros(weight) for weight in weights.values()),
        bits=sum(bits_of(network).values()),
        macs=macs,
        uncounted=uncounted,
        notes=size_notes(network),
    )


@torch.no_grad()
def decoded(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> its values as the network computes with them, tied ones once and what lies in the same memory once.

    Coded parameters under their own names. Parameters of the user's own parametrizations as they are stored, under their stored
    names (see `coding.computed`); those under a pruning mask, masked.
    """
    codes = coded(model)
    inside = tuple(_prefix(name) for name in codes)
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


def _prefix(name: str) -> str:
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


def bits_of(model: nn.Module) -> dict[str, int]:
    """Parameter name -> bits: what its code holds, its free numbers at their own precision; else the entries at theirs."""
    bits = {name: 8 * weight.element_size() * weight.numel() for name, weight in decoded(model).items()}
    for name, viewed in coded(model).items():
        width = 8 * getattr(owner(model, name)[0], owner(model, name)[1]).element_size()
        bits[name] = viewed.code.bits() + (width - FLOAT_BITS) * sum(prod(shape) for shape in viewed.code.free())
    return bits


def _nonzeros(weight: Tensor) -> int:
    if weight.layout != torch.strided:
        weight = weight.to_dense()
    # float8 has no comparison of its own
    return int((weight.float() if weight.is_floating_point() and weight.element_size() == 1 else weight).count_nonzero())


LARGE = 0.01  # buffers are spoken of where they hold more than this share of the parameters' bytes


def size_notes(model: nn.Module) -> tuple[str, ...]:
    """What the sizes of a measurement leave out, and how they count what is no ordinary parameter."""
    notes = []
    kinds: dict[str, list[str]] = {}
    for name, how in computed(model).items():
        kinds.setdefault(how.by, []).append(name)
    for by, names in sorted(kinds.items()):
        notes.append(f"{', '.join(names)}: computed by {by}, and counted as the parameters that are stored")
    inside = tuple(_prefix(name) for name in coded(model))
    buffers = {id(b): b.numel() * b.element_size() for name, b in model.named_buffers() if not f".{name}".startswith(inside)}
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    if sum(buffers.values()) > LARGE * parameters:
        notes.append(f"buffers are in no size: {sum(buffers.values()):,} bytes")
    other = [f"{name} ({type(value).__name__})" for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if other:
        notes.append(f"state that is no tensor is in no size: {', '.join(other)}")
    return tuple(notes)


def count_macs(model: nn.Module, example: Example | Inputs) -> tuple[int | None, tuple[str, ...]]:
    """MACs of one example on the exported graph, and what they leave out: operations without a rule.

    None where the network cannot be exported; the reason stands in the second place.
    """
    try:
        graph = trace(plain(model), example)
    except (StructureError, UnsupportedNetwork) as error:
        return None, (str(error),)
    return graph.macs() // Inputs.of(example).batch, tuple(sorted(graph.uncounted))
