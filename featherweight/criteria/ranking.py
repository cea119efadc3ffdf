"""Rankings: which k units of a site to keep, and what that is predicted to cost."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featherweight.errors import InputError
from featherweight.stats import Stats, TooFewSamples
from featherweight.structure import Graph


class Unsuited(InputError):
    """A criterion that says nothing about this network: it lacks what the criterion looks at."""


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


Criterion = Callable[[nn.Module, Graph, Stats], dict[str, Ranking]]


def require_samples(stats: Stats, least: Sequence[tuple[str, int]], what: str) -> None:
    """Raise TooFewSamples where a site needs more samples than there are; `least` has (site, samples it needs)."""
    short = [(site, number) for site, number in least if stats.samples < number]
    if short:
        site, number = max(short, key=lambda item: item[1])
        raise TooFewSamples(
            f"{what} from {stats.samples} calibration samples, and site {site!r} needs {number} at least: collect(..., "
            f"samples={number}) or more"
        )
