"""arXiv 1811.01907: ADMM-NN, pruning and quantisation or clustering joined: prune progressively, then level what is left.

Published, LeNet-5: 2.57 K weights at 2 and 3 bits, 0.89 kB of weight data (1,910x), 2.73 kB with the index (623x), 99.0 percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from featherweight.errors import InputError
from featherweight.recipe.schema import WEIGHTS, Constrain, Recipe, Stage
from featherweight.recipes.clustering import admm_clustering
from featherweight.recipes.pruning import progressive_admm
from featherweight.recipes.quantization import admm_quantization
from featherweight.recipes.rounds import Kept, Round, of_rounds
from featherweight.weights.freezing import Freezing

LEVELS = ("clustering", "uniform", "power_of_two")


@of_rounds()
def admm_joint(
    keep: tuple[Kept, ...] = ("5x", "10x", "20x"),
    then: Literal["clustering", "uniform", "power_of_two"] = "clustering",
    sizes: tuple[int, ...] = (8,),
    sizes_of: Mapping[str, int] | None = None,
    freezing: float | None = None,
    freezing_epochs: int = 4,
    targets: str = WEIGHTS,
    dense_epochs: int = 0,
    level_epochs: int = 4,
    level_retrain_epochs: int = 4,
    sweep: bool = True,
    narrow: float | None = None,
    narrow_targets: str = WEIGHTS,
    *,
    rounds: Round,
) -> Recipe:
    """The stages of `progressive_admm`, then those of `admm_clustering` or `admm_quantization` under the mask that is left.

    keep        see `progressive_admm`
    then        what the weights that are left become: shared values, or levels
    sizes       shared values, or bits, of a layer, a stage each; sizes_of: parameter -> size, in place of the last of these
    freezing    share of the free weights of each level to freeze a round (the paper: 0.3), in a stage of `freezing_epochs` with
                a round every `every` steps between the last ADMM and its retraining; None: none
    level_epochs, level_retrain_epochs   of each stage with levels, at half the rates of the pruning

    """
    if then not in LEVELS:
        raise InputError(f"then must be one of {', '.join(LEVELS)}, given {then!r}")
    pruned = progressive_admm(
        keep, targets, dense_epochs, sweep=sweep, narrow=narrow, narrow_targets=narrow_targets, rounds=rounds
    )  # fmt: skip
    slower = replace(
        rounds,
        epochs=level_epochs,
        retrain_epochs=level_retrain_epochs,
        rate=rounds.rate / 2,
        retrain_rate=rounds.retrain_rate / 2,
    )
    if then == "clustering":
        levelled = admm_clustering(sizes, sizes_of, targets, rounds=slower)
    else:
        levelled = admm_quantization(sizes, then, "layer", sizes_of, targets, rounds=slower)
    *earlier, last = (stage for stage in levelled.stages if isinstance(stage, Constrain))
    stages: list[Stage] = [*pruned.stages, *earlier, last]
    if freezing is not None:
        frozen = replace(
            last,
            name=f"{last.name}, frozen step by step",
            driver=Freezing(rounds.every, freezing),
            train=replace(last.train, epochs=freezing_epochs, floor=0.1),
        )
        stages = [*stages[:-1], replace(last, retrain=replace(last.retrain, epochs=0)), frozen]
    return Recipe("admm_joint", tuple(stages), "arXiv 1811.01907, 1810.07378")
