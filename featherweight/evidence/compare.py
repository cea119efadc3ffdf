"""Statistics of two networks on the same examples: arrays in, numbers out. No network is called here.

Maps are (count, places), a number a place of each example; scores, labels and predictions are (count,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts load when they are first used: stats takes a second, and most commands need none of it

from featherweight.errors import InputError

Array = np.ndarray
TOP = 10  # places that count as an example's evidence
BINS = 15  # of the calibration error


# --- maps ----------------------------------------------------------------------------------------------------------------


def pearson(a: Array, b: Array) -> Array:
    """Correlation of each row of `a` with the same row of `b`, (count,); 0 where one of them is constant."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), size, out=np.zeros(len(a)), where=size > 0)


def spearman(a: Array, b: Array) -> Array:
    """The same of the ranks, ties at their mean."""
    return pearson(scipy.stats.rankdata(a, axis=1), scipy.stats.rankdata(b, axis=1))


def top_places(maps: Array, count: int = TOP) -> Array:
    """The `count` largest places of each row, (rows, count); of equals the first."""
    return np.argsort(-maps, axis=1, kind="stable")[:, :count]


def top_overlap(a: Array, b: Array, count: int = TOP) -> Array:
    """The share of the `count` largest places of each row that both have."""
    ours, theirs = np.zeros(a.shape, dtype=bool), np.zeros(b.shape, dtype=bool)
    np.put_along_axis(ours, top_places(a, count), True, axis=1)
    np.put_along_axis(theirs, top_places(b, count), True, axis=1)
    return (ours & theirs).sum(axis=1) / count


@dataclass(frozen=True)
class Agreement:
    """How alike two maps are, of each example (count,). Pearson and `spearman` are of sizes; `signed` is Spearman with signs."""

    pearson: Array
    spearman: Array
    signed: Array
    top: Array

    @classmethod
    def of(cls, a: Array, b: Array) -> Agreement:
        """Of two maps (count, places). Raises InputError where their shapes differ or there are no examples."""
        if a.shape != b.shape or not len(a):
            raise InputError(f"maps of shapes {a.shape} and {b.shape} cannot be compared: give the same examples, at least one")
        sizes = np.abs(a), np.abs(b)
        return cls(pearson(*sizes), spearman(*sizes), spearman(a, b), top_overlap(*sizes, min(TOP, max(1, a.shape[1] // 4))))

    def medians(self) -> dict[str, float]:
        """Of the examples; `p10` is the tenth percentile of Pearson, what the worst tenth stays under, and `top_mean` the mean
        of `top`, whose medians go in steps of a tenth."""
        named = {name: float(np.median(getattr(self, name))) for name in MEASURES}
        return named | {"p10": float(np.quantile(self.pearson, 0.1)), "top_mean": float(np.mean(self.top))}

    def worst(self, count: int = 10) -> list[int]:
        """Numbers of the examples whose maps agree least, the worst first."""
        return [int(number) for number in np.argsort(self.pearson, kind="stable")[:count]]


MEASURES = ("pearson", "spearman", "signed", "top")


def inside(maps: Array, places: Array) -> float:
    """The share of pairs, one place inside a planted site and one outside, of one example, where the larger size is inside; over
    all examples with a site. places: (count, 2), from and to, -1 where there is none."""
    found = []
    for row, (start, end) in zip(np.abs(maps), places, strict=True):
        if start < 0:
            continue
        held = np.zeros(len(row), dtype=bool)
        held[start:end] = True
        found.append(_share_above(row[held], row[~held]))
    return float(np.mean(found)) if found else math.nan


def _share_above(high: Array, low: Array) -> float:
    ranks = scipy.stats.rankdata(np.concatenate([high, low]))[: len(high)]
    return float((ranks.sum() - len(high) * (len(high) + 1) / 2) / (len(high) * len(low)))


# --- scores against labels -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Area:
    """The area under a ROC curve, with DeLong's standard error and 95 % interval."""

    auc: float
    error: float
    low: float
    high: float


def delong(labels: Array, *scores: Array) -> tuple[list[Area], Array]:
    """Areas of one or more scores of the same examples, and the covariance of the areas (DeLong et al. 1988).

    Raises InputError without two examples of each label.
    """
    positive = labels == 1
    n, m = int(positive.sum()), int((~positive).sum())
    if min(n, m) < 2:
        raise InputError(f"an area under the curve needs two examples of each class, given {n} positive and {m} negative ones")
    above, below, areas = [], [], []
    for score in scores:
        high, low = score[positive], score[~positive]
        everything = scipy.stats.rankdata(np.concatenate([high, low]))
        of_high = (everything[:n] - scipy.stats.rankdata(high)) / m  # for each positive, the share of negatives below it
        of_low = 1 - (everything[n:] - scipy.stats.rankdata(low)) / n
        above.append(of_high)
        below.append(of_low)
        areas.append(float(of_high.mean()))
    covariance = np.atleast_2d(np.cov(np.stack(above))) / n + np.atleast_2d(np.cov(np.stack(below))) / m
    found = []
    for number, area in enumerate(areas):
        error = math.sqrt(max(0.0, covariance[number, number]))
        found.append(Area(area, error, max(0.0, area - 1.959964 * error), min(1.0, area + 1.959964 * error)))
    return found, covariance


def difference_of_areas(labels: Array, a: Array, b: Array) -> tuple[float, float]:
    """(area of a - area of b, two-sided p that there is none), of the same examples."""
    (first, second), covariance = delong(labels, a, b)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    lost = first.auc - second.auc
    if variance <= 0:
        return lost, 1.0 if lost == 0 else 0.0
    return lost, float(2 * scipy.stats.norm.sf(abs(lost) / math.sqrt(variance)))


def threshold(scores: Array, labels: Array) -> float:
    """Where a network's own scores tell the labels apart best: the largest share of positives above less that of negatives above.
    Half-way between two scores; above it is class 1. Choose it on other examples than those that are looked at."""
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], labels[order] == 1
    gain = np.cumsum(np.where(positive, 1 / max(1, positive.sum()), -1 / max(1, (~positive).sum())))
    gain[:-1][ranked[:-1] == ranked[1:]] = -np.inf  # no threshold is between equals
    best = int(np.argmax(gain))
    return float(ranked[best] + (ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1)) / 2


@dataclass(frozen=True)
class McNemar:
    """Examples that only the first network gets right, those that only the second does, and the exact two-sided p that both
    are as likely."""

    lost: int
    won: int
    p: float


def mcnemar(first_right: Array, second_right: Array) -> McNemar:
    """Of two networks' right answers (count,) of bool."""
    lost, won = int((first_right & ~second_right).sum()), int((~first_right & second_right).sum())
    return McNemar(lost, won, float(scipy.stats.binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0)


def calibration_error(confidence: Array, right: Array, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): the mean distance of confidence from accuracy over bins of equal width.

    confidence   of the answer that was given, in [0, 1]
    """
    place = np.clip((confidence * bins).astype(int), 0, bins - 1)
    total = 0.0
    for number in range(bins):
        here = place == number
        if here.any():
            total += here.mean() * abs(confidence[here].mean() - right[here].mean())
    return float(total)


def benjamini_hochberg(p: Sequence[float]) -> Array:
    """q-values of p-values, in their order."""
    return np.asarray(scipy.stats.false_discovery_control(np.clip(np.asarray(p, dtype=np.float64), 0, 1)))
