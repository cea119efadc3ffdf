"""One-dimensional k-means: exact by dynamic programming for small inputs, a stated approximation above."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EXACT_LIMIT = 100_000
BINS = 8_192


def centroids(values: Tensor, count: int) -> Tensor:
    """argmin over c of sum_i min_j (values_i - c_j)^2: (n,) -> (count,) ascending, on the values' device.

    Fewer than `count` distinct values: each is a centroid and the last is repeated. Exact for fewer than EXACT_LIMIT values,
    in O(count n log n) (dynamic programming over the sorted values, divide and conquer on the last cluster's start; Wang and
    Song 2011, Gronlund et al. 2017). Above, the same programme runs on BINS bins of equal count, and Lloyd's iteration on
    all the values, with prefix sums, follows: a local optimum, never worse than that start.
    """
    ordered = values.double().sort().values
    if ordered.numel() < EXACT_LIMIT:
        distinct, multiplicity = ordered.unique_consecutive(return_counts=True)
        return _optimal(distinct, multiplicity.double(), count).to(values.dtype)
    edges = torch.linspace(0, ordered.numel(), BINS + 1, device=values.device).round().long()
    sums = _prefix(ordered)
    size = (edges[1:] - edges[:-1]).clamp_min(1).double()
    start = _optimal((sums[edges[1:]] - sums[edges[:-1]]) / size, size, count)
    return _lloyd(ordered, sums, start).to(values.dtype)


def nearest(values: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest of the ascending `centers`, ties to the lower one; any shape."""
    return torch.bucketize(values, (centers[1:] + centers[:-1]) / 2)


def _optimal(points: Tensor, weights: Tensor, count: int) -> Tensor:
    """Exact weighted k-means of ascending `points`: the optimal clusters are intervals, so a DP over their ends finds them."""
    n = points.numel()
    if n <= count:
        return torch.cat([points, points[-1:].expand(count - n)]) if n else points.new_zeros(count)
    points = points - (shift := points.mean())  # keeps the cost differences well conditioned
    mass, first, second = _prefix(weights), _prefix(weights * points), _prefix(weights * points * points)

    def cost(start: Tensor, stop: Tensor) -> Tensor:
        total = (mass[stop] - mass[start]).clamp_min(torch.finfo(torch.float64).tiny)
        return ((second[stop] - second[start]) - (first[stop] - first[start]) ** 2 / total).clamp_min(0)

    stops = torch.arange(n + 1, device=points.device)
    best = cost(torch.zeros_like(stops), stops)  # best[j]: the cost of the first j points in the clusters so far
    starts = []
    for _ in range(1, count):
        best, start = _layer(best, cost, n)
        starts.append(start)
    ends = [n]
    for start in reversed(starts):
        ends.append(int(start[ends[-1]]))
    bounds = torch.tensor([0, *reversed(ends)], device=points.device)
    # with fewer clusters than asked for (zero-width intervals), the neighbours' mean keeps the result ascending
    means = (first[bounds[1:]] - first[bounds[:-1]]) / (mass[bounds[1:]] - mass[bounds[:-1]])
    filled = torch.where(means.isnan(), points[bounds[1:].clamp_max(n - 1)], means)
    return (filled + shift).sort().values


def _layer(previous: Tensor, cost: Callable[[Tensor, Tensor], Tensor], n: int) -> tuple[Tensor, Tensor]:
    """best[j] = min over i <= j of previous[i] + cost(i, j), and its argmin, for all j at once.

    The argmin is monotone in j, so each halving level needs only the range between its solved neighbours: all the ranges of a
    level are laid end to end and reduced together.
    """
    device = previous.device
    best = torch.zeros(n + 1, dtype=torch.float64, device=device)
    where = torch.zeros(n + 1, dtype=torch.int64, device=device)
    step = 1 << (n.bit_length() - 1)  # the largest power of two that is at most n
    while step >= 1:
        targets = torch.arange(step, n + 1, 2 * step, device=device)
        right = targets + step
        low = where[targets - step]
        high = torch.minimum(torch.where(right <= n, where[right.clamp_max(n)], targets), targets)
        width = high - low + 1
        segment = torch.repeat_interleave(torch.arange(targets.numel(), device=device), width)
        start = low[segment] + torch.arange(segment.numel(), device=device) - (width.cumsum(0) - width)[segment]
        total = previous[start] + cost(start, targets[segment])
        least = torch.full((targets.numel(),), torch.inf, dtype=torch.float64, device=device)
        least.scatter_reduce_(0, segment, total, "amin")
        first = torch.full_like(targets, n + 1)
        first.scatter_reduce_(0, segment, torch.where(total == least[segment], start, n + 1), "amin")
        best[targets], where[targets] = least, first
        step //= 2
    return best, where


def _lloyd(ordered: Tensor, sums: Tensor, centers: Tensor, rounds: int = 200) -> Tensor:
    """Lloyd's iteration on sorted values: clusters are intervals, so a round costs O(count log n)."""
    ends = torch.zeros(1, dtype=torch.int64, device=ordered.device), torch.full((1,), ordered.numel(), device=ordered.device)
    for _ in range(rounds):
        cuts = torch.cat([ends[0], torch.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2), ends[1]])
        size = cuts[1:] - cuts[:-1]
        moved = torch.where(size > 0, (sums[cuts[1:]] - sums[cuts[:-1]]) / size.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def _prefix(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
