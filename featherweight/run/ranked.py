"""The units of a network ranked by a criterion, and what sizes mean there: which units stay, what that damages, the cut."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.budget.tied import Tied
from featherweight.budget.units import Sizes
from featherweight.criteria import Ordered, Quadratic, Ranking, refit
from featherweight.criteria.recurrent import Masks
from featherweight.criteria.statistics import Stats
from featherweight.network.copies import copied
from featherweight.recipe.units import Where
from featherweight.structure import Graph, prune
from featherweight.structure import Result as Cut
from featherweight.weights.parametrized import layouts_kept

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Ranked:
    """A network whose units are ranked, to be cut to any sizes."""

    network: nn.Module
    graph: Graph
    stats: Stats
    groups: Groups
    rankings: Mapping[str, Ranking]
    refit: bool
    where: Where = "class"

    @property
    def tied(self) -> Tied:
        """The sites as they are allocated."""
        return Tied(self.groups, {name: ranking.size for name, ranking in self.rankings.items()})

    def cut(self, network: nn.Module, sizes: Sizes, fitted: Mapping[str, Tensor] = {}, own: Masks | None = None) -> Cut | None:
        """Cut `network`, which is ours or a copy of it, in place. `fitted`: what of its state is set before. `own`: see `prune`.
        None where all units stay."""
        keep = self.keep(sizes)
        if not keep:
            return None
        state = dict(itertools.chain(network.named_parameters(), network.named_buffers()))
        before = {name: state[name].detach().clone() for name in fitted}
        with torch.no_grad():
            for name, values in fitted.items():
                state[name].copy_(values)
        try:
            with layouts_kept(network):
                return prune(network, self.graph, keep, where=self.where, own=own)
        except BaseException:
            with torch.no_grad():
                for name, values in before.items():
                    state[name].copy_(values)
            raise

    def keep(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """The units that stay of each site that loses some."""
        return {site: self.rankings[site].keep(size) for site, size in sizes.items() if size < self.rankings[site].size}

    def gaps(self, sizes: Sizes) -> dict[str, float]:
        """Site that is cut -> how far its choice is from the best one at most, where the criterion can prove it."""
        held = {site: (self.rankings[site], size) for site, size in sizes.items()}
        return {site: r.certificate(k).gap for site, (r, k) in held.items() if isinstance(r, Quadratic) and k < r.size}

    def copy(self, sizes: Sizes) -> nn.Module:
        """A copy of the network, cut; fitted anew where the statistics for that are at hand."""
        made = copied(self.network)
        fitted = refit(made, self.graph, self.stats, self.keep(sizes)) if self.refit and self.stats.gram else {}
        done = self.cut(made, sizes, fitted)
        return made if done is None else done.model


SOLVED = 33  # sizes at which a ranking that solves a problem for each is asked; between them the damage is interpolated


class Damage(Sequence[float]):
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
