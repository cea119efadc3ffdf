"""Networks with every kind of code, made from a seed, and LeNet-5s as joint pruning and clustering leaves them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from featherweight import zoo
from featherweight.files.edits import Snapshot
from featherweight.weights.codes import Code, Factors, Rows, Scaled, Shared, Sparse, SparseScaled, SparseShared
from featherweight.weights.parametrized import attach
from featherweight.weights.views import WHOLE, View

VIEWS = {2: ("o i -> o i", "o i -> i o", "(g h) i -> h (g i)"), 4: ("o i h w -> o (i h w)", "o i h w -> (i h) (o w)")}
KINDS = ("", "sparse", "rows", "factors", "scaled", "shared", "sparse_shared", "sparse_scaled")


class Small(nn.Module):
    """Convolutions, norms, linear layers, a tied weight, a buffer of whole numbers, and a half-precision parameter."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 8, 3, bias=False)
        self.fc1 = nn.Linear(8 * 4, 12)
        self.fc2 = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12, bias=False)
        self.tied.weight = self.fc2.weight
        self.brief = nn.Parameter(torch.zeros(5, dtype=torch.float16))
        self.wide = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("flags", torch.zeros(4, dtype=torch.bool))
        self.register_buffer("table", torch.zeros(7, dtype=torch.int32))

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 6, 6) -> (batch, 12)."""
        hidden = self.conv2(self.norm(self.conv1(images)).relu()).relu().flatten(1)
        return self.tied(self.fc2(self.fc1(hidden).relu()))


def values(random: np.random.Generator, shape: tuple[int, ...], style: int) -> Tensor:
    """Numbers of several sorts: any, zeros among them, a coarse grid, few distinct ones, special ones, all the same."""
    raw = random.standard_normal(shape).astype(np.float32)
    if style == 1:
        raw = raw * (random.random(shape) < 0.4)
    elif style == 2:
        raw = np.round(raw * 8) / 64
    elif style == 3:
        raw = random.choice(np.array([-0.75, 0.1, 1e-30, 3.0], np.float32), shape)
    elif style == 4:
        special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38, -1e-38], np.float32)
        raw = random.choice(special, shape)
    elif style == 5:
        raw = np.full(shape, raw.reshape(-1)[:1].sum())
    return torch.from_numpy(np.ascontiguousarray(raw, np.float32))


def code_of(random: np.random.Generator, kind: str, rows: int, cols: int) -> Code:
    size = rows * cols
    density = random.choice([0.0, 0.02, 0.3, 0.9, 1.0])
    index = torch.from_numpy(np.flatnonzero(random.random(size) < density))
    if kind == "sparse":
        return Sparse(rows, cols, index)
    if kind == "rows":
        return Rows(rows, cols, torch.from_numpy(np.flatnonzero(random.random(rows) < density)))
    if kind == "factors":
        return Factors(rows, cols, int(random.integers(1, min(rows, cols) + 1)))
    count = int(random.integers(1, min(20, size) + 1))
    many = torch.from_numpy(random.binomial(count - 1, 0.3, size))
    if kind == "scaled":
        return Scaled(many.reshape(rows, cols), torch.arange(count).float() - count // 2)
    if kind == "sparse_scaled":
        return SparseScaled(rows, cols, index, many[: index.numel()], torch.arange(count).float() - count // 2)
    if kind == "shared":
        return Shared(many.reshape(rows, cols), count)
    return SparseShared(rows, cols, index, many[: index.numel()], count)


def coded_small(seed: int) -> tuple[nn.Module, Snapshot]:
    """A `Small` with codes and values drawn from `seed`."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = Small()
    names = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32]
    for name in names:
        kind = str(random.choice(KINDS))
        shape = tuple(model.get_parameter(name).shape)
        if kind and not (name.startswith("fc2") and kind == "factors"):
            patterns = VIEWS.get(len(shape), ())
            chosen = int(random.integers(0, len(patterns) + 1))
            pattern = patterns[chosen - 1] if chosen else WHOLE.pattern
            view = View(pattern, (("g", 2),)) if "(g h)" in pattern else View(pattern)
            attach(model, name, view, code_of(random, kind, *view.matrix_shape(shape)))
    style = int(random.integers(0, 6))
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if ".code." in name:
                continue
            if tensor.is_floating_point():
                drawn = values(random, tuple(tensor.shape), style if random.random() < 0.5 else int(random.integers(0, 6)))
                tensor.copy_(drawn.to(tensor.dtype))
            elif tensor.dtype == torch.bool:
                tensor.copy_(torch.from_numpy(random.random(tuple(tensor.shape)) < 0.5))
            else:
                tensor.copy_(torch.from_numpy(random.integers(-(2**20), 2**20, tuple(tensor.shape))))
    return model, Snapshot.of(model, [])


def clustered_mask(
    random: np.random.Generator, extent: tuple[int, int, int], count: int, rows: np.ndarray, channels: np.ndarray
) -> np.ndarray:
    """`count` ascending places in (rows, channels, cells); rows, channels and blocks differ much, as pruning leaves them."""
    spread = random.lognormal(0, 1, extent[:2])[:, :, None] * random.lognormal(0, 0.7, extent)
    by_line = (random.lognormal(0, 1, extent[0]) * rows)[:, None, None] * (random.lognormal(0, 1, extent[1]) * channels)[:, None]
    score = np.log((spread * by_line).reshape(-1) + 1e-300) + random.gumbel(size=int(np.prod(extent)))
    return np.sort(np.argsort(-score)[:count])


LENETS = {  # non-zeros in all: per layer, and the share of units alive
    2500: ((100, 600, 1500, 300), (0.8, 0.7, 0.5)),
    1400: ((80, 350, 800, 170), (0.7, 0.6, 0.3)),
    600: ((50, 150, 300, 100), (0.5, 0.4, 0.15)),
}


def sparse_lenet(nonzeros: int, centroids: int, seed: int = 0) -> Snapshot:
    """LeNet-5 with about `nonzeros` weights, `centroids` shared values a layer, and biases of living units."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = zoo.lenet5()
    extents = {"conv1": (20, 1, 25), "conv2": (50, 20, 25), "fc1": (500, 50, 16), "fc2": (10, 500, 1)}
    counts, shares = LENETS[nonzeros]
    before = np.ones(1, bool)
    for (name, extent), count, share in zip(extents.items(), counts, (*shares, 1.0), strict=True):
        rows = random.random(extent[0]) < share
        rows[:3] = True
        places = clustered_mask(random, extent, count, rows, before)
        before = np.bincount(places // (extent[1] * extent[2]), minlength=extent[0]) > 0
        index = torch.from_numpy(random.binomial(centroids - 1, 0.5, count))
        size = int(np.prod(extent))
        attach(model, f"{name}.weight", WHOLE, SparseShared(1, size, torch.from_numpy(places), index, centroids))
        layer = model.get_submodule(name)
        with torch.no_grad():
            free = model.get_parameter(f"{name}.parametrizations.weight.original")
            free.copy_(torch.linspace(-0.3, 0.3, centroids) + 0.02 * torch.randn(centroids))
            alive = torch.from_numpy(before) if name != "fc2" else torch.ones(10)
            layer.bias.copy_(0.05 * torch.randn(extent[0]) * alive)
    return Snapshot.of(model, [])
