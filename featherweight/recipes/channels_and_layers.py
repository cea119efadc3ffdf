"""Channels and layers cut off adaptively: the proportions are learned in training. The abstract is all there is of the paper.

Published: half of the parameters removed at an accuracy not lower than the baseline's, or higher. Neighbours: network slimming
(Liu et al., ICCV 2017), sparse structure selection (Huang & Wang, ECCV 2018: a scaling factor for each residual block).
"""

from __future__ import annotations

from featherweight.recipe.schema import LearnUnits, Recipe, Train
from featherweight.recipe.units import Adaptive
from featherweight.training.schedule import Taught, Training, taught


def adaptive(
    parameters: float = 0.5,
    weight: float = 3.0,
    gate_rate: float = 0.02,
    epochs: int = 8,
    rate: float = 1.0,
    fine_tune_epochs: int = 12,
    fine_tune_rate: float = 1.0,
    distill: Taught = 0.0,
    temperature: float = 4.0,
) -> Recipe:
    """Learn how many channels each layer keeps and which residual blocks stay, cut all at once, then fine-tune.

    parameters   share of the parameters to keep
    weight       of the excess of parameters in the loss; gate_rate: Adam's rate of the gates
    epochs       of learning, at `rate` times the task's base rate
    distill      weight of the distillation from the dense network while fine-tuning, added to the loss; 0 for none
    """
    learned = LearnUnits("learned", train=Training(epochs, rate), adaptive=Adaptive(parameters, weight, gate_rate))
    tuned = Train("tuned", train=Training(fine_tune_epochs, fine_tune_rate), distill=taught(distill, temperature))
    return Recipe("adaptive", (Train("dense"), learned, tuned), "channel and layer pruning with learned proportions")
