"""What the layers of a cut network put out, beside what the dense network's layers put out of the same units.

A cut takes rows of a layer's weight; the rows that are left make the same units as before. So the output of a layer of the cut
network is to be that of the dense one at those units, and no labels are needed to say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.network.stacked import by_layer, is_stacked

Left = Mapping[tuple[str, int], Tensor]  # (tensor, dimension) -> numbers of the entries that are left, where some went


@dataclass(frozen=True)
class _Units:
    """Where the units of an output lie: along a dimension of a weight, and of the output."""

    tensor: str
    dim: int
    axis: int


class Heard:
    """The outputs of a network's layers in its last run: of linear, convolution and recurrent ones, of which every layer of a
    stack is heard. None: of nothing."""

    def __init__(self, network: nn.Module | None) -> None:
        modules = list(network.named_modules()) if network is not None else []
        self.units = {output: units for name, module in modules for output, units in _units_of(name, module).items()}
        self.layers = {name: module for name, module in modules if name in self.units}
        self.stacks = {name: layer for name, layer in self.layers.items() if is_stacked(layer) and "forward" not in vars(layer)}
        self.outputs: dict[str, Tensor] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self.layers.items()]
        for name, stack in self.stacks.items():
            stack.forward = self._unrolled(name, stack)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for stack in self.stacks.values():
                del stack.forward

    def _hook(self, name: str) -> Any:
        def hear(module: nn.Module, given: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                self.outputs[name] = first

        return hear

    def _unrolled(self, name: str, stack: nn.Module) -> Any:
        """A forward that computes the same, one layer after the other; sequences without a batch or packed run as they are."""
        own = stack.forward

        def forward(input: Any, hx: Any = None) -> Any:
            if not isinstance(input, Tensor) or input.ndim != 3:
                return own(input, hx)
            output, state, layers = by_layer(cast(nn.RNNBase, stack), input, hx)
            self.outputs |= {_layer(name, number): found for number, found in enumerate(layers[:-1])}
            return output, state

        return forward


def _layer(name: str, number: int) -> str:
    """The key of an inner layer's output."""
    return f"{name}, layer {number}"


def _units_of(name: str, module: nn.Module) -> dict[str, _Units]:
    """Of each output that is heard of a module, where the units lie."""
    if isinstance(module, nn.Linear):
        return {name: _Units(f"{name}.weight", 0, -1)}
    if isinstance(module, _ConvNd) and not module.transposed:
        return {name: _Units(f"{name}.weight", 0, 1)}
    if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN)) and not module.bidirectional and not module.proj_size:
        last = module.num_layers - 1
        inner = {_layer(name, number): number for number in range(last)} if is_stacked(module) else {}
        return {key: _Units(f"{name}.weight_hh_l{number}", 1, -1) for key, number in {**inner, name: last}.items()}
    return {}


def distances(ours: Heard, theirs: Heard, left: Left) -> list[Tensor]:
    """Of each layer of both networks whose units can be told, how far the one's output is from the other's."""
    found = []
    for name, output in ours.outputs.items():
        expected, units = theirs.outputs.get(name), ours.units[name]
        if expected is None:
            continue
        if (entries := left.get((units.tensor, units.dim))) is not None:
            expected = expected.index_select(units.axis, entries.to(expected.device))
        if expected.shape == output.shape and output.requires_grad:
            found.append(apart(output, expected))
    return found


def apart(output: Tensor, expected: Tensor) -> Tensor:
    """Mean squared difference over the variance of what is expected."""
    wanted = expected.detach().float()
    spread = wanted.var(correction=0).clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
    return (output.float() - wanted).square().mean() / spread
