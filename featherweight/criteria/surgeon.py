"""Which units can the layers that read them do without, once they make up for those that go by the others?

Optimal brain surgeon for whole units (Kurtic et al., ZipLM, NeurIPS 2023, equations 3 and 4): units go one by one, each the one
whose going changes least what the matrices that read it put out. With C the covariance of what a matrix W reads and
P = (C + ridge)^-1, of W the columns j that read a unit:

    unit  = argmin_j tr W_j (P_jj)^-1 W_j^T,     then   W <- W - W_j (P_jj)^-1 P_j,     P <- P - P_j^T (P_jj)^-1 P_j.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherweight.criteria.ranking import Ordered, Rankings, Unsuited, ranked
from featherweight.criteria.readers import places
from featherweight.criteria.reconstruct import weight_of
from featherweight.criteria.recurrent import Seen, named
from featherweight.criteria.statistics import Stats
from featherweight.structure import Graph

RIDGE = 1e-3  # of the mean variance
COMPACT = 0.9  # share of the units that are left, below which what read the others is no longer held


def obs(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Units go one by one, each the one that its readers do best without once they make up for it by the others.

    Optimal brain surgeon for whole units (Kurtic et al., ZipLM, NeurIPS 2023, equations 3 and 4), over all readers of a site at
    once, each one's response scaled to power 1; with an intercept. Of a stack of recurrent layers the last one's units are ranked
    (the others keep units of their own where weights are fitted anew).
    """
    if not stats.recurrent:
        stats.require("gram")
    return ranked(stats.sites, lambda site: _surgeon(model, graph, stats, site))


def _surgeon(model: nn.Module, graph: Graph, stats: Stats, site: str) -> Ordered:
    size = graph.site(site).size
    readers = []
    for reader in stats.readers.of(site):
        matrix = weight_of(model, reader).flatten(1).double().cpu()
        columns = _columns(reader.units[site], size, matrix.shape[1] // weight_of(model, reader).shape[1], reader.module)
        readers.append(Columns(matrix, covariance(stats.gram[reader.module].matrix), columns))
    for path, name in stats.readers.recurrent.get(site, ()):
        if path not in stats.recurrent:
            raise Unsuited(f"{path} is run on packed sequences, or without a batch, where its units are not seen")
        seen = stats.recurrent[path]
        if name in (f"weight_hh_l{seen.module.num_layers - 1}", "weight_ih_l0"):
            units = places(graph, site, graph.planes[named(graph, path, name), 1])
            first, second = seen.of(name)
            weight = getattr(seen.module, name).detach().double().cpu()
            readers.append(Columns(weight, covariance(first + second), _columns(units, size, 1, path)))
    gone = list(going(readers))
    order = [unit for unit, _ in reversed(gone)]
    return Ordered(tuple(order), (*(total for _, total in reversed(gone)), 0.0))


def _columns(vectors: Iterable[Tensor], size: int, taps: int, where: str) -> Tensor:
    """(units, k) the columns of a matrix that read each unit. Raises Unsuited where some are read in more places than others."""
    at: list[list[int]] = [[] for _ in range(size)]
    for numbers in vectors:
        for place, unit in enumerate(numbers.tolist()):
            if unit >= 0:
                at[unit].extend(range(place * taps, place * taps + taps))
    if len({len(columns) for columns in at}) > 1:
        raise Unsuited(f"{where} reads some of its units in more places than others")
    return torch.tensor(at)


def inner_units(seen: Seen, count: int) -> dict[int, Tensor]:
    """Inner layer -> (hidden,) which `count` units it keeps: those whose readers can do best without the others."""
    found: dict[int, Tensor] = {}
    for layer in range(seen.module.num_layers - 1):
        read = [f"weight_hh_l{layer}", f"weight_ih_l{layer + 1}"]
        weight = torch.cat([getattr(seen.module, name).detach().double().cpu() for name in read])
        moments = seen.hidden[layer][0] + seen.hidden[layer][1]
        found[layer] = units_left(weight, covariance(moments), count)
    return found


def covariance(moments: Tensor) -> Tensor:
    """(d, d), from sums of [x 1][x 1]^T."""
    mean = moments / moments[-1, -1].clamp_min(1)
    return mean[:-1, :-1] - torch.outer(mean[:-1, -1], mean[:-1, -1])


def units_left(weight: Tensor, spread: Tensor, count: int) -> Tensor:
    """(d,) which `count` of the d columns of `weight` (out, d) stay, for inputs of covariance `spread` (d, d)."""
    gone = list(itertools.islice(going([Columns(weight, spread, torch.arange(len(spread))[:, None])]), len(spread) - count))
    left = torch.ones(len(spread), dtype=torch.bool)
    left[[unit for unit, _ in gone]] = False
    return left


@dataclass
class Columns:
    """A matrix that reads units.

    weight   (out, d), changed as units go
    spread   (d, d) covariance of what it reads
    columns  (units, k) the columns that read each unit
    """

    weight: Tensor
    spread: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        self.power = float(((self.weight @ self.spread) * self.weight).sum()) or 1.0
        size = float(self.spread.diagonal().mean()) or 1.0
        self.inverse = torch.linalg.inv(self.spread + RIDGE * size * torch.eye(len(self.spread), dtype=self.spread.dtype))
        self.weight = self.weight.clone()

    def costs(self, units: Tensor) -> Tensor:
        """(units,) what the output loses of its power as each of these goes."""
        at = self.columns[units]
        blocks = torch.linalg.inv(self.inverse[at[:, :, None], at[:, None, :]])  # (units, k, k)
        read = self.weight[:, at]  # (out, units, k)
        return torch.einsum("oui,uij,ouj->u", read, blocks, read) / self.power

    def take(self, unit: int) -> None:
        at = self.columns[unit]
        rows = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])  # (k, d)
        self.weight -= self.weight[:, at] @ rows
        self.inverse.addmm_(self.inverse[:, at], rows, alpha=-1)
        self.weight[:, at] = 0
        self.inverse[at], self.inverse[:, at] = 0, 0
        self.inverse[at, at] = 1

    def without_gone(self, left: Tensor) -> None:
        """Hold the columns of these units alone, renumbered in this order, and those that read no unit of the site."""
        others = torch.ones(len(self.inverse), dtype=torch.bool)
        others[self.columns.flatten()] = False
        held = torch.cat([self.columns[left].flatten(), others.nonzero().flatten()])
        self.weight, self.inverse = self.weight[:, held], self.inverse[held][:, held]
        self.columns = torch.arange(self.columns[left].numel()).view(len(left), -1)


def going(readers: list[Columns]) -> Iterator[tuple[int, float]]:
    """Units of a site in the order in which they go, and what all that have gone cost: shares of the readers' power, summed."""
    left = numbers = torch.arange(len(readers[0].columns))
    total = 0.0
    while len(left):
        if len(left) < COMPACT * len(numbers):  # a step takes the square of what is held
            for reader in readers:
                reader.without_gone(left)
            left, numbers = torch.arange(len(left)), numbers[left]
        costs = torch.stack([reader.costs(left) for reader in readers]).sum(0)
        place = int(costs.argmin())
        unit, total = int(left[place]), total + float(costs[place])
        for reader in readers:
            reader.take(unit)
        left = torch.cat([left[:place], left[place + 1 :]])
        yield int(numbers[unit]), total
