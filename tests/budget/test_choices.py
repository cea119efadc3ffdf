"""Menus under one budget: within it, and the best of all combinations, or near it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from featherweight.budget.choices import Choices, Infeasible, lagrangian
from featherweight.budget.knapsack import knapsack

Solve = Callable[[dict[str, Choices], int], dict[str, int]]


def menu(source: random.Random, convex: bool) -> Choices:
    count = source.randint(1, 4)
    gains = sorted((source.random() for _ in range(count)), reverse=convex)
    errors = [sum(gains[index:]) for index in range(count)] + [0.0]
    each = source.randint(1, 9)
    last = each * count + (each if convex else source.randint(1, 9))
    return Choices((*range(1, count + 1), None), tuple(errors), (*(each * rank for rank in range(1, count + 1)), last))


def brute(menus: dict[str, Choices], budget: int) -> float:
    fitting = [
        sum(one.errors[index] for one, index in zip(menus.values(), chosen, strict=True))
        for chosen in itertools.product(*(range(len(one.costs)) for one in menus.values()))
        if sum(one.costs[index] for one, index in zip(menus.values(), chosen, strict=True)) <= budget
    ]
    return min(fitting)


@pytest.mark.parametrize("convex", [True, False])
def test_lagrangian_against_every_combination(convex: bool) -> None:
    source = random.Random(0)
    gaps = []
    for _ in range(300):
        menus = {name: menu(source, convex) for name in "abc"}
        least, most = (sum(one.costs[end] for one in menus.values()) for end in (0, -1))
        budget = source.randint(least, most)
        chosen = lagrangian(menus, budget)
        spent = sum(menus[name].costs[index] for name, index in chosen.items())
        error = sum(menus[name].errors[index] for name, index in chosen.items())
        assert spent <= budget
        single = [  # nothing that would drop less still fits
            1
            for name, index in chosen.items()
            for to in range(len(menus[name].costs))
            if spent - menus[name].costs[index] + menus[name].costs[to] <= budget
            and menus[name].errors[to] < menus[name].errors[index]
        ]
        assert not single
        best = brute(menus, budget)
        assert error >= best - 1e-12
        gaps.append(error - best)
        # the relaxation is off by at most one step of a hull: of a convex menu, one rank
        steps = [a - b for one in menus.values() for a, b in itertools.pairwise(one.errors if convex else (one.errors[0], 0.0))]
        assert error - best <= max(steps) + 1e-12
    assert sum(gap < 1e-12 for gap in gaps) > 200  # mostly the optimum itself


def test_lagrangian_is_optimal_at_the_corners_of_the_hull() -> None:
    one = Choices((1, 2, None), (1.0, 0.2, 0.0), (10, 20, 30))
    two = Choices((1, 2, None), (0.5, 0.4, 0.0), (5, 10, 15))
    assert lagrangian({"a": one, "b": two}, 25) == {"a": 1, "b": 0}
    assert lagrangian({"a": one, "b": two}, 35) == {"a": 1, "b": 2}  # past two's rank 2, which is above its hull
    assert lagrangian({"a": one, "b": two}, 45) == {"a": 2, "b": 2}


@pytest.mark.parametrize("solve", [lagrangian, knapsack])
def test_budgets_below_the_cheapest_choices_are_refused(solve: Solve) -> None:
    with pytest.raises(Infeasible, match="below the 15"):
        solve({"a": Choices((1, None), (0.5, 0.0), (15, 30))}, 14)
    assert solve({"a": Choices((1, None), (0.5, 0.0), (15, 30))}, 15) == {"a": 0}


@pytest.mark.parametrize("convex", [True, False])
def test_knapsack_is_the_best_of_every_combination(convex: bool) -> None:
    source = random.Random(1)
    for _ in range(60):
        menus = {name: menu(source, convex) for name in "abcd"}
        least, most = (sum(one.costs[end] for one in menus.values()) for end in (0, -1))
        budget = source.randint(least, most)
        chosen = knapsack(menus, budget)
        assert sum(menus[name].costs[index] for name, index in chosen.items()) <= budget
        error = sum(menus[name].errors[index] for name, index in chosen.items())
        assert abs(error - brute(menus, budget)) < 1e-9


def test_more_budget_is_never_worse() -> None:
    source = random.Random(2)
    menus = {name: menu(source, False) for name in "abcde"}
    least, most = (sum(one.costs[end] for one in menus.values()) for end in (0, -1))
    errors = []
    for budget in range(least, most + 1, 3):
        chosen = knapsack(menus, budget)
        errors.append(sum(menus[name].errors[index] for name, index in chosen.items()))
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(errors)) and errors[0] > errors[-1]
