"""What do a unit's activations, and the gradients on them, say? See `stats` for where a unit is watched."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherweight.criteria.ranking import Ranking, Unsuited, by_score
from featherweight.stats import Stats
from featherweight.structure import Graph


def apoz(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """Share of activations that are not 0: one minus the average percentage of zeros (Hu et al. 2016, equation 1).

    Raises Unsuited where no activation of a site was 0: it is read without a ReLU before.
    """
    stats.require("zeros")
    smooth = [site for site in stats.sites if not bool(stats.zeros[site].any())]
    if smooth:
        raise Unsuited(
            f"apoz counts zeros behind a ReLU, and none of the activations of {', '.join(map(repr, smooth))} was 0 in "
            f"{stats.samples} samples: leave these sites out, or use taylor, which any activation suits"
        )
    return {site: by_score(1 - stats.zeros[site]) for site in stats.sites}


def taylor(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """mean_n |sum over positions of x dL_n/dx|, of Euclidean norm 1 in each site (Molchanov et al., ICLR 2017, equations 6, 8).

    The paper's mean over positions is a factor that the normalisation takes out.
    """
    stats.require("magnitudes")
    return {site: by_score(_normalised(stats.magnitudes[site])) for site in stats.sites}


def taylor_weight(model: nn.Module, graph: Graph, stats: Stats) -> dict[str, Ranking]:
    """Mean over batches of (sum over the unit's weights of w dL/dw)^2 (Molchanov et al., CVPR 2019, equation 8)."""
    stats.require("weights")
    return {site: by_score(stats.weights[site]) for site in stats.sites}


def _normalised(scores: Tensor) -> Tensor:
    return scores / scores.norm().clamp_min(torch.finfo(scores.dtype).tiny)
