"""arXiv 1808.06866: soft filter pruning.

Published, CIFAR-10 ResNet-56 (base 93.59): 0.24 lost at 52.6 % fewer MACs by the paper's own formula, keep 0.6 in every layer.
"""

from __future__ import annotations

from featherweight.recipe.schema import WEIGHTS, Constrain, Recipe, Rule, Train
from featherweight.training.schedule import Taught, Training, taught
from featherweight.weights.drivers import Periodic
from featherweight.weights.sets import TopRows


def macs_by_formula(blocks: int, keep: float = 1.0) -> float:
    """Multiply-accumulates of CIFAR-10's ResNet-(6 `blocks` + 2) with identity shortcuts, where every convolution keeps a share
    of its filters, as this paper and CCP (ICML 2019) count them: ResNet-56 saves 46.98 % at keep 0.65, 52.63 % at 0.6.

    The last convolution of a block counts as narrow although the stream that it is added to stays wide and is read whole, but by
    the first block, which reads the narrow stem. No rebuilt network reaches it: it stands beside published figures, and ours are
    counted on what is left (`Graph.macs`).
    """
    macs, read = 3 * 16 * 9 * 32**2 * keep, 16
    for stage, (width, pixels) in enumerate(((16, 32**2), (32, 16**2), (64, 8**2))):
        for block in range(blocks):
            first = stage == block == 0
            macs += 9 * pixels * width * (read * (keep**2 if first else keep) + width * keep**2)
            read = width
    return macs + 64 * 10


def soft_filters(
    keep: float = 0.6,
    targets: str = WEIGHTS,
    every: int | None = None,
    epochs: int = 10,
    rate: float = 1.0,
    retrain_epochs: int = 10,
    distill: Taught = 0.0,
    temperature: float = 4.0,
) -> Recipe:
    """Zero the filters of the smallest norm every so often while all of them train on; at the end those that are zero are cut,
    and with them the constant that their batch norm makes of a zero.

    Behind a batch norm a filter of zeros gets gradients 1/sqrt(eps) = 316 times as large: in one layer of ResNet-20 the largest
    norm was 17 after one step and 86 after 25, where trained filters have 1.2, so that it outranks them at the next projection.
    A few epochs do not mend that; the paper trains for 200. So `retrain_epochs` train on after the cut, which the paper does not.

    epochs, retrain_epochs   before and after the cut, both at `rate` times the task's base rate
    every     steps between. None: an epoch as in the paper, or a twentieth of the training where that is less
    keep      share of the filters of each layer; which MACs that saves is counted on what can really go: on a residual stream
              a filter goes only where all layers that add to it have dropped it
    targets   what loses rows, see `schema.Rule`: by default every weight whose rows can go, so none that makes outputs
    """
    rule = Rule(targets, TopRows(), "rows", keep=keep)
    stage = Constrain(
        "soft",
        rules=(rule,),
        driver=Periodic(every),
        train=Training(epochs, rate),
        retrain=Training(retrain_epochs, rate),
        masked=False,
        sweep=True,
        distill=taught(distill, temperature),
    )
    return Recipe("soft_filters", (Train("dense"), stage), "arXiv 1808.06866")
