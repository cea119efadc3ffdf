"""A budget of milliseconds: a table measured on this machine, sizes read off it, and the network rebuilt and measured.

The table is of networks that are really cut, along the very sizes that the allocation gives for a falling budget of
multiply-accumulates, each timed in turns with the dense one. Between them the time is interpolated over their MACs. What is read
off is built and timed as well; where the table was wrong there, it is read again, corrected by as much.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from featherweight.budget.choices import Infeasible
from featherweight.budget.costs import CLOSE, Spent
from featherweight.budget.units import Cost, Sizes
from featherweight.network.calls import Example, Inputs
from featherweight.network.copies import copied
from featherweight.network.devices import device_of, synchronise
from featherweight.ship.bench import interleaved, judge

SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)  # of the MACs, between the least and the whole network, at which the table is taken
ROUNDS = 15  # for a network of the table
FINAL_ROUNDS = 30  # for one that may be the answer
READINGS = 3

Built = Callable[[Sizes], nn.Module]  # sizes -> a network of these sizes, the given one left as it is
Times = dict[str, list[float]]


@dataclass
class Table:
    """MACs of the networks timed so far and their times as shares of the dense network's, which `dense` has in seconds."""

    points: dict[int, float]
    dense: list[float] = field(default_factory=list)

    def share_at(self, macs: int) -> float:
        """The time of a network of so many MACs, as a share of the dense one's."""
        return float(np.interp(macs, *self._rising()))

    def macs_at(self, share: float) -> float:
        """The MACs that take this share of the dense network's time."""
        macs, shares = self._rising()
        return float(np.interp(share, shares, macs))

    def _rising(self) -> tuple[list[int], list[float]]:
        """The points as least squares bends them to rise: noise is no reason to believe that more work is faster."""
        macs = sorted(self.points)
        merged: list[tuple[float, int]] = []
        for value in (self.points[at] for at in macs):
            merged.append((value, 1))
            while len(merged) > 1 and merged[-2][0] >= merged[-1][0]:
                (one, some), (two, more) = merged[-2:]
                merged[-2:] = [((one * some + two * more) / (some + more), some + more)]
        return macs, [value for value, times in merged for _ in range(times)]


def within(milliseconds: float, example: Example | Inputs, allocated: Callable[[float], Sizes], macs: Cost, built: Built,
           least: Sizes, whole: Sizes) -> tuple[Sizes, Spent]:  # fmt: skip
    """Sizes at which one call of the network on `example` takes `milliseconds`, as nearly as single sizes and the noise allow.

    allocated  MACs -> the sizes to keep; least, whole: the smallest and largest of them

    Eager mode, as many threads as torch has now. Raises Infeasible, with the nearest feasible budget, where the smallest network
    takes longer.
    """
    dense = built(whole)
    path = {macs(sizes): sizes for sizes in (least, *(allocated(max(share * macs(whole), macs(least))) for share in SHARES))}
    path.pop(macs(whole), None)
    times = timed({"dense": dense, **{str(cost): built(sizes) for cost, sizes in path.items()}}, example, ROUNDS)
    table = Table({macs(whole): 1.0} | {cost: judge(times[str(cost)], times["dense"])[0] for cost in path}, times["dense"])
    pace = 1000 * statistics.median(table.dense)
    if milliseconds >= pace:
        note = "" if milliseconds <= (1 + CLOSE) * pace else "the whole network is as fast as that"
        return whole, Spent("latency_ms", milliseconds, pace, pace, note=note)
    floor = pace * min(table.points.values())
    if milliseconds < floor:
        raise Infeasible(
            f"latency_ms={milliseconds:g} cannot be met by cutting units: the smallest network takes {floor:.3g} ms on this "
            f"machine, of the whole one's {pace:.3g} ms. Ask for {math.ceil(1000 * floor) / 1000:g} or more, or let more sites go"
        )
    tried: dict[int, tuple[Sizes, Spent]] = {}
    wrong = 1.0  # what was measured over what the table said, at the last reading
    for _ in range(READINGS):
        sizes = allocated(max(table.macs_at(milliseconds / pace / wrong), macs(least)))
        cost = macs(sizes)
        if cost in tried:
            break
        predicted = pace * wrong * table.share_at(cost)
        times = timed({"dense": dense, "cut": built(sizes)}, example, FINAL_ROUNDS)
        share, spread, _ = judge(times["cut"], times["dense"])
        wrong = share / table.share_at(cost)
        table.dense += times["dense"]
        pace = 1000 * statistics.median(table.dense)
        tried[cost] = sizes, Spent("latency_ms", milliseconds, pace, pace * share, predicted, spread)
        if abs(pace * share - milliseconds) <= CLOSE * milliseconds:
            break
    sizes, spent = min(tried.values(), key=lambda pair: abs(pair[1].after - milliseconds))
    return sizes, _explained(spent)


def _explained(spent: Spent) -> Spent:
    away = abs(spent.after / spent.asked - 1)
    if away <= CLOSE or spent.spread is None:
        return spent
    if away <= spent.spread:
        note = f"{100 * away:.1f} % off, less than the times spread: on this machine, now, 1 % cannot be told"
    else:
        note = f"the nearest of {READINGS} readings of the table, {100 * away:.1f} % off"
    return Spent(spent.what, spent.asked, spent.before, spent.after, spent.predicted, spent.spread, note)


def timed(networks: Mapping[str, nn.Module], example: Example | Inputs, rounds: int) -> Times:
    """Name -> seconds of one call in each round, in turns, in eval mode, until the device of the network has done it."""

    def call(network: nn.Module) -> Callable[[], object]:
        mine = copied(network).eval()
        device = device_of(mine)

        def once() -> object:
            with torch.inference_mode():
                outputs = Inputs.of(example).call(mine)
            synchronise(device)
            return outputs

        return once

    return interleaved({name: call(network) for name, network in networks.items()}, rounds)
