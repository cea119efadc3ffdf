"""Recipes: what to do, as data. Patterns and ratios only; exact names and sizes are the plan's."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter

from featherweight.budget.amounts import read_fields, share
from featherweight.errors import InputError, did_you_mean, require, short
from featherweight.recipe.units import Adaptive, Blocks, Share, Units
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.counts import ALLOCATORS
from featherweight.weights.drivers import ADMM, Periodic, StraightThrough
from featherweight.weights.freezing import Freezing
from featherweight.weights.layerwise import Method
from featherweight.weights.sets import Codebook, Levels, LowRank, SparseCodebook, TopEach, TopK, TopRows
from featherweight.weights.views import WHOLE, View

AnySet = Annotated[TopK | TopEach | TopRows | LowRank | Levels | Codebook | SparseCodebook, Field(discriminator="kind")]
AnyDriver = Annotated[ADMM | Periodic | StraightThrough | Freezing, Field(discriminator="kind")]
Seen = Literal["rows", "channel", "spatial"]  # a view that each layer's kind decides, see `selection.view_of`
AnyView = Annotated[
    Annotated[View, Tag("view")] | Annotated[Seen, Tag("word")],
    Discriminator(lambda given: "word" if given in get_args(Seen) else "view"),
    BeforeValidator(lambda given: {"pattern": given} if isinstance(given, str) and given not in get_args(Seen) else given),
]
WEIGHTS = "weights"  # of a rule: all weights of linear, convolution, recurrent and attention layers


MOST_STAGES = 1000
MOST_CANDIDATES = 1000


def _not_of_before(given: Any) -> Any:
    """What an earlier version wrote has no `loss`, and meant a mixture: refused, and not read as a sum."""
    if isinstance(given, dict) and {"weight", "temperature"} == given.keys():
        weight = given["weight"]
        raise InputError(
            "say `loss` beside the weight, which multiplies the task's own loss: 1 adds the distillation to it; "
            f"1 - {weight} is the mixture that `weight: {weight}` alone meant in earlier versions"
        )
    return given


AnyDistillation = Annotated[Distillation, BeforeValidator(_not_of_before)]


@dataclass(frozen=True)
class Rule:
    """Parameters whose names match `targets` must lie in `set`, seen through `view`.

    `targets`: `"weights"`, all weights of linear, convolution, recurrent and attention layers (see `targets`); a glob such as
    `"*.weight"`, or `"re:"` and a regular expression, which mean what they match. Frozen and tied parameters are left out.
    `view`: a pattern, or `"rows"` (a row an output: filter, neuron, recurrent unit), `"channel"`, `"spatial"`, for which each
    layer's kind has its own. `keep`: the set's size as a share, in (0, 1], of its largest size in the network as it was given;
    without it, and without a size in the set, the stage's budget decides. `ignore`: names and patterns of parameters, or of the
    modules that hold them, that are no targets.
    """

    targets: str
    set: AnySet
    view: AnyView = WHOLE
    keep: Share | None = None
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        read_fields(self, share, "keep")
        require((self.keep is None or 0 < self.keep <= 1, f"keep is a share in (0, 1], given {self.keep}"))


@dataclass(frozen=True)
class Train:
    """Train as the task says: the dense network first, or what an earlier stage has cut. Without epochs it is only measured.

    auxiliary  the losses of two heads inside the network count besides its own; the heads are thrown away (see `auxiliary`)
    """

    kind: Literal["train"] = field(default="train", kw_only=True)
    name: str
    train: Training = Training(0)
    distill: AnyDistillation | None = None
    auxiliary: bool = False
    imposes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require((not self.auxiliary or bool(self.epochs), f"stage {self.name!r}: auxiliary needs training"))

    @property
    def epochs(self) -> int:
        """Of training, in all phases."""
        return self.train.epochs


@dataclass(frozen=True)
class Layerwise:
    """Weights that change what each layer puts out least, found layer after layer on training samples, without training.

    method   of sets that select weights admm, sparsegpt, wanda, or magnitude, which asks no sample; of LowRank svd: see
             `weights.layerwise`
    samples  training samples that the layers are watched on
    """

    method: Method = "admm"
    samples: int = 128

    def __post_init__(self) -> None:
        require((self.samples >= 1, f"samples must be at least 1, given {self.samples}"))


@dataclass(frozen=True)
class Constrain:
    """Plan the sizes of sets, train under the driver, project the weights into the sets, and train on inside them.

    rules      which parameters, into which sets
    keep       share in (0, 1] of all targets' sizes to keep, spread over the rules that have no size by `allocate`
    macs       share in (0, 1] of the network's multiply-accumulates to keep, for rules of LowRank without a size: the ranks that
               drop least of the weights' squared norm (`ranks.allocate`), and layers for which no rank pays left whole
    driver     how the sets pull on the training; without one, the weights are projected once, after it
    train      before the projection; retrain: after it, through the codes
    masked     what is zero when the stage starts stays zero
    fisher     the power of the mean squared gradient that weighs magnitudes where sets select (see `drivers.Target`)
    respread   spread `keep` anew at every projection, not only when the stage starts
    sweep      after the projection, cut the units that it left dead; what stays trains the faster for it
    activations  bits, 2 to 8, that the inputs of layers are rounded to while the stage trains, as `export --integers` will round
               them (see `training.rounding`)
    layerwise  how else the weights get into the sets, in place of a driver and of training towards them
    """

    kind: Literal["constrain"] = field(default="constrain", kw_only=True)
    name: str
    rules: tuple[Rule, ...]
    keep: Share | None = None
    macs: Share | None = None
    allocate: str = "lamp"
    driver: AnyDriver | None = None
    train: Training = Training(0)
    retrain: Training = Training(0)
    masked: bool = True
    fisher: float = 0.0
    respread: bool = False
    sweep: bool = False
    distill: AnyDistillation | None = None
    activations: int | None = None
    layerwise: Layerwise | None = None
    imposes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        read_fields(self, share, "keep", "macs")
        where = f"stage {self.name!r}"
        allocator = f"no allocator is named {self.allocate!r}; there are {', '.join(ALLOCATORS)}."
        require(
            (bool(self.rules), f"{where} has no rules: give what to constrain, or make it a stage that trains (kind: train)"),
            (self.keep is None or 0 < self.keep <= 1, f"{where}: keep is a share in (0, 1], given {self.keep}"),
            (self.macs is None or 0 < self.macs <= 1, f"{where}: macs is a share in (0, 1], given {self.macs}"),
            (self.macs is None or self.keep is None, f"{where}: give keep or macs, not both"),
            (self.allocate in ALLOCATORS, f"{where}: {allocator}{did_you_mean(self.allocate, ALLOCATORS)}"),
            (0 <= self.fisher < math.inf, f"{where}: fisher is a power, at least 0, given {self.fisher}"),
            (
                self.layerwise is None or (self.driver is None and self.train.epochs == 0 and not self.fisher),
                f"{where}: layerwise takes the place of a driver, of train and of fisher; `retrain` may follow it",
            ),
            (
                self.layerwise is None or self.layerwise.method == "svd" or all(rule.set.selects for rule in self.rules),
                f"{where}: layerwise chooses which weights stay: give TopK, TopEach or TopRows, or the method svd",
            ),
            (
                self.layerwise is None
                or self.layerwise.method != "svd"
                or all(rule.set.kind == "low_rank" for rule in self.rules),
                f"{where}: the method svd is for LowRank",
            ),
            (not self.respread or self.keep is not None, f"{where}: respread needs a budget (keep) to spread"),
            (
                self.activations is None or 2 <= self.activations <= 8,
                f"{where}: activations are rounded to 2 to 8 bits, given {self.activations}",
            ),
        )

    @property
    def epochs(self) -> int:
        """Of training, in all phases."""
        return self.train.epochs + self.retrain.epochs


@dataclass(frozen=True)
class CutUnits:
    """Cut units for good by a criterion, then train what is left.

    auxiliary  the criterion, and the training, see the losses of two heads inside the network besides its own
               (see `auxiliary`); the heads are trained along and thrown away
    """

    kind: Literal["cut_units"] = field(default="cut_units", kw_only=True)
    name: str
    units: Units
    train: Training = Training(0)
    distill: AnyDistillation | None = None
    auxiliary: bool = False
    imposes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require((not (self.auxiliary and self.on_graph), f"stage {self.name!r}: auxiliary heads need units of where: class"))

    @property
    def on_graph(self) -> bool:
        """Is the network an exported module from this stage on?"""
        return self.units.where == "graph"

    @property
    def epochs(self) -> int:
        """Of training, in all phases."""
        return self.train.epochs


@dataclass(frozen=True)
class DropBlocks:
    """Take residual blocks out whole, then train what is left."""

    kind: Literal["drop_blocks"] = field(default="drop_blocks", kw_only=True)
    name: str
    blocks: Blocks
    train: Training = Training(0)
    distill: AnyDistillation | None = None
    imposes: ClassVar[bool] = True

    @property
    def epochs(self) -> int:
        """Of training, in all phases."""
        return self.train.epochs


@dataclass(frozen=True)
class LearnUnits:
    """Learn in `train` which units and blocks go, cut them, and train on (`retrain`)."""

    kind: Literal["learn_units"] = field(default="learn_units", kw_only=True)
    name: str
    adaptive: Adaptive
    train: Training
    retrain: Training = Training(0)
    distill: AnyDistillation | None = None
    imposes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require((self.train.epochs > 0, f"stage {self.name!r} learns what to cut in train: give it epochs"))

    @property
    def epochs(self) -> int:
        """Of training, in all phases."""
        return self.train.epochs + self.retrain.epochs


Stage = Train | Constrain | CutUnits | DropBlocks | LearnUnits
KINDS: dict[str, type[Stage]] = {
    "train": Train,
    "constrain": Constrain,
    "cut_units": CutUnits,
    "drop_blocks": DropBlocks,
    "learn_units": LearnUnits,
}


def _with_kind(given: Any) -> Any:
    """A stage that does not say its kind is of the one that alone has its fields. What earlier versions wrote has the fields of
    all kinds: those that its kind has not, and that are not set, are dropped."""
    if not isinstance(given, dict) or "kind" in given:
        return given
    told = [kind for kind in KINDS if any(_is_set(kind, name, given[name]) for name in given if OWN.get(name) == kind)]
    if len(told) > 1:
        raise InputError(f"it is {' and '.join(told)} at once: make it {len(told)} stages")
    kind = told[0] if told else "train"
    return {"kind": kind} | {
        name: value
        for name, value in given.items()
        if name in fields_of(kind) or not any(name in fields_of(other) and not _is_set(other, name, value) for other in KINDS)
    }


def fields_of(kind: str) -> dict[str, Any]:
    """Field -> its default."""
    return {field.name: field.default for field in dataclasses.fields(KINDS[kind])}


def _is_set(kind: str, name: str, value: Any) -> bool:
    unset = value in ([], {}, None) or (name == "retrain" and isinstance(value, dict) and not value.get("epochs"))
    return not unset and value != fields_of(kind)[name]


OWN = {  # field -> the one kind that has it
    name: kind for kind in KINDS for name in fields_of(kind) if sum(name in fields_of(other) for other in KINDS) == 1
}
AnyStage = Annotated[
    Annotated[Stage, Field(discriminator="kind")],
    BeforeValidator(_with_kind),
]


@dataclass(frozen=True)
class Recipe:
    """Stages in order. `source`: the paper. `candidates`: how many partial networks are kept alive, each stage starting from
    all of them and its best result (least training loss) replacing the one it came from (arXiv 1810.07378, sec. 2.4)."""

    name: str
    stages: tuple[AnyStage, ...]
    source: str = ""
    candidates: int = 1

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        require(
            (0 < len(self.stages) <= MOST_STAGES, f"a recipe has 1 to {MOST_STAGES} stages, given {len(self.stages)}"),
            (len(set(names)) == len(names), f"stage names must differ, given {', '.join(map(short, names[:20]))}"),
            (1 <= self.candidates <= MOST_CANDIDATES, f"candidates are 1 to {MOST_CANDIDATES}, given {short(self.candidates)}"),
        )
        self._check_graph()

    def _check_graph(self) -> None:
        """After units went on the graph there are no layers that a set, a cut or a head could look at."""
        cut = next((stage for stage in self.stages if isinstance(stage, CutUnits) and stage.on_graph), None)
        for stage in self.stages[self.stages.index(cut) :] if cut is not None else ():
            if (stage is not cut and not isinstance(stage, Train)) or getattr(stage, "auxiliary", False):
                raise InputError(
                    f"stage {stage.name!r} needs layers, and after stage {cut.name if cut else ''!r}, whose units are of where: "
                    "graph, the network is an exported module, which has none: put it before, or cut with where: class"
                )

    def epochs(self) -> int:
        """Epochs of one path through the stages (with several candidates a stage is run up to that many times)."""
        return sum(stage.epochs for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON; `reading.from_dict` is its inverse."""
        return json.loads(ADAPTER.dump_json(self))


ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Recipe)
