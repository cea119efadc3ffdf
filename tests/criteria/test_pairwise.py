"""Collaborative channel pruning: the problem is the paper's, the choice is the best one, and the bound is a bound."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor
from toys import task, trained

from featherweight.criteria import Quadratic, bound, collaborative
from featherweight.criteria.pairwise import choose, damage, relaxed
from featherweight.criteria.statistics import collect
from featherweight.errors import InputError


def instance(size: int, samples: int, seed: int, mixed: float = 0.3) -> tuple[Tensor, Tensor]:
    """u and S as they come of samples: units of different scale, `mixed` with each other, and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.diag(torch.randn(size, generator=generator).mul(0.7).exp()).double()
    mixing += mixed * torch.randn(size, size, generator=generator).double() / size**0.5
    each = torch.randn(samples, size, generator=generator).double() @ mixing + 0.1
    return each.mean(0), each.T @ each / samples


@pytest.mark.third
@pytest.mark.parametrize(("size", "seed"), [(6, 0), (11, 1), (16, 2), (16, 3)])
def test_the_choice_is_the_best_of_all(size: int, seed: int) -> None:
    linear, pairs = instance(size, 40, seed)
    for count in {1, size // 3, size // 2, size - 1}:
        best, chosen = oracles.least_quadratic(linear.numpy(), pairs.numpy(), count)
        gone = choose(linear, pairs, count)
        assert float(gone.sum()) == count
        assert damage(linear, pairs, gone) == pytest.approx(best, rel=1e-9)
        assert tuple(gone.nonzero().flatten().tolist()) == chosen
        assert bound.proved(linear, pairs, count, best, 3) <= best + 1e-9 * abs(best)


@pytest.mark.parametrize(("seed", "count"), [(0, 7), (7, 7), (20, 7), (37, 5), (45, 7), (59, 9)])
def test_the_choice_is_the_best_where_a_descent_over_swaps_misses_it(seed: int, count: int) -> None:
    _, pairs = instance(14, 20, seed, mixed=3.0)
    best, chosen = oracles.least_quadratic(np.zeros(14), pairs.numpy(), count)
    gone = choose(torch.zeros(14).double(), pairs, count)
    assert damage(torch.zeros(14).double(), pairs, gone) == pytest.approx(best, rel=1e-9)
    assert tuple(gone.nonzero().flatten().tolist()) == chosen


def test_the_choice_is_within_a_percent_of_a_proved_bound_at_64_units() -> None:
    """The curvature is as hard as a trained network's: the relaxation alone proves less."""
    linear, pairs = instance(64, 4096, 0, mixed=0.4)
    ranking = Quadratic(linear, pairs)
    for k in (42, 32):
        certificate = ranking.certificate(k)
        assert certificate.value == ranking.loss(k)
        assert 0 <= certificate.gap <= 0.01
    assert ranking.certificate(42, splits=0).gap > 0.02


def test_the_bound_holds_for_every_choice_and_beats_the_convex_relaxation(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, pairs = instance(12, 30, 5)
    for count in (1, 4, 11):
        values = [
            damage(linear, pairs, torch.zeros(12).double().index_fill_(0, torch.tensor(ones), 1.0))
            for ones in itertools.combinations(range(12), count)
        ]
        for rounds in (0, 10, 300):  # valid before it has converged, too
            monkeypatch.setattr(bound, "FIRST", rounds)
            assert bound.proved(linear, pairs, count, math.inf, 0) <= min(values) + 1e-9
        z = relaxed(linear, pairs, count)
        assert damage(linear, pairs, z) <= min(values) + 1e-9
        assert bound.proved(linear, pairs, count, math.inf, 0) > damage(linear, pairs, z)


def test_split_often_enough_the_bound_is_the_best_choice() -> None:
    _, pairs = instance(12, 20, 5, mixed=1.0)
    linear = torch.zeros(12).double()
    best, _ = oracles.least_quadratic(linear.numpy(), pairs.numpy(), 6)
    bounds = [bound.proved(linear, pairs, 6, best, splits) for splits in (0, 1, 2, 100)]
    assert bounds == sorted(bounds)
    assert bounds[0] < 0.95 * best  # else nothing would be left to prove
    assert best * (1 - 1e-6) <= bounds[-1] <= best * (1 + 1e-9)


def test_the_relaxation_is_solved() -> None:
    """At the minimum no mass wants to move from one unit to another."""
    linear, pairs = instance(20, 60, 7)
    z = relaxed(linear, pairs, 7, 3000)
    slope = pairs @ z - linear
    assert float(z.sum()) == pytest.approx(7)
    assert float(slope[z > 1e-6].max()) <= float(slope[z < 1 - 1e-6].min()) + 1e-4


def test_the_damage_is_the_papers_objective() -> None:
    linear, pairs = instance(9, 30, 1)
    ranking = Quadratic(linear, pairs)
    for k in range(1, 10):
        kept = ranking.keep(k)
        assert len(kept) == k
        assert ranking.loss(k) == pytest.approx(oracles.paper_quadratic(linear.numpy(), pairs.numpy(), kept), abs=1e-12)
    assert ranking.loss(9) == 0


def test_units_whose_effects_cancel_go_together() -> None:
    """Two large opposite units cost nothing together; one by one each is the most expensive."""
    each = np.random.default_rng(0).normal(size=(200, 4))
    each[:, 1] = -each[:, 0] * 5 + 0.01 * each[:, 1]
    each[:, 0] *= 5
    pairs = torch.from_numpy(each.T @ each / 200)
    ranking = Quadratic(torch.zeros(4).double(), pairs)
    assert ranking.keep(2) == (2, 3)
    assert set(ranking.keep(3)) >= {0, 1}  # not nested: alone, neither goes
    assert ranking.loss(2) < ranking.loss(3)


def test_renumbered_units_give_the_renumbered_choice() -> None:
    linear, pairs = instance(24, 60, 4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    first, second = Quadratic(linear, pairs), Quadratic(linear[order], pairs[order][:, order])
    for k in (3, 12, 20):
        assert sorted(order[list(second.keep(k))].tolist()) == list(first.keep(k))


def test_zero_curvature_leaves_the_linear_part() -> None:
    linear = torch.tensor([3.0, 1.0, 2.0, -1.0]).double()
    ranking = Quadratic(linear, torch.zeros(4, 4).double())
    assert ranking.keep(2) == (1, 3) and ranking.loss(2) == -5
    assert ranking.certificate(2).bound <= -5
    assert Quadratic(0 * linear, torch.zeros(4, 4).double()).certificate(2).bound == 0


def test_keeping_the_outputs_has_no_linear_part() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(), ["pairs", "gradients"], samples=128, curvature="outputs")
    for site, ranking in collaborative(model, graph, stats).items():
        assert isinstance(ranking, Quadratic)
        assert not ranking.linear.any() and torch.equal(ranking.pairs, stats.pairs[site])
        assert all(ranking.loss(k) >= 0 for k in range(1, ranking.size))


def test_bad_sizes_are_errors_and_too_few_samples_are_told() -> None:
    linear, pairs = instance(5, 20, 0)
    for k in (0, 6):
        with pytest.raises(InputError, match="can keep 1 to 5"):
            Quadratic(linear, pairs).keep(k)
    model, graph = trained()
    stats = collect(model, graph, task(size=4), ["pairs", "gradients"], samples=4)
    found = collaborative(model, graph, stats)
    assert set(found) == set(stats.sites) and not found.left_out
    assert len(found.caveats) == 1 and "'block.conv1'" in found.caveats[0] and "from 4 samples, fewer than" in found.caveats[0]
    assert collaborative(model, graph, collect(model, graph, task(), ["pairs", "gradients"], samples=128)).caveats == []
