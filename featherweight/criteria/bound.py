"""What no choice of units can cost less than: the proof beside the local search of `pairwise`.

With Y = [1 z]^T [1 z] the damage of the units of z (z_i = 1: goes) is <C, Y>. Y is positive semi-definite, orthogonal to
(-count, 1, .., 1) and of trace count + 1, and its entries lie in [0, 1] with its first row on its diagonal. The least <C, Y>
over such Y bounds the damage (a semidefinite relaxation). ADMM splits the spectral half of what is asked of Y (Y = V R V^T) from
the entries (Oliveira, Wolkowicz, Xu 2018, the same for the quadratic assignment problem). For *any* multiplier M, converged or
not,

    min over entries of <C + M, Y>  -  (count + 1) lambda_max(V^T M V)

is a bound; its first term has a closed form, since row i of a feasible Y sums to count * Y_ii and no entry exceeds Y_ii.
On trained networks that comes within 1 to 4 % of the best choice. Branch and bound closes the rest: `proved` splits the choices
by whether a unit goes or stays, which is again such a problem with one unit less, and bounds the halves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST, LATER = 400, 100  # rounds of ADMM: a half starts from the multiplier of the whole


def proved(linear: Tensor, pairs: Tensor, count: int, enough: float, splits: int) -> float:
    """A number that -u^T z + 1/2 z^T S z is not below for any z in {0, 1}^c with 1^T z = count.

    The relaxation's bound, then the least of its parts', of which the weakest is split in two, until that reaches `enough` or as
    many have been split. Costs `FIRST` eigendecompositions of size c and twice `LATER` a split.
    """
    parts = [_bounded(*_homogeneous(linear, pairs), count, FIRST)]
    for _ in range(splits):
        weakest = min(parts, key=lambda part: part.bound)
        if weakest.bound >= enough or weakest.entries is None:
            break
        parts.remove(weakest)
        parts += _halves(weakest)
    return min(part.bound for part in parts)


@dataclass(frozen=True, eq=False)
class _Part:
    """All choices that agree about some units: `count` of the others go."""

    cost: Tensor  # C, (others + 1, others + 1): what the settled units cost is in its corner
    count: int
    bound: float
    entries: Tensor | None  # where the relaxation ended; None: no choice is left, `bound` is what the only one costs
    multiplier: Tensor


def _homogeneous(linear: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C, and the two matrices that ADMM starts from."""
    size = len(linear)
    cost = linear.new_zeros(size + 1, size + 1)
    cost[1:, 1:] = pairs / 2
    cost[0, 1:] = cost[1:, 0] = -linear / 2
    return cost, torch.zeros_like(cost), torch.zeros_like(cost)


def _halves(part: _Part) -> Iterator[_Part]:
    """The choices by which a unit goes, and those by which it stays: the one about which most is undecided."""
    assert part.entries is not None
    gone = part.entries[0, 1:]
    unit = 1 + int((gone * (1 - gone) * part.cost.diagonal()[1:]).argmax())
    stays = torch.eye(len(part.cost), dtype=part.cost.dtype, device=part.cost.device)
    stays = torch.cat([stays[:unit], stays[unit + 1 :]])
    goes = stays.clone()
    goes[0, unit] = 1  # its row and column of Y are those of the constant
    for settled, count in ((goes, part.count - 1), (stays, part.count)):
        cost, multiplier = (settled @ matrix @ settled.T for matrix in (part.cost, part.multiplier))
        yield _bounded(cost, stays @ part.entries @ stays.T, multiplier, count, LATER, part.bound)


def _bounded(cost: Tensor, entries: Tensor, multiplier: Tensor, count: int, rounds: int, known: float = -math.inf) -> _Part:
    """The relaxation, from where `entries` and `multiplier` are. `known`: a bound that there is already."""
    size = len(cost) - 1
    if count in (0, size) or not cost.any():
        only = torch.full_like(cost[0], float(count == size))
        only[0] = 1
        return _Part(cost, count, max(known, float(only @ cost @ only)), None, multiplier)
    scale = float(cost.norm())
    whole, cost, multiplier = cost, cost / scale, multiplier / scale
    normal = torch.cat([cost.new_tensor([-float(count)]), cost.new_ones(size)])
    plane = torch.linalg.qr(torch.cat([normal[:, None], torch.eye(size + 1).to(cost)[:, 1:]], 1)).Q[:, 1:]
    weight, best = 0.1 / size, -math.inf
    for number in range(rounds + 1):
        if number % 25 == 0 or number == rounds:
            spectral = float(torch.linalg.eigvalsh(plane.T @ multiplier @ plane)[-1])
            best = max(best, _least_entries(cost + multiplier, count) - (count + 1) * spectral)
        values, vectors = torch.linalg.eigh(plane.T @ (entries + multiplier / weight) @ plane)
        values = _on_simplex(values, count + 1)
        spectral_half = plane @ (vectors * values) @ vectors.T @ plane.T
        entries = _entries(spectral_half - (cost + multiplier) / weight)
        multiplier = multiplier + 1.6 * weight * (entries - spectral_half)
    rounding = 1e-12 * (size + 1)  # never lifts it
    return _Part(whole, count, max(known, (best - rounding) * scale), entries, multiplier * scale)


def _entries(free: Tensor) -> Tensor:
    """The nearest matrix with entries in [0, 1], 1 in its corner, and one vector as first row, first column and diagonal."""
    chosen = ((free.diagonal()[1:] + free[0, 1:] + free[1:, 0]) / 3).clamp(0, 1)
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
    excess = (falling.cumsum(0) - total) / torch.arange(1, len(values) + 1, device=values.device)
    last = int((falling > excess).nonzero()[-1])
    return (values - excess[last]).clamp_min(0)
