"""arXiv 1810.07378, 1903.09769: progressive weight pruning by ADMM."""

from __future__ import annotations

from featherweight.drivers import ADMM
from featherweight.recipe import Distillation, Recipe, Rule, Stage, Training
from featherweight.sets import TopK


def progressive_admm(
    ratios: tuple[float, ...] = (5, 10, 20),
    targets: str = "*.weight",
    dense_epochs: int = 0,
    epochs: int = 4,
    retrain_epochs: int = 4,
    every: int = 20,
    rho: float = 1e-3,
    growth: float = 1.3,
    rho_max: float = 1.0,
    allocate: str = "lamp",
    distill: bool = True,
    candidates: int = 1,
) -> Recipe:
    """Stages of falling density."""
    dense = Stage("dense", train=Training(dense_epochs))
    stages = [
        Stage(
            f"{ratio:g}x",
            rules=(Rule(targets, TopK()),),
            keep=1 / ratio,
            allocate=allocate,
            driver=ADMM(rho, every, growth, rho_max),
            train=Training(epochs, shape="constant"),
            retrain=Training(retrain_epochs),
            distill=Distillation() if distill else None,
        )
        for ratio in ratios
    ]
    return Recipe("progressive_admm", (dense, *stages), "arXiv 1810.07378, 1903.09769", candidates)
