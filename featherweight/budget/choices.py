"""Menus of any kind (ranks, channels, levels, blocks): which size each target gets under one budget of what sizes cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from featherweight.errors import InputError


class Infeasible(InputError):
    """A budget below the least that any choice costs."""


@dataclass(frozen=True)
class Choices:
    """What one target can be, by rising cost.

    sizes    what each choice is called; None: left whole
    errors   the predicted damage of each, falling or not
    costs    of each, in the budget's unit (MACs, parameters, bytes)
    """

    sizes: tuple[int | None, ...]
    errors: tuple[float, ...]
    costs: tuple[int, ...]


def lagrangian(menus: Mapping[str, Choices], budget: int) -> dict[str, int]:
    """argmin sum of errors  s.t.  sum of costs <= budget, nearly; as the index of a choice for each name.

    The steps of each menu's lower convex hull are taken by falling gain per cost (the Lagrangian relaxation, exact at its
    breakpoints), then what is left of the budget goes to the single changes that gain most. Raises Infeasible if even the
    cheapest choices cost more than `budget`.
    """
    left = budget - check_least(menus, budget)
    chosen = dict.fromkeys(menus, 0)
    steps = [(gain, name, to) for name, menu in menus.items() for gain, to in _hull(menu)]
    for _, name, to in sorted(steps, key=lambda step: -step[0]):
        more = menus[name].costs[to] - menus[name].costs[chosen[name]]
        if more > left:
            break
        chosen[name], left = to, left - more
    arrays = {name: (np.asarray(menu.errors), np.asarray(menu.costs)) for name, menu in menus.items()}
    while True:
        best, gain = None, 0.0
        for name, (errors, costs) in arrays.items():
            at = chosen[name]
            gains = np.where(costs[at + 1 :] - costs[at] <= left, errors[at] - errors[at + 1 :], 0.0)
            if gains.size and gains.max() > gain:
                best, gain = (name, at + 1 + int(gains.argmax())), float(gains.max())
        if best is None:
            return chosen
        name, to = best
        left -= menus[name].costs[to] - menus[name].costs[chosen[name]]
        chosen[name] = to


def check_least(menus: Mapping[str, Choices], budget: int) -> int:
    """What the cheapest choices cost together. Raises Infeasible where that is above `budget`."""
    least = sum(menu.costs[0] for menu in menus.values())
    if least > budget:
        raise Infeasible(f"a budget of {budget:,} is below the {least:,} of the cheapest choices: ask for that or more")
    return least


def _hull(menu: Choices) -> list[tuple[float, int]]:
    """The steps of the lower convex hull of (costs, errors): (error lost per cost, index stepped to), gains falling."""
    steps: list[tuple[float, int]] = []
    at = 0
    while at < len(menu.costs) - 1:
        later = [to for to in range(at + 1, len(menu.costs)) if menu.costs[to] > menu.costs[at]]
        if not later:
            break
        gain, at = max(((menu.errors[at] - menu.errors[to]) / (menu.costs[to] - menu.costs[at]), to) for to in later)
        if gain <= 0:  # nothing is dropped any more: more would buy nothing
            break
        steps.append((gain, at))
    return steps
