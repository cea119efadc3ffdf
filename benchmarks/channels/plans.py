"""Which rows benchmarks/channels has: methods, budgets, seeds, and how each row is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.lib import cifar
from featherweight import CutUnits, Distillation, Training
from featherweight.recipes import discriminative_adapt

SEED = 0
MORE_SEEDS = (1, 2)  # for the methods that the paper is compared with: one seed's difference of 0.2 says nothing
SHORT = Training(2, 0.3)  # of each row; the rate is a multiple of the base rate 0.1, and falls to 0
# and of a few, much as the last round of ResNet-56's baseline: the rate starts as high as in training, which Renda, Frankle and
# Carbin (2020) found better than a low one, and the dense network teaches
LONG = Training(40, 1.0, warmup=0.02)
LONGER = replace(LONG, epochs=60)  # three hours of a core
TAUGHT = Distillation(0.5, loss=0.5)
SAVED = {"47.0 %": 0.470, "52.6 %": 0.526}  # of the MACs, as in the paper's table
PAPERS = "collaborative, as in the paper"
REFITTED = "l1_filters, refitted"
SPREAD, SPREAD_TAYLOR = "collaborative, knapsack", "taylor, knapsack"
SOFT = "soft_filters"
STOPS = next(s.units for s in discriminative_adapt(tolerance=0.001).stages if isinstance(s, CutUnits)).allocate
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {  # row -> a recipe, and the fields of its `Units` that differ
    "l2_filters": ("l1_filters", {"criterion": "l2"}),
    "bn_scale": ("l1_filters", {"criterion": "bn_scale"}),
    REFITTED: ("l1_filters", {"refit": True}),
    PAPERS: ("collaborative", {"curvature": "loss", "refit": False}),
    "discriminative": ("discriminative", {"refit": False}),
    "discriminative_adapt": ("discriminative_adapt", {"refit": False, "allocate": STOPS}),
    SPREAD: ("collaborative", {"allocate": "knapsack"}),
    SPREAD_TAYLOR: ("taylor", {"allocate": "knapsack"}),
}
METHODS = (
    "l1_filters", REFITTED, "l2_filters", "bn_scale", "apoz", "taylor", SOFT, "nisp", "thinet", "channel_lasso", PAPERS,
    "collaborative", "collaborative_ac", "discriminative", "discriminative_adapt", "amc", SPREAD, SPREAD_TAYLOR,
)  # fmt: skip
PEERS = ("torch-pruning, group norm", "torch-pruning, Taylor")
NETWORKS = {"ResNet-20": (cifar.resnet20, cifar.BASELINE), "ResNet-56": (cifar.resnet56, cifar.RESNET56)}
LEAST = {"ResNet-20": 91.5, "ResNet-56": cifar.ENOUGH}  # of a baseline
COMPARED = (SPREAD, "l1_filters", "l2_filters", "apoz", "taylor", *PEERS)
LONG_ROWS = [  # 52.6 % thrice: 40 epochs came out 0.09 and 0.17 under the dense network, and papers tune for hundreds
    *((SPREAD, saved, SEED, LONG) for saved in reversed(SAVED)),
    (SPREAD, "52.6 %", MORE_SEEDS[0], LONG),
    (SPREAD, "52.6 %", SEED, LONGER),
    *((method, saved, SEED, LONG) for saved in reversed(SAVED) for method in ("l2_filters", PEERS[0])),
]


@dataclass(frozen=True)
class Cut:
    """What a row is of."""

    method: str
    saved: str
    seed: int = SEED
    network: str = "ResNet-20"
    tuning: Training = SHORT

    @property
    def name(self) -> str:
        first = "" if self.network == "ResNet-20" else f"{self.network}, "
        last = f", seed {self.seed}" if self.seed != SEED else ""
        return f"{first}{self.method}, {self.saved}{last}" + (f", {self.tuning.epochs} epochs" if self.long else "")

    @property
    def long(self) -> bool:
        """Is the row tuned for long, and taught by the dense network?"""
        return self.tuning.epochs > SHORT.epochs


def rows() -> dict[str, Cut]:
    """Name -> row, in the order in which they are run."""
    first = [Cut(method, saved, SEED, network) for network in NETWORKS for saved in SAVED for method in (*METHODS, *PEERS)]
    more = [
        Cut(method, saved, seed, network) for network in NETWORKS for saved in SAVED for seed in MORE_SEEDS for method in COMPARED
    ]
    longer = [Cut(method, saved, seed, "ResNet-56", tuning) for method, saved, seed, tuning in LONG_ROWS]
    return {cut.name: cut for cut in (*first, *more, *longer)}


def evenly(cut: Cut) -> bool:
    """Is every site of this row to keep the same share?"""
    return cut.method not in (SPREAD, SPREAD_TAYLOR, SOFT, "discriminative_adapt", "amc", *PEERS)
