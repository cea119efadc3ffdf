"""Rankings: which k units of a site to keep, and what that is predicted to cost."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherweight.criteria.readers import producers
from featherweight.criteria.statistics import Stats
from featherweight.errors import InputError
from featherweight.structure import Graph


class Unsuited(InputError):
    """A criterion that says nothing about a site, or about the whole network: it lacks what the criterion looks at."""


class Ranking(abc.ABC):
    """The choice among the units of one site. The units kept at k need not be among those kept at k + 1."""

    size: int

    @abc.abstractmethod
    def keep(self, k: int) -> tuple[int, ...]:
        """The k units to keep, rising. Raises InputError unless 1 <= k <= size."""

    @abc.abstractmethod
    def loss(self, k: int) -> float:
        """The damage predicted where k units are kept, in the criterion's own measure; 0 at k = size."""

    def checked(self, k: int) -> int:
        """k, or an error that says what it may be."""
        if not 1 <= k <= self.size:
            raise InputError(f"a site of {self.size} units can keep 1 to {self.size}, not {k}")
        return k


@dataclass(frozen=True)
class Ordered(Ranking):
    """Units in one order: the k to keep are its first k. `losses[k]` is the damage where k are kept, k = 0 .. size."""

    order: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.order)

    def keep(self, k: int) -> tuple[int, ...]:
        return tuple(sorted(self.order[: self.checked(k)]))

    def loss(self, k: int) -> float:
        return self.losses[self.checked(k)]


def by_score(scores: Tensor) -> Ordered:
    """Keep the largest scores; the damage is the sum of the scores of the units that go. Of equals the lower number stays."""
    values = scores.detach().double().cpu()
    order = torch.argsort(values, descending=True, stable=True)
    gone = torch.cat([values.new_zeros(1), values[order].flip(0).cumsum(0)])  # of the j last
    return Ordered(tuple(order.tolist()), tuple(gone.flip(0).tolist()))


class Rankings(dict[str, Ranking]):
    """Site -> its ranking, for every site that the statistics are of and the criterion can say something about.

    left_out  site -> why the criterion says nothing about it
    caveats   what else to know of the rankings, in sentences
    """

    def __init__(self, found: Mapping[str, Ranking], left_out: Mapping[str, str], caveats: Sequence[str] = ()) -> None:
        super().__init__(found)
        self.left_out, self.caveats = dict(left_out), list(caveats)


def ranked(sites: Iterable[str], one: Callable[[str], Ranking], way_out: str = "", caveats: Sequence[str] = ()) -> Rankings:
    """`one` of each site; sites for which it raises Unsuited are left out, for the reason in the error.

    Raises Unsuited, with the reasons and the way out, where no site is left.
    """
    found: dict[str, Ranking] = {}
    left_out: dict[str, str] = {}
    for site in sites:
        try:
            found[site] = one(site)
        except Unsuited as error:
            left_out[site] = str(error)
    if left_out and not found:
        reasons: dict[str, list[str]] = {}
        for site, reason in left_out.items():
            reasons.setdefault(reason, []).append(repr(site))
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        raise Unsuited(f"the criterion can rank no site: {told}. {way_out}")
    return Rankings(found, left_out, caveats)


def made_by_weights(graph: Graph, site: str) -> list[tuple[str, int]]:
    """(parameter, dimension) of the weights that make the units of a site. Raises Unsuited where there are none."""
    made = producers(graph, site)
    if not made:
        raise Unsuited("no weight matrix makes its units")
    return made


Criterion = Callable[[nn.Module, Graph, Stats], Rankings]
