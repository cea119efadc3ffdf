"""How long and how fast to train, and what beside the task's own loss: settings, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from featherweight.errors import require, short

MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class Training:
    """`epochs` of the task's batches at `rate` times the base rate of its optimizer.

    shape     constant, or a half cosine from 1 to `floor`, over all steps
    warmup    share in [0, 1) of the steps over which the rate rises linearly first: a fresh Adam's first steps are full-sized
    """

    epochs: int
    rate: float = 1.0
    shape: Literal["constant", "cosine"] = "cosine"
    floor: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        require(
            (0 <= self.epochs <= MOST_EPOCHS, f"epochs are 0 to {MOST_EPOCHS:,}, given {short(self.epochs)}"),
            (0 < self.rate < math.inf, f"rate is a multiple of the optimizer's base rate, above 0, given {self.rate}"),
            (0 <= self.floor <= 1, f"floor is a share of the rate, in [0, 1], given {self.floor}"),
            (0 <= self.warmup < 1, f"warmup is a share of the steps, in [0, 1), given {self.warmup}"),
        )

    def factor(self, done: float) -> float:
        """The rate as a multiple of the base rate when the share `done` in [0, 1) of the steps is behind."""
        fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done)) if self.shape == "cosine" else 1.0
        rise = min(1.0, 0.05 + done / self.warmup) if self.warmup else 1.0
        return self.rate * fall * rise


@dataclass(frozen=True)
class Distillation:
    """loss <- loss + weight T^2 KL(dense network | this network), both softened by T (Hinton et al. 2015).

    weight       of the distance from the dense network's outputs
    temperature  T
    loss         multiplies the task's own loss. 0 leaves it out, so that the labels are not asked; `1 - weight` gives
                 the mixture that earlier versions made
    distance     kl, of the softmax over the task's classes; or mse, of the task's logits, else of all floating outputs; or
                 blocks: of all floating outputs and of what each layer puts out of the units that are left, each over its
                 variance in the dense network; in the course of a stage layers weigh less and less, and at its end nothing
    auto         only where the task says which output is logits, and the dense network is trained: see `distillation.settled`
    """

    weight: float = 1.0
    temperature: float = 4.0
    loss: float = 1.0
    distance: Literal["kl", "mse", "blocks"] = "kl"
    auto: bool = False

    def __post_init__(self) -> None:
        require(
            (0 < self.weight <= 1, f"distillation weight must be in (0, 1], given {self.weight}"),
            (0 < self.temperature < math.inf, f"distillation temperature must be above 0, given {self.temperature}"),
            (0 <= self.loss < math.inf, f"the loss beside a distillation is multiplied by 0 or more, given {self.loss}"),
        )


BLOCKS = Distillation(1.0, loss=0.0, distance="blocks")  # what the dense network puts out, and no labels
Taught = float | Literal["auto"] | Distillation  # how a recipe function is told of its distillation


def taught(distill: Taught, temperature: float) -> Distillation | None:
    """The distillation that a recipe's arguments ask for: added to the loss with a weight, 0 for none; auto: with weight 1."""
    if isinstance(distill, Distillation):
        return distill
    if distill == "auto":
        return Distillation(1.0, temperature, auto=True)
    return Distillation(distill, temperature) if distill else None
