"""A way to a goal: what may be done to a network, as a recipe of one amount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from featherweight.recipe.schema import Recipe, Train

AS_IT_IS = Recipe("shrink", (Train("dense"),))


@dataclass(frozen=True)
class Way:
    """name     in words
    recipe      (amount, epochs of training in all) -> what to do; with no epochs it only shows what it costs
    runtime     that runs what comes of it; None: it is only stored
    amounts     on offer, the mildest first; None: any share in (0, 1]; empty: there is none to choose
    exact       does a share of the goal's own cost come of that very share?
    loses       can it change what the network computes?
    beside      is its amount taken beside what is a way by itself?
    """

    name: str
    recipe: Callable[[float, int], Recipe]
    runtime: str | None = None
    amounts: tuple[float, ...] | None = None
    exact: bool = False
    loses: bool = True
    beside: bool = False

    def shown(self, amount: float | None) -> str:
        """The way and how far it goes, in words."""
        ends = f", run in {self.runtime}" if self.runtime and self.runtime != "integers" else ""
        if amount is None or self.amounts == ():
            return f"{self.name}{ends}"
        return f"{self.name}: {f'{amount:g} bits' if self.amounts else f'{100 * amount:.3g} % kept'}{ends}"
