"""Fifteen small ordinary networks, each with a construct that tools for structured pruning are known to get wrong, and a few
more.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(10, 20, batch_first=True)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class BidirectionalGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.rnn = nn.GRU(8, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)).transpose(1, 2)
        return self.head(self.rnn(h)[0].mean(1))


class Conv1dFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(4, 16, 5, padding=2), nn.BatchNorm1d(16)
        self.conv2, self.norm2 = nn.Conv1d(16, 12, 5, padding=2), nn.BatchNorm1d(12)
        self.fc1, self.fc2 = nn.Linear(12 * 8, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool1d(F.relu(self.norm1(self.conv1(x))), 2)
        h = F.max_pool1d(F.relu(self.norm2(self.conv2(h))), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(h, 1))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=24, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class FusedAttention(nn.Module):
    """A vision transformer's block: q, k and v from one linear layer."""

    def __init__(self, dim: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 48), nn.Linear(48, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        x = x + self.proj((attention @ v).transpose(1, 2).reshape(b, n, -1))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.cls, self.position = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        self.blocks = nn.Sequential(FusedAttention(), FusedAttention())
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class GroupedQueries(nn.Module):
    """Grouped-query attention, root-mean-square norms and a gated feed-forward layer."""

    def __init__(self, dim: int = 32, heads: int = 4, shared: int = 2) -> None:
        super().__init__()
        self.head_dim, self.repeats = dim // heads, heads // shared
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, n * self.head_dim, bias=False) for n in (heads, shared, shared))
        self.o = nn.Linear(dim, dim, bias=False)
        self.gate, self.up, self.down = nn.Linear(dim, 40), nn.Linear(dim, 40), nn.Linear(40, dim)
        self.head = nn.Linear(dim, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.norm1(x)
        q, k, v = (layer(h).view(b, n, -1, self.head_dim).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2) for t in (k, v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return self.head(x + self.down(F.silu(self.gate(h)) * self.up(h)))


class Shuffle(nn.Module):
    """Group convolution, channel shuffle, depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.group = nn.Conv2d(16, 24, 1, groups=4)
        self.norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point = nn.Conv2d(24, 12, 1, groups=4)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        h = F.relu(self.norm(self.group(h)))
        b, c, height, width = h.shape
        h = h.view(b, 4, c // 4, height, width).transpose(1, 2).reshape(b, c, height, width)
        return self.head(self.point(F.relu(self.depthwise(h))).mean((2, 3)))


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.shuffle, self.conv3 = nn.PixelShuffle(2), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.shuffle(self.conv2(F.relu(self.conv1(x))))))


class Decoder(nn.Module):
    """Group norm, transposed convolution, a skip connection that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16)
        self.deep, self.up = nn.Conv2d(16, 24, 3, 2, 1), nn.ConvTranspose2d(24, 12, 2, 2)
        self.head = nn.Conv2d(28, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.norm(self.down(x)))
        b = F.relu(self.up(F.relu(self.deep(a))))
        return self.head(torch.cat([a, b], 1))


class Einsum(nn.Module):
    """Plain parameters used in einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(10, 20) / 3), nn.Parameter(torch.randn(20, 4) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bh,ho->bo", torch.einsum("bi,ih->bh", x, self.w1).relu(), self.w2)


class Detached(nn.Module):
    """A branch that gradients do not see."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.c(torch.relu(self.b(h.detach())) + h)


class StaticShape(nn.Module):
    """Sizes that were written down when the network was built."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = (8, 4, 4)
        self.fc, self.conv, self.head = nn.Linear(10, 128), nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.fc(x)).view(x.shape[0], *self.shape)
        return self.head(torch.relu(self.conv(h)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.conv2 = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv1(x)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return self.conv2(h * gate).mean((2, 3))


class Gated(nn.Module):
    """chunk and GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(12, 20), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, -1)
        return self.c(F.glu(self.b(left * torch.sigmoid(right)), -1))


class Strided(nn.Module):
    """Every second channel is used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x))[:, ::2]).mean((2, 3))


class PlainParameters(nn.Module):
    """LeNet-5 without layers: weights are parameters of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("conv1", (6, 1, 5, 5)), ("conv2", (16, 6, 5, 5)), ("fc1", (120, 256)), ("fc2", (10, 120))):
            self.register_parameter(f"{name}_w", nn.Parameter(torch.randn(shape) / 5))
            self.register_parameter(f"{name}_b", nn.Parameter(torch.randn(shape[0]) / 5))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.max_pool2d(F.conv2d(x, self.conv1_w, self.conv1_b), 2))
        h = F.relu(F.max_pool2d(F.conv2d(h, self.conv2_w, self.conv2_b), 2))
        h = F.relu(F.linear(h.flatten(1), self.fc1_w, self.fc1_b))
        return F.linear(h, self.fc2_w, self.fc2_b)


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """Two residual blocks with identity shortcuts and one with a projection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(BasicBlock(width), BasicBlock(width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class BasicBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Tied(nn.Module):
    """The output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2, self.out = (
            nn.Embedding(11, 12),
            nn.Linear(12, 16),
            nn.Linear(16, 12),
            nn.Linear(12, 11, bias=False),
        )
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc2(torch.relu(self.fc1(self.embed(x)))))


class ProjectedLstm(nn.Module):
    """An LSTM whose output is projected; two layers, both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 12, num_layers=2, bidirectional=True, proj_size=5, batch_first=True)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class ConstantOrder(nn.Module):
    """Channels put in another order by indices written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
        self.order = torch.tensor([3, 1, 0, 2, 7, 5, 6, 4])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(x))[:, self.order]).mean((2, 3))


class UnevenGroups(nn.Module):
    """ShuffleNet's blocks with three groups: 54 channels in blocks of 18 before 6 more, read in blocks of 20."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.widen = nn.Conv2d(6, 18, 1)
        self.expand = nn.Conv2d(18, 54, 1, groups=3)
        self.norm = nn.BatchNorm2d(54)
        self.compress = nn.Conv2d(60, 12, 3, groups=3)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        h = F.relu(torch.cat([self.norm(self.expand(F.relu(self.widen(x)))), x], dim=1))
        return self.head(F.relu(self.compress(h)).mean((2, 3)))


class SelectiveScan(nn.Module):
    """The state of a channel decays by what its input says: einsums of three operands, and one with an ellipsis."""

    def __init__(self, width: int = 12, state: int = 4, inner: int = 16) -> None:
        super().__init__()
        self.state = state
        self.inputs, self.gate = nn.Linear(width, inner), nn.Linear(width, inner)
        self.split, self.rate = nn.Linear(inner, 2 + 2 * state, bias=False), nn.Linear(2, inner)
        self.decay = nn.Parameter(torch.log(torch.arange(1, state + 1.0).repeat(inner, 1)))
        self.skip = nn.Parameter(torch.ones(inner))
        self.mixed, self.out = nn.Parameter(torch.randn(width, inner) / 4), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.inputs(x))
        rate, b, c = self.split(h).split([2, self.state, self.state], -1)
        rate = F.softplus(self.rate(rate))
        kept = torch.exp(torch.einsum("bld,dn->bldn", rate, -torch.exp(self.decay)))
        added = torch.einsum("bld,bln,bld->bldn", rate, b, h)
        carried, outputs = torch.zeros_like(added[:, 0]), []
        for i in range(x.shape[1]):
            carried = kept[:, i] * carried + added[:, i]
            outputs.append(torch.einsum("bdn,bn->bd", carried, c[:, i]))
        y = (torch.stack(outputs, 1) + h * self.skip) * F.silu(self.gate(x))
        return self.out(torch.einsum("... i, o i -> ... o", y, self.mixed))


def image(channels: int = 3, size: int = 16) -> tuple[Tensor, ...]:
    return (torch.randn(1, channels, size, size),)


PROBES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "lstm": (Lstm, lambda: (torch.randn(1, 5, 10),)),
    "bidirectional gru": (BidirectionalGru, lambda: (torch.randn(1, 4, 9),)),
    "conv1d flatten": (Conv1dFlatten, lambda: (torch.randn(1, 4, 32),)),
    "transformer encoder": (Encoder, lambda: (torch.randn(1, 7, 16),)),
    "fused attention": (VisionTransformer, image),
    "grouped queries": (GroupedQueries, lambda: (torch.randn(1, 6, 32),)),
    "group shuffle depthwise": (Shuffle, image),
    "pixel shuffle": (SuperResolution, lambda: image(size=6)),
    "group norm, transposed, cat": (Decoder, image),
    "einsum": (Einsum, lambda: (torch.randn(1, 10),)),
    "detach": (Detached, lambda: (torch.randn(1, 8),)),
    "static shape": (StaticShape, lambda: (torch.randn(1, 10),)),
    "squeeze excite": (SqueezeExcite, image),
    "chunk and glu": (Gated, lambda: (torch.randn(1, 8),)),
    "strided slice": (Strided, image),
}

MORE: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "plain parameters": (PlainParameters, lambda: image(1, 28)),
    "lenet": (LeNet, lambda: image(1, 28)),
    "residual": (Residual, image),
    "tied": (Tied, lambda: (torch.randint(0, 11, (1, 6)),)),
    "projected lstm": (ProjectedLstm, lambda: (torch.randn(1, 5, 6),)),
    "constant order": (ConstantOrder, image),
    "uneven groups": (UnevenGroups, image),
    "selective scan": (SelectiveScan, lambda: (torch.randn(1, 5, 12),)),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A probe with random weights and statistics (fresh batch norms would hide mistakes), eval mode, and its example."""
    network, example = (PROBES | MORE)[name]
    torch.manual_seed(seed)
    model = network().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if getattr(module, "bias", None) is not None:
                nn.init.normal_(module.bias)
    return model.to(dtype), tuple(t.to(dtype) if t.is_floating_point() else t for t in example())
