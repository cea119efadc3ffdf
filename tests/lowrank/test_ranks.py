"""Ranks under one budget: within it, near the best of all combinations, and with the MACs of the network that is built."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from counting import counted
from torch import nn

from featherweight import zoo
from featherweight.factor import factor
from featherweight.measure import decoded
from featherweight.ranks import CHANNEL, SPATIAL, Choices, FactorError, allocate, choices, convolutions, lagrangian
from featherweight.views import View


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
        for chosen in itertools.product(*(range(len(one.macs)) for one in menus.values()))
        if sum(one.macs[index] for one, index in zip(menus.values(), chosen, strict=True)) <= budget
    ]
    return min(fitting)


@pytest.mark.parametrize("convex", [True, False])
def test_lagrangian_against_every_combination(convex: bool) -> None:
    source = random.Random(0)
    gaps = []
    for _ in range(300):
        menus = {name: menu(source, convex) for name in "abc"}
        least, most = (sum(one.macs[end] for one in menus.values()) for end in (0, -1))
        budget = source.randint(least, most)
        chosen = lagrangian(menus, budget)
        spent = sum(menus[name].macs[index] for name, index in chosen.items())
        error = sum(menus[name].errors[index] for name, index in chosen.items())
        assert spent <= budget
        single = [  # nothing that would drop less still fits
            1
            for name, index in chosen.items()
            for to in range(len(menus[name].macs))
            if spent - menus[name].macs[index] + menus[name].macs[to] <= budget
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


def test_budgets_below_rank_one_are_refused() -> None:
    with pytest.raises(FactorError, match="fewer than the 15"):
        lagrangian({"a": Choices((1, None), (0.5, 0.0), (15, 30))}, 14)


@pytest.mark.parametrize(("view", "keep"), [(CHANNEL, 0.6), (CHANNEL, 0.5), (SPATIAL, 0.5), (SPATIAL, 1 / 2.84), (SPATIAL, 0.8)])
def test_the_budget_is_met_within_one_percent_by_the_network_that_is_built(view: View, keep: float) -> None:
    torch.manual_seed(0)
    model = zoo.resnet20_projection().eval()
    example = (torch.zeros(1, 3, 32, 32),)
    before = counted(model, example)
    found = allocate(model, example, dict.fromkeys(convolutions(model), view), keep)
    for name, rank in found.ranks.items():
        factor(model, name, view, rank)
    after = counted(model, example)
    assert (found.macs_before, found.macs) == (before, after)
    assert 0.99 * keep * before <= after <= keep * before
    assert abs(found.speedup - before / after) < 1e-12
    assert set(found.ranks) | set(found.whole) == set(convolutions(zoo.resnet20_projection()))


def test_errors_are_the_dropped_shares_and_the_last_choice_is_the_layer_whole() -> None:
    torch.manual_seed(0)
    model = zoo.lenet5()
    found = choices(model, (torch.zeros(1, 1, 28, 28),), {"conv2.weight": SPATIAL})["conv2.weight"]
    matrix = decoded(model)["conv2.weight"].permute(1, 2, 0, 3).reshape(100, 250).double()
    squares = torch.linalg.svdvals(matrix).square()
    assert found.macs[-1] == 50 * 20 * 25 * 64 and found.ranks[-1] is None and found.errors[-1] == 0
    # first layer 5 x 1 on 12 columns to 8 rows, second 1 x 5 to 8 x 8: 20 * 5 * 96 + 50 * 5 * 64 a rank
    assert found.macs[0] == 25_600 and found.ranks[-2] == 62 and found.macs[-2] == 62 * 25_600
    for index in (0, 10, 61):
        assert abs(found.errors[index] - float(squares[index + 1 :].sum() / squares.sum())) < 1e-9


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_layers_that_already_have_low_rank_are_not_given_more(noise: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(40, 3) @ torch.randn(3, 40) + noise * torch.randn(40, 40))
    found = allocate(model, (torch.zeros(1, 40),), dict.fromkeys(("0.weight", "1.weight"), View("o i -> o i")), 1.0)
    assert found.ranks["0.weight"] == 3 and "1.weight" in found.whole


@pytest.mark.parametrize(
    ("targets", "keep", "says"),
    [
        ({"conv2.weight": SPATIAL}, 0.0, r"in \(0, 1\]"),
        ({"conv2.weight": SPATIAL}, 1.5, r"in \(0, 1\]"),
        ({"conv2.weight": SPATIAL}, 0.1, "out of reach"),
        ({"conv3.weight": SPATIAL}, 0.5, "Did you mean 'conv2.weight'"),
        ({"fc1.weight": SPATIAL}, 0.5, "4 dimensions"),
        ({}, 0.5, "no layers"),
    ],
)
def test_budgets_and_names_that_cannot_be(targets: dict[str, object], keep: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allocate(zoo.lenet5(), (torch.zeros(1, 1, 28, 28),), targets, keep)
