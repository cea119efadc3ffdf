"""Measuring: what a network holds and costs, counted from the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherweight.codes import FLOAT_BITS
from featherweight.coding import coded, plain
from featherweight.structure import trace
from featherweight.structure.errors import StructureError


@dataclass(frozen=True)
class Measurement:
    """One network, measured.

    score        the task's score (the built-in tasks: accuracy in percent)
    parameters   entries of all parameters at their dense shapes
    nonzeros     of those, entries that are not zero
    bits         what the codes hold, and 32 bits for each parameter without a code
    macs         multiply-accumulates of one example, dense (zeros are multiplied too); None if the network cannot be exported
    uncounted    what `macs` leaves out: operations without a counting rule, or why there is no count
    """

    score: float
    parameters: int
    nonzeros: int
    bits: int
    macs: int | None
    uncounted: tuple[str, ...] = ()


def measure(model: nn.Module, example: tuple[Tensor, ...], score: Callable[[nn.Module], float]) -> Measurement:
    """Score, sizes and MACs of `model`."""
    weights = decoded(model)
    codes = coded(model)
    bits = sum(codes[name].code.bits() if name in codes else FLOAT_BITS * weight.numel() for name, weight in weights.items())
    macs, uncounted = count_macs(model, example)
    return Measurement(
        score=float(score(model)),
        parameters=sum(weight.numel() for weight in weights.values()),
        nonzeros=sum(int(weight.count_nonzero()) for weight in weights.values()),
        bits=bits,
        macs=macs,
        uncounted=uncounted,
    )


@torch.no_grad()
def decoded(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> its weight as the network computes with it; coded parameters under their own names, tied ones once."""
    free = {name: parameter.detach() for name, parameter in model.named_parameters() if ".parametrizations." not in f".{name}"}
    held: dict[str, Tensor] = {}
    for name in coded(model):
        path, _, attribute = name.rpartition(".")
        held[name] = getattr(model.get_submodule(path), attribute).detach()
    return dict(sorted({**free, **held}.items()))


def count_macs(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[int | None, tuple[str, ...]]:
    """MACs of one example on the exported graph, and what they leave out: operations without a rule.

    None where the network cannot be exported; the reason stands in the second place.
    """
    try:
        graph = trace(plain(model), example)
    except StructureError as error:
        return None, (str(error),)
    return graph.macs() // example[0].shape[0], tuple(sorted(graph.uncounted))
