"""Bits per layer: one budget spread over the layers by what each further bit saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from featherweight.budget.choices import Choices, lagrangian
from featherweight.errors import InputError
from featherweight.weights.sets import Levels
from featherweight.weights.views import WHOLE, View

MOST = {"uniform": 8, "power_of_two": 5}


def allocate(
    weights: Mapping[str, Tensor],
    mean: float,
    levels: Literal["uniform", "power_of_two"] = "uniform",
    *,
    view: View = WHOLE,
    most: int | None = None,
    squares: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """argmin over bits b of sum_l e_l(b_l)  s.t.  sum_l n_l b_l <= mean sum_l n_l, each b_l from 1 to `most`: name -> b_l.

    n_l: the weights of layer l that are not zero; e_l: its squared distance from the levels, times its mean E[g^2] (`squares`,
    from `fit.squared_gradients`; the diagonal second-order loss), or over its squared norm where none are given (Shoham
    and Gersho 1988; `budget.choices.lagrangian`). For `recipes.admm_quantization(bits_of=..)`. Raises InputError for a mean
    that no choice meets.
    """
    largest = MOST[levels] if most is None else most
    if not weights:
        raise InputError("weights names no layer to spread bits over")
    if not 1 <= mean <= largest:
        raise InputError(f"mean is bits a weight, from 1 to {largest} for {levels} levels, given {mean}")
    menus = {}
    for name, weight in weights.items():
        matrix, count = view.to_matrix(weight.detach()), int(weight.count_nonzero())
        factor = float(matrix.double().square().sum() * squares[name].double().mean()) if squares is not None else 1.0
        sizes = tuple(range(1, largest + 1))
        errors = tuple(factor * Levels(levels, bits, sparse=True).violation(matrix) ** 2 for bits in sizes)
        menus[name] = Choices(sizes, errors, tuple(count * bits for bits in sizes))
    budget = int(mean * sum(menu.costs[0] for menu in menus.values()) + 1e-6)
    return {name: index + 1 for name, index in lagrangian(menus, budget).items()}
