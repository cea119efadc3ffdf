"""Ranks under one budget: within it, near the best of all combinations, and with the MACs of the network that is built."""

from __future__ import annotations

import pytest
import torch
from counting import counted
from torch import nn

from featherweight import zoo
from featherweight.lowrank.factor import factor
from featherweight.lowrank.layers import CHANNEL, SPATIAL
from featherweight.lowrank.ranks import allocate, choices, convolutions
from featherweight.weights.parametrized import decoded
from featherweight.weights.views import View


@pytest.mark.third
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
    assert found.costs[-1] == 50 * 20 * 25 * 64 and found.sizes[-1] is None and found.errors[-1] == 0
    # first layer 5 x 1 on 12 columns to 8 rows, second 1 x 5 to 8 x 8: 20 * 5 * 96 + 50 * 5 * 64 a rank
    assert found.costs[0] == 25_600 and found.sizes[-2] == 62 and found.costs[-2] == 62 * 25_600
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
