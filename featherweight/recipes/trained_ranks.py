"""arXiv 1910.04576, 2004.14566: Trained Rank Pruning.

Published, CIFAR-10 ResNet-20 (base 91.74), without fine-tuning: channel-wise with nuclear norm 90.50 at 2.17x fewer MACs,
spatial-wise with nuclear norm 90.62 at 2.84x. From scratch: 164 epochs, batch 128, rate 0.1, `shrink` 3e-4, `every` 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from featherweight.errors import InputError
from featherweight.recipe.schema import WEIGHTS, Constrain, Recipe, Rule, Seen, Train
from featherweight.training.schedule import Taught, Training, taught
from featherweight.weights.drivers import Periodic
from featherweight.weights.sets import LowRank

VIEWS = ("channel", "spatial")  # words that each layer's kind has its own view for, see `selection.view_of`
TARGETS = r"re:(?!conv1\.).*conv\d+\.weight"  # of the built-in networks, the convolutions but the first and the 1 x 1 shortcuts


def trained_rank_pruning(
    view: Literal["channel", "spatial"] = "spatial",
    energy: float = 0.02,
    every: int = 20,
    shrink: float = 3e-4,
    targets: str = WEIGHTS,
    ranks: Mapping[str, int] | None = None,
    macs: float | None = None,
    dense_epochs: int = 0,
    epochs: int = 20,
    rate: float = 1.0,
    retrain_epochs: int = 0,
    distill: Taught = 0.0,
    temperature: float = 4.0,
) -> Recipe:
    """Low-rank projection every `every` steps and a pull towards small nuclear norm between, ending on a projection.

    The rank of a layer is the least that drops at most the share `energy` of its squared norm, found anew at each projection;
    with `macs` (a share of the network's multiply-accumulates to keep) or `ranks` (parameter -> rank) it is fixed when the stage
    starts, and `energy` is not used.
    From scratch: an untrained network, rate 1. From a trained one: rate 0.1 or less, or `dense_epochs` of training before.
    `shrink` 0 leaves the nuclear norm out. `retrain_epochs` train on through the factors; the paper's results have none.
    `targets`: by default every weight that can be two layers (see `factor`), each through the view of its kind; the paper's are
    `TARGETS`. `distill`: weight of the distillation from the network that the stage started from, added to the loss; 0 for none,
    as in the paper.
    """
    low = Constrain(
        f"{view}-wise",
        rules=low_rank_rules(view, targets, energy, ranks, macs),
        macs=macs,
        driver=Periodic(every, shrink),
        train=Training(epochs, rate),
        retrain=Training(retrain_epochs, rate),
        masked=False,
        distill=taught(distill, temperature),
    )
    return Recipe("trained_rank_pruning", (Train("dense", train=Training(dense_epochs)), low), "arXiv 1910.04576, 2004.14566")


def low_rank_rules(
    view: str, targets: str, energy: float | None, ranks: Mapping[str, int] | None, macs: float | None
) -> tuple[Rule, ...]:
    """One rule for `targets`, at an energy or at ranks that the stage's `macs` decide; or one for each parameter in `ranks`.

    Raises InputError for a view there is not.
    """
    if view not in VIEWS:
        raise InputError(f"view must be one of {', '.join(VIEWS)}, given {view!r}")
    if ranks is None:
        return (Rule(targets, LowRank(energy=energy if macs is None else None), cast(Seen, view)),)
    if macs is not None:
        raise InputError("give ranks or macs, not both: macs decides the ranks")
    if not ranks:
        raise InputError("ranks names no parameter: give parameter -> rank, or leave it out for the energy rule")
    return tuple(Rule(name, LowRank(rank=rank), cast(Seen, view)) for name, rank in ranks.items())
