"""Collaborative channel pruning (Peng et al., ICML 2019): units are chosen together, by what their pairs do to the loss.

With gates g (see `stats`), u their mean gradient and S the curvature between them, the loss after the units of z (z_i = 1: goes)
are cut is, to second order,

    L(z) - L(0) = -u^T z + 1/2 z^T S z,                                       z in {0, 1}^c, 1^T z = c - k,

which with b = 1 - z is the paper's min b^T S_hat b, 1^T b = k (its equation 22), but for a constant. S is a mean of outer
products, from one backward pass, hence positive semi-definite. Two units whose effects cancel are cut together.

The problem is NP-hard. `choose` takes the best of a local search over swaps from several starts; `lower_bound` proves how much
better any choice could be, by a semidefinite relaxation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featherweight.criteria.ranking import Ranking, require_samples
from featherweight.stats import Stats
from featherweight.structure import Graph


def collaborative(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """For each site the units that cost least together, chosen anew for every k. The damage is in units of the loss.

    With statistics of `curvature="outputs"` the loss is 1/2 |f - f_0|^2, whose gradient is 0; else it is the task's.
    Raises TooFewSamples where S could not tell the units of a site apart: it has rank at most the number of samples.
    """
    stats.require("pairs")
    if stats.curvature != "outputs":
        stats.require("gradients")
    require_samples(stats, [(site, graph.site(site).size) for site in stats.sites], "the curvature of pairs is estimated")
    linear = stats.gradients if stats.curvature != "outputs" else {s: torch.zeros_like(p[0]) for s, p in stats.pairs.items()}
    return {site: Quadratic(linear[site], stats.pairs[site]) for site in stats.sites}


@dataclass(frozen=True)
class Certificate:
    """How good a choice is proved to be: no choice of as many units has a damage below `bound`."""

    value: float
    bound: float

    @property
    def gap(self) -> float:
        """(value - bound) / |value|: 0.01 means that no choice is more than 1 % better."""
        return (self.value - self.bound) / abs(self.value) if self.value else math.inf


@dataclass(frozen=True, eq=False)
class Quadratic(Ranking):
    """Keep the k units whose complement z minimises -u^T z + 1/2 z^T S z."""

    linear: Tensor  # u, (units,) float64
    pairs: Tensor  # S, (units, units) float64, positive semi-definite
    _found: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.linear)

    def keep(self, k: int) -> tuple[int, ...]:
        return tuple((self._gone(k) == 0).nonzero().flatten().tolist())

    def loss(self, k: int) -> float:
        return damage(self.linear, self.pairs, self._gone(k))

    def certificate(self, k: int, rounds: int = 400) -> Certificate:
        """The damage at k and a proved lower bound on that of any choice. Costs `rounds` eigendecompositions of size c + 1."""
        return Certificate(self.loss(k), lower_bound(self.linear, self.pairs, self.size - self.checked(k), rounds))

    def _gone(self, k: int) -> Tensor:
        if self.checked(k) not in self._found:
            self._found[k] = choose(self.linear, self.pairs, self.size - k)
        return self._found[k]


def damage(linear: Tensor, pairs: Tensor, gone: Tensor) -> float:
    """-u^T z + 1/2 z^T S z of one z."""
    return float(gone @ pairs @ gone / 2 - linear @ gone)


# --- choosing ------------------------------------------------------------------------------------------------------------


def choose(linear: Tensor, pairs: Tensor, count: int, finalists: int = 8) -> Tensor:
    """min over z in {0, 1}^c, 1^T z = count, of -u^T z + 1/2 z^T S z. Approximate: no swap of two units betters it.

    Starts: the rounded solution of the convex relaxation 0 <= z <= 1, the cheapest units one by one, and greedy growth from
    every unit in turn, of which the `finalists` best are searched. O(count c^2) for the starts, O(count (c - count)) a swap.
    """
    size = len(linear)
    if count in (0, size):
        return torch.full_like(linear, float(count == size))
    alone = pairs.diagonal() / 2 - linear
    grown = _grown(linear, pairs, count)
    costs = torch.einsum("sc,cd,sd->s", grown, pairs, grown) / 2 - grown @ linear
    best = grown[costs.argsort(stable=True)[:finalists]]
    starts = [_cheapest(-relaxed(linear, pairs, count), count), _cheapest(alone, count), *best]
    ends = [_swapped(linear, pairs, start) for start in starts]
    return min(ends, key=lambda gone: damage(linear, pairs, gone))


def _cheapest(costs: Tensor, count: int) -> Tensor:
    gone = torch.zeros_like(costs)
    gone[costs.argsort(stable=True)[:count]] = 1
    return gone


def _grown(linear: Tensor, pairs: Tensor, count: int) -> Tensor:
    """(c, c): row i holds the choice that begins with unit i and takes the unit that costs least until there are `count`."""
    size = len(linear)
    gone = torch.eye(size, dtype=linear.dtype)
    reach = pairs.clone()  # row s: S z
    for _ in range(count - 1):
        step = (reach - linear + pairs.diagonal() / 2).masked_fill(gone > 0, math.inf)
        taken = step.argmin(1)
        gone[torch.arange(size), taken] = 1
        reach += pairs[taken]
    return gone


def _swapped(linear: Tensor, pairs: Tensor, start: Tensor) -> Tensor:
    """The end of the steepest descent over swaps of one unit that goes for one that stays."""
    gone = start.clone()
    tiny = 1e-12 * float(pairs.diagonal().sum() + linear.abs().sum())
    while True:
        slope, half = pairs @ gone - linear, pairs.diagonal() / 2
        out, into = gone.nonzero().flatten(), (gone == 0).nonzero().flatten()
        change = (half - slope)[out, None] + (half + slope)[None, into] - pairs[out][:, into]
        least = int(change.argmin())
        if float(change.flatten()[least]) >= -tiny:
            return gone
        gone[out[least // len(into)]], gone[into[least % len(into)]] = 0, 1


def relaxed(linear: Tensor, pairs: Tensor, count: int, steps: int = 300) -> Tensor:
    """argmin over 0 <= z <= 1, 1^T z = count, of -u^T z + 1/2 z^T S z, by accelerated projected gradients."""
    top = float(torch.linalg.eigvalsh(pairs)[-1])
    if top <= 0:
        return _cheapest(-linear, count)
    z = ahead = torch.full_like(linear, count / len(linear))
    momentum = 1.0
    for _ in range(steps):
        after = _on_slice(ahead - (pairs @ ahead - linear) / top, count)
        larger = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = after + (momentum - 1) / larger * (after - z)
        z, momentum = after, larger
    return z


def _on_slice(z: Tensor, count: int) -> Tensor:
    """The nearest point of 0 <= z <= 1, 1^T z = count: clip(z - t, 0, 1), where the sum, linear between the z_i and z_i - 1 as
    t falls, reaches the count."""
    knots, order = torch.cat([z, z - 1]).sort(descending=True)
    growing = torch.where(order < len(z), 1.0, -1.0).to(z).cumsum(0)  # entries strictly between 0 and 1 below each knot
    sums = torch.cat([z.new_zeros(1), ((knots[:-1] - knots[1:]) * growing[:-1]).cumsum(0)])
    at = int((sums < count).sum()) - 1
    return (z - (knots[at] - (count - sums[at]) / growing[at])).clamp(0, 1)


# --- proving -------------------------------------------------------------------------------------------------------------


def lower_bound(linear: Tensor, pairs: Tensor, count: int, rounds: int = 400) -> float:
    """A number that -u^T z + 1/2 z^T S z is not below for any z in {0, 1}^c with 1^T z = count.

    With Y = [1 z]^T [1 z] the damage is <C, Y>. Y is positive semi-definite, orthogonal to (-count, 1, .., 1) and of trace
    count + 1, and its entries lie in [0, 1] with its first row on its diagonal. ADMM splits the spectral half of this
    (Y = V R V^T) from the entries (Oliveira, Wolkowicz, Xu 2018, the same for the quadratic assignment problem). For *any*
    multiplier M, converged or not,

        min over entries of <C + M, Y>  -  (count + 1) lambda_max(V^T M V)

    is a bound; its first term has a closed form, since row i of a feasible Y sums to count * Y_ii and no entry exceeds Y_ii.
    """
    size = len(linear)
    if count in (0, size):
        return damage(linear, pairs, torch.full_like(linear, float(count == size)))
    cost = linear.new_zeros(size + 1, size + 1)
    cost[1:, 1:] = pairs / 2
    cost[0, 1:] = cost[1:, 0] = -linear / 2
    scale = float(cost.norm())
    if scale == 0:
        return 0.0
    cost = cost / scale
    normal = torch.cat([linear.new_tensor([-float(count)]), linear.new_ones(size)])
    plane = torch.linalg.qr(torch.cat([normal[:, None], torch.eye(size + 1, dtype=linear.dtype)[:, 1:]], 1)).Q[:, 1:]
    entries = _entries(torch.full_like(cost, count * (count - 1) / (size * max(size - 1, 1))), count / size)
    multiplier = torch.zeros_like(cost)
    weight, best = 0.1 / size, -math.inf
    for number in range(rounds + 1):
        if number % 25 == 0 or number == rounds:
            spectral = float(torch.linalg.eigvalsh(plane.T @ multiplier @ plane)[-1])
            best = max(best, _least_entries(cost + multiplier, count) - (count + 1) * spectral)
        values, vectors = torch.linalg.eigh(plane.T @ (entries + multiplier / weight) @ plane)
        values = _on_simplex(values, count + 1)
        spectral_half = plane @ (vectors * values) @ vectors.T @ plane.T
        free = spectral_half - (cost + multiplier) / weight
        on_diagonal = (free.diagonal()[1:] + free[0, 1:] + free[1:, 0]) / 3
        entries = _entries(free, on_diagonal.clamp(0, 1))
        multiplier = multiplier + 1.6 * weight * (entries - spectral_half)
    return (best - 1e-12 * (size + 1)) * scale  # rounding never lifts it


def _entries(free: Tensor, chosen: Tensor | float) -> Tensor:
    """The matrix with entries in [0, 1] and `chosen` in its first row, first column and on its diagonal."""
    result = free.clamp(0, 1)
    result[0, 1:] = result[1:, 0] = result.diagonal()[1:] = chosen
    result[0, 0] = 1
    return result


def _least_entries(cost: Tensor, count: int) -> float:
    """min <cost, Y> over Y_00 = 1, Y_0i = Y_i0 = Y_ii, 0 <= Y_ij <= Y_ii, row sums count * Y_ii, sum of Y_ii = count."""
    inner = cost[1:, 1:].clone()
    inner.fill_diagonal_(math.inf)
    rows = inner.sort(1).values[:, : count - 1].sum(1)
    return float(cost[0, 0] + (2 * cost[0, 1:] + cost.diagonal()[1:] + rows).sort().values[:count].sum())


def _on_simplex(values: Tensor, total: float) -> Tensor:
    """The nearest vector with entries >= 0 of this sum; `values` rise."""
    falling = values.flip(0)
    excess = (falling.cumsum(0) - total) / torch.arange(1, len(values) + 1)
    last = int((falling > excess).nonzero()[-1])
    return (values - excess[last]).clamp_min(0)
