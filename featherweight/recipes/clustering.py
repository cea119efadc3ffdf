"""arXiv 1811.01907: ADMM-NN, weights that share a few values. Centroids move in every ADMM round, and by gradient afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from featherweight.errors import InputError
from featherweight.recipe.schema import WEIGHTS, Recipe, Rule
from featherweight.recipes.rounds import Round, Step, of_rounds
from featherweight.weights.sets import Codebook


@of_rounds()
def admm_clustering(
    counts: tuple[int, ...] = (16, 8),
    counts_of: Mapping[str, int] | None = None,
    targets: str = WEIGHTS,
    dense_epochs: int = 0,
    *,
    rounds: Round,
) -> Recipe:
    """Stages of ever fewer shared values a layer, each ADMM with a k-means of W + U at every projection (clusters and centroids
    both), then training of the centroids, whose gradient is the sum of their members'.

    A weight that is zero when its stage starts stays zero and is in no cluster.

    counts      shared values a layer, a stage each; counts_of: parameter -> count, in place of `targets` and the last of these

    """
    if not counts:
        raise InputError("counts names no stage: give the shared values of each, such as (16, 8)")
    steps: list[Step] = [(f"{count} values", (Rule(targets, Codebook(count)),)) for count in counts]
    if counts_of is not None:
        if not counts_of:
            raise InputError("counts_of names no parameter: give parameter -> count, or leave it out for one count")
        steps[-1] = ("values by layer", tuple(Rule(name, Codebook(count)) for name, count in counts_of.items()))
    return Recipe("admm_clustering", rounds.after_dense(dense_epochs, steps), "arXiv 1811.01907")
