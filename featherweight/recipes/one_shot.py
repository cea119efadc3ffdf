"""arXiv 1608.08710, 1607.03250, 1611.06440, 1711.05908, 1707.06342, 1707.06168, 1802.03494, 1810.11809, ICML 2019: cut once.

Papers whose method is a criterion, or how much of each. Published for CIFAR-10 ResNet-56, accuracy lost at the share of MACs
saved: L1 -0.02 at 27.6 %, channel lasso 1.00 at 50 %, AMC 0.90 at 50 %, discriminative 0.31 at 50 % and -0.01 at 47.0 % with
adapted sizes, collaborative 0.08 at 52.6 % and -0.19 at 47.0 % with auxiliary classifiers. Those shares are the papers' own
formulas; ours are counted on the network that is left.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from featherweight.recipe.schema import CutUnits, Recipe, Train
from featherweight.recipe.units import (
    AllocateBy,
    Criterion,
    Multiple,
    Runtime,
    Search,
    Stopping,
    Units,
    Where,
    milliseconds,
    size,
)  # fmt: skip
from featherweight.training.schedule import BLOCKS, Taught, Training, taught

PARAMETERS = """
macs      share of the multiply-accumulates to keep (50%, or 2x fewer), a half without a budget; or of parameters or bytes, these
          also as a size (100kB); or latency_ms, for one example on this machine (2ms). allocate: how it is spread over the sites
          (see `units.allocate`); multiple: of each size, auto for what runs faster (see `multiples`), 1 for the papers' own sizes
sites     name pattern of what may be cut. soft: also what a norm or a mean takes a statistic over, such as a transformer's
          width: the report says by how much that changes the outputs before fine-tuning
samples   training samples that the criterion looks at, where it looks at any
epochs    of fine-tuning, at `rate` times the task's base rate. The default is the whole rate, as in
          learning-rate rewinding (Renda et al., ICLR 2020): up to 23 points ahead of a tenth in benchmarks/ordinary, held out
distill   weight of the distillation from the dense network, which is added to the loss; 0 for none
where     graph: cut also what the network's class cannot express; the network is an exported module from then on
runtime   in which latency_ms is met: eager, or onnx or c, the file that `export` writes, on one thread
"""


def _one_shot(
    name: str, source: str, criterion: Criterion, does: str, refit: bool = False, auxiliary: bool = False, **fixed: Any
) -> Callable[..., Recipe]:
    """The recipe of a paper: one parameter list for all of them. `fixed`: further fields of its `Units`."""

    def recipe(
        macs: float | None = None,
        parameters: float | None = None,
        bytes: float | str | None = None,
        latency_ms: float | str | None = None,
        allocate: AllocateBy = "uniform",
        multiple: Multiple = "auto",
        sites: str = "*",
        soft: bool = False,
        samples: int = 1024,
        epochs: int = 20,
        rate: float = 1.0,
        distill: Taught = 0.0,
        temperature: float = 4.0,
        where: Where = "class",
        runtime: Runtime = "eager",
    ) -> Recipe:
        budget = _budget(macs, parameters, bytes, latency_ms)
        more = {"multiple": multiple, "soft": soft, "where": where, "runtime": runtime, **fixed}
        units = Units(criterion, *budget, allocate, sites, samples, refit, **more)
        return _cut_once(name, source, units, epochs, rate, distill, temperature, auxiliary)

    recipe.__name__ = recipe.__qualname__ = name
    recipe.__doc__ = f"{does}\n{PARAMETERS}"
    return _as_before(recipe)


def _budget(
    macs: float | None, parameters: float | None, bytes: float | str | None, latency_ms: float | str | None
) -> tuple[float | None, float | None, float | None, float | None]:
    """As `Units` takes it; half of the multiply-accumulates where none is given."""
    half = {macs, parameters, bytes, latency_ms} == {None}
    return 0.5 if half else macs, parameters, size(bytes), milliseconds(latency_ms)


def _as_before(make: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """Takes `allot` of version 0.0 as `allocate`, until 0.2."""

    @functools.wraps(make)
    def recipe(*args: Any, **given: Any) -> Recipe:
        if "allot" in given:
            warnings.warn("allot is allocate now", DeprecationWarning, stacklevel=2)
            given["allocate"] = given.pop("allot")
        return make(*args, **given)

    return recipe


def _cut_once(
    name: str, source: str, units: Units, epochs: int, rate: float, distill: Taught, temperature: float, auxiliary: bool = False
) -> Recipe:
    """A row each for the dense network, the cut one and the tuned one: what tuning gives is seen."""
    distilled = taught(distill, temperature)
    tuned = Train("tuned", train=Training(epochs, rate), distill=distilled, auxiliary=auxiliary and epochs > 0)
    return Recipe(name, (Train("dense"), CutUnits("cut", units=units, auxiliary=auxiliary), tuned), source)


def reconstruct(
    macs: float | None = None,
    parameters: float | None = None,
    bytes: float | str | None = None,
    latency_ms: float | str | None = None,
    criterion: Criterion = "l1",
    allocate: AllocateBy = "uniform",
    multiple: Multiple = "auto",
    sites: str = "*",
    soft: bool = False,
    samples: int = 1024,
    epochs: int = 20,
    rate: float = 1.0,
    where: Where = "class",
    runtime: Runtime = "eager",
) -> Recipe:
    """Cut, fit the readers of what is cut, and teach each layer what the dense network's puts out: inputs, and no labels.

    Layer by layer as in channel pruning (He et al., ICCV 2017), then all layers at once (FitNets, Romero et al., ICLR 2015).

    criterion  which units go; taylor, taylor_weight and discriminative look at labels, the others do not
    epochs     of learning the dense network's outputs and those of its layers, at `rate` times the task's base rate; where: graph
               leaves no layers, and the outputs alone are learnt
    The other parameters are those of l1_filters.
    """
    budget = _budget(macs, parameters, bytes, latency_ms)
    more: dict[str, Any] = {"multiple": multiple, "soft": soft, "where": where, "runtime": runtime}
    units = Units(criterion, *budget, allocate, sites, samples, refit=True, **more)
    taught = Train("reconstructed", train=Training(epochs, rate), distill=BLOCKS)
    return Recipe("reconstruct", (Train("dense"), CutUnits("cut", units=units), taught), "arXiv 1707.06168, 1412.6550")


l1_filters = _one_shot(
    "l1_filters", "arXiv 1608.08710", "l1", "Keep the units with the largest sums of |w|, then fine-tune (Li et al., ICLR 2017)."
)
apoz = _one_shot("apoz", "arXiv 1607.03250", "apoz", "Keep the units that are least often zero, then fine-tune (Hu et al. 2016).")
taylor = _one_shot(
    "taylor",
    "arXiv 1611.06440",
    "taylor",
    "Keep the units of the largest activation times gradient, then fine-tune (Molchanov et al., ICLR 2017).",
)
nisp = _one_shot(
    "nisp",
    "arXiv 1711.05908",
    "nisp",
    "Keep the units that the last responses rest on, importance propagated back, then fine-tune (Yu et al., CVPR 2018).",
)
thinet = _one_shot(
    "thinet",
    "arXiv 1707.06342",
    "thinet",
    "Keep the units that rebuild the next layer's output best, refit that, fine-tune (Luo et al., ICCV 2017).",
    refit=True,
)
channel_lasso = _one_shot(
    "channel_lasso",
    "arXiv 1707.06168",
    "channel_lasso",
    "Keep the units that a LASSO on the next layer's output keeps, refit that, fine-tune (He et al., ICCV 2017).",
    refit=True,
)
collaborative = _one_shot(
    "collaborative",
    "ICML 2019, PMLR 97:5113",
    "collaborative",
    "Keep the units so that those that go cost least together, pairs counted, then fine-tune (CCP, Peng et al., ICML 2019).\n\n"
    "Pairs are the curvature of the outputs' change and readers are refitted: both are ours, and ahead of the paper's choice,\n"
    "which is `curvature: loss` and `refit: false` under `units` in a recipe file; `certify: true` there proves how far each\n"
    "choice is from the best one.",
    refit=True,
)
discriminative = _one_shot(
    "discriminative",
    "arXiv 1810.11809",
    "discriminative",
    "Take in the units that lower reconstruction and auxiliary losses most, refit, fine-tune (DCP, Zhuang et al., NeurIPS 2018).",
    refit=True,
)
collaborative_ac = _one_shot(
    "collaborative_ac",
    "ICML 2019, PMLR 97:5113",
    "collaborative",
    "`collaborative` on the loss and those of two auxiliary heads, and fine-tuned with them (CCP-AC, Peng et al., ICML 2019).",
    refit=True,
    auxiliary=True,
    curvature="loss",
)


def discriminative_adapt(
    tolerance: float = 0.005,
    macs: float = 1.0,
    sites: str = "*",
    samples: int = 1024,
    epochs: int = 20,
    rate: float = 1.0,
    distill: Taught = 0.0,
    temperature: float = 4.0,
    where: Where = "class",
) -> Recipe:
    """`discriminative`, each site as small as its own losses say, then fine-tune (DCP-Adapt, Zhuang et al., NeurIPS 2018).

    tolerance  a site stops where one unit more betters its loss by at most this share of what it was with one (`Stopping`);
               a wide site gains less a unit, so it stops earlier
    macs       share of the multiply-accumulates that is kept at most; where the rule keeps more, the tolerance is raised
    sites      name pattern of what may be cut
    samples    training samples that the criterion looks at
    epochs     of fine-tuning, at `rate` times the task's base rate
    distill    weight of the distillation from the dense network, which is added to the loss; 0 for none
    where      graph: cut also what the network's class cannot express; the network is an exported module from then on
    """
    how = Stopping(tolerance)
    units = Units("discriminative", macs, allocate=how, sites=sites, samples=samples, refit=True, where=where)
    return _cut_once("discriminative_adapt", "arXiv 1810.11809", units, epochs, rate, distill, temperature)


def amc(
    macs: float = 0.5,
    episodes: int = 60,
    warm_up: int = 20,
    multiple: Multiple = "auto",
    sites: str = "*",
    samples: int = 1024,
    epochs: int = 20,
    rate: float = 1.0,
    distill: Taught = 0.0,
    temperature: float = 4.0,
    where: Where = "class",
) -> Recipe:
    """Sizes that an agent finds, the largest sums of |w|, readers fitted anew, then fine-tune (AMC, He et al., ECCV 2018).

    macs       share of the multiply-accumulates to keep
    episodes   networks that the agent tries; the first `warm_up` at random. The paper: 400 and 100
    multiple   of each size, see `multiples`; the paper: 8
    sites      name pattern of what may be cut
    samples    training samples to fit on, and as many others that the agent is rewarded by
    epochs     of fine-tuning, at `rate` times the task's base rate
    distill    weight of the distillation from the dense network, which is added to the loss; 0 for none
    where      graph: cut also what the network's class cannot express; the network is an exported module from then on
    """
    how = Search(episodes, warm_up)
    units = Units("l1", macs, allocate=how, sites=sites, samples=samples, refit=True, multiple=multiple, where=where)
    return _cut_once("amc", "arXiv 1802.03494", units, epochs, rate, distill, temperature)
