"""What the layers of a cut network put out, beside what the dense network's layers put out of the same units.

A cut takes rows of a layer's weight; the rows that are left make the same units as before. So the output of a layer of the cut
network is to be that of the dense one at those units, and no labels are needed to say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Left = Mapping[tuple[str, int], Tensor]  # (tensor, dimension) -> numbers of the entries that are left, where some went


class Heard:
    """The outputs of a network's layers in its last run: of linear, convolution and recurrent ones. None: of nothing."""

    def __init__(self, network: nn.Module | None) -> None:
        modules = network.named_modules() if network is not None else ()
        self.layers = {name: module for name, module in modules if _units_of(name, module) is not None}
        self.outputs: dict[str, Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def hear(module: nn.Module, given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                self.outputs[name] = first

        return hear


def _units_of(name: str, module: nn.Module) -> tuple[str, int, int] | None:
    """The weight and the dimension of it that the units of a layer's output lie along, and the output's dimension."""
    if isinstance(module, nn.Linear):
        return f"{name}.weight", 0, -1
    if isinstance(module, _ConvNd) and not module.transposed:
        return f"{name}.weight", 0, 1
    if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)) and not module.bidirectional and not module.proj_size:
        return f"{name}.weight_hh_l{module.num_layers - 1}", 1, -1
    return None


def distances(ours: Heard, theirs: Heard, left: Left) -> list[Tensor]:
    """Of each layer of both networks whose units can be told, how far the one's output is from the other's."""
    found = []
    for name, output in ours.outputs.items():
        expected, units = theirs.outputs.get(name), _units_of(name, ours.layers[name])
        if expected is None or units is None:
            continue
        tensor, dim, axis = units
        if (entries := left.get((tensor, dim))) is not None:
            expected = expected.index_select(axis, entries.to(expected.device))
        if expected.shape == output.shape and output.requires_grad:
            found.append(apart(output, expected))
    return found


def apart(output: Tensor, expected: Tensor) -> Tensor:
    """Mean squared difference over the variance of what is expected."""
    wanted = expected.detach().float()
    spread = wanted.var(correction=0).clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
    return (output.float() - wanted).square().mean() / spread
