"""A stage's units cut: a criterion ranks them, an allotment says how many, the network's own class loses them."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from featherweight.coding import coded
from featherweight.criteria import CRITERIA, NEEDS, Ordered, Ranking, refit
from featherweight.errors import InputError
from featherweight.gates import find_readers
from featherweight.plan import matches
from featherweight.recipe import Units
from featherweight.stats import collect
from featherweight.structure import Edit, expressible, prune, trace
from featherweight.training import Task
from featherweight.units import allot


def cut_units(network: nn.Module, task: Task, asked: Units, epoch: int) -> Edit | None:
    """Cut `network` in place, by what it does on the first batches of `epoch`; the edit, or None where the budget holds already.

    Raises InputError where no site may go or codes are in the way, Infeasible for a budget below one unit a site, and what the
    criterion raises.
    """
    held = sorted(coded(network))
    if held:
        raise InputError(f"units are cut before weights are coded: {', '.join(held)} have a code. Put the stage that cuts first")
    graph = trace(network, task.example)
    statistics = {*NEEDS[asked.criterion], *(("gram",) if asked.refit else ())}
    possible = [name for name in graph.sites if matches(asked.sites, name)]
    out = find_readers(network, graph, possible).unobservable if statistics else {}
    sites = expressible(network, graph, [name for name in possible if name not in out])
    if not sites:
        raise InputError(
            f"no units can go: of the sites {', '.join(graph.sites) or '(none)'} those that match {asked.sites!r} cannot be cut "
            f"in the network's own class, or not be watched{''.join(f'; {name}: {why}' for name, why in out.items())}"
        )
    stats = collect(network, graph, task, statistics, sites=sites, samples=asked.samples, epoch=epoch, curvature=asked.curvature)
    rankings = CRITERIA[asked.criterion](network, graph, stats)
    count = graph.macs if asked.macs is not None else graph.parameters
    sizes = allot(asked.allot, {site: _Damage(ranking) for site, ranking in rankings.items()}, count, asked.share * count())
    keep = {site: rankings[site].keep(size) for site, size in sizes.items() if size < rankings[site].size}
    if asked.refit and keep:
        parameters = dict(network.named_parameters())
        with torch.no_grad():
            for name, values in refit(network, graph, stats, keep).items():
                parameters[name].copy_(values)
    return prune(network, graph, keep, where="class").edit if keep else None


SOLVED = 33  # sizes at which a ranking that solves a problem for each is asked; between them the damage is interpolated


class _Damage(Sequence[float]):
    """The damage of keeping 0 .. size units, found when asked for: an even share asks for hardly any of it."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        sizes = range(1, ranking.size + 1)
        known = isinstance(ranking, Ordered) or ranking.size <= SOLVED
        self.solved = list(sizes) if known else sorted({round(k) for k in np.linspace(1, ranking.size, SOLVED)})
        self.found: dict[int, float] = {}

    def __len__(self) -> int:
        return self.ranking.size + 1

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        if not 0 <= k < len(self):
            raise IndexError(k)
        if k == 0:  # is not offered: it counts as one step more of the same
            return 2 * self[1] - self[min(2, self.ranking.size)]
        above = bisect.bisect_left(self.solved, k)
        high = self.solved[above]
        if high == k:
            return self._at(k)
        low = self.solved[above - 1]
        return self._at(low) + (self._at(high) - self._at(low)) * (k - low) / (high - low)

    def _at(self, k: int) -> float:
        if k not in self.found:
            self.found[k] = self.ranking.loss(k)
        return self.found[k]
