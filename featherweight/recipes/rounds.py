"""The round that all recipes of the ADMM family are made of: pull towards the sets, project, train on inside them."""

from __future__ import annotations

from typing import Literal

from featherweight.drivers import ADMM
from featherweight.recipe import Distillation, Rule, Stage, Training


def admm_round(
    name: str,
    rules: tuple[Rule, ...],
    *,
    epochs: int,
    retrain_epochs: int,
    rate: float,
    retrain_rate: float,
    every: int,
    rho: float,
    growth: float,
    rho_max: float,
    coupling: Literal["gradient", "proximal"],
    distill: float,
    temperature: float,
    masked: bool = True,
) -> Stage:
    """One stage; the arguments are those of `progressive_admm`. Sizes that the rules leave open are the caller's to add."""
    return Stage(
        name,
        rules=rules,
        driver=ADMM(rho, every, growth, rho_max, coupling),
        train=Training(epochs, rate, floor=0.3, warmup=0.5 / max(epochs, 1)),
        retrain=Training(retrain_epochs, retrain_rate, warmup=0.3 / max(retrain_epochs, 1)),
        masked=masked,
        distill=Distillation(distill, temperature) if distill else None,
    )
