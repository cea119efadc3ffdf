"""Small attention networks whose classes hold the sizes of their heads in the ways that published ones do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OneNumber(nn.Module):
    """BERT's kind: numbers for the heads and for their size, the same for query, key and value; one for all heads together."""

    def __init__(self, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.head_size, self.all_size, self.scale = heads, dim // heads, dim, (dim // heads) ** -0.5
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, self.head_size).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = ((q @ k.transpose(-1, -2)) * self.scale).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).contiguous()
        return self.o(mixed.view(*x.shape[:2], self.all_size))


class Rotary(nn.Module):
    """Llama's kind: grouped queries, rotary positions from a table longer than the input, one number for the heads' size."""

    def __init__(self, dim: int = 24, heads: int = 4, shared: int = 2, longest: int = 32) -> None:
        super().__init__()
        self.head_dim, self.repeats = dim // heads, heads // shared
        self.scale = self.head_dim**-0.5
        self.q, self.o = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.k, self.v = (nn.Linear(dim, shared * self.head_dim, bias=False) for _ in range(2))
        angles = torch.outer(torch.arange(float(longest)), 0.5 ** torch.arange(self.head_dim // 2))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin(), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos[: x.shape[2]] + torch.cat([-b, a], -1) * self.sin[: x.shape[2]]

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = self.turned(q), self.turned(k)
        k, v = (y[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.o(mixed.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """A vision transformer's kind: one matrix for query, key and value, whose heads' size cannot change alone."""

    def __init__(self, dim: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.qkv, self.o = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))


class OfTheInput(Fused):
    """CaiT's kind: the heads' size is computed from the width of the input, so that no head can go in the class."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))


class Mixture(nn.Module):
    """A gated sum of small layers."""

    def __init__(self, dim: int, hidden: int, experts: int = 3) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        return sum((weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts)), torch.zeros(()))


class Gated(nn.Module):
    """Llama's kind of MLP."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Encoder(nn.Module):
    """Tokens, `layers` of attention and layers of `hidden` numbers, five classes. `positions`: a table of so many rows, of which
    a buffer says which are read."""

    def __init__(
        self,
        attention: type[nn.Module],
        layers: int = 2,
        dim: int = 24,
        hidden: int = 20,
        positions: int = 0,
        mixture: bool = False,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(50, dim)
        self.attentions = nn.ModuleList(attention(dim) for _ in range(layers))
        self.mlps = nn.ModuleList(
            Mixture(dim, hidden) if mixture else nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers))
        self.head = nn.Linear(dim, 5)
        if positions:
            self.positions = nn.Embedding(positions, dim)
            self.register_buffer("ids", torch.arange(positions)[None], persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        if hasattr(self, "positions"):
            x = x + self.positions(self.ids[:, : tokens.shape[1]])
        return self.head(self.layers(x).mean(1))

    def layers(self, x: Tensor) -> Tensor:
        for i, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return x


TOKENS = torch.randint(0, 50, (1, 6), generator=torch.Generator().manual_seed(0))
