"""Bits per layer: one budget spread over the layers by what each further bit saves."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from featherweight.errors import InputError
from featherweight.sets import Levels
from featherweight.views import WHOLE, View

MOST = {"uniform": 8, "power_of_two": 5}


def spread(
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
    from `training.squared_gradients`; the diagonal second-order loss), or over its squared norm where none are given. Greedy by
    error saved per bit stored, which is optimal up to the last step where the errors are convex in b (Shoham and Gersho 1988).
    For `recipes.admm_quantization(bits_of=..)`. Raises InputError for a mean that no choice meets.
    """
    largest = MOST[levels] if most is None else most
    if not weights:
        raise InputError("weights names no layer to spread bits over")
    if not 1 <= mean <= largest:
        raise InputError(f"mean is bits a weight, from 1 to {largest} for {levels} levels, given {mean}")
    count = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    budget = mean * sum(count.values()) - sum(count.values())
    errors: dict[str, list[float]] = {}
    for name, weight in weights.items():
        matrix = view.to_matrix(weight.detach())
        norm = float(matrix.double().square().sum())
        factor = norm * float(squares[name].double().mean()) if squares is not None else 1.0
        errors[name] = [factor * Levels(levels, bits, sparse=True).violation(matrix) ** 2 for bits in range(1, largest + 1)]
    chosen = dict.fromkeys(weights, 1)
    waiting = [(-_gain(errors[name], 1, count[name]), name) for name in weights if largest > 1]
    heapq.heapify(waiting)
    while waiting:
        _, name = heapq.heappop(waiting)
        if count[name] > budget:
            continue  # a smaller layer may still fit
        budget -= count[name]
        chosen[name] += 1
        if chosen[name] < largest:
            heapq.heappush(waiting, (-_gain(errors[name], chosen[name], count[name]), name))
    return chosen


def _gain(errors: list[float], bits: int, count: int) -> float:
    """What the next bit saves, for each bit stored."""
    return (errors[bits - 1] - errors[bits]) / max(count, 1)
