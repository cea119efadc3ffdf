"""How large are a unit's weights? No data is needed.

The weights of a unit are the slices that make it, in every layer that feeds the site: the filters of all convolutions whose
outputs are added on one residual stream count together. What reads the unit, and vectors beside it, do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featherweight.criteria.ranking import Ranking, Rankings, Unsuited, by_score, made_by_weights, ranked
from featherweight.criteria.readers import unit_sums
from featherweight.criteria.statistics import Stats
from featherweight.structure import Graph

BY_DATA = "Rank by a criterion that looks at activations, such as taylor"


def l1(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Sum of |w| of each unit (Li et al., ICLR 2017, section 3.1)."""
    return ranked(stats.sites, lambda site: by_score(_powers(model, graph, site, 1)), BY_DATA)


def l2(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Euclidean norm of each unit's weights (He et al., IJCAI 2018, equation 2 with p = 2)."""
    return ranked(stats.sites, lambda site: by_score(_powers(model, graph, site, 2).sqrt()), BY_DATA)


def _powers(model: nn.Module, graph: Graph, site: str, power: int) -> Tensor:
    """(units,) sums of |w|^power."""
    made = made_by_weights(graph, site)
    values = {name: model.get_parameter(name).detach().double().abs() ** power for name, _ in made}
    return torch.stack([unit_sums(graph, site, name, dim, values[name]) for name, dim in made]).sum(0)


def bn_scale(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Sum of |gamma| of each unit, over the batch norms that hold it (network slimming, Liu et al., ICCV 2017, section 3)."""
    scales = {
        f"{path}.weight" if path else "weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    }

    def scored(site: str) -> Ranking:
        held = [(name, dim) for name, dim in graph.site(site).parameters if name in scales]
        if not held:
            raise Unsuited("no batch norm with a scale holds its units")
        parts = [unit_sums(graph, site, name, dim, scales[name].detach().double().abs()) for name, dim in held]
        return by_score(torch.stack(parts).sum(0))

    return ranked(stats.sites, scored, "Rank by l1 or l2")
