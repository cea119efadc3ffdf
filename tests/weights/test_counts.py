"""Allocators: exact sums, at least one each, and each is what its paper says it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
import table
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featherweight.errors import InputError
from featherweight.weights import counts, sizes
from featherweight.weights.counts import Allocator, lamp, magnitude, uniform
from featherweight.weights.sets import LowRank, Menu, TopK, TopRows

EVERY = pytest.mark.parametrize("allocate", table.ALLOCATORS.values(), ids=table.ALLOCATORS)


def menus(layers: dict[str, np.ndarray]) -> dict[str, Menu]:
    return {name: TopK().menu(torch.from_numpy(weight)[None]) for name, weight in layers.items()}


def random_layers(seed: int, sizes: tuple[int, ...] = (7, 20, 3)) -> dict[str, np.ndarray]:
    return {f"layer{i}": (10.0**-i) * table.matrix(1, n, seed=200 + seed + i)[0].numpy() for i, n in enumerate(sizes)}


layers_of_any_size = st.lists(st.integers(1, 12), min_size=1, max_size=5).flatmap(
    lambda sizes: st.tuples(*(st.lists(st.integers(-4, 4).map(float), min_size=n, max_size=n).map(np.array) for n in sizes)).map(
        lambda weights: {f"layer{i}": weight for i, weight in enumerate(weights)}
    )
)


@EVERY
@given(layers=layers_of_any_size, data=st.data())
@settings(max_examples=60, deadline=None)
@example(layers={"small": np.ones(3), "large": np.ones(60)}, data=None)
def test_sizes_sum_to_the_total_and_fit_and_none_is_zero(allocate: Allocator, layers: dict[str, np.ndarray], data: Any) -> None:
    whole = sum(weight.size for weight in layers.values())
    total = data.draw(st.integers(len(layers), whole)) if data else len(layers)
    sizes = allocate(menus(layers), total)
    assert list(sizes) == list(layers)
    assert sum(sizes.values()) == total
    for name, size in sizes.items():
        assert 1 <= size <= layers[name].size, f"{sizes} of {total}"
        assert type(size) is int


@EVERY
@given(layers=layers_of_any_size)
@settings(max_examples=40, deadline=None)
@example(layers={"a": np.arange(1.0, 7), "b": np.arange(1.0, 7), "c": np.arange(1.0, 3)})  # the Alabama paradox
def test_more_budget_never_takes_from_a_layer(allocate: Allocator, layers: dict[str, np.ndarray]) -> None:
    whole = sum(weight.size for weight in layers.values())
    before = dict.fromkeys(layers, 0)
    for total in range(len(layers), whole + 1):
        now = allocate(menus(layers), total)
        for name in layers:
            assert now[name] >= before[name], f"{name} has {before[name]} of {total - 1} and {now[name]} of {total}"
        before = now


@EVERY
def test_everything_and_one_each_are_reached(allocate: Allocator) -> None:
    layers = random_layers(0)
    assert allocate(menus(layers), 30) == {"layer0": 7, "layer1": 20, "layer2": 3}
    assert allocate(menus(layers), 3) == {"layer0": 1, "layer1": 1, "layer2": 1}


@EVERY
@pytest.mark.parametrize("total", [-1, 0, 2, 31])
def test_a_total_that_cannot_be_spread_is_refused(allocate: Allocator, total: int) -> None:
    with pytest.raises(InputError, match="must be from 3 to 30"):
        allocate(menus(random_layers(0)), total)


@EVERY
def test_the_order_of_the_layers_does_not_matter(allocate: Allocator) -> None:
    layers = random_layers(3)
    forward = allocate(menus(layers), 13)
    backward = allocate(menus(dict(reversed(layers.items()))), 13)
    assert forward == backward


def test_uniform_gives_every_layer_the_same_share() -> None:
    layers = random_layers(1, (10, 100, 1000))
    assert uniform(menus(layers), 111) == {"layer0": 1, "layer1": 10, "layer2": 100}
    for total in (200, 333, 700):
        sizes = uniform(menus(layers), total)
        for name, weight in layers.items():
            assert abs(sizes[name] - total * weight.size / 1110) <= 1


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("total", [8, 13, 22])
def test_magnitude_is_the_globally_largest_entries(seed: int, total: int) -> None:
    layers = {name: weight * 10.0**i for i, (name, weight) in enumerate(random_layers(seed).items())}  # of equal scale
    expected = oracles.global_largest(layers, total)
    assert min(expected.values()) >= 1, "else the rule of at least one each steps in"
    assert magnitude(menus(layers), total) == expected


@pytest.mark.parametrize("seed", range(4))
def test_magnitude_has_the_least_error_of_all_spreads(seed: int) -> None:
    layers = random_layers(seed, (4, 6, 3))
    prices = menus(layers)
    for total in range(3, 14):
        sizes = magnitude(prices, total)
        error = sum(float(prices[name].errors[size]) for name, size in sizes.items())
        errors = {name: menu.errors.tolist() for name, menu in prices.items()}
        assert error == pytest.approx(oracles.least_error(errors, total), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("total", [4, 8, 13, 22])
def test_lamp_is_the_largest_scores_of_its_paper(seed: int, total: int) -> None:
    layers = random_layers(seed)
    assert lamp(menus(layers), total) == oracles.lamp(layers, total)


def test_lamp_is_blind_to_the_scale_of_a_layer_and_magnitude_is_not() -> None:
    layers = random_layers(2)
    scaled = {name: weight * (1e4 if name == "layer2" else 1.0) for name, weight in layers.items()}
    assert lamp(menus(layers), 13) == lamp(menus(scaled), 13)
    assert magnitude(menus(layers), 13) != magnitude(menus(scaled), 13)


@EVERY
def test_layers_of_zeros_are_spread_over_too(allocate: Allocator) -> None:
    sizes = allocate(menus({"dead": np.zeros(10), "alive": np.ones(10)}), 12)
    assert sum(sizes.values()) == 12
    assert sizes["dead"] >= 1


@EVERY
def test_menus_of_other_sets_are_spread_over_too(allocate: Allocator) -> None:
    prices = {
        "rows": TopRows().menu(table.matrix()),
        "rank": LowRank().menu(table.matrix(seed=3)),
        "entries": TopK().menu(table.matrix()),
    }
    sizes = allocate(prices, 20)
    assert sum(sizes.values()) == 20
    assert all(1 <= sizes[name] <= menu.most for name, menu in prices.items())


# --- many weights: without ranking them all --------------------------------------------------------------------------------


def ranked(allocate: str, layers: dict[str, torch.Tensor], total: int) -> dict[str, int]:
    """All steps of all layers scored, held together and ranked."""
    scores = []
    for weight in layers.values():
        squares = weight.reshape(-1).double().square().sort().values
        errors = torch.cat([squares.new_zeros(1), squares.cumsum(0)]).flip(0)
        gains = errors[:-1] - errors[1:]
        tiny = torch.finfo(torch.float64).tiny
        score = {
            "magnitude": gains,
            "lamp": gains / (errors[0] - errors[1:]).clamp_min(tiny),
            "uniform": len(gains) / (torch.arange(len(gains), dtype=torch.float64) + 0.5),
        }[allocate]
        scores.append(score[1:])
    owner = torch.cat([torch.full((score.numel(),), i) for i, score in enumerate(scores)])
    if allocate == "magnitude":  # of equal ones the first
        chosen = torch.cat(scores).argsort(descending=True, stable=True)[: total - len(layers)]
    else:
        chosen = torch.cat(scores).topk(total - len(layers), sorted=False).indices
    return dict(zip(layers, (torch.bincount(owner[chosen], minlength=len(layers)) + 1).tolist(), strict=True))


def some_layers(seed: int, tied: bool) -> tuple[dict[str, torch.Tensor], int]:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 60, (int(torch.randint(1, 6, (1,), generator=generator)),), generator=generator).tolist()
    layers = {str(i): torch.randn(1, size, generator=generator) / (i + 1) for i, size in enumerate(sizes)}
    layers = {name: (2 * weight).round() for name, weight in layers.items()} if tied else layers
    return layers, int(torch.randint(len(sizes), sum(sizes) + 1, (1,), generator=generator))


@pytest.mark.parametrize("name", table.ALLOCATORS)
@pytest.mark.parametrize("tied", [False, True])
def test_few_weights_are_spread_as_by_ranking_all_ties_included(name: str, tied: bool) -> None:
    for seed in range(60):
        layers, total = some_layers(seed, tied)
        found = table.ALLOCATORS[name]({n: TopK().menu(weight) for n, weight in layers.items()}, total)
        assert found == ranked(name, layers, total), seed


@pytest.mark.third
@pytest.mark.parametrize("name", ["magnitude", "lamp"])
@pytest.mark.parametrize(("block", "piece"), [(1, 1), (4, 12), (5, 7), (64, 1000)])
def test_many_weights_are_spread_as_by_ranking_all(name: str, block: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for attribute, value in (("RANKED", 0), ("BLOCK", block), ("PIECE", piece)):
        monkeypatch.setattr(counts, attribute, value)
    for attribute, value in (("RANKED", 0), ("PIECE", piece)):
        monkeypatch.setattr(sizes, attribute, value)
    for seed in range(60):
        layers, total = some_layers(seed, tied=False)
        found = table.ALLOCATORS[name]({n: TopK().menu(weight) for n, weight in layers.items()}, total)
        assert found == ranked(name, layers, total), seed


@EVERY
def test_of_equal_scores_among_many_as_good_ones_are_taken(allocate: Allocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of equal ones go is nobody's promise; that none goes for a worse one is."""
    for seed in range(60):
        layers, total = some_layers(seed, tied=True)
        prices = {n: TopK().menu(weight) for n, weight in layers.items()}
        few = allocate(prices, total)
        with monkeypatch.context() as patched:
            for attribute, value in (("RANKED", 0), ("BLOCK", 4), ("PIECE", 8)):
                patched.setattr(counts, attribute, value)
            patched.setattr(sizes, "RANKED", 0)
            many = allocate(prices, total)
        assert sum(many.values()) == total
        assert all(1 <= many[n] <= weight.numel() for n, weight in layers.items())
        if allocate is magnitude:
            errors = [sum(float(prices[n].errors[size]) for n, size in sizes.items()) for sizes in (few, many)]
            assert errors[0] == pytest.approx(errors[1])


@pytest.mark.parametrize("piece", [1, 3, 7, 48, 100])
def test_errors_in_parts_are_the_errors_bit_by_bit(piece: int) -> None:
    for one, matrix in ((TopK(), table.matrix(dtype=torch.float32)), (TopRows(), table.matrix()), (TopK(), table.tied_matrix())):
        menu = one.menu(matrix)
        parts = sorted(menu.parts(piece), key=lambda part: part.first)
        ends = [0, *(part.first + part.count for part in parts)]
        assert [part.first for part in parts] == ends[:-1]
        assert ends[-1] == menu.most
        joined = torch.cat([part.errors()[:-1] for part in parts] + [parts[-1].errors()[-1:]])
        assert torch.equal(joined, menu.errors)
        assert all(torch.equal(part.whole(), menu.errors[:1]) for part in parts)
