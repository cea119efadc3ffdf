"""The round that all recipes of the ADMM family are made of: pull towards the sets, project, train on inside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from featherweight.recipe.schema import Constrain, Rule, Stage, Train
from featherweight.training.schedule import Taught, Training, taught
from featherweight.weights.drivers import ADMM

Step = tuple[str, tuple[Rule, ...]]  # the name of a stage, and what it imposes


@dataclass(frozen=True)
class Round:
    """What the rounds of one recipe have in common; the fields are the arguments of `progressive_admm`."""

    epochs: int
    retrain_epochs: int
    rate: float
    retrain_rate: float
    every: int | None
    rho: float
    growth: float | None
    rho_max: float
    coupling: Literal["gradient", "proximal"]
    distill: Taught
    temperature: float

    def stage(self, name: str, rules: tuple[Rule, ...], *, masked: bool = True) -> Constrain:
        """One round. Sizes that the rules leave open are the caller's to add."""
        return Constrain(
            name,
            rules=rules,
            driver=ADMM(self.rho, self.every, self.growth, self.rho_max, self.coupling),
            train=Training(self.epochs, self.rate, floor=0.3, warmup=0.5 / max(self.epochs, 1)),
            retrain=Training(self.retrain_epochs, self.retrain_rate, warmup=0.3 / max(self.retrain_epochs, 1)),
            masked=masked,
            distill=taught(self.distill, self.temperature),
        )

    def after_dense(self, dense_epochs: int, steps: Iterable[Step], *, masked: bool = True) -> tuple[Stage, ...]:
        """The stage of the dense network, and a round for each step."""
        return Train("dense", train=Training(dense_epochs)), *(self.stage(name, rules, masked=masked) for name, rules in steps)
