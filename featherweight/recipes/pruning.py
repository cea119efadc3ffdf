"""arXiv 1810.07378, 1903.09769: progressive weight pruning by ADMM."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from featherweight.errors import InputError
from featherweight.recipe.schema import WEIGHTS, Recipe, Rule, Train
from featherweight.recipes.rounds import Round
from featherweight.training.schedule import Taught, Training
from featherweight.weights.sets import TopK, TopRows


def progressive_admm(
    ratios: tuple[float, ...] = (5, 10, 20),
    targets: str = WEIGHTS,
    dense_epochs: int = 0,
    epochs: int = 4,
    retrain_epochs: int = 4,
    rate: float = 1.0,
    retrain_rate: float = 1.0,
    every: int | None = None,
    rho: float = 0.03,
    growth: float | None = None,
    rho_max: float = 1.65,
    coupling: Literal["gradient", "proximal"] = "proximal",
    allocate: str = "magnitude",
    fisher: float = 0.25,
    respread: bool = True,
    sweep: bool = True,
    distill: Taught = "auto",
    temperature: float = 4.0,
    narrow: float | None = None,
    narrow_targets: str = WEIGHTS,
    narrow_epochs: int = 4,
    candidates: int = 1,
) -> Recipe:
    """Stages of falling density, each ADMM pruning and masked retraining with a cosine rate; what is zero stays zero.

    ratios         weights of the targets in the original network over those left, a stage each
    targets        what to prune, see `schema.Rule`; one global count is spread over it by `allocate`
    dense_epochs   of plain training first, for a network that is not trained yet
    epochs, retrain_epochs   of each stage; rate, retrain_rate: multiples of the task's base rate
    every          optimizer steps between projections. None: an epoch, or a twentieth of the stage's ADMM where that is less, but
                   20 steps, or a twelfth, where that is less: see `drivers.ADMM.paced`
    growth         of rho at each projection. None: rho is rho_max after four fifths of them, however many steps the data make
    rho, rho_max, coupling   see `drivers.ADMM`
    fisher, respread, sweep  see `schema.Constrain`; 0, False and False are the papers' method
    distill        weight of the distillation from the dense network, added to the loss; 0 for none, auto for 1 where the task
                   says which output is logits and the dense network is trained
    narrow         share of the rows (filters, neurons) of `narrow_targets` to keep in a structured stage before the others,
                   by which dense training gets fast early (the rows go physically)
    candidates     1, or 3 for the papers' schedule of three partial networks
    """
    if not ratios or min(ratios) < 1:
        raise InputError(f"ratios are weights before over weights left (1 / keep), each at least 1, given {ratios}")
    dense = Train("dense", train=Training(dense_epochs))
    rounds = Round(
        epochs, retrain_epochs, rate, retrain_rate, every, rho, growth, rho_max, coupling, distill, temperature
    )  # fmt: skip
    rules = (Rule(targets, TopK()),)
    stages = [
        replace(
            rounds.stage(f"{ratio:g}x", rules),
            keep=1 / ratio,
            allocate=allocate,
            fisher=fisher,
            respread=respread,
            sweep=sweep,
        )
        for ratio in ratios
    ]
    if narrow is not None:
        rows = Rule(narrow_targets, TopRows(), "rows")
        first = replace(stages[0], name="narrow", rules=(rows,), keep=narrow, allocate="magnitude", fisher=0.5, sweep=True)
        training = replace(first.train, epochs=narrow_epochs, warmup=0.5 / max(narrow_epochs, 1))
        stages.insert(0, replace(first, train=training, retrain=replace(training, floor=0.0)))
    return Recipe("progressive_admm", (dense, *stages), "arXiv 1810.07378, 1903.09769", candidates)
