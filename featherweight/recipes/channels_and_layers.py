"""Layers cut off: channels and layers adaptively, in proportions that are learned in training, and whole blocks by their worth.

Of the paper of the first the abstract is all there is.
Published: half of the parameters removed at an accuracy not lower than the baseline's, or higher. Neighbours: network slimming
(Liu et al., ICCV 2017), sparse structure selection (Huang & Wang, ECCV 2018: a scaling factor for each residual block).
"""

from __future__ import annotations

from featherweight.recipe.schema import DropBlocks, LearnUnits, Recipe, Train
from featherweight.recipe.units import Adaptive, Blocks
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


def drop_blocks(
    macs: float | None = None,
    parameters: float | None = None,
    blocks: str = "*",
    samples: int = 256,
    epochs: int = 20,
    rate: float = 1.0,
    distill: Taught = 0.0,
    temperature: float = 4.0,
) -> Recipe:
    """Take whole residual blocks out, those that the loss misses least for what they save, then fine-tune.

    What is left runs faster wherever it runs: a block costs its time, and half of its channels may cost as much. After Shortened
    LLaMA (Kim et al. 2024), which asks the loss of each block; here the rest is asked again after every quarter of the way.

    macs, parameters  share to keep (50%, or 2x fewer), half of the multiply-accumulates without either; blocks are whole, so that
                      less may be kept
    blocks            name pattern of the modules that may go
    samples           training samples that the loss is taken over
    epochs            of fine-tuning, at `rate` times the task's base rate
    distill           weight of the distillation from the dense network while fine-tuning, added to the loss; 0 for none
    """
    asked = Blocks(0.5 if macs is None and parameters is None else macs, parameters, blocks, samples)
    tuned = Train("tuned", train=Training(epochs, rate), distill=taught(distill, temperature))
    return Recipe("drop_blocks", (Train("dense"), DropBlocks("dropped", asked), tuned), "arXiv 2402.02834")
