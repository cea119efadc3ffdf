"""Papers as functions that return recipes. `RECIPES` lists them for the command line."""

from __future__ import annotations

from collections.abc import Callable

from featherweight.recipe import Recipe
from featherweight.recipes.decompose import decompose
from featherweight.recipes.progressive_admm import progressive_admm
from featherweight.recipes.trained_rank_pruning import trained_rank_pruning

RECIPES: dict[str, Callable[..., Recipe]] = {
    "progressive_admm": progressive_admm,
    "trained_rank_pruning": trained_rank_pruning,
    "decompose": decompose,
}
