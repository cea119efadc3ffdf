"""arXiv 1505.06798 (Zhang et al., channel-wise), 1405.3866 (Jaderberg et al., spatial-wise): decomposition after training.

The baselines of Trained Rank Pruning. Published with fine-tuning, CIFAR-10 ResNet-20 (base 91.74): channel-wise 88.13 at 1.41x
fewer MACs, spatial-wise 89.49 at 1.66x. With `samples` the responses are approximated as in Zhang et al., sec. 3.1, and the mean
is left to the bias; without, the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from featherweight.recipe.schema import WEIGHTS, Constrain, Layerwise, Recipe, Train
from featherweight.recipes.trained_ranks import TARGETS, low_rank_rules
from featherweight.training.schedule import Taught, Training, taught


def decompose(
    view: Literal["channel", "spatial"] = "spatial",
    energy: float = 0.1,
    targets: str = WEIGHTS,
    ranks: Mapping[str, int] | None = None,
    macs: float | None = None,
    fine_tune_epochs: int = 0,
    rate: float = 1.0,
    distill: Taught = 0.0,
    temperature: float = 4.0,
    samples: int = 128,
) -> Recipe:
    """Decompose a trained network at an energy, at `ranks` or at a share `macs` of its multiply-accumulates, then train the
    factors for `fine_tune_epochs`.

    Batch norm's statistics are computed anew in either case, as after every stage.
    `targets`: by default every weight that can be two layers (see `factor`), each through the view of its kind.
    `distill`: weight of the distillation from the network before, added to the loss of fine-tuning; 0 for none, as in the papers.
    `samples`: training samples on which each layer's outputs are to change least (the ranks are chosen by the weights); with 0,
    and of layers that cannot be watched, such as recurrent ones, the weights themselves.
    """
    stage = Constrain(
        f"{view}-wise",
        rules=low_rank_rules(view, targets, energy, ranks, macs),
        macs=macs,
        layerwise=Layerwise("svd", samples) if samples else None,
        retrain=Training(fine_tune_epochs, rate),
        masked=False,
        distill=taught(distill, temperature),
    )
    return Recipe("decompose", (Train("dense"), stage), "arXiv 1505.06798, 1405.3866")


def low_rank_from_scratch(
    ranks: Mapping[str, int],
    view: Literal["channel", "spatial"] = "spatial",
    epochs: int = 164,
    rate: float = 1.0,
) -> Recipe:
    """Train the factors of an untrained network: they start as the decomposition of its initial weights at `ranks`."""
    rules = low_rank_rules(view, TARGETS, None, ranks, None)
    stage = Constrain(f"{view}-wise from scratch", rules=rules, retrain=Training(epochs, rate), masked=False)
    return Recipe("low_rank_from_scratch", (stage,))
