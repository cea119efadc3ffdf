"""Sites that keep the same share of their units, since one number of the class stands for the sizes of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Any

from featherweight.budget.units import Cost, Losses, Sizes


@dataclass(frozen=True)
class Tied:
    """A group is allocated as one site, named after its first: at level k of n each of its sites keeps k / n of its units, where
    n divides the size of each. A site alone is a group whose levels are its sizes.

    groups  each site in one
    units   site -> how many it has
    """

    groups: tuple[tuple[str, ...], ...]
    units: Mapping[str, int]

    @property
    def levels(self) -> Sizes:
        """Group -> n."""
        return {group[0]: gcd(*(self.units[name] for name in group)) for group in self.groups}

    def sizes(self, levels: Mapping[str, int]) -> Sizes:
        """Group -> level, as site -> units."""
        most = self.levels
        return {
            name: self.units[name] // most[group[0]] * levels[group[0]]
            for group in self.groups
            if group[0] in levels
            for name in group
        }

    def multiples(self, of: Mapping[str, int]) -> dict[str, int]:
        """Site -> what its size is a multiple of, as group -> what its level is."""
        most = self.levels
        each = {group: [(of[name], self.units[name] // most[group[0]]) for name in group] for group in self.groups}
        return {group[0]: lcm(*(one // gcd(one, units) for one, units in parts)) for group, parts in each.items()}

    def losses(self, losses: Losses) -> Losses:
        """Site -> damage at each size, as group -> the sum at each level."""
        most = self.levels
        return {
            group[0]: losses[group[0]]
            if len(group) == 1
            else _Sum([(losses[name], self.units[name] // most[group[0]]) for name in group], most[group[0]])
            for group in self.groups
        }

    def cost(self, cost: Cost) -> Cost:
        """What levels cost."""
        return lambda levels: cost(self.sizes(levels))


class _Sum(Sequence[float]):
    """The damage of sites together, looked up when asked for; each at so many units a level."""

    def __init__(self, parts: Sequence[tuple[Sequence[float], int]], levels: int) -> None:
        self.parts, self.levels = parts, levels

    def __len__(self) -> int:
        return self.levels + 1

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not 0 <= k < len(self):
            raise IndexError(k)
        return sum(loss[k * units] for loss, units in self.parts)
