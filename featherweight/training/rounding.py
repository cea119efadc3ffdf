"""Activations rounded while a network trains, as integers will round them: what its layers take, to 2^bits levels.

The levels are evenly spaced between the extremes of the batch, and 0 is one of them, as in a QuantizeLinear of ONNX. The
gradient passes straight through (Bengio et al. 2013, arXiv 1308.3432). Nothing is remembered from one batch to the next, so that
a run that is taken up again sees what it would have seen; the ranges that are shipped are calibrated afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

LAYERS = (nn.Linear, _ConvNd, nn.RNNBase)


@contextlib.contextmanager
def rounded(model: nn.Module, bits: int | None, lowest: Callable[[Tensor], Tensor] = lambda values: values) -> Iterator[None]:
    """Inside, the first input of every linear, convolution and recurrent layer is rounded in training mode. None: nothing is.
    `lowest`: over all processes that share a batch, entry by entry."""
    if bits is None:
        yield
        return

    def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training or not given or not isinstance(given[0], Tensor) or not given[0].is_floating_point():
            return None
        return (straight_through(given[0], bits, lowest), *given[1:])

    handles = [module.register_forward_pre_hook(hook) for module in model.modules() if isinstance(module, LAYERS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def straight_through(values: Tensor, bits: int, lowest: Callable[[Tensor], Tensor] = lambda values: values) -> Tensor:
    """`values` rounded to 2^bits levels; its gradient is that of the identity."""
    with torch.no_grad():
        low, minus_high = lowest(torch.stack([values.min(), -values.max()]).clamp_max(0))
        high = -minus_high
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(values.dtype).tiny)
        zero = (-low / step).round()
        away = ((values / step + zero).round().clamp(0, 2**bits - 1) - zero) * step - values
    return values + away
