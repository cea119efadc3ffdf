"""Units under one budget: within it, near all of it, and near the best of every combination."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping

import pytest
import torch

from featherweight import zoo
from featherweight.budget.choices import Infeasible
from featherweight.budget.units import AllocateBy, Losses, allocate, damage
from featherweight.structure import trace

HOW: tuple[AllocateBy, ...] = ("uniform", "ranked", "weighed", "knapsack")


def chain(widths: Mapping[str, int]) -> Callable[[Mapping[str, int]], int]:
    """What a chain of linear layers costs: 7 inputs, the sites between, 5 outputs."""

    def cost(sizes: Mapping[str, int]) -> int:
        row = [7, *(sizes.get(name, widths[name]) for name in widths), 5]
        return sum(a * b for a, b in itertools.pairwise(row))

    return cost


def drawn(source: random.Random, size: int) -> list[float]:
    """Falling damage of keeping 0 .. size units."""
    gains = [source.random() ** 3 for _ in range(size)]
    return [sum(gains[k:]) for k in range(size + 1)]


def case(seed: int, sizes: tuple[int, ...] = (4, 5, 3)) -> tuple[dict[str, list[float]], Callable[[Mapping[str, int]], int]]:
    source = random.Random(seed)
    losses = {name: drawn(source, size) for name, size in zip("abc", sizes, strict=False)}
    return losses, chain({name: len(loss) - 1 for name, loss in losses.items()})


def brute(losses: Losses, cost: Callable[[Mapping[str, int]], int], limit: float) -> float:
    every = itertools.product(*(range(1, len(loss)) for loss in losses.values()))
    fitting = [dict(zip(losses, sizes, strict=True)) for sizes in every]
    return min(damage(losses, sizes) for sizes in fitting if cost(sizes) <= limit)


@pytest.mark.parametrize("how", HOW)
def test_the_limit_is_respected_and_nothing_more_fits(how: AllocateBy) -> None:
    for seed in range(6):
        losses, cost = case(seed)
        whole = {name: len(loss) - 1 for name, loss in losses.items()}
        for share in (0.35, 0.6, 0.9):
            sizes = allocate(how, losses, cost, share * cost(whole))
            assert cost(sizes) <= share * cost(whole)
            assert all(1 <= sizes[name] <= whole[name] for name in whole)
            for name in whole:
                assert sizes[name] == whole[name] or cost(sizes | {name: sizes[name] + 1}) > share * cost(whole)
        assert allocate(how, losses, cost, cost(whole)) == whole


def test_knapsack_is_near_the_best_of_every_combination_and_ahead_of_the_uniform_share() -> None:
    gaps, ahead = [], 0
    for seed in range(15):
        losses, cost = case(seed)
        limit = 0.55 * cost({name: len(loss) - 1 for name, loss in losses.items()})
        found, even = (damage(losses, allocate(how, losses, cost, limit)) for how in ("knapsack", "uniform"))  # type: ignore[arg-type]
        best = brute(losses, cost, limit)
        assert best - 1e-12 <= found <= even + 1e-12
        gaps.append(found - best)
        ahead += found < even - 1e-12
    assert sum(gap < 1e-9 for gap in gaps) >= 9 and ahead >= 8


@pytest.mark.parametrize("how", ["uniform", "ranked", "weighed"])
def test_units_come_in_the_order_that_the_name_says_each_that_fits(how: str) -> None:
    for seed in range(8):
        losses, cost = case(seed, (16, 5, 3))
        losses = {name: falling(loss) for name, loss in losses.items()}
        whole = {name: len(loss) - 1 for name, loss in losses.items()}
        for share in (0.3, 0.5, 0.8):
            limit = share * cost(whole)
            order = []
            for name, size in whole.items():
                price = (cost(whole) - cost(whole | {name: 1})) / (size - 1)
                for k in range(2, size + 1):
                    gain = losses[name][k - 1] - losses[name][k]
                    order.append(({"uniform": (k - 0.5) / size, "ranked": -gain, "weighed": -gain / price}[how], name))
            taken = dict.fromkeys(whole, 1)
            for _, name in sorted(order, key=lambda unit: unit[0]):
                if cost(taken | {name: taken[name] + 1}) <= limit:
                    taken[name] += 1
            assert allocate(how, losses, cost, limit) == taken  # type: ignore[arg-type]


def falling(loss: list[float]) -> list[float]:
    """The same gains, the largest first: what a threshold keeps is then a first part of them."""
    gains = sorted((before - after for before, after in itertools.pairwise(loss)), reverse=True)
    return [sum(gains[k:]) for k in range(len(gains) + 1)]


def test_an_even_share_is_even_where_layers_are_many() -> None:
    graph = trace(zoo.resnet20().eval(), (torch.zeros(1, 3, 32, 32),))
    inside = {name: site.size for name, site in graph.sites.items() if "conv1" in name and "stage" in name}
    source = random.Random(0)
    losses = {name: drawn(source, size) for name, size in inside.items()}
    for percent in range(40, 100):
        sizes = allocate("uniform", losses, graph.macs, percent / 100 * graph.macs())
        for size in set(inside.values()):
            alike = [sizes[name] for name in inside if inside[name] == size]
            assert len(alike) == 3 and max(alike) - min(alike) <= 2  # two of the cheapest may fit where no other does


@pytest.mark.long
def test_more_budget_is_never_worse_for_a_knapsack_where_costs_add_up() -> None:
    losses, _ = case(3, (5, 4, 3))
    price = {"a": 5, "b": 7, "c": 3}

    def cost(sizes: Mapping[str, int]) -> int:
        return 11 + sum(price[name] * sizes.get(name, len(losses[name]) - 1) for name in price)

    limits = range(cost(dict.fromkeys(losses, 1)), cost({}) + 1)
    found = [damage(losses, allocate("knapsack", losses, cost, limit)) for limit in limits]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found)) and found[-1] == 0 < found[0]
    assert found == pytest.approx([brute(losses, cost, limit) for limit in limits], abs=1e-9)


def test_a_site_that_loses_nothing_is_cut_first() -> None:
    losses = {"dead": [0.0] * 9, "live": [float(8 - k) for k in range(9)]}
    cost = chain({"dead": 8, "live": 8})
    for how in ("ranked", "weighed", "knapsack"):
        sizes = allocate(how, losses, cost, 0.5 * cost({"dead": 8, "live": 8}))  # type: ignore[arg-type]
        assert sizes["live"] == 8 and sizes["dead"] < 8


@pytest.mark.third
@pytest.mark.parametrize("how", HOW)
def test_the_macs_of_a_network_are_met_within_one_percent_or_one_unit(how: AllocateBy) -> None:
    torch.manual_seed(0)
    network = zoo.resnet20().eval()
    graph = trace(network, (torch.zeros(1, 3, 32, 32),))
    source = random.Random(0)
    losses = {name: drawn(source, site.size) for name, site in graph.sites.items()}
    sizes = allocate(how, losses, graph.macs, 0.5 * graph.macs())
    macs, limit = graph.macs(sizes), 0.5 * graph.macs()
    another = [graph.macs(sizes | {name: sizes[name] + 1}) - macs for name in sizes if sizes[name] < graph.sites[name].size]
    assert limit - min(another) < macs <= limit and (macs >= 0.99 * limit or min(another) > 0.01 * limit)


def test_a_budget_that_cannot_be_met_names_the_nearest() -> None:
    losses, cost = case(0)
    least, whole = cost(dict.fromkeys(losses, 1)), cost({name: len(loss) - 1 for name, loss in losses.items()})
    with pytest.raises(Infeasible, match=f"one unit a site costs {least} of the network's {whole}, the least"):
        allocate("uniform", losses, cost, least - 1)
    assert allocate("weighed", losses, cost, least) == dict.fromkeys(losses, 1)
