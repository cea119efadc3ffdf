"""arXiv 1811.01907, 1810.07378: ADMM-NN, weights at equally spaced levels or at powers of two; zero belongs to pruning.

Published, LeNet-5 with 167x fewer weights: 3 bits in the convolutions and the output layer, 2 in the other, 99.0 percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from featherweight.errors import InputError
from featherweight.recipe.schema import WEIGHTS, Constrain, Recipe, Rule
from featherweight.recipes.rounds import Round, Step, of_rounds
from featherweight.weights.drivers import StraightThrough
from featherweight.weights.sets import Levels
from featherweight.weights.views import WHOLE, View

ROW = View("o ... -> o (...)")  # a scale a filter or neuron
SCALES: dict[str, View] = {"layer": WHOLE, "row": ROW}


@of_rounds()
def admm_quantization(
    bits: tuple[int, ...] = (4, 3),
    levels: Literal["uniform", "power_of_two"] = "uniform",
    per: Literal["layer", "row"] = "row",
    bits_of: Mapping[str, int] | None = None,
    targets: str = WEIGHTS,
    dense_epochs: int = 0,
    *,
    rounds: Round,
) -> Recipe:
    """Stages of falling precision, each ADMM towards the levels and retraining of the scales (and of all that has none).

    A weight that is zero when its stage starts stays zero and is at no level. The scale of a layer, or of each row, minimises
    the distance over all scales at every projection.

    bits      of the levels, 2^bits of them besides zero, a stage each: from fine to coarse the quantisation is progressive
    per       row: a filter, neuron or gate has a scale of its own, 32 bits each; layer: one for all, as published
    bits_of   parameter -> bits, in place of `targets` and the last of `bits`: given, or `featherweight.budget.bits.allocate(..)`

    """
    view = _scale(per)
    if not bits:
        raise InputError("bits names no stage: give the bits of each, such as (4, 3)")
    steps = _steps(bits, levels, view, bits_of, targets)
    return Recipe("admm_quantization", rounds.after_dense(dense_epochs, steps), "arXiv 1811.01907, 1810.07378")


@of_rounds(epochs=2, retrain_epochs=4, rate=0.1, retrain_rate=0.1)
def quantize_aware(
    bits: int = 8,
    activations: int | None = 8,
    bits_of: Mapping[str, int] | None = None,
    targets: str = WEIGHTS,
    dense_epochs: int = 0,
    how: Literal["admm", "straight_through"] = "admm",
    *,
    rounds: Round,
) -> Recipe:
    """Weights at 1 to 8 bits with a learned scale for each output, trained with activations rounded as integers will round them.

    ADMM towards the levels, then training of the scales and of all that has none, straight through the rounding of what each
    layer takes: this wins back what calibration alone loses. `export --integers` makes the file, `--score` scores it.

    A tenth of the task's rate: at the whole of it 8 bits lost two points of a regression that calibration alone keeps.

    bits         of the weights; bits_of: parameter -> bits, in place of `targets`
    activations  bits of what layers take, 2 to 8; none: they are left as they are
    how          the levels are found: by admm, or straight through the rounding of the weights too (`drivers.StraightThrough`),
                 which takes none of ADMM's settings but `every`, and pays at 1 to 3 bits; there with `rate` 1

    """
    steps = _steps((bits,), "uniform", ROW, bits_of, targets)
    *dense, last = rounds.after_dense(dense_epochs, steps)
    assert isinstance(last, Constrain)
    if how == "straight_through":
        last = replace(last, driver=StraightThrough(rounds.every), train=replace(last.train, floor=0.0))
    elif how != "admm":
        raise InputError(f"how must be admm or straight_through, given {how!r}")
    return Recipe("quantize_aware", (*dense, replace(last, activations=activations)), "arXiv 1811.01907, 1308.3432")


def _scale(per: str) -> View:
    if per not in SCALES:
        raise InputError(f"per must be one of {', '.join(SCALES)}, given {per!r}")
    return SCALES[per]


def _steps(
    bits: tuple[int, ...], levels: Literal["uniform", "power_of_two"], view: View, bits_of: Mapping[str, int] | None, targets: str
) -> list[Step]:
    """(name, rules) of each stage."""
    steps: list[Step] = [(f"{number} bit{'s' * (number > 1)}", (Rule(targets, Levels(levels, number), view),)) for number in bits]
    if bits_of is not None:
        if not bits_of:
            raise InputError("bits_of names no parameter: give parameter -> bits, or leave it out for the same bits everywhere")
        steps[-1] = ("bits by layer", tuple(Rule(name, Levels(levels, number), view) for name, number in bits_of.items()))
    return steps
