"""Statistics of two networks against scipy, scikit-learn and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from featherweight.errors import InputError
from featherweight.evidence import compare


def maps(count: int = 12, places: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, places))


def test_correlations_row_by_row_are_scipys() -> None:
    a, b = maps(), maps(seed=1).round(1)  # with ties
    for ours, theirs in ((compare.pearson, stats.pearsonr), (compare.spearman, stats.spearmanr)):
        expected = [theirs(x, y)[0] for x, y in zip(a, b, strict=True)]
        np.testing.assert_allclose(ours(a, b), expected, atol=1e-12)
    assert compare.pearson(np.ones((1, 5)), maps(1, 5)).tolist() == [0.0]


def test_top_places_and_their_overlap() -> None:
    a = np.array([[5.0, 1, 4, 3, 2, 0], [1, 1, 1, 1, 1, 1]])
    b = np.array([[0.0, 1, 5, 4, 2, 3], [1, 1, 1, 1, 1, 1]])
    assert compare.top_places(a, 3).tolist() == [[0, 2, 3], [0, 1, 2]]
    assert compare.top_overlap(a, b, 3).tolist() == [2 / 3, 1.0]


def test_agreement_is_of_sizes_and_the_worst_come_first() -> None:
    a = maps(20, 101)
    b = a * np.where(np.random.default_rng(3).random(a.shape) < 0.5, -1, 1)  # only signs differ
    b[[4, 9]] = maps(2, 101, seed=7)
    found = compare.Agreement.of(a, b)
    same = [number for number in range(20) if number not in (4, 9)]
    assert np.allclose(found.pearson[same], 1) and np.allclose(found.spearman[same], 1) and np.allclose(found.top[same], 1)
    assert np.abs(found.signed[same]).max() < 0.5 and set(found.worst(2)) == {4, 9}
    assert found.medians()["pearson"] == pytest.approx(1) and found.medians()["p10"] < 1
    assert found.medians()["top_mean"] == pytest.approx(found.top.mean()) and found.top.mean() < found.medians()["top"] == 1
    assert compare.Agreement.of(a, a).medians() == {"top": 1, "top_mean": 1} | {
        name: pytest.approx(1) for name in ("pearson", "spearman", "signed", "p10")
    }
    with pytest.raises(InputError, match="cannot be compared"):
        compare.Agreement.of(a, a[:, 1:])
    with pytest.raises(InputError, match="at least one"):
        compare.Agreement.of(a[:0], a[:0])


def test_inside_against_outside() -> None:
    row = np.array([[0.1, -3.0, 2.0, 0.2, 0.3, 2.5], [9.0, 9, 9, 9, 9, 9]])
    # inside are 3 and 2, outside .1, .2, .3 and 2.5: 4 + 3 of 8 pairs
    assert compare.inside(row, np.array([[1, 3], [-1, -1]])) == pytest.approx(7 / 8)
    assert math.isnan(compare.inside(row, np.array([[-1, -1], [-1, -1]])))


def ordered(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each positive and negative, 1, one half or 0: what an area is the mean of."""
    high, low = scores[labels == 1], scores[labels == 0]
    return np.array([[1.0 if p > n else 0.5 if p == n else 0.0 for n in low] for p in high])


def test_areas_and_their_covariance_are_delongs_formula() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    a = (labels + rng.normal(size=60)).round(1)
    b = (labels + 2 * rng.normal(size=60)).round(1)
    found, covariance = compare.delong(labels, a, b)
    wins = [ordered(labels, scores) for scores in (a, b)]
    for one, area in zip(wins, found, strict=True):
        assert area.auc == pytest.approx(one.mean(), abs=1e-12)
    for i, j in itertools.product(range(2), range(2)):
        by_rows = np.cov(wins[i].mean(1), wins[j].mean(1))[0, 1] / len(wins[i])
        by_columns = np.cov(wins[i].mean(0), wins[j].mean(0))[0, 1] / wins[i].shape[1]
        assert covariance[i, j] == pytest.approx(by_rows + by_columns, abs=1e-14)
    assert found[0].high - found[0].auc == pytest.approx(1.96 * found[0].error, rel=1e-3) or found[0].high == 1
    lost, p = compare.difference_of_areas(labels, a, b)
    z = lost / math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert p == pytest.approx(2 * (1 - stats.norm.cdf(abs(z))), rel=1e-9)
    assert compare.difference_of_areas(labels, a, a) == (0.0, 1.0)
    with pytest.raises(InputError, match="two examples of each class"):
        compare.delong(np.array([1, 0, 0]), np.array([1.0, 2, 3]))


def test_the_interval_holds_the_true_area_95_times_of_100() -> None:
    rng, held = np.random.default_rng(1), 0
    truth = stats.norm.cdf(1 / math.sqrt(2))  # of two normals a deviation apart
    labels = np.repeat([1, 0], 60)
    for _ in range(300):
        ((area,), _covariance) = compare.delong(labels, labels + rng.normal(size=120))
        held += area.low <= truth <= area.high
    assert 0.91 < held / 300 < 0.98


def test_the_threshold_is_the_best_of_all() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 50)
    scores = (labels + rng.normal(size=50)).round(1)

    def gain(cut: float) -> float:
        return float((scores[labels == 1] > cut).mean() - (scores[labels == 0] > cut).mean())

    best = max(gain(cut) for cut in np.unique(scores) - 0.05)
    assert gain(compare.threshold(scores, labels)) == pytest.approx(best)


def test_mcnemar_is_the_exact_sign_test() -> None:
    first = np.array([1] * 9 + [0] * 2 + [1] * 5 + [0] * 4, dtype=bool)
    second = np.array([0] * 9 + [1] * 2 + [1] * 5 + [0] * 4, dtype=bool)
    found = compare.mcnemar(first, second)
    tail = sum(math.comb(11, k) for k in (0, 1, 2)) / 2**11
    assert (found.lost, found.won, found.p) == (9, 2, pytest.approx(2 * tail))
    assert compare.mcnemar(first, first).p == 1.0


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    assert compare.calibration_error(confidence, right) == pytest.approx(4 / 6 * 0.20 + 2 / 6 * 0.05)
    assert compare.calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


def test_q_values() -> None:
    p = [0.01, 0.04, 0.03, 0.5]
    assert compare.benjamini_hochberg(p).tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
