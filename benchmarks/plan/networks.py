"""Decoders of the shapes of LLaMA-2, for `featherweight plan`: built without values, each layer's activations computed again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, size = heads, groups, width // heads
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(width, groups * size, bias=False), nn.Linear(width, groups * size, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.before(hidden)
        q, k, v = (part(normed).unflatten(-1, (count, -1)).transpose(1, 2) for part, count in self._parts())
        k, v = (part.repeat_interleave(self.heads // self.groups, 1) for part in (k, v))
        hidden = hidden + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        normed = self.between(hidden)
        return hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))

    def _parts(self) -> tuple[tuple[nn.Module, int], ...]:
        return (self.q, self.heads), (self.k, self.groups), (self.v, self.groups)


class Decoder(nn.Module):
    """Tokens (batch, time) -> logits (batch, time, tokens)."""

    def __init__(self, width: int, inner: int, layers: int, heads: int, groups: int, tokens: int = 32000) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(Layer(width, inner, heads, groups) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=False)
        return self.head(self.norm(hidden))


def seven_b() -> nn.Module:
    """LLaMA-2-7B's sizes, in bfloat16."""
    return Decoder(4096, 11008, 32, 32, 32).to(torch.bfloat16)


def seventy_b() -> nn.Module:
    """LLaMA-2-70B's sizes, in bfloat16."""
    return Decoder(8192, 28672, 80, 64, 8).to(torch.bfloat16)
