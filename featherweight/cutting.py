"""A stage's units cut: a criterion ranks them, an allotment says how many, the network's own class loses them."""

from __future__ import annotations

import torch
from torch import nn

from featherweight.coding import coded
from featherweight.criteria import CRITERIA, NEEDS, Ranking, refit
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
    stats = collect(network, graph, task, statistics, sites=sites, samples=asked.samples, epoch=epoch)
    rankings = CRITERIA[asked.criterion](network, graph, stats)
    count = graph.macs if asked.macs is not None else graph.parameters
    sizes = allot(asked.allot, {site: _losses(ranking) for site, ranking in rankings.items()}, count, asked.share * count())
    keep = {site: rankings[site].keep(size) for site, size in sizes.items() if size < rankings[site].size}
    if asked.refit and keep:
        parameters = dict(network.named_parameters())
        with torch.no_grad():
            for name, values in refit(network, graph, stats, keep).items():
                parameters[name].copy_(values)
    return prune(network, graph, keep, where="class").edit if keep else None


def _losses(ranking: Ranking) -> list[float]:
    """The damage of keeping 0 .. size units. None at all is not offered: it counts as one step more of the same."""
    losses = [ranking.loss(k) for k in range(1, ranking.size + 1)]
    return [2 * losses[0] - losses[min(1, len(losses) - 1)], *losses]
