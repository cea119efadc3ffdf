"""What do a unit's activations, and the gradients on them, say? See `stats` for where a unit is watched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherweight.criteria.ranking import Ranking, Rankings, Unsuited, by_score, made_by_weights, ranked
from featherweight.criteria.statistics import Stats
from featherweight.structure import Graph


def apoz(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Share of activations that are not 0: one minus the average percentage of zeros (Hu et al. 2016, equation 1).

    Leaves out sites of which no activation was 0: they are read without a ReLU before.
    """
    stats.require("zeros")

    def scored(site: str) -> Ranking:
        if not bool(stats.zeros[site].any()):
            raise Unsuited(f"apoz counts zeros behind a ReLU, and none of its activations was 0 in {stats.samples} samples")
        return by_score(1 - stats.zeros[site])

    return ranked(stats.sites, scored, "Use taylor, which any activation suits")


def taylor(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """mean_n |sum over positions of x dL_n/dx|, of Euclidean norm 1 in each site (Molchanov et al., ICLR 2017, equations 6, 8).

    The paper's mean over positions is a factor that the normalisation takes out.
    """
    stats.require("gradients")
    return ranked(stats.sites, lambda site: by_score(_normalised(stats.magnitudes[site])))


def taylor_weight(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Mean over batches of (sum over the unit's weights of w dL/dw)^2 (Molchanov et al., CVPR 2019, equation 8).

    Leaves out sites whose units no weight matrix makes.
    """
    stats.require("weights")

    def scored(site: str) -> Ranking:
        made_by_weights(graph, site)
        return by_score(stats.weights[site])

    return ranked(stats.sites, scored, "Rank by a criterion that looks at activations, such as taylor")


def _normalised(scores: Tensor) -> Tensor:
    return scores / scores.norm().clamp_min(torch.finfo(scores.dtype).tiny)
