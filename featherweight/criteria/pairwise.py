"""Collaborative channel pruning (Peng et al., ICML 2019): units are chosen together, by what their pairs do to the loss.

With gates g (see `statistics`), u their mean gradient and S the curvature between them, the loss after the units of z
(z_i = 1: goes) are cut is, to second order,

    L(z) - L(0) = -u^T z + 1/2 z^T S z,                                       z in {0, 1}^c, 1^T z = c - k,

which with b = 1 - z is the paper's min b^T S_hat b, 1^T b = k (its equation 22), but for a constant. S is a mean of outer
products, from one backward pass, hence positive semi-definite. Two units whose effects cancel are cut together.

The problem is NP-hard. `choose` takes the best of a local search over swaps from several starts, `Quadratic.certificate` proves
how much better any choice could be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featherweight.criteria.bound import proved
from featherweight.criteria.ranking import Ranking, Rankings, ranked
from featherweight.criteria.statistics import Stats
from featherweight.structure import Graph


def collaborative(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """For each site the units that cost least together, chosen anew for every k. The damage is in units of the loss.

    With statistics of `curvature="outputs"` the loss is 1/2 |f - f_0|^2, whose gradient is 0; else it is the task's.
    S has rank at most the number of samples: where a site has more units, a caveat says so.
    """
    stats.require("pairs")
    if stats.curvature != "outputs":
        stats.require("gradients")
    short = [site for site in stats.sites if graph.site(site).size > stats.samples]
    caveats = [
        f"the curvature between the units of {', '.join(map(repr, short))} comes from {stats.samples} samples, fewer than the "
        "units, and so tells them apart in part only: more `samples` would choose better"
    ]
    linear = stats.gradients if stats.curvature != "outputs" else {s: torch.zeros_like(p[0]) for s, p in stats.pairs.items()}
    return ranked(stats.sites, lambda site: Quadratic(linear[site], stats.pairs[site]), caveats=caveats[: len(short)])


@dataclass(frozen=True)
class Certificate:
    """How good a choice is proved to be: no choice of as many units has a damage below `bound`."""

    value: float
    bound: float

    @property
    def gap(self) -> float:
        """(value - bound) / |value|: 0.01 means that no choice is more than 1 % better."""
        if self.value <= self.bound:
            return 0.0
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

    def certificate(self, k: int, within: float = 0.01, splits: int | None = None) -> Certificate:
        """The damage at k and a proved lower bound on that of any choice, tightened until the gap is `within` or the `splits`
        are spent (see `bound.proved`): by default 100, and above 64 units as many as take no longer, none from 300 units on.
        """
        value = self.loss(k)
        if splits is None:
            splits = int(100 * min(1.0, (64 / self.size) ** 3))
        bound = proved(self.linear, self.pairs, self.size - k, value - within * abs(value), splits)
        return Certificate(value, bound if self.linear.any() else max(bound, 0.0))  # S is positive semi-definite

    def _gone(self, k: int) -> Tensor:
        if self.checked(k) not in self._found:
            self._found[k] = choose(self.linear, self.pairs, self.size - k)
        return self._found[k]


def damage(linear: Tensor, pairs: Tensor, gone: Tensor) -> float:
    """-u^T z + 1/2 z^T S z of one z."""
    return float(gone @ pairs @ gone / 2 - linear @ gone)


def choose(linear: Tensor, pairs: Tensor, count: int, finalists: int = 8) -> Tensor:
    """min over z in {0, 1}^c, 1^T z = count, of -u^T z + 1/2 z^T S z. Approximate: see `bound` for what is proved.

    Starts: the rounded solution of the convex relaxation 0 <= z <= 1, the cheapest units one by one, and greedy growth from
    every unit in turn, of which the `finalists` best are searched, and the best end for longer. O(count c^2) for the starts,
    O(count (c - count)) a swap.
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
    patience = min(4 * size, 256)  # where sites are wide, swaps cost more than all that comes before, and bettered nothing
    return _swapped(linear, pairs, min(ends, key=lambda gone: damage(linear, pairs, gone)), patience)


def _cheapest(costs: Tensor, count: int) -> Tensor:
    gone = torch.zeros_like(costs)
    gone[costs.argsort(stable=True)[:count]] = 1
    return gone


def _grown(linear: Tensor, pairs: Tensor, count: int) -> Tensor:
    """(c, c): row i holds the choice that begins with unit i and takes the unit that costs least until there are `count`."""
    size = len(linear)
    gone = torch.eye(size, dtype=linear.dtype, device=linear.device)
    reach = pairs.clone()  # row s: S z
    for _ in range(count - 1):
        step = (reach - linear + pairs.diagonal() / 2).masked_fill(gone > 0, math.inf)
        taken = step.argmin(1)
        gone[torch.arange(size), taken] = 1
        reach += pairs[taken]
    return gone


def _swapped(linear: Tensor, pairs: Tensor, start: Tensor, patience: int = 0) -> Tensor:
    """The best choice met on a walk over swaps, each the best one, of a unit that goes for one that stays.

    The walk ends where no swap betters the choice; with `patience`, after so many swaps without a better choice: it goes on
    uphill, and units just swapped rest for a while, lest they swap back (tabu search, Glover 1989).
    """
    gone = best = start
    now = least = damage(linear, pairs, start)
    slope, half = pairs @ gone - linear, pairs.diagonal() / 2
    rests_until = torch.zeros(len(gone), dtype=torch.long, device=gone.device)
    tiny = 1e-12 * float(pairs.diagonal().sum() + linear.abs().sum())
    step = bettered = 0
    while step - bettered <= patience:
        out, into = gone.nonzero().flatten(), (gone == 0).nonzero().flatten()
        change = (half - slope)[out, None] + (half + slope)[None, into] - pairs[out][:, into]
        resting = (rests_until[out, None] > step) | (rests_until[None, into] > step)
        change = change.masked_fill(resting & (now + change >= least - tiny), math.inf)
        swap = int(change.argmin())
        now += float(change.flatten()[swap])
        if now == math.inf:  # all rest
            break
        step += 1
        leaves, joins = out[swap // len(into)], into[swap % len(into)]
        gone = gone.clone()
        gone[leaves], gone[joins] = 0, 1
        slope = slope + pairs[joins] - pairs[leaves]
        rests_until[leaves], rests_until[joins] = step + 1 + len(into) // 4, step + 1 + len(out) // 4
        if now < least - tiny:
            best, least, bettered = gone, now, step
    return best


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
