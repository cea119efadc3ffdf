"""A budget of milliseconds: a table measured on this machine, in the runtime that is named; sizes read off it, and the network
rebuilt and measured.

The table is of networks that are really cut, along the very sizes that the allocation gives for a falling budget of
multiply-accumulates, each timed in turns with the dense one. Between them the time is interpolated over their MACs. What is read
off is built and timed as well; where the table was wrong there, it is read again, corrected by as much. Of all that was timed the
slowest that is within the budget is taken.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from featherweight.budget.choices import Infeasible
from featherweight.budget.costs import CLOSE, Spent
from featherweight.budget.units import Cost, Sizes
from featherweight.network.calls import Example, Inputs
from featherweight.network.copies import copied
from featherweight.network.devices import device_of, on_threads, synchronise
from featherweight.recipe.units import Runtime
from featherweight.ship.bench import LARGE_SPREAD, interleaved, judge, ready

SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)  # of the MACs, between the least and the whole network, at which the table is taken
FEW = (0.2, 0.5)  # the same where a file is written for each network
ROUNDS = 15  # for a network of the table
FINAL_ROUNDS = 30  # for one that may be the answer
READINGS = 3
BELOW = 0.97  # of the budget, aimed at once a corrected reading was still above it
IN: dict[Runtime, str] = {"eager": "", "onnx": " in ONNX Runtime, one thread,", "c": " as C, one thread,"}

Called = Callable[[nn.Module], Callable[[], object]]  # a network -> a call of it on the example
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
           least: Sizes, whole: Sizes, runtime: Runtime = "eager") -> tuple[Sizes, Spent]:  # fmt: skip
    """Sizes at which one call of the network on `example` takes at most `milliseconds`, to 1 %, and as nearly that as single
    sizes and the noise allow.

    allocated  MACs -> the sizes to keep; least, whole: the smallest and largest of them
    runtime    eager: where the network is, on as many threads as torch has now; onnx and c: the file that `export` writes, on
               one thread of the processor

    Raises Infeasible, with the nearest feasible budget, where the smallest network takes longer, and what `export` raises about
    a network that the runtime cannot have.
    """
    shares = SHARES if runtime == "eager" else FEW
    path = {macs(sizes): sizes for sizes in (least, *(allocated(max(share * macs(whole), macs(least))) for share in shares))}
    path.pop(macs(whole), None)
    dense = built(whole)
    read: dict[int, tuple[Sizes, Spent]] = {}
    with calls_in(runtime, example, dense) as called:
        times = timed({"dense": dense, **{str(cost): built(sizes) for cost, sizes in path.items()}}, example, ROUNDS, called)
        judged = {cost: judge(times[str(cost)], times["dense"]) for cost in path}
        table = Table({macs(whole): 1.0} | {cost: share for cost, (share, _, _) in judged.items()}, times["dense"])
        pace = 1000 * statistics.median(table.dense)
        if milliseconds >= pace:
            note = "" if milliseconds <= (1 + CLOSE) * pace else "the whole network is as fast as that"
            return whole, Spent("latency_ms", milliseconds, pace, pace, note=note, runtime=runtime)
        floor = pace * min(table.points.values())
        if milliseconds < floor:
            raise Infeasible(
                f"latency_ms={milliseconds:g} cannot be met by cutting units: the smallest network takes {floor:.3g} ms"
                f"{IN[runtime]} on this machine, of the whole one's {pace:.3g} ms. Ask for {math.ceil(1000 * floor) / 1000:g} or "
                f"more, or let more sites go{_busy([spread for _, spread, _ in judged.values()])}"
            )
        wrong, aim = 1.0, milliseconds  # wrong: what was measured over what the table said, at the last reading
        for number in range(READINGS):
            sizes = allocated(max(table.macs_at(aim / pace / wrong), macs(least)))
            cost = macs(sizes)
            if cost in read:
                break
            predicted = pace * wrong * table.share_at(cost)
            times = timed({"dense": dense, "cut": built(sizes)}, example, FINAL_ROUNDS, called)
            share, spread, _ = judge(times["cut"], times["dense"])
            wrong = share / table.share_at(cost)
            table.dense += times["dense"]
            pace = 1000 * statistics.median(table.dense)
            read[cost] = sizes, Spent("latency_ms", milliseconds, pace, pace * share, predicted, spread, runtime=runtime)
            if abs(pace * share - milliseconds) <= CLOSE * milliseconds:
                break
            aim *= BELOW if number and pace * share > milliseconds else 1.0
    known = list(read.values())
    for cost, (share, spread, _) in judged.items():
        if cost not in read:
            known.append((path[cost], Spent("latency_ms", milliseconds, pace, pace * share, None, spread, runtime=runtime)))
    enough = [pair for pair in known if pair[1].after <= (1 + CLOSE) * milliseconds]
    sizes, spent = max(enough, key=lambda pair: pair[1].after) if enough else min(known, key=lambda pair: pair[1].after)
    return sizes, _explained(spent)


def _busy(spreads: Sequence[float]) -> str:
    worst = max(spreads, default=0.0)
    return "" if worst < LARGE_SPREAD else f". Times spread by {worst:.0%} now: something else is running, and slows both"


def _explained(spent: Spent) -> Spent:
    away = abs(spent.after / spent.asked - 1)
    if away <= CLOSE or spent.spread is None:
        return spent
    side = "above" if spent.after > spent.asked else "below"
    if away <= spent.spread:
        note = f"{100 * away:.1f} % {side}, less than the times spread: on this machine, now, 1 % cannot be told"
    else:
        note = f"the nearest within it of all that were timed, {100 * away:.1f} % {side}"
    return replace(spent, note=note)


def timed(networks: Mapping[str, nn.Module], example: Example | Inputs, rounds: int, called: Called | None = None) -> Times:
    """Name -> seconds of one call in each round, in turns. `called`: how a network is called; in eager mode without."""
    how = eager(example) if called is None else called
    return interleaved({name: how(network) for name, network in networks.items()}, rounds)


def eager(example: Example | Inputs) -> Called:
    """Calls of copies in eval mode, until the device of the network has done it."""

    def call(network: nn.Module) -> Callable[[], object]:
        mine = copied(network).eval()
        device = device_of(mine)

        def once() -> object:
            with torch.inference_mode():
                outputs = Inputs.of(example).call(mine)
            synchronise(device)
            return outputs

        return once

    return call


@contextlib.contextmanager
def calls_in(runtime: Runtime, example: Example | Inputs, dense: nn.Module) -> Iterator[Called]:
    """Calls in a runtime; the files that it runs are there for as long. That of `dense`, which is timed beside all others, is
    written once."""
    if runtime == "eager":
        yield eager(example)
        return
    with tempfile.TemporaryDirectory(prefix="featherweight-") as folder, on_threads(1):
        first = ready(dense, example, runtime, folder)
        yield lambda network: first if network is dense else ready(network, example, runtime, folder)
