"""Pruning in one shot, layer after layer, by what each puts out on a few samples."""

from __future__ import annotations

from featherweight.recipe.schema import WEIGHTS, Constrain, Layerwise, Recipe, Train
from featherweight.recipes.rounds import Kept, entries
from featherweight.training.schedule import Taught, Training, taught
from featherweight.weights.layerwise import Method

SOURCES = {
    "admm": "arXiv 2406.07831",
    "sparsegpt": "arXiv 2301.00774",
    "wanda": "arXiv 2306.11695",
    "magnitude": "arXiv 1506.02626",
}


def layerwise_admm(
    keep: Kept = "2x",
    method: Method = "admm",
    targets: str = WEIGHTS,
    allocate: str = "lamp",
    samples: int = 128,
    epochs: int = 0,
    rate: float = 1.0,
    distill: Taught = "auto",
    temperature: float = 4.0,
) -> Recipe:
    """Weights of linear and convolution layers go without training: layer after layer, on training samples, such that what
    the layer puts out changes least (ALPS, Meng et al., NeurIPS 2024). Each sees what the layers before it, pruned by then, give.

    keep       of the targets' weights: "2x" fewer, or the share 0.5; or "2:4", of each 4 neighbouring inputs 2
    method     admm; sparsegpt, wanda or magnitude, its baselines
    targets    what to prune, see `schema.Rule`; embeddings and a language model's head are not, unless named
    allocate   how `keep` is spread: lamp; magnitude; uniform, the same share of every layer, as published for language models
    samples    that the layers are watched on
    epochs     of training afterwards, what is zero held at zero, at `rate` times the task's base rate
    distill    weight of the distillation from the dense network in them, added to the loss; 0 for none
    """
    _, rule, share = entries(targets, keep)
    stage = Constrain(
        "pruned",
        rules=(rule,),
        keep=share,
        allocate=allocate,
        layerwise=Layerwise(method, samples),
        retrain=Training(epochs, rate, warmup=0.3 / max(epochs, 1)),
        distill=taught(distill, temperature),
    )
    return Recipe("layerwise_admm", (Train("dense"), stage), SOURCES.get(method, ""))
