"""Papers as functions that return recipes: `RECIPES`, and by what they are for `GOALS`; and as files with their settings for
ImageNet, `FILES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from featherweight.recipe.schema import Recipe
from featherweight.recipes.binarization import admm_binarization
from featherweight.recipes.channels_and_layers import adaptive, drop_blocks
from featherweight.recipes.clustering import admm_clustering
from featherweight.recipes.joint import admm_joint
from featherweight.recipes.layerwise import layerwise_admm
from featherweight.recipes.low_rank import decompose
from featherweight.recipes.one_shot import (
    amc,
    apoz,
    channel_lasso,
    collaborative,
    collaborative_ac,
    discriminative,
    discriminative_adapt,
    l1_filters,
    nisp,
    reconstruct,
    taylor,
    thinet,
)
from featherweight.recipes.pruning import progressive_admm
from featherweight.recipes.quantization import admm_quantization, quantize_aware
from featherweight.recipes.soft_pruning import soft_filters
from featherweight.recipes.trained_ranks import trained_rank_pruning

RECIPES: dict[str, Callable[..., Recipe]] = {
    "progressive_admm": progressive_admm,
    "layerwise_admm": layerwise_admm,
    "admm_quantization": admm_quantization,
    "quantize_aware": quantize_aware,
    "admm_binarization": admm_binarization,
    "admm_clustering": admm_clustering,
    "admm_joint": admm_joint,
    "trained_rank_pruning": trained_rank_pruning,
    "decompose": decompose,
    "l1_filters": l1_filters,
    "soft_filters": soft_filters,
    "apoz": apoz,
    "taylor": taylor,
    "nisp": nisp,
    "thinet": thinet,
    "channel_lasso": channel_lasso,
    "collaborative": collaborative,
    "discriminative": discriminative,
    "collaborative_ac": collaborative_ac,
    "discriminative_adapt": discriminative_adapt,
    "amc": amc,
    "reconstruct": reconstruct,
    "adaptive": adaptive,
    "drop_blocks": drop_blocks,
}

FILES: dict[str, Path] = {f"imagenet/{path.stem}": path for path in sorted((Path(__file__).parent / "imagenet").glob("*.yaml"))}
GOALS: dict[str, tuple[str, ...]] = {  # what one comes for -> recipes; every recipe is in one
    "fewer weights": ("progressive_admm", "layerwise_admm"),
    "fewer MACs, or faster here (--set latency_ms=2ms)": (
        *("l1_filters", "taylor", "nisp", "apoz", "thinet", "channel_lasso", "collaborative", "collaborative_ac"),
        *("discriminative", "discriminative_adapt", "amc", "soft_filters", "adaptive", "drop_blocks"),
    ),
    "fewer MACs without labels": ("reconstruct",),
    "smaller file": ("admm_joint", "admm_clustering"),
    "fewer bits": ("admm_quantization", "quantize_aware", "admm_binarization"),
    "low rank, repaired": ("decompose", "trained_rank_pruning"),
}
