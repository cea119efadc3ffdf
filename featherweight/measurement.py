"""Measuring: what a network holds and costs, counted from the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherweight.network.calls import Example, Inputs
from featherweight.network.copies import UnsupportedNetwork, unwrapped
from featherweight.structure.count import count_macs
from featherweight.weights.parameters import Parameters, bits_of, parameters_of
from featherweight.weights.parametrized import prefix


@dataclass(frozen=True)
class Measurement:
    """One network, measured.

    score        the task's score (the built-in tasks: accuracy in percent); None where nothing was asked to score it
    parameters   entries of all parameters, tied ones once: coded ones at their dense shapes, those that the user's own
                 parametrization computes a weight from as they are stored
    nonzeros     of those, entries that are not zero; where a pruning mask lies on them, after the mask
    bits         what the codes hold, and each parameter without a code at its own precision; buffers are not in it
    macs         multiply-accumulates of one example, dense (zeros are multiplied too); None if the network cannot be exported
    uncounted    what `macs` leaves out: operations without a counting rule, or why there is no count
    notes        what the sizes leave out, and how they count what is no ordinary parameter, in words
    """

    score: float | None
    parameters: int
    nonzeros: int
    bits: int
    macs: int | None
    uncounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


NO_EXAMPLE = "no input was given to count MACs on"


def measure(
    model: nn.Module, example: Example | Inputs | None = None, score: Callable[[nn.Module], float] | None = None
) -> Measurement:
    """Score, sizes and MACs of `model`; no MACs without an example. Raises UnsupportedNetwork for one that is sharded or lazy."""
    network = unwrapped(model)
    held = parameters_of(network)
    weights = held.values
    if empty := [name for name, weight in weights.items() if weight.is_meta]:
        raise UnsupportedNetwork(f"{empty[0]!r} is on the meta device and has no values to measure: load weights first")
    macs, uncounted = (None, (NO_EXAMPLE,)) if example is None else count_macs(network, example)
    return Measurement(
        score=None if score is None else float(score(model)),
        parameters=sum(weight.numel() for weight in weights.values()),
        nonzeros=sum(_nonzeros(weight) for weight in weights.values()),
        bits=sum(bits_of(held).values()),
        macs=macs,
        uncounted=uncounted,
        notes=size_notes(held),
    )


def _nonzeros(weight: Tensor) -> int:
    if weight.layout != torch.strided:
        weight = weight.to_dense()
    # float8 has no comparison of its own
    return int((weight.float() if weight.is_floating_point() and weight.element_size() == 1 else weight).count_nonzero())


LARGE = 0.01  # buffers are spoken of where they hold more than this share of the parameters' bytes


def size_notes(held: Parameters) -> tuple[str, ...]:
    """What the sizes of a measurement leave out, and how they count what is no ordinary parameter."""
    model, notes = held.model, []
    kinds: dict[str, list[str]] = {}
    for name, how in held.computed.items():
        kinds.setdefault(how.by, []).append(name)
    for by, names in sorted(kinds.items()):
        notes.append(f"{', '.join(names)}: computed by {by}, and counted as the parameters that are stored")
    inside = tuple(prefix(name) for name in held.codes)
    buffers = {id(b): b.numel() * b.element_size() for name, b in model.named_buffers() if not f".{name}".startswith(inside)}
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    if sum(buffers.values()) > LARGE * parameters:
        notes.append(f"buffers are in no size: {sum(buffers.values()):,} bytes")
    other = [f"{name} ({type(value).__name__})" for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    if other:
        notes.append(f"state that is no tensor is in no size: {', '.join(other)}")
    return tuple(notes)
