"""What a budget of units is of: multiply-accumulates, parameters, bytes, or milliseconds; and what was made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter
from torch import Tensor, nn

from featherweight.budget.units import Cost
from featherweight.structure import Graph

What = Literal["macs", "parameters", "bytes", "latency_ms"]
SHARES: tuple[What, ...] = ("macs", "parameters", "bytes")  # given as a share to keep, and counted exactly
CLOSE = 0.01  # a budget is met where what is kept is this near to what was asked


@dataclass(frozen=True)
class Spent:
    """A budget, and what the network costs now. Milliseconds for latency_ms, counts for the others.

    before, after  the network before the cut and after it: counted on its graph, or measured in turns
    predicted      latency_ms: what the table said of `after` before the network was built
    spread         latency_ms: the larger interquartile range of the two networks' times and of their ratio, over its median
    gaps           of units certified: site -> the share of its damage that another choice of as many could save at most
    note           why `after` is not within 1 % of `asked`, in words; "" where it is
    left_out       site that keeps all its units -> why the criterion could not rank it, or the class not express a cut of it
    caveats        what else to know of the choice, such as that there were fewer samples than asked for
    runtime        latency_ms: in which the times are
    """

    what: What
    asked: float
    before: float
    after: float
    predicted: float | None = None
    spread: float | None = None
    note: str = ""
    gaps: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    caveats: list[str] = field(default_factory=list)
    runtime: str = "eager"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spent:
        """Checked and of the right types whatever `data` holds. Raises pydantic's ValidationError, a ValueError."""
        return _SPENT.validate_python(data)

    def remarks(self) -> list[str]:
        """`left_out` and `caveats` as sentences; sites that share a reason share one."""
        sites: dict[str, list[str]] = {}
        for site, reason in self.left_out.items():
            sites.setdefault(reason, []).append(repr(site))
        return [f"keeps all units of {', '.join(names)}: {reason}" for reason, names in sites.items()] + list(self.caveats)

    def __str__(self) -> str:
        because = f": {self.note}" if self.note else ""
        if self.what != "latency_ms":
            shares = [100 * value / max(self.before, 1) for value in (self.asked, self.after)]
            return f"{self.what}: asked {shares[0]:.3g} %, kept {shares[1]:.3g} %{because}"
        told = f", predicted {self.predicted:.3g}" if self.predicted is not None else ""
        spread = f", spread {100 * self.spread:.0f} %" if self.spread is not None else ""
        where = "" if self.runtime == "eager" else f" in {self.runtime}"
        return f"latency_ms{where}: asked {self.asked:.3g}, measured {self.after:.3g} of {self.before:.3g}{told}{spread}{because}"


_SPENT: TypeAdapter[Spent] = TypeAdapter(Spent)


def cost_of(what: What, network: nn.Module, graph: Graph) -> Cost:
    """sizes -> what the whole network costs, exactly. Milliseconds are steered by MACs (see `latency_budget`)."""
    if what == "parameters":
        return graph.parameters
    return _bytes(network, graph) if what == "bytes" else graph.macs


def _bytes(network: nn.Module, graph: Graph) -> Cost:
    """Bytes of the state dict at its own precision, buffers included, tensors with several names once."""
    widths: dict[str, int] = {}
    rest, seen = 0, set[int]()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) in seen:  # extra state that is no tensor has no bytes: a report says so
            continue
        seen.add(id(tensor))
        if name in graph.tensors:
            widths[name] = tensor.element_size()
        else:  # such as a counter that eval mode never reads: no cut changes it
            rest += tensor.element_size() * tensor.numel()

    def cost(sizes: Mapping[str, int] | None = None) -> int:
        entries = graph.entries(sizes)
        return rest + sum(entries[name] * width for name, width in widths.items())

    return cost


def counted(what: What, cost: Cost, sizes: Mapping[str, int], asked: float, why: str = "") -> Spent:
    """What was made of a budget that is counted. `why`: what else than the next size being too much leaves some of it."""
    before, after = cost({}), cost(sizes)
    note = "" if after >= (1 - CLOSE) * asked else why or "one size more at any site would be above it"
    return Spent(what, asked, before, after, note=note)
