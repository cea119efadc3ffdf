"""Measuring: what a network holds and costs, counted from the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.codes import FLOAT_BITS, coded


@dataclass(frozen=True)
class Measurement:
    """One network, measured.

    score        the task's score (the built-in tasks: accuracy in percent)
    parameters   entries of all parameters at their dense shapes
    nonzeros     of those, entries that are not zero
    bits         what the codes hold, and 32 bits for each parameter without a code
    macs         multiply-accumulates of one example, dense (zeros are multiplied too)
    uncounted    modules with parameters whose MACs have no rule here and are not in `macs`
    """

    score: float
    parameters: int
    nonzeros: int
    bits: int
    macs: int
    uncounted: tuple[str, ...] = ()


def measure(model: nn.Module, example: tuple[Tensor, ...], score: Callable[[nn.Module], float]) -> Measurement:
    """Score, sizes and MACs of `model`."""
    weights = decoded(model)
    codes = coded(model)
    bits = sum(codes[name].code.bits() if name in codes else FLOAT_BITS * weight.numel() for name, weight in weights.items())
    macs, uncounted = count_macs(model, example)
    return Measurement(
        score=score(model),
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


def count_macs(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[int, tuple[str, ...]]:
    """MACs of one example through convolutions and linear layers, and the names of other modules that hold parameters."""
    total = 0
    uncounted = []
    handles = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight: Tensor = cast(Tensor, module.weight)
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            total += inputs[0].numel() * weight.shape[1] * weight[0, 0].numel()
        else:
            total += output.numel() * weight[0].numel()

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            handles.append(module.register_forward_hook(count))
        elif "parametrizations." not in name and _holds_weights(module):
            uncounted.append(name or type(module).__name__)
    was_training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.inference_mode():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training:
            module.training = training
    return total // _batch(example), tuple(uncounted)


def _holds_weights(module: nn.Module) -> bool:
    """Has parameters of its own that multiply inputs; norms scale per channel and count no MACs by convention."""
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.Embedding)
    return any(True for _ in module.parameters(recurse=False)) and not isinstance(module, norms)


def _batch(example: tuple[Any, ...]) -> int:
    return example[0].shape[0]
