"""The exact choice from many menus under one budget."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from featherweight.budget.choices import Choices, check_least
from featherweight.errors import InputError


def knapsack(menus: Mapping[str, Choices], budget: int) -> dict[str, int]:
    """argmin sum of errors  s.t.  sum of costs <= budget, exactly; as the index of a choice for each name.

    The multiple-choice knapsack problem as a mixed-integer programme (HiGHS): seconds for menus of some thousand choices in
    all. Raises Infeasible as `lagrangian`.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # half a second that only who solves is to pay

    check_least(menus, budget)
    errors = np.concatenate([np.asarray(menu.errors, dtype=float) for menu in menus.values()])
    costs = np.concatenate([np.asarray(menu.costs, dtype=float) for menu in menus.values()])
    owner = np.repeat(np.arange(len(menus)), [len(menu.costs) for menu in menus.values()])
    one_each = LinearConstraint((owner == np.arange(len(menus))[:, None]).astype(float), 1, 1)
    scale = max(float(np.abs(errors).max()), 1e-300)  # the solver's tolerances are absolute
    within = LinearConstraint(costs[None] / max(budget, 1), -np.inf, 1.0)
    solved = milp(
        errors / scale, integrality=np.ones_like(errors), bounds=Bounds(0, 1), constraints=[one_each, within],
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if solved.x is None:
        raise InputError(f"the knapsack programme was not solved: {solved.message}")
    picked = np.flatnonzero(solved.x > 0.5)
    starts = np.cumsum([0, *(len(menu.costs) for menu in menus.values())])
    return {name: int(index - start) for name, index, start in zip(menus, picked, starts[:-1], strict=True)}
