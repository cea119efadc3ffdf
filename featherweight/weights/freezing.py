"""Iterative freezing: weights are snapped to their levels a share at a time, and what is still free makes up for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.weights.drivers import Driver, State
from featherweight.weights.targets import Target


@dataclass(frozen=True)
class Freezing(Driver):
    """Every `every` steps, of each level, the `share` of the still free weights that lies nearest to it is snapped and frozen.

    The others train on; weights that are frozen follow their level where a projection moves it. What is free at the end is
    projected all at once. Iterative quantisation and retraining of ADMM-NN (arXiv 1811.01907, sec. 3.4; 30 percent a round),
    after ADMM has brought the weights near their levels. For sets with few values: levels and codebooks; in others a level is
    an entry of its own, and all are frozen in the first round.
    """

    every: int | None
    share: float = 0.3
    kind: Literal["freezing"] = "freezing"

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise InputError(f"Freezing every must be at least 1 step, given {self.every}")
        if not 0 < self.share <= 1:
            raise InputError(f"Freezing share is a share of the free weights, in (0, 1], given {self.share}")

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        return {"frozen": torch.zeros_like(weight, dtype=torch.bool), "value": weight.clone()}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        gradient.masked_fill_(state["frozen"], 0.0)

    def after_step(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        weight.copy_(torch.where(state["frozen"], state["value"], weight))  # momentum and weight decay move what is frozen

    def candidate(self, state: State, weight: Tensor) -> Tensor:
        return weight

    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        state["value"] = target.project(weight, squares)
        frozen = state["frozen"].reshape(-1)
        free = (~frozen).nonzero().squeeze(1)
        level = state["value"].reshape(-1)[free].unique(return_inverse=True)[1]
        order = (weight - state["value"]).abs().reshape(-1)[free].argsort()
        order = order[level[order].argsort(stable=True)]  # by level, the nearest first
        members = torch.bincount(level)
        rank = torch.arange(free.numel(), device=weight.device) - (members.cumsum(0) - members)[level[order]]
        chosen = order[rank < (self.share * members.double()).ceil().long()[level[order]]]
        frozen[free[chosen]] = True
        state["frozen"] = frozen.view_as(weight)
        self.after_step(state, weight, target, squares)

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        """|W - project(W)| / |W| of what is still free and what is not."""
        away = float(torch.linalg.vector_norm(weight - target.project(weight)))
        norm = float(torch.linalg.vector_norm(weight))
        return min(away / norm, 1.0) if norm > 0 and math.isfinite(away) else 0.0
