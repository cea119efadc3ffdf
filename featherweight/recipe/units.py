"""What a recipe says of units: by which criterion and under which budget they go, or that it is learned how many do; and what it
says of residual blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field

from featherweight.budget.amc import Search
from featherweight.budget.amounts import LEAST_SIZE, milliseconds, read_fields, share, size
from featherweight.budget.costs import SHARES, What
from featherweight.budget.multiples import Multiple
from featherweight.budget.units import AllocateBy, Stopping
from featherweight.errors import require, short

AnyAllocateBy = AllocateBy | Annotated[Stopping | Search, Field(discriminator="kind")]
Share = Annotated[float, BeforeValidator(share)]
Size = Annotated[float, BeforeValidator(size)]
Milliseconds = Annotated[float, BeforeValidator(milliseconds)]

Where = Literal["class", "graph"]
Runtime = Literal["eager", "onnx", "c"]
Criterion = Literal[
    "l1", "l2", "bn_scale", "apoz", "taylor", "taylor_weight", "nisp", "thinet", "channel_lasso", "obs", "collaborative",
    "discriminative",
]  # fmt: skip


@dataclass(frozen=True)
class Units:
    """Units (channels, neurons, heads) that go for good before the stage trains.

    criterion         which go, and what that is predicted to cost: a name of `criteria.CRITERIA`
    macs, parameters, bytes
                      share in (0, 1] of what the network has when the stage starts to keep, also as "50%" or "2x" (fewer); bytes:
                      of its state dict, also as a size, "100kB"
    latency_ms        or milliseconds that one example may take on this machine, also as "2ms" (see `latency_budget`). One budget
                      of the four
    allocate          how that is spread over the sites (see `units.allocate`), or Stopping, for which the budget is a ceiling,
                      or Search, whose agent is rewarded by what the cut network makes of training samples not looked at before
    sites             name pattern of the sites that may be cut; those that the network's class cannot express are only in a graph
    samples           training samples that the criterion may look at
    refit             fit what reads the remaining units anew, by least squares on its inputs
    curvature         what pairs of units bend, for a criterion that looks at pairs: half the squared change of the outputs, or
                      the loss itself, as in the paper (see `statistics`)
    multiple          sizes are multiples of this, or the whole site: a site smaller than it is free. auto: of what was measured
                      to run faster (see `multiples`), single units where the budget cannot be met so
    certify           prove how much another choice of as many units could save at most (see `Quadratic.certificate`), for
                      collaborative: some seconds a site of 64 units, half a minute at 512
    ignore            names and patterns of sites, or of the modules that make their units, that keep all of theirs
    soft              units of which a norm or a mean takes a statistic may go too (a transformer's width): what is left computes
                      something else, by as much as the report says, which fine-tuning has to repair
    where             class: the network stays one of its class; graph: what the class cannot express goes, too, and the network
                      is an exported module from then on (see `on_graph`), which is trained but takes no further sets or cuts
    runtime           in which latency_ms is met: eager, PyTorch as it is; onnx or c, the file that `export` writes, on one thread
    """

    criterion: Criterion
    macs: Share | None = None
    parameters: Share | None = None
    bytes: Size | None = None
    latency_ms: Milliseconds | None = None
    allocate: AnyAllocateBy = "uniform"
    sites: str = "*"
    samples: int = 1024
    refit: bool = False
    curvature: Literal["outputs", "loss"] = "outputs"
    multiple: Multiple = 1
    certify: bool = False
    ignore: tuple[str, ...] = ()
    soft: bool = False
    where: Where = "class"
    runtime: Runtime = "eager"

    def __post_init__(self) -> None:
        read_fields(self, share, "macs", "parameters")
        read_fields(self, size, "bytes")
        read_fields(self, milliseconds, "latency_ms")
        given = self._given()
        shares = {what: kept for what, kept in given if what in SHARES and not (what == "bytes" and kept >= LEAST_SIZE)}
        wrong = ", ".join(f"{what}={kept:g}" for what, kept in shares.items() if not 0 < kept <= 1)
        require(
            (
                len(given) == 1,
                "units go by one budget, of macs, parameters, bytes or latency_ms, given "
                f"{', '.join(f'{what}={amount}' for what, amount in given) or 'none'}",
            ),
            (not wrong, f"a budget of units is a share to keep in (0, 1], given {wrong}"),
            (self.latency_ms is None or 0 < self.latency_ms < math.inf, f"latency_ms must be above 0, given {self.latency_ms}"),
            (
                self.latency_ms is None or isinstance(self.allocate, str),
                "latency_ms is met along a path of sizes: allocate by uniform, ranked, weighed or knapsack",
            ),
            (self.where in get_args(Where), f"where is class or graph, given {short(self.where)}"),
            (self.runtime in get_args(Runtime), f"runtime is {', '.join(get_args(Runtime))}, given {short(self.runtime)}"),
            (
                self.runtime == "eager" or self.latency_ms is not None,
                f"a runtime is for a budget of latency_ms, and none is given beside {short(self.runtime)}",
            ),
            (self.samples >= 1, f"samples must be at least 1, given {self.samples}"),
            (
                self.multiple == "auto" or (isinstance(self.multiple, int) and self.multiple >= 1),
                f"multiple must be auto or at least 1, given {self.multiple}",
            ),
            (
                not self.certify or self.criterion == "collaborative",
                f"certify needs a criterion that weighs choices as wholes, collaborative, given {self.criterion}",
            ),
        )

    def _given(self) -> list[tuple[What, float]]:
        amounts: dict[What, float | None] = {"macs": self.macs, "parameters": self.parameters, "bytes": self.bytes}
        amounts["latency_ms"] = self.latency_ms
        return [(what, amount) for what, amount in amounts.items() if amount is not None]

    @property
    def budget(self) -> tuple[What, float]:
        """What the budget is of, and how much of it: a share, where it is above 1 bytes, or milliseconds."""
        return self._given()[0]

    @property
    def share(self) -> float | None:
        """The share to keep; None for a budget of milliseconds or bytes, which is none."""
        what, amount = self.budget
        return amount if what in SHARES and amount <= 1 else None


@dataclass(frozen=True)
class Blocks:
    """Residual blocks that go whole before the stage trains, those first that cost least loss for what they save.

    macs, parameters  share in (0, 1] of what the network has when the stage starts to keep, also as "50%" or "2x" (fewer). One of
                      the two; as blocks are whole, what is kept may be well below it
    blocks            name pattern of the modules that may go
    samples           training samples on which the loss without each is measured
    """

    macs: Share | None = None
    parameters: Share | None = None
    blocks: str = "*"
    samples: int = 256

    def __post_init__(self) -> None:
        read_fields(self, share, "macs", "parameters")
        given = [amount for amount in (self.macs, self.parameters) if amount is not None]
        require(
            (len(given) == 1, "blocks go by one budget, of macs or parameters"),
            (all(0 < amount <= 1 for amount in given), f"a budget of blocks is a share to keep in (0, 1], given {given}"),
            (self.samples >= 1, f"samples must be at least 1, given {self.samples}"),
        )

    @property
    def budget(self) -> tuple[What, float]:
        """What the budget is of, and the share of it to keep."""
        return ("macs", self.macs) if self.macs is not None else ("parameters", self.share)

    @property
    def share(self) -> float:
        """To keep."""
        return next(amount for amount in (self.macs, self.parameters) if amount is not None)


@dataclass(frozen=True)
class Adaptive:
    """Units and residual blocks that go for good after `train`, in which how many is learned (see `learn_units.Proportions`).

    parameters  share in (0, 1] of the network's parameters to keep
    weight      of max(0, share of the parameters left - `parameters`), which is added to the loss
    rate        of Adam, which trains the gates beside the task's optimizer
    """

    parameters: Share
    weight: float = 3.0
    rate: float = 0.02

    def __post_init__(self) -> None:
        read_fields(self, share, "parameters")
        require(
            (0 < self.parameters <= 1, f"parameters is a share to keep in (0, 1], given {self.parameters}"),
            (0 < self.weight < math.inf, f"weight multiplies the excess of parameters, above 0, given {self.weight}"),
            (0 < self.rate < math.inf, f"rate is the gates' own rate, above 0, given {self.rate}"),
        )

    @property
    def share(self) -> float:
        """The budget, as that of `Units`."""
        return self.parameters
