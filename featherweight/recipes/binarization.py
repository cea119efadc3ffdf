"""arXiv 1903.09769: fully binarised networks by progressive ADMM, all layers, first and last included; ternary too.

Published: LeNet-5 and VGG-16 for CIFAR-10 without loss; a per-layer scale alpha, re-solved at each projection.
"""

from __future__ import annotations

from typing import Literal

from featherweight.errors import InputError
from featherweight.recipe.schema import WEIGHTS, Recipe, Rule
from featherweight.recipes.quantization import SCALES
from featherweight.recipes.rounds import Round, of_rounds
from featherweight.weights.sets import Levels


@of_rounds(epochs=16, retrain_epochs=8)
def admm_binarization(
    targets: tuple[str, ...] = (WEIGHTS,),
    levels: Literal["binary", "ternary"] = "binary",
    per: Literal["layer", "row"] = "row",
    dense_epochs: int = 0,
    *,
    rounds: Round,
) -> Recipe:
    """Every weight of the targets becomes +a or -a (binary), or one of -a, 0, +a (ternary), one `a` for each row or layer.

    ADMM finds the signs; retraining moves the scales and all that has no code, such as biases and norms. Small networks keep more
    under `quantize_aware(1, None, how="straight_through", rate=1.0)`.

    targets   patterns of names, a stage each: with several, layers are binarised progressively, and those that are done train
              on only in their scales. Zeros are no exception in the binary case: a pruned weight gets a sign.
    per       row: a filter, neuron or gate has a scale of its own, 32 bits each; layer: one for all, as published

    """
    if per not in SCALES:
        raise InputError(f"per must be one of {', '.join(SCALES)}, given {per!r}")
    if not targets:
        raise InputError('targets names no stage: give a pattern of names for each, such as ("weights",)')
    names = [levels] if len(targets) == 1 else [f"{levels} {pattern}" for pattern in targets]
    rules = [(Rule(pattern, Levels(levels), SCALES[per]),) for pattern in targets]
    stages = rounds.after_dense(dense_epochs, zip(names, rules, strict=True), masked=False)
    return Recipe("admm_binarization", stages, "arXiv 1903.09769")
