"""What a network's parameters are, asked once and handed on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from featherweight.weights.codes import FLOAT_BITS
from featherweight.weights.parametrized import Computed, Viewed, coded, computed, decoded, owner


@dataclass(frozen=True)
class Parameters:
    """A network's parameters as they were when they were asked for; the network has not been changed since.

    values    name -> the weight that the network computes with (see `decoded`)
    codes     name -> the code that stands on it
    computed  weight -> how the network itself computes it (see `parametrized.computed`)
    """

    model: nn.Module
    values: dict[str, Tensor]
    codes: dict[str, Viewed]
    computed: dict[str, Computed]

    def layer(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a parameter, and its attribute there."""
        return owner(self.model, name)


def parameters_of(model: nn.Module) -> Parameters:
    """All that planning and measuring ask of a network's weights."""
    return Parameters(model, decoded(model), coded(model), computed(model))


def bits_of(held: Parameters) -> dict[str, int]:
    """Parameter name -> bits: what its code holds, its free numbers at their own precision; else the entries at theirs."""
    bits = {name: 8 * weight.element_size() * weight.numel() for name, weight in held.values.items()}
    for name, viewed in held.codes.items():
        width = 8 * held.values[name].element_size()
        bits[name] = viewed.code.bits() + (width - FLOAT_BITS) * sum(prod(shape) for shape in viewed.code.free())
    return bits
