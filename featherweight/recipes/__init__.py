"""Papers as functions that return recipes. `RECIPES` lists them for the command line."""

from __future__ import annotations

from collections.abc import Callable

from featherweight.recipe import Recipe
from featherweight.recipes.progressive_admm import progressive_admm

RECIPES: dict[str, Callable[..., Recipe]] = {"progressive_admm": progressive_admm}
