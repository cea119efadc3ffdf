"""One-dimensional k-means: exact by dynamic programming for small inputs, a stated approximation above."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_LIMIT = 100_000
BINS = 8_192  # points of the programme above that limit
CELLS = 1 << 16  # of equal width, in which the values are counted there
SAMPLE, OUTSIDE = 1 << 16, 1e-3  # of which the range of the cells is taken; the share beyond it at either end


def centroids(values: Tensor, count: int) -> Tensor:
    """argmin over c of sum_i min_j (values_i - c_j)^2: (n,) -> (count,) ascending, on the values' device.

    Fewer than `count` distinct values: each is a centroid and the last is repeated. Exact for fewer than EXACT_LIMIT values,
    in O(count n log n) (dynamic programming over the sorted values, divide and conquer on the last cluster's start; Wang and
    Song 2011, Gronlund et al. 2017). Above, in O(n): the values are counted in CELLS cells, those beyond the cells' range are
    kept as they are, the same programme runs on BINS groups of equal mass, and Lloyd's iteration on all cells follows from
    there: a local optimum for values that are moved by at most a cell's width.
    """
    if values.numel() < EXACT_LIMIT:
        distinct, multiplicity = values.double().sort().values.unique_consecutive(return_counts=True)
        return _optimal(distinct, multiplicity.double(), count).to(values.dtype)
    points, weights = _counted(values.reshape(-1))
    if points.numel() <= max(BINS, count):
        return _optimal(points, weights, count).to(values.dtype)
    mass, sums = _prefix(weights), _prefix(weights * points)
    edges = torch.searchsorted(mass, torch.linspace(0, float(mass[-1]), BINS + 1, dtype=mass.dtype, device=mass.device))
    edges = edges.clamp_max(points.numel()).unique()
    size = mass[edges[1:]] - mass[edges[:-1]]
    start = _optimal((sums[edges[1:]] - sums[edges[:-1]]) / size, size, count)
    return _lloyd(points, mass, sums, start).to(values.dtype)


def _counted(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) -> ascending points and how many values each stands for, both float64: the means of the cells, and the values
    beyond the range of the cells one by one (all values, where most are equal and there is no such range)."""
    sample = values[:: max(1, values.numel() // SAMPLE)].double().sort().values
    skipped = int(OUTSIDE * sample.numel())
    low, high = float(sample[skipped]), float(sample[-1 - skipped])
    width = (high - low) / CELLS
    if not width > 0:
        return _distinct(values)
    cell = ((values.double() - low) / width).floor_()
    inside = (cell >= 0) & (cell < CELLS)
    kept = values[inside].double()
    index = cell[inside].int()
    weights = torch.bincount(index, minlength=CELLS).double()
    sums = torch.bincount(index, kept - low, minlength=CELLS)
    filled = weights > 0
    rest, number = _distinct(values[~inside])
    points = torch.cat([low + sums[filled] / weights[filled], rest])
    order = points.argsort()
    return points[order], torch.cat([weights[filled], number])[order]


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    distinct, number = values.double().unique(return_counts=True)
    return distinct, number.double()


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
    best = (second - first**2 / mass.clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0)  # of the first j, in one cluster
    starts = []
    for _ in range(1, count):
        best, start = _layer(best, mass, first, second, n)
        starts.append(start)
    ends = [n]
    for start in reversed(starts):
        ends.append(int(start[ends[-1]]))
    bounds = torch.tensor([0, *reversed(ends)], device=points.device)
    # with fewer clusters than asked for (zero-width intervals), the neighbours' mean keeps the result ascending
    means = (first[bounds[1:]] - first[bounds[:-1]]) / (mass[bounds[1:]] - mass[bounds[:-1]])
    filled = torch.where(means.isnan(), points[bounds[1:].clamp_max(n - 1)], means)
    return (filled + shift).sort().values


def _layer(previous: Tensor, mass: Tensor, first: Tensor, second: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """best[j] = min over i <= j of previous[i] + cost(i, j), and its argmin, for all j at once; all (n + 1,).

    cost(i, j) = (second_j - second_i) - (first_j - first_i)^2 / (mass_j - mass_i). The argmin is monotone in j, so each halving
    level needs only the range between its solved neighbours: all the ranges of a level are laid end to end and reduced together.
    """
    device = previous.device
    best = torch.zeros(n + 1, dtype=torch.float64, device=device)
    where = torch.zeros(n + 1, dtype=torch.int64, device=device)
    carried = previous - second
    step = 1 << (n.bit_length() - 1)  # the largest power of two that is at most n
    while step >= 1:
        targets = torch.arange(step, n + 1, 2 * step, device=device)
        right = targets + step
        low = where[targets - step]
        high = torch.minimum(torch.where(right <= n, where[right.clamp_max(n)], targets), targets)
        width = high - low + 1
        begin = width.cumsum(0) - width
        segment = torch.repeat_interleave(torch.arange(targets.numel(), device=device), width)
        start = torch.arange(segment.numel(), device=device) + (low - begin)[segment]
        span = mass[targets][segment].sub_(mass[start]).clamp_min_(torch.finfo(torch.float64).tiny)
        total = first[targets][segment].sub_(first[start]).square_().div_(span).neg_().add_(carried[start])
        least = torch.segment_reduce(total, "min", lengths=width, unsafe=True)
        reached = (total == least[segment]).nonzero().squeeze(1)
        best[targets] = least + second[targets]
        where[targets] = torch.full_like(targets, n + 1).scatter_reduce_(0, segment[reached], start[reached], "amin")
        step //= 2
    return best.clamp_min_(0), where


def _lloyd(points: Tensor, mass: Tensor, sums: Tensor, centers: Tensor, rounds: int = 200) -> Tensor:
    """Lloyd's iteration on ascending points with prefix sums: clusters are intervals, so a round costs O(count log n)."""
    ends = torch.zeros(1, dtype=torch.int64, device=points.device), torch.full((1,), points.numel(), device=points.device)
    for _ in range(rounds):
        cuts = torch.cat([ends[0], torch.searchsorted(points, (centers[1:] + centers[:-1]) / 2), ends[1]])
        size = mass[cuts[1:]] - mass[cuts[:-1]]
        moved = torch.where(size > 0, (sums[cuts[1:]] - sums[cuts[:-1]]) / size.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def _prefix(values: Tensor) -> Tensor:
    return torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
