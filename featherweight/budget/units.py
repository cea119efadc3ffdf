"""How many units each site keeps, under one budget of what the whole network costs.

Damage is given as losses: site -> the predicted damage of keeping k of its units, for k = 0 .. size, falling. What the network
costs is not a sum over the sites (two layers share a matrix), so the allocators follow a path from one unit a site to all of
them: `uniform`, `ranked` and `weighed` take unit after unit in an order of their own, each that fits; a stopping rule and
learned proportions go to the last place within the budget, then give back single units while they fit. Only the knapsack looks
at all sizes at once: more budget is then never worse where costs are a sum over the sites. Of an order the larger budget keeps
the first unit on which two budgets differ; as a unit that fits in the rest may save more than a dear one that comes before
it, that alone does not make it better.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featherweight.budget.choices import Choices, Infeasible
from featherweight.budget.knapsack import knapsack
from featherweight.errors import InputError

Losses = Mapping[str, Sequence[float]]
Sizes = dict[str, int]
Cost = Callable[[Mapping[str, int]], int]  # sizes -> what the whole network costs, such as `Graph.macs`
Path = Callable[[float], Sizes]  # 0 .. 1 -> sizes, growing
Order = Sequence[str]  # of all units but the first of each site, the sites in turn that are given one more
AllocateBy = Literal["uniform", "ranked", "weighed", "knapsack"]


@dataclass(frozen=True)
class Stopping:
    """DCP-Adapt: a site stops taking units where one more betters its damage by at most `tolerance` of what it was with one unit.

    (L_k - L_{k+1}) / L_1 <= tolerance, the stopping condition of arXiv 1810.11809, where L is the lower convex hull of the
    damage: the damage of a measured criterion rises here and there, and a site must not stop there while more units pay. The
    budget is then a ceiling: where these sizes cost more, the tolerance is raised until they do not.
    """

    tolerance: float = 0.001
    kind: Literal["stopping"] = "stopping"

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise InputError(f"tolerance is a share of the first damage, in (0, 1), given {self.tolerance}")


STEPS = 50  # of bisection: finer than any whole number of units
ROUNDS = 8  # of linearising a cost
LARGEST_SHIFT = 60.0  # of a logit: it opens or shuts any site that training reached


def allocate(
    how: AllocateBy | Stopping, losses: Losses, cost: Cost, limit: float, multiple: int | Mapping[str, int] = 1
) -> Sizes:
    """Sizes whose `cost` is at most `limit` and, where single units allow it, nearly all of it.

    uniform    the same share of units everywhere: the k-th of n comes at the share (k - 1/2) / n, where k is the nearest size
    ranked     one threshold on the damage of a unit's going, over all sites (global ranking)
    weighed    the same on damage over what the unit costs where it is
    Stopping   what each site's own damage says, and the budget a ceiling
    knapsack   the least damage in all, for costs made a sum over the sites around the sizes found last; the best of a few rounds

    Sizes are multiples of `multiple` (one, or one a site), or the whole. Raises Infeasible, with the nearest feasible budget,
    where the least sizes cost more.
    """
    of = {name: multiple if isinstance(multiple, int) else multiple[name] for name in losses}
    choices = {name: offered(len(loss) - 1, of[name]) for name, loss in losses.items()}
    smallest = {name: sizes[0] for name, sizes in choices.items()}
    least, most = cost(smallest), cost(_whole(losses))
    if least > limit:
        units = "one unit" if (most_of := max(of.values(), default=1)) == 1 else f"{most_of} units"
        raise Infeasible(_too_small(limit, least, most, units))
    if most <= limit and not isinstance(how, Stopping):
        return _whole(losses)
    if all(one == 1 for one in of.values()):
        return _allocated(how, losses, cost, limit)
    # the same problem in which a unit is a whole multiple: step k of a site is its k-th size on offer
    steps = {name: _Steps(losses[name], sizes) for name, sizes in choices.items()}

    def sizes_at(taken: Mapping[str, int]) -> Sizes:
        return {name: choices[name][step - 1] for name, step in taken.items()}

    return sizes_at(_allocated(how, steps, lambda taken: cost(sizes_at(taken)), limit))


def offered(size: int, multiple: int) -> tuple[int, ...]:
    """The sizes that a site of `size` units may have: multiples, and the whole. A site smaller than `multiple` is free."""
    if size < multiple:
        return tuple(range(1, size + 1))
    return (*range(multiple, size, multiple), size)


def rounded_up(share: float) -> str:
    """Three digits, rounded up: what a message tells to ask for has to be enough."""
    digits = 2 - math.floor(math.log10(share))
    return f"{math.ceil(share * 10**digits - 1e-9) / 10**digits:.3g}"


class _Steps(Sequence[float]):
    """The damage at the sizes on offer; at 0, what the site itself says of 0. Looked up when asked for, as the site's own."""

    def __init__(self, loss: Sequence[float], sizes: Sequence[int]) -> None:
        self.loss, self.sizes = loss, (0, *sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, k: Any) -> Any:
        return [self.loss[size] for size in self.sizes[k]] if isinstance(k, slice) else self.loss[self.sizes[k]]


def _allocated(how: AllocateBy | Stopping, losses: Losses, cost: Cost, limit: float) -> Sizes:
    if isinstance(how, Stopping):
        return _stopped(losses, how.tolerance, cost, limit)
    if how == "knapsack":
        return _linearised(losses, cost, limit)
    orders = {"uniform": _even, "ranked": _ranked, "weighed": lambda given: _weighed(given, cost)}
    return _taken(orders[how](losses), losses, cost, limit)


def stopping(loss: Sequence[float], tolerance: float) -> int:
    """The least k >= 1 at which one unit more betters `loss` by at most `tolerance` of loss[1]; all where that never holds."""
    size = len(loss) - 1
    first = loss[1]
    return next((k for k in range(1, size) if first <= 0 or (loss[k] - loss[k + 1]) / first <= tolerance), size)


def hull(loss: Sequence[float]) -> list[float]:
    """The largest convex sequence of which no entry from 1 on is above that of `loss`; entry 0 is as it was."""
    corners: list[int] = []
    for k in range(1, len(loss)):
        while len(corners) > 1 and _slope(loss, corners[-2], corners[-1]) >= _slope(loss, corners[-1], k):
            corners.pop()
        corners.append(k)
    return [loss[0], *np.interp(range(1, len(loss)), corners, [loss[k] for k in corners]).tolist()]


def _slope(loss: Sequence[float], low: int, high: int) -> float:
    return (loss[high] - loss[low]) / (high - low)


def _stopped(losses: Losses, tolerance: float, cost: Cost, limit: float) -> Sizes:
    convex = {name: hull(loss) for name, loss in losses.items()}

    def path(share: float) -> Sizes:  # from a tolerance of 1, which no unit but the first gets over, to the one asked for
        return {name: stopping(loss, tolerance**share) for name, loss in convex.items()}

    asked = path(1.0)
    return asked if cost(asked) <= limit else _filled(_last_within(path, cost, limit), losses, cost, limit)


def _too_small(limit: float, least: int, most: int, units: str = "one unit") -> str:
    return (
        f"a budget of {int(limit):,} cannot be met by cutting units: {units} a site costs {least:,} of the network's "
        f"{most:,}, the least. Ask for {rounded_up(100 * least / most)} % or more, or let more sites go"
    )


def _whole(losses: Losses) -> Sizes:
    return {name: len(loss) - 1 for name, loss in losses.items()}


def _last_within(path: Path, cost: Cost, limit: float) -> Sizes:
    return path(_last_place(path, cost, limit))


def _last_place(path: Path, cost: Cost, limit: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(path(middle)) <= limit else (low, middle)
    return low


def _taken(order: Order, losses: Losses, cost: Cost, limit: float) -> Sizes:
    """One unit a site, and of `order` every unit in turn that still fits."""

    def first(count: int) -> Sizes:
        units = Counter(order[:count])
        return {name: 1 + units[name] for name in losses}

    all_fit = bisect.bisect_right(range(1, len(order) + 1), limit, key=lambda count: cost(first(count)))
    sizes, full = first(all_fit), set[str]()
    for name in order[all_fit:]:
        if name in full:  # what did not fit once never will: only more is spent
            continue
        if cost(sizes | {name: sizes[name] + 1}) <= limit:
            sizes[name] += 1
        else:
            full.add(name)
    return sizes


def _even(losses: Losses) -> Order:
    """By share; sites that come at the same share in the order of `losses`. Asks for no damage."""
    return _by({name: [(k - 0.5) / size for k in range(2, size + 1)] for name, size in _whole(losses).items()})


def _ranked(losses: Losses) -> Order:
    return _falling({name: _gains(loss) for name, loss in losses.items()})


def _weighed(losses: Losses, cost: Cost) -> Order:
    whole = _whole(losses)
    full = cost(whole)
    price = {name: (full - cost(whole | {name: 1})) / max(size - 1, 1) for name, size in whole.items()}
    return _falling({name: _gains(loss) / max(price[name], 1e-12) for name, loss in losses.items()})


def _gains(loss: Sequence[float]) -> NDArray[np.float64]:
    """(size,): what the k-th unit kept saves of damage, made falling, so that a threshold keeps a first part of them."""
    values = np.asarray(loss, dtype=float)
    return -np.diff(_convex(values))


def _convex(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower convex hull at 0 .. n: a step that gains little before one that gains much is taken with it."""
    corners = [0]
    for at in range(1, len(values)):
        while len(corners) > 1:
            one, two = corners[-2], corners[-1]
            if (values[two] - values[one]) * (at - one) < (values[at] - values[one]) * (two - one):
                break
            corners.pop()
        corners.append(at)
    return np.interp(np.arange(len(values)), corners, values[corners])


def _falling(gains: Mapping[str, NDArray[np.float64]]) -> Order:
    """The largest gain first. Within a site they fall, so its units come in their order."""
    return _by({name: list(-gain[1:]) for name, gain in gains.items()})


def _by(keys: Mapping[str, Sequence[float]]) -> Order:
    pairs = [(key, name) for name, own in keys.items() for key in own]
    return [name for _, name in sorted(pairs, key=lambda pair: pair[0])]


def _filled(sizes: Sizes, losses: Losses, cost: Cost, limit: float) -> Sizes:
    """Single units given back while they fit, the one that saves most damage for its cost first."""
    whole, spent, sizes = _whole(losses), cost(sizes), dict(sizes)
    while True:
        best, most = None, -np.inf
        for name, size in sizes.items():
            if size == whole[name]:
                continue
            price = cost(sizes | {name: size + 1}) - spent
            gain = (losses[name][size] - losses[name][size + 1]) / max(price, 1)
            if spent + price <= limit and gain > most:
                best, most = name, gain
        if best is None:
            return sizes
        sizes[best] += 1
        spent = cost(sizes)


def _linearised(losses: Losses, cost: Cost, limit: float) -> Sizes:
    """Knapsacks over what k units cost here while the other sites have the sizes found last; the budget of the sum is bisected
    until the real cost is within `limit`. The best of all rounds, the uniform share being the first."""
    sizes = best = _allocated("uniform", losses, cost, limit)
    for _ in range(ROUNDS):
        menus = {}
        for name, loss in losses.items():
            least = cost(sizes | {name: 1})
            costs = tuple(cost(sizes | {name: k}) - least for k in range(1, len(loss)))
            menus[name] = Choices(tuple(range(1, len(loss))), tuple(loss[1:]), costs)
        found = {name: index + 1 for name, index in _knapsack_within(menus, cost, limit).items()}
        found = _filled(found, losses, cost, limit)
        if damage(losses, found) < damage(losses, best):
            best = found
        if found == sizes:
            break
        sizes = found
    return best


def _knapsack_within(menus: Mapping[str, Choices], cost: Cost, limit: float) -> dict[str, int]:
    """The knapsack of the largest budget whose sizes really cost at most `limit`."""
    low, high = 0, sum(menu.costs[-1] for menu in menus.values())
    chosen = dict.fromkeys(menus, 0)
    while high - low > max(1, high // 200):  # half a percent; single units fill the rest
        middle = (low + high) // 2
        picked = knapsack(menus, middle)
        if cost({name: index + 1 for name, index in picked.items()}) <= limit:
            low, chosen = middle, picked
        else:
            high = middle
    return chosen


def shifted(shares: Mapping[str, tuple[float, int]], cost: Cost, limit: float) -> Sizes:
    """Sizes within `limit` as near to learned proportions as one number for all sites can bring them, then single units more.

    shares  site -> (t, units): sigmoid(t) of its units were learned, sigmoid(t + shift) of them are kept, one at least

    Raises Infeasible where one unit a site costs more.
    """
    whole = {name: units for name, (_, units) in shares.items()}
    least, most = cost(dict.fromkeys(shares, 1)), cost(whole)
    if least > limit:
        raise Infeasible(_too_small(limit, least, most))
    if most <= limit:
        return whole

    def at(place: float) -> dict[str, float]:
        shift = (2 * place - 1) * LARGEST_SHIFT
        return {name: units / (1 + np.exp(-np.clip(t + shift, -99, 99))) for name, (t, units) in shares.items()}

    def path(place: float) -> Sizes:
        return {name: min(max(1, round(share)), whole[name]) for name, share in at(place).items()}

    place = _last_place(path, cost, limit)
    sizes, wanted = path(place), at(place)
    losses = {name: [((k - wanted[name]) / units) ** 2 for k in range(units + 1)] for name, units in whole.items()}
    return _filled(sizes, losses, cost, limit)


def damage(losses: Losses, sizes: Mapping[str, int]) -> float:
    """The predicted damage of these sizes, all sites together."""
    return sum(losses[name][size] for name, size in sizes.items())
