"""A network's structure as plain data: what can go, what it would save, why the rest cannot, and what a budget would cut."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from torch import nn

from featherweight.budget import amounts
from featherweight.budget.costs import SHARES, What, cost_of
from featherweight.budget.multiples import Multiple, slow_sizes
from featherweight.errors import InputError, did_you_mean
from featherweight.network.copies import copied
from featherweight.recipe.units import Units
from featherweight.run.cut_units import cut
from featherweight.structure import Graph, trace
from featherweight.task import Task

BUDGETS: tuple[What, ...] = (*SHARES, "latency_ms")


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


def budget_of(text: str) -> tuple[What, float]:
    """`macs=50%`, `parameters=4x` -> (what, the share to keep); `bytes=100kB` or `100kB`, `latency_ms=3` or `3ms` -> (what, how
    many). Raises InputError."""
    named, given, amount = text.partition("=")
    if not given and (told := amounts.parts(text)) and told[1] in {**amounts.BYTES, **amounts.MILLISECONDS}:
        named, given, amount = "bytes" if told[1] in amounts.BYTES else "latency_ms", "=", text
    what = next((budget for budget in BUDGETS if budget == named), None)
    if what is None or not given:
        forms = f"{', '.join(f'{share}=50%' for share in SHARES)}, 100kB or 3ms"
        raise InputError(f"a budget is {forms}, given {text!r}.{did_you_mean(named, BUDGETS)}")
    read = {"latency_ms": amounts.milliseconds, "bytes": amounts.size}.get(what, amounts.share)
    try:
        found = float(read(amount))
    except InputError:
        raise
    except ValueError:
        kind = "number of milliseconds above 0, such as latency_ms=3"
        kind = kind if what == "latency_ms" else f"number or a percentage, such as {what}=50%"
        raise InputError(f"the budget {text!r} needs a {kind}") from None
    if what == "latency_ms":
        if not 0 < found < math.inf:
            raise InputError(f"the budget {text!r} needs a number of milliseconds above 0, such as latency_ms=3")
    elif not (0 < found <= 1 or (what == "bytes" and amounts.LEAST_SIZE <= found < math.inf)):
        percent = f": did you mean {what}={amount}%?" if 1 < found <= 100 and "%" not in amount else ""
        raise InputError(f"the budget {text!r} is a share to keep, above 0 and at most 100 %{percent}")
    return what, found


def cuts(
    network: nn.Module, task: Task, what: What, amount: float, multiple: Multiple = "auto", runtime: Any = "eager"
) -> dict[str, Any]:
    """What `fw.prune` and `l1_filters` cut for this budget, with the same sizes: a copy of the network is cut in its own class,
    by the sums of |w|, and compared; what it keeps and saves, and which sites keep all their units, with why. `multiple`: of each
    size, see `multiples`; `runtime`: of milliseconds.

    Raises InputError where no unit can go, Infeasible, with the nearest feasible budget, where even the smallest sizes are too
    much.
    """
    graph = trace(network, task.example_inputs)
    budget: Any = {what: amount}
    done = cut(copied(network), task, Units("l1", multiple=multiple, runtime=runtime, **budget), 0)
    kept = {name: site.size for name, site in graph.sites.items()} | (dict(done.edit.sites) if done.edit is not None else {})
    costs = {share: cost_of(share, network, graph) for share in SHARES}
    return {
        "asked": {what: amount},
        "kept": {name: {"units": kept[name], "of": site.size} for name, site in graph.sites.items()},
        **{share: {"after": cost(kept), "before": cost({})} for share, cost in costs.items()},
        "spent": asdict(done.spent),
        "advice": slow_sizes(network, graph, kept),
    }
