"""Patches: the vectors that a layer multiplies its weight by, at places drawn from its input."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from featherweight.criteria.readers import Layer


def patches(layer: Layer, x: Tensor, positions: int, generator: Generator) -> Tensor:
    """(rows, d) inputs of `layer` at `positions` places drawn for each sample, in the order of its weight's trailing dimensions.

    A place is one output of a convolution, or one vector of a linear layer; all of them where there are not more.
    """
    if isinstance(layer, nn.Linear):
        return drawn(x.flatten(1, -2) if x.ndim > 2 else x[:, None], positions, generator).flatten(0, 1)
    around = layer._reversed_padding_repeated_twice
    x = F.pad(x, around, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    sizes = [(n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, layer.stride, strict=True)]
    flat = torch.arange(prod(sizes)).expand(len(x), -1)[..., None]
    chosen = drawn(flat, positions, generator)[..., 0]  # (batch, places)
    rows, dims = chosen.numel(), len(sizes)
    index: list[Tensor] = [torch.arange(len(x)).repeat_interleave(chosen.shape[1]).reshape(-1, *[1] * dims)]
    for axis, at in enumerate(torch.unravel_index(chosen.reshape(-1), sizes)):
        taps = at[:, None] * layer.stride[axis] + torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
        index.append(taps.reshape(rows, *[-1 if d == axis else 1 for d in range(dims)]))
    return x.movedim(1, -1)[tuple(i.to(x.device) for i in index)].movedim(-1, 1).flatten(1)


def drawn(rows: Tensor, positions: int, generator: Generator) -> Tensor:
    """(batch, min(positions, places), d): different places of (batch, places, d) for each sample."""
    if rows.shape[1] <= positions:
        return rows
    chosen = torch.rand(rows.shape[:2], generator=generator).topk(positions, dim=1).indices
    return rows.gather(1, chosen.to(rows.device)[..., None].expand(-1, -1, rows.shape[2]))
