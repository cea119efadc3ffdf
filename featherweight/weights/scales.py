"""Exact scale fitting: the multiple of a few fixed levels that is nearest to given numbers."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 64  # intervals a round splits each surviving interval into
SWEPT = 1 << 24  # breakpoints of a row that are sorted at most
BATCH = 1 << 21  # assignments (scales times levels) looked at together; bounds the memory
ROWS = 1 << 22  # entries of rows that are looked at together
MANY = 16  # levels from which on breakpoints lie so densely that those that are left are soon looked at one by one
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
    magnitudes, levels = magnitudes.detach(), levels.detach().double()
    if _dense(magnitudes.numel(), levels):
        return float(_of_rows(magnitudes[None], levels, False))
    x = magnitudes.double().sort().values
    if x.numel() == 0 or float(x[-1]) == 0.0:
        return 0.0
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


def best_scales(magnitudes: Tensor, levels: Tensor, skip_zeros: bool = False) -> Tensor:
    """`best_scale` of each row of (rows, n) >= 0, all rows together: (rows,) float64.

    `skip_zeros`: zeros are no entries of their row.
    """
    magnitudes, levels = magnitudes.detach(), levels.detach()
    rows, n = magnitudes.shape
    step = max(1, min(ROWS // max(n, 1), BATCH // (GRID * levels.numel())))
    parts = [_best_scales(part, levels.double(), skip_zeros) for part in magnitudes.split(step)] if rows else []
    return torch.cat([magnitudes.new_zeros(0, dtype=torch.float64), *parts])


def _dense(entries: int, levels: Tensor) -> bool:
    """Are breakpoints so many a scale, and so few in all, that they are looked at one by one?"""
    return levels.numel() >= MANY and entries * levels.numel() <= SWEPT


def _best_scales(magnitudes: Tensor, levels: Tensor, skip_zeros: bool) -> Tensor:
    if len(magnitudes) == 1:
        live = magnitudes[0][magnitudes[0] != 0] if skip_zeros else magnitudes[0]
        return torch.tensor([best_scale(live, levels)], dtype=torch.float64, device=magnitudes.device)
    return _of_rows(magnitudes, levels, skip_zeros)


def _of_rows(magnitudes: Tensor, levels: Tensor, skip_zeros: bool) -> Tensor:
    x = magnitudes.double().contiguous().sort(1).values
    best = x.new_zeros(len(x))
    if x.shape[1] == 0:
        return best
    sums = torch.cat([x.new_zeros(len(x), 1), x.cumsum(1)], 1)
    start = (x == 0).sum(1) if skip_zeros else torch.zeros(len(x), dtype=torch.int64, device=x.device)
    rows = (x[:, -1] > 0).nonzero().squeeze(1)
    middles = (levels[1:] + levels[:-1]) / 2
    if middles.numel() == 0:
        first, second = (sums[:, -1] - sums.gather(1, start[:, None])[:, 0]) * levels, (x.shape[1] - start) * levels**2
        best[rows] = (first / second)[rows]
        return best
    smallest = x.gather(1, torch.searchsorted(x, TOLERANCE * x[:, -1:], right=True).clamp_max(x.shape[1] - 1))
    low, high = smallest / middles[-1] * 0.5, x[:, -1:] / middles[0] * 2.0
    whole = (x * x).sum(1)
    least, bound, waiting = whole.clone(), torch.zeros_like(low), torch.ones_like(low, dtype=torch.bool)
    low, high, bound, waiting = low[rows], high[rows], bound[rows], waiting[rows]
    rounds = 0
    while rows.numel():
        waiting = waiting & (bound < (least - TOLERANCE * whole)[rows, None])
        number = waiting.sum(1)
        if _dense(x.shape[1], levels):
            cheaper = (number > 0) & (
                (number * GRID >= x.shape[1] - start[rows]) | (rounds == 2)
            )  # than to open the intervals once more
            for at in cheaper.nonzero().squeeze(1).tolist():
                row, ends = int(rows[at]), (low[at][waiting[at]], high[at][waiting[at]])
                swept = _swept(x[row], sums[row], int(start[row]), *ends, levels, middles)
                if swept[0] > float(whole[row] - least[row]):
                    best[row] = swept[1]
            number = torch.where(cheaper, 0, number)
        rounds += 1
        for row in rows[number > BATCH // (GRID * levels.numel())].tolist():  # more than are opened at once: by itself
            best[row] = best_scale(x[row, int(start[row]) :], levels)
        going = (number > 0) & (number <= BATCH // (GRID * levels.numel()))
        if not bool(going.any()):
            break
        rows, low, high, waiting = rows[going], low[going], high[going], waiting[going]
        width = int(number[going].max())
        order = waiting.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
        low, high, waiting = low.gather(1, order), high.gather(1, order), waiting.gather(1, order)
        opened = []
        for at in torch.arange(len(rows), device=x.device).split(max(1, BATCH // (width * GRID * levels.numel()))):
            own = rows[at]
            found = _open(x[own], sums[own], start[own], whole[own], low[at], high[at], waiting[at], levels, middles)
            better = found[0] < least[own]
            least[own], best[own] = torch.where(better, found[0], least[own]), torch.where(better, found[1], best[own])
            opened.append(found[2:])
        low, high, bound, waiting = (torch.cat(column) for column in zip(*opened, strict=True))
    return best


def _swept(
    x: Tensor, sums: Tensor, start: int, low: Tensor, high: Tensor, levels: Tensor, middles: Tensor
) -> tuple[float, float]:
    """(A^2 / B, its scale A / B) of the best assignment that any scale in the intervals gives one row, every one looked at.

    As a scale falls from the high end of an interval, an entry goes up a level at each breakpoint that is passed.
    """
    best = (-1.0, 0.0)
    order = low.argsort()
    low, high = low[order], high[order]
    apart = torch.cat([low[1:] > high[:-1] * (1 + 1e-12), torch.ones_like(low[:1], dtype=torch.bool)])
    first = torch.cat([torch.ones_like(apart[:1]), apart[:-1]])
    for lowest, highest in zip(low[first].tolist(), high[apart].tolist(), strict=True):
        begin = torch.searchsorted(x, lowest * middles).clamp_min(start)
        end = torch.searchsorted(x, highest * middles).clamp_min(start)
        cut = torch.cat([end.new_tensor([start]), end, end.new_tensor([x.numel()])])
        a = ((sums[cut[1:]] - sums[cut[:-1]]) * levels).sum()
        b = ((cut[1:] - cut[:-1]) * levels**2).sum()
        count = end - begin
        level = torch.repeat_interleave(torch.arange(len(middles), device=x.device), count)
        within = torch.arange(len(level), device=x.device) - (count.cumsum(0) - count)[level]
        entry = x[begin[level] + within]
        passed = (entry / middles[level]).argsort(descending=True)
        level, entry = level[passed], entry[passed]
        step, square = levels[1:] - levels[:-1], levels[1:] ** 2 - levels[:-1] ** 2
        a = torch.cat([a[None], a + (entry * step[level]).cumsum(0)])
        b = torch.cat([b[None], b + square[level].cumsum(0)]).clamp_min(1)
        gain = a * a / b
        top = int(gain.argmax())
        if float(gain[top]) > best[0]:
            best = float(gain[top]), float(a[top] / b[top])
    return best


def _open(
    x: Tensor, sums: Tensor, start: Tensor, whole: Tensor,
    low: Tensor, high: Tensor, waiting: Tensor, levels: Tensor, middles: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """One round of `best_scale` for some rows: (least error, its scale) of each, and low ends, high ends, bounds of the pieces
    of its (rows, intervals), and which of them are still to be opened."""
    share = torch.linspace(0, 1, GRID + 1, dtype=torch.float64, device=x.device)
    scale = low[..., None] * (high / low)[..., None] ** share
    inner = torch.searchsorted(x, (scale[..., None] * middles).flatten(1)).view(*scale.shape, -1)
    begin = start[:, None, None, None].expand(*scale.shape, 1)
    cut = torch.cat([begin, inner, torch.full_like(begin, x.shape[1])], -1)
    at = sums.gather(1, cut.flatten(1)).view(cut.shape)
    first = ((at[..., 1:] - at[..., :-1]) * levels).sum(-1)
    second = ((cut[..., 1:] - cut[..., :-1]) * levels**2).sum(-1)
    whole = whole[:, None, None]
    fitted = torch.where(waiting[..., None], whole - first**2 / second.clamp_min(1), torch.inf).flatten(1)
    top = fitted.argmin(1, keepdim=True)
    best = first.flatten(1).gather(1, top) / second.flatten(1).gather(1, top).clamp_min(1)
    error = whole - 2 * scale * first + scale**2 * second
    left, right = scale[..., :-1], scale[..., 1:]
    width = right - left
    fall = 2 * (left * second[..., 1:] - first[..., :-1]).clamp_max(0)
    rise = 2 * (right * second[..., :-1] - first[..., 1:]).clamp_min(0)
    meet = (error[..., 1:] - error[..., :-1] - rise * width) / (fall - rise).clamp_max(-1e-300)
    bound = error[..., :-1] + fall * torch.minimum(meet.clamp_min(0), width)
    mixed = (cut[..., 1:, :] != cut[..., :-1, :]).any(-1) & waiting[..., None]
    return fitted.gather(1, top)[:, 0], best[:, 0], left.flatten(1), right.flatten(1), bound.flatten(1), mixed.flatten(1)
