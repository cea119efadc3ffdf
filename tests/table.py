"""The table: every set, view, code, driver, allocator, network, task and recipe, with instances small enough for a law to try.

`tests/weights/test_table.py` fails where something public is missing from it. What is in the table is under every law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from featherweight import recipes, zoo
from featherweight.recipes.low_rank import low_rank_from_scratch
from featherweight.weights import codes, counts
from featherweight.weights.drivers import ADMM, Driver, Periodic, StraightThrough
from featherweight.weights.freezing import Freezing
from featherweight.weights.sets import Codebook, Levels, LowRank, Set, SparseCodebook, TopEach, TopK, TopRows
from featherweight.zoo import tasks

ROWS, COLS = 6, 8  # of the matrices that the instances below fit


# --- sets ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sized:
    """A set with a size: how to build it, its least size, and its largest one for a shape."""

    at: Callable[[int], Set]
    least: int
    most: Callable[[int, int], int]
    has_menu: bool = True


SIZED: dict[str, Sized] = {
    "top_k": Sized(TopK, 0, lambda rows, cols: rows * cols),
    "top_each": Sized(TopEach, 0, lambda rows, cols: cols, has_menu=False),
    "top_rows": Sized(TopRows, 0, lambda rows, cols: rows),
    "low_rank": Sized(LowRank, 0, min),
    "codebook": Sized(Codebook, 1, lambda rows, cols: rows * cols, has_menu=False),
    "sparse_codebook": Sized(lambda size: SparseCodebook(size, 3), 0, lambda rows, cols: rows * cols),
}

INSTANCES: dict[type[Set], tuple[Set, ...]] = {
    TopK: (TopK(0), TopK(1), TopK(13), TopK(48)),
    TopEach: (TopEach(0), TopEach(1), TopEach(2), TopEach(8)),
    TopRows: (TopRows(0), TopRows(1), TopRows(4), TopRows(6)),
    LowRank: (LowRank(0), LowRank(1), LowRank(3), LowRank(6), LowRank(energy=0.0), LowRank(energy=0.2)),
    Levels: (
        Levels("binary"),
        Levels("ternary"),
        Levels("uniform", 1),
        Levels("uniform", 3),
        Levels("power_of_two", 1),
        Levels("power_of_two", 3),
        Levels("uniform", 2, sparse=True),
        Levels("ternary", sparse=True),
    ),
    Codebook: (Codebook(1), Codebook(2), Codebook(7), Codebook(48), Codebook(2, sparse=True)),
    SparseCodebook: (SparseCodebook(0, 2), SparseCodebook(1, 1), SparseCodebook(11, 3), SparseCodebook(48, 16)),
}
ALL_SETS: tuple[Set, ...] = tuple(instance for instances in INSTANCES.values() for instance in instances)
TRAINED: tuple[Set, ...] = (  # one or two of each, for the laws that train
    TopK(13),
    TopEach(2),
    TopRows(4),
    LowRank(2),
    LowRank(energy=0.2),
    Levels("binary"),
    Levels("ternary"),
    Levels("uniform", 3),
    Levels("power_of_two", 3),
    Codebook(5),
    SparseCodebook(11, 3),
    Levels("binary", sparse=True),
    Codebook(5, sparse=True),
)
SAMPLE: dict[str, Set] = {  # code kind -> a set whose encode gives that code
    "sparse": TopK(13),
    "rows": TopRows(4),
    "factors": LowRank(2),
    "scaled": Levels("uniform", 3),
    "shared": Codebook(5),
    "sparse_shared": SparseCodebook(11, 3),
    "sparse_scaled": Levels("uniform", 2, sparse=True),
}
CODES: dict[str, type[codes.Code]] = {
    "sparse": codes.Sparse,
    "rows": codes.Rows,
    "factors": codes.Factors,
    "scaled": codes.Scaled,
    "shared": codes.Shared,
    "sparse_shared": codes.SparseShared,
    "sparse_scaled": codes.SparseScaled,
}
# decode is linear in the free part, so a refit is a projection
LINEAR = ("sparse", "rows", "scaled", "shared", "sparse_shared", "sparse_scaled")


# --- views ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A pattern, given sizes, a shape it fits, and how it reads with every axis spelled out, for the oracle."""

    pattern: str
    given: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]
    left: tuple[tuple[str, ...], ...]
    right: tuple[tuple[str, ...], ...]
    sizes: dict[str, int]


CONV = {"o": 4, "i": 3, "h": 2, "w": 5}
VIEWS: dict[str, Seen] = {
    "whole": Seen("... -> () (...)", (), (4, 3, 2, 5), (("o",), ("i",), ("h",), ("w",)), ((), ("o", "i", "h", "w")), CONV),
    "filter": Seen("o i h w -> o (i h w)", (), (4, 3, 2, 5), (("o",), ("i",), ("h",), ("w",)), (("o",), ("i", "h", "w")), CONV),
    "spatial": Seen("o i h w -> (i h) (o w)", (), (4, 3, 2, 5), (("o",), ("i",), ("h",), ("w",)), (("i", "h"), ("o", "w")), CONV),
    "input channel": Seen(
        "o i h w -> i (o h w)", (), (4, 3, 2, 5), (("o",), ("i",), ("h",), ("w",)), (("i",), ("o", "h", "w")), CONV
    ),
    "group of m": Seen(
        "o (g m) -> (o g) m", (("m", 4),), (3, 8), (("o",), ("g", "m")), (("o", "g"), ("m",)), {"o": 3, "g": 2, "m": 4}
    ),
    "block": Seen(
        "(a p) (b q) -> (a b) (p q)",
        (("p", 2), ("q", 3)),
        (4, 9),
        (("a", "p"), ("b", "q")),
        (("a", "b"), ("p", "q")),
        {"a": 2, "p": 2, "b": 3, "q": 3},
    ),
    "lstm unit": Seen(
        "(g h) i -> h (g i)", (("g", 4),), (12, 5), (("g", "h"), ("i",)), (("h",), ("g", "i")), {"g": 4, "h": 3, "i": 5}
    ),
    "gru unit": Seen(
        "(g h) i -> h (g i)", (("g", 3),), (12, 5), (("g", "h"), ("i",)), (("h",), ("g", "i")), {"g": 3, "h": 4, "i": 5}
    ),
    "head": Seen(
        "(n d) i -> n (d i)", (("n", 3),), (12, 5), (("n", "d"), ("i",)), (("n",), ("d", "i")), {"n": 3, "d": 4, "i": 5}
    ),
}


# --- drivers, optimizers, allocators, networks, tasks, recipes -----------------------------------------------------------

DRIVERS: dict[type[Driver], tuple[Driver, ...]] = {
    Periodic: (Periodic(3), Periodic(3, shrink=0.01)),
    ADMM: (ADMM(0.1, 3), ADMM(0.1, 3, growth=1.5, rho_max=0.5), ADMM(0.1, 3, "cosine", 0.5, "proximal", rise=2)),
    StraightThrough: (StraightThrough(3),),
    Freezing: (Freezing(3), Freezing(2, share=1.0)),
}
ALL_DRIVERS: tuple[Driver | None, ...] = (None, *(driver for drivers in DRIVERS.values() for driver in drivers))
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: Adam(parameters, lr=0.01, weight_decay=0.01),
}
CRITERIA = (
    *("l1", "l2", "bn_scale", "apoz", "taylor", "taylor_weight", "nisp"),
    *("thinet", "channel_lasso", "obs", "collaborative", "discriminative"),
)
ALLOCATORS = {"uniform": counts.uniform, "magnitude": counts.magnitude, "lamp": counts.lamp}
NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {  # name -> (shape of one example, builder)
    "lenet5": ((1, 28, 28), zoo.lenet5),
    "lenet_300_100": ((1, 28, 28), zoo.lenet_300_100),
    "resnet20": ((3, 32, 32), zoo.resnet20),
    "resnet32": ((3, 32, 32), zoo.resnet32),
    "resnet56": ((3, 32, 32), zoo.resnet56),
    "resnet20_projection": ((3, 32, 32), zoo.resnet20_projection),
    "resnet32_projection": ((3, 32, 32), zoo.resnet32_projection),
    "resnet56_projection": ((3, 32, 32), zoo.resnet56_projection),
    "vgg16_cifar10": ((3, 32, 32), zoo.vgg16_cifar10),
    "deepmotif_cnn": ((4, 101), zoo.deepmotif_cnn),
    "deepmotif_rnn": ((4, 101), zoo.deepmotif_rnn),
    "deepmotif_cnn_rnn": ((4, 101), zoo.deepmotif_cnn_rnn),
}
TASKS = {"digits": tasks.digits, "mnist": tasks.mnist, "cifar10": tasks.cifar10}
RECIPES = {  # and the networks each is meant for
    "progressive_admm": (recipes.progressive_admm, ("lenet5", "lenet_300_100")),
    "layerwise_admm": (recipes.RECIPES["layerwise_admm"], ("lenet5", "resnet20")),
    "admm_quantization": (recipes.admm_quantization, ("lenet5", "resnet20")),
    "quantize_aware": (recipes.quantize_aware, ("lenet5", "resnet20")),
    "admm_binarization": (recipes.admm_binarization, ("lenet5", "resnet20")),
    "admm_clustering": (recipes.admm_clustering, ("lenet5", "resnet20")),
    "admm_joint": (lambda: recipes.admm_joint(freezing=0.3), ("lenet5",)),
    "trained_rank_pruning": (recipes.trained_rank_pruning, ("lenet5", "resnet20")),
    "decompose": (recipes.decompose, ("lenet5", "resnet20")),
    "l1_filters": (recipes.l1_filters, ("lenet5", "resnet20")),
    "soft_filters": (recipes.soft_filters, ("resnet20",)),
    "reconstruct": (recipes.RECIPES["reconstruct"], ("lenet5",)),
    **{name: (recipes.RECIPES[name], ("lenet5",)) for name in ("apoz", "taylor", "nisp", "thinet", "channel_lasso")},
    **{name: (recipes.RECIPES[name], ("lenet5",)) for name in ("collaborative", "discriminative")},
    **{name: (recipes.RECIPES[name], ("lenet5",)) for name in ("collaborative_ac", "discriminative_adapt", "amc")},
    "adaptive": (recipes.adaptive, ("resnet20", "lenet5")),
    "drop_blocks": (recipes.RECIPES["drop_blocks"], ("resnet20",)),
    "low_rank_from_scratch": (lambda: low_rank_from_scratch({"conv2.weight": 5}), ("lenet5",)),
}
NEED_ARGUMENTS = {"low_rank_from_scratch"}  # cannot be shown by `featherweight recipes` without


# --- matrices and toys ---------------------------------------------------------------------------------------------------


def matrix(rows: int = ROWS, cols: int = COLS, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers: no two magnitudes are equal, no entry is zero."""
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tied_matrix() -> Tensor:
    """Three magnitudes only, so most choices are ties, and one row of zeros."""
    signs = matrix(seed=1).sign()
    signs[2] = 0
    return signs * torch.arange(ROWS * COLS).reshape(ROWS, COLS).remainder(3).add(1)


MATRICES: dict[str, Tensor] = {
    "normal": matrix(),
    "float32": matrix(seed=2, dtype=torch.float32),
    "zero": torch.zeros(ROWS, COLS, dtype=torch.float64),
    "tied": tied_matrix(),
    "rank 1": matrix(ROWS, 1, seed=3) @ matrix(1, COLS, seed=4),
    "one entry": torch.zeros(ROWS, COLS, dtype=torch.float64).index_put(
        (torch.tensor(3), torch.tensor(5)), torch.tensor(-2.5).double()
    ),
}


def suited(kind: str, given: Tensor | None = None) -> Tensor:
    """`given`, or `matrix()`, pruned where only of a pruned matrix SAMPLE's set gives a code of this kind."""
    whole = matrix() if given is None else given
    if kind != "sparse_scaled":
        return whole
    return whole * (torch.arange(whole.numel()).reshape(whole.shape) % 3 > 0)


class Toy(nn.Module):
    """A convolution, a linear layer and a bias: 1 x 5 x 5 images -> 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 2)
        self.hidden = nn.Linear(6 * 16, 12)
        self.out = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.conv(images)).flatten(1)
        return self.out(torch.relu(self.hidden(hidden)))


def toy(seed: int = 0) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Toy()


def images(count: int = 7, seed: int = 5) -> Tensor:
    return torch.randn(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
