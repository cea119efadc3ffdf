"""Criteria: which units of a site go. Each is a function (network, graph, statistics) -> site -> Ranking."""

from featherweight.criteria.activation import apoz, taylor, taylor_weight
from featherweight.criteria.discriminative import discriminative
from featherweight.criteria.pairwise import Certificate, Quadratic, collaborative
from featherweight.criteria.propagate import nisp
from featherweight.criteria.ranking import Criterion, Ordered, Ranking, Rankings, Unsuited, by_score
from featherweight.criteria.reconstruct import Lasso, channel_lasso, refit, thinet, unfitted
from featherweight.criteria.surgeon import obs
from featherweight.criteria.weight import bn_scale, l1, l2

CRITERIA: dict[str, Criterion] = {
    "l1": l1,
    "l2": l2,
    "bn_scale": bn_scale,
    "apoz": apoz,
    "taylor": taylor,
    "taylor_weight": taylor_weight,
    "nisp": nisp,
    "thinet": thinet,
    "channel_lasso": channel_lasso,
    "obs": obs,
    "collaborative": collaborative,
    "discriminative": discriminative,
}

NEEDS: dict[str, tuple[str, ...]] = {  # criterion -> the statistics that `statistics.collect` has to be asked for
    "l1": (),
    "l2": (),
    "bn_scale": (),
    "apoz": ("zeros",),
    "taylor": ("gradients",),
    "taylor_weight": ("weights",),
    "nisp": ("responses",),
    "thinet": ("gram",),
    "channel_lasso": ("gram",),
    "obs": ("gram", "recurrent"),
    "collaborative": ("gradients", "pairs"),
    "discriminative": ("gram",),
}

__all__ = [
    "CRITERIA",
    "NEEDS",
    "Certificate",
    "Criterion",
    "Lasso",
    "Ordered",
    "Quadratic",
    "Ranking",
    "Rankings",
    "Unsuited",
    "apoz",
    "bn_scale",
    "by_score",
    "channel_lasso",
    "collaborative",
    "discriminative",
    "l1",
    "l2",
    "nisp",
    "obs",
    "refit",
    "taylor",
    "taylor_weight",
    "thinet",
    "unfitted",
]
