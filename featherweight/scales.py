"""Exact scale fitting: the multiple of a few fixed levels that is nearest to given numbers."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 64  # intervals a round splits each surviving interval into
BATCH = 1 << 21  # assignments (scales times levels) looked at together; bounds the memory
TOLERANCE = 1e-12  # gain, as a share of |x|^2, below which an interval is not worth opening: the rounding of the sums


def best_scale(magnitudes: Tensor, levels: Tensor) -> float:
    """argmin over a > 0 of sum_i min_j (x_i - a l_j)^2 for x (n,) >= 0 and ascending levels l (m,) >= 0; 0.0 if x is all zero.

    For a fixed assignment the error is the parabola |x|^2 - 2 a A + a^2 B with A = sum x_i l_j(i), B = sum l_j(i)^2, least at
    a = A/B; as `a` falls, every x_i passes its breakpoints x_i / midpoint_j and A and B only grow. So over an interval
    (low, high) the slope of the error lies in 2 (low B(high) - A(low)) .. 2 (high B(low) - A(high)), which bounds the error
    from below by two lines. Intervals that cannot beat the best assignment met are dropped, the others split, until they hold
    no breakpoint or could gain less than the rounding (1e-12 of |x|^2). Globally optimal in O(n log n) time, for the sort,
    and O(n) memory, where a plain sweep would sort all n * m breakpoints.
    """
    x = magnitudes.double().sort().values
    if x.numel() == 0 or float(x[-1]) == 0.0:
        return 0.0
    levels = levels.double()
    middles = (levels[1:] + levels[:-1]) / 2
    sums = torch.cat([x.new_zeros(1), x.cumsum(0)])

    def cuts(scale: Tensor) -> Tensor:
        """(s,) -> (s, m + 1): where in x the entries assigned to each level begin and end."""
        inner = torch.searchsorted(x, scale[:, None] * middles)
        return torch.cat([inner.new_zeros(len(scale), 1), inner, inner.new_full((len(scale), 1), x.numel())], 1)

    def moments(cut: Tensor) -> tuple[Tensor, Tensor]:
        return ((sums[cut[:, 1:]] - sums[cut[:, :-1]]) * levels).sum(1), ((cut[:, 1:] - cut[:, :-1]) * levels**2).sum(1)

    positive = x[x > TOLERANCE * x[-1]]  # smaller entries cannot change the error
    if middles.numel() == 0:
        first, second = moments(cuts(x.new_ones(1)))
        return float(first / second)
    # beyond these two scales every positive entry is at the lowest, or at the highest, level
    edges = torch.stack([positive[0] / middles[-1] * 0.5, positive[-1] / middles[0] * 2.0])
    whole = float((x * x).sum())
    least, best = whole, 0.0  # the error at scale 0
    share = torch.linspace(0, 1, GRID + 1, dtype=torch.float64, device=x.device)
    room = max(1, BATCH // (GRID * levels.numel()))
    waiting = [(edges[:1], edges[1:], x.new_zeros(1))]  # intervals of `a`, and lower bounds of the error in them
    while waiting:
        low, high, bound = waiting.pop()
        worth = bound < least - TOLERANCE * whole
        low, high, bound = low[worth], high[worth], bound[worth]
        if low.numel() > room:
            order = bound.argsort(descending=True)  # the most promising last, so they are opened first
            low, high, bound = low[order], high[order], bound[order]
            waiting.append((low[:-room], high[:-room], bound[:-room]))
            low, high = low[-room:], high[-room:]
        if low.numel() == 0:
            continue
        scale = low[:, None] * (high / low)[:, None] ** share  # geometric: levels may span orders of magnitude
        cut = cuts(scale.reshape(-1))
        first, second = moments(cut)
        fitted = whole - first**2 / second.clamp_min(1)  # levels are at least 1, so B is 0 or at least 1
        top = int(fitted.argmin())
        if float(fitted[top]) < least:
            least, best = float(fitted[top]), float(first[top] / second[top].clamp_min(1))
        cut = cut.view(*scale.shape, -1)
        first, second = first.view(scale.shape), second.view(scale.shape)
        error = whole - 2 * scale * first + scale**2 * second
        left, right, width = scale[:, :-1], scale[:, 1:], scale[:, 1:] - scale[:, :-1]
        fall = 2 * (left * second[:, 1:] - first[:, :-1]).clamp_max(0)  # the slopes' range, widened to hold 0
        rise = 2 * (right * second[:, :-1] - first[:, 1:]).clamp_min(0)
        # lines of slope `fall` from the left end and `rise` from the right end meet this far in
        meet = (error[:, 1:] - error[:, :-1] - rise * width) / (fall - rise).clamp_max(-1e-300)
        bound = error[:, :-1] + fall * torch.minimum(meet.clamp_min(0), width)
        mixed = (cut[:, 1:] != cut[:, :-1]).any(-1)  # still holds a breakpoint
        waiting.append((left[mixed], right[mixed], bound[mixed]))
    return best
