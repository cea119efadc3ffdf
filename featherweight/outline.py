"""A network's structure as plain data: what can go, what it would save, why the rest cannot, and what a budget would cut."""

from __future__ import annotations

from typing import Any

from featherweight.errors import InputError, did_you_mean
from featherweight.structure import Graph
from featherweight.units import allot

BUDGETS = ("macs", "parameters")


def outline(graph: Graph) -> dict[str, Any]:
    """Sites with what one unit of each costs, blocks, frozen parameters with their reasons, and totals."""
    macs, parameters = graph.macs(), graph.parameters()
    sites = []
    for name, site in graph.sites.items():
        smaller = {name: site.size - 1} if site.size > 1 else {}
        sites.append(
            {
                "site": name,
                "units": site.size,
                "macs_a_unit": macs - graph.macs(smaller),
                "parameters_a_unit": parameters - graph.parameters(smaller),
                "cuts": [f"{tensor} dim {dim}" for tensor, dim in site.parameters],
                "changes": site.soft,
            }
        )
    blocks = [{"block": b.name, "macs": b.macs, "parameters": list(b.parameters)} for b in graph.blocks.values()]
    return {
        "macs": macs,
        "parameters": parameters,
        "sites": sites,
        "blocks": blocks,
        "frozen": dict(graph.frozen),
        "uncounted": dict(graph.uncounted),
    }


def budget_of(text: str) -> tuple[str, float]:
    """`macs=50%` or `parameters=0.5` -> (what, the share to keep). Raises InputError."""
    what, given, amount = text.partition("=")
    if what not in BUDGETS or not given:
        raise InputError(f"a budget is {' or '.join(f'{b}=50%' for b in BUDGETS)}, given {text!r}.{did_you_mean(what, BUDGETS)}")
    try:
        share = float(amount.removesuffix("%")) / (100 if amount.endswith("%") else 1)
    except ValueError:
        raise InputError(f"the budget {text!r} needs a number or a percentage, such as {what}=50%") from None
    if not 0 < share <= 1:
        raise InputError(f"the budget {text!r} is a share to keep, above 0 and at most 100 %")
    return what, share


def cuts(graph: Graph, what: str, share: float) -> dict[str, Any]:
    """The same share of units at every site, the largest within the budget, and single units more while they fit: what it keeps
    and saves. Raises Infeasible, with the nearest feasible budget, where even one unit a site is too much.
    """
    count = graph.macs if what == "macs" else graph.parameters
    even = {name: [0.0] * (site.size + 1) for name, site in graph.sites.items()}
    kept = allot("uniform", even, count, share * count())
    return {
        "asked": {what: share},
        "kept": {name: {"units": kept[name], "of": site.size} for name, site in graph.sites.items()},
        "macs": {"after": graph.macs(kept), "before": graph.macs()},
        "parameters": {"after": graph.parameters(kept), "before": graph.parameters()},
    }
