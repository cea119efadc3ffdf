"""Discrimination-aware channel pruning (DCP, Zhuang et al., NeurIPS 2018): keep what reconstructs and what tells classes apart.

A site's units are chosen from none. With A the units chosen, the weights W of the site's readers are those that fit their whole
responses best from A, and 0 elsewhere. The next units are those with the largest |dL/dW_k|_F, of

    L = mean square of what the responses lack + balance * auxiliary loss,              (the paper's equations 5 to 8)

the auxiliary loss being that of the first head behind the readers (`auxiliary`), else the network's own. Two departures: the fit
is least squares on the Gram matrix where the paper runs an epoch of SGD, and units are taken in `rounds` equal groups where it
takes them one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from featherweight.criteria.auxiliary import default_pivots, losses, trained_heads
from featherweight.criteria.ranking import Ordered, Rankings, ranked
from featherweight.criteria.readers import Reader, differentiable
from featherweight.criteria.reconstruct import refit
from featherweight.criteria.statistics import Stats
from featherweight.network.evaluating import evaluating
from featherweight.structure import Graph


def discriminative(
    model: nn.Module,
    graph: Graph,
    stats: Stats,
    *,
    heads: Mapping[str, nn.Module] | None = None,
    rounds: int = 8,
    balance: float = 1.0,
) -> Rankings:
    """Units in the order in which DCP takes them; the damage is what L has more than with all units.

    heads   pivot -> head, trained (`auxiliary.trained_heads`); default: two, trained here on the calibration batches

    Cost: for each site `rounds` runs of the network forward and back over the calibration batches. The network is left as it was.
    """
    stats.require("gram")
    if not stats.sites:
        return Rankings({}, {})
    if heads is None:
        heads = trained_heads(model, stats, default_pivots(model, graph))
    with evaluating(model):
        return ranked(stats.sites, lambda site: _chosen(model, graph, stats, site, heads, rounds, balance))


def _chosen(
    model: nn.Module, graph: Graph, stats: Stats, site: str, heads: Mapping[str, nn.Module], rounds: int, balance: float
) -> Ordered:
    size, readers = graph.site(site).size, stats.readers.of(site)
    pivot = _pivot_behind(graph, readers, heads)
    judged = {pivot: heads[pivot]} if pivot else {}
    order: list[int] = []
    marks: list[tuple[int, float]] = []  # (units taken, L)
    for number in range(1, rounds + 1):
        value, norms = _slopes(model, graph, stats, site, order, judged, pivot, balance)
        marks.append((len(order), value))
        norms[order] = -1
        wanted = round(number * size / rounds) - len(order)
        order += norms.argsort(descending=True, stable=True)[:wanted].tolist()
    value, _ = _slopes(model, graph, stats, site, order, judged, pivot, balance)
    marks.append((size, value))
    return Ordered(tuple(order), tuple(loss - value for loss in _between(marks, size)))


def _slopes(
    model: nn.Module,
    graph: Graph,
    stats: Stats,
    site: str,
    kept: list[int],
    heads: Mapping[str, nn.Module],
    pivot: str,
    balance: float,
) -> tuple[float, Tensor]:
    """L with the units kept, and per unit the norm of L's gradient over the weights that read it."""
    readers = stats.readers.of(site)
    weights = {reader.weight: model.get_parameter(reader.weight) for reader in readers}
    whole = {name: weight.detach().clone() for name, weight in weights.items()}
    squares = torch.zeros(graph.site(site).size, dtype=torch.float64)
    total = 0.0
    with differentiable(weights.values()), _fitted(model, graph, stats, site, kept):
        gradients = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        for batch in stats.batches():
            value = balance * losses(model, heads, stats.task, batch)[pivot]
            total += float(value.detach()) / stats.count
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, found, strict=True):
                if gradient is not None:
                    gradients[name] += gradient.double() / stats.count
        for reader in readers:
            # the mean square that the responses lack is quadratic in W, so the Gram matrix has it and its gradient
            lack = (weights[reader.weight].detach() - whole[reader.weight]).flatten(1).double().cpu()
            moments = stats.gram[reader.module].matrix[:-1, :-1]
            power = whole[reader.weight].flatten(1).double().cpu()
            scale = max(float(torch.trace(power @ moments @ power.T)), torch.finfo(torch.float64).tiny)
            total += float(torch.trace(lack @ moments @ lack.T)) / scale
            slope = 2 * lack @ moments / scale
            gradients[reader.weight] += slope.reshape(gradients[reader.weight].shape).to(gradients[reader.weight])
        for reader in readers:
            each = gradients[reader.weight].movedim(reader.dim, 0).flatten(1).square().sum(1).cpu()
            for numbers in reader.units[site]:
                owned = numbers >= 0
                squares.index_add_(0, numbers[owned], each[owned])
    return total, squares.sqrt()


@contextmanager
def _fitted(model: nn.Module, graph: Graph, stats: Stats, site: str, kept: list[int]) -> Iterator[None]:
    """Inside, the readers of the site fit their responses from the units kept; afterwards they are as they were."""
    new = refit(model, graph, stats, {site: kept})
    before = {name: model.get_parameter(name).detach().clone() for name in new}
    with torch.no_grad():
        for name, value in new.items():
            model.get_parameter(name).copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                model.get_parameter(name).copy_(value)


def _pivot_behind(graph: Graph, readers: tuple[Reader, ...], heads: Mapping[str, nn.Module]) -> str:
    """The first pivot that ends after all of these readers; "" where none does."""
    last: dict[str, int] = {}
    for number, node in enumerate(graph.captured.module.graph.nodes):
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            last[str(path)] = number
    latest = max(last[reader.module] for reader in readers)
    behind = [pivot for pivot in heads if last.get(pivot, -1) >= latest]
    return min(behind, key=lambda pivot: last[pivot]) if behind else ""


def _between(marks: list[tuple[int, float]], size: int) -> list[float]:
    """L at 0 .. size units, straight between the numbers at which it is known."""
    values = [0.0] * (size + 1)
    for (low, first), (high, second) in itertools.pairwise(marks):
        for k in range(low, high + 1):
            values[k] = first + (second - first) * (k - low) / max(high - low, 1)
    return values
