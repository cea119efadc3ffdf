"""arXiv 1810.07378, 1903.09769: progressive weight pruning by ADMM."""

from __future__ import annotations

from dataclasses import replace

from featherweight.recipe.schema import WEIGHTS, Recipe, Rule, Train
from featherweight.recipes.rounds import Kept, Round, entries, of_rounds
from featherweight.training.schedule import Training
from featherweight.weights.sets import TopRows


@of_rounds()
def progressive_admm(
    keep: tuple[Kept, ...] = ("5x", "10x", "20x"),
    targets: str = WEIGHTS,
    dense_epochs: int = 0,
    allocate: str = "magnitude",
    fisher: float = 0.25,
    respread: bool = True,
    sweep: bool = True,
    narrow: float | None = None,
    narrow_targets: str = WEIGHTS,
    narrow_epochs: int = 4,
    candidates: int = 1,
    *,
    rounds: Round,
) -> Recipe:
    """Stages of falling density, each ADMM pruning and masked retraining with a cosine rate; what is zero stays zero.

    keep           of the targets' weights in the original network, a stage each: "5x" fewer, or the share 0.2; or "2:4", of each
                   4 neighbouring inputs 2, which `allocate`, `respread` and `sweep` do not concern
    targets        what to prune, see `schema.Rule`; one global count is spread over it by `allocate`. Embeddings and a language
                   model's head are not pruned, unless named
    dense_epochs   of plain training first, for a network that is not trained yet
    fisher, respread, sweep  see `schema.Constrain`; 0, False and False are the papers' method
    narrow         share of the rows (filters, neurons) of `narrow_targets` to keep in a structured stage before the others,
                   by which dense training gets fast early (the rows go physically)
    candidates     1, or 3 for the papers' schedule of three partial networks
    """
    dense = Train("dense", train=Training(dense_epochs))
    stages = [
        replace(
            rounds.stage(name, (rule,)),
            keep=kept,
            allocate=allocate,
            fisher=fisher,
            respread=respread and kept is not None,
            sweep=sweep and kept is not None,  # of what a sweep leaves groups may not divide
        )
        for name, rule, kept in (entries(targets, one) for one in keep)
    ]
    if narrow is not None:
        rows = Rule(narrow_targets, TopRows(), "rows")
        first = replace(stages[0], name="narrow", rules=(rows,), keep=narrow, allocate="magnitude", fisher=0.5, sweep=True)
        training = replace(first.train, epochs=narrow_epochs, warmup=0.5 / max(narrow_epochs, 1))
        stages.insert(0, replace(first, train=training, retrain=replace(training, floor=0.0)))
    return Recipe("progressive_admm", (dense, *stages), "arXiv 1810.07378, 1903.09769", candidates)
