"""How large are a unit's weights? No data is needed.

The weights of a unit are the slices that make it, in every layer that feeds the site: the filters of all convolutions whose
outputs are added on one residual stream count together. What reads the unit, and vectors beside it, do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from featherweight.criteria.ranking import Ranking, Unsuited, by_score
from featherweight.gates import producers, unit_sums
from featherweight.stats import Stats
from featherweight.structure import Graph


def l1(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """Sum of |w| of each unit (Li et al., ICLR 2017, section 3.1)."""
    return {site: by_score(_powers(model, graph, site, 1)) for site in stats.sites}


def l2(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """Euclidean norm of each unit's weights (He et al., IJCAI 2018, equation 2 with p = 2)."""
    return {site: by_score(_powers(model, graph, site, 2).sqrt()) for site in stats.sites}


def _powers(model: nn.Module, graph: Graph, site: str, power: int) -> Tensor:
    """(units,) sums of |w|^power."""
    made = producers(graph, site)
    if not made:
        raise Unsuited(f"no weight matrix makes the units of site {site!r}: leave it out, or rank it by a criterion with data")
    values = {name: model.get_parameter(name).detach().double().abs() ** power for name, _ in made}
    return torch.stack([unit_sums(graph, site, name, dim, values[name]) for name, dim in made]).sum(0)


def bn_scale(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """Sum of |gamma| of each unit, over the batch norms that hold it (network slimming, Liu et al., ICCV 2017, section 3)."""
    scales = {
        f"{path}.weight" if path else "weight": module.weight
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.weight is not None
    }
    rankings: dict[str, Ranking] = {}
    without = []
    for site in stats.sites:
        held = [(name, dim) for name, dim in graph.site(site).parameters if name in scales]
        if held:
            parts = [unit_sums(graph, site, name, dim, scales[name].detach().double().abs()) for name, dim in held]
            rankings[site] = by_score(torch.stack(parts).sum(0))
        else:
            without.append(site)
    if without:
        raise Unsuited(
            f"no batch norm with a scale holds the units of {', '.join(map(repr, without))}: leave these sites out, or rank them "
            "by l1 or l2"
        )
    return rankings
