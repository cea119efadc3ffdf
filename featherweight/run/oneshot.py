"""The entries that need no training: prune, factorize, quantize, cluster. Each works on a copy and measures what came out.

What they lose is not trained back. `compress` trains, and goes much further at the same score.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam

from featherweight.budget.amounts import milliseconds, share, size
from featherweight.budget.multiples import Multiple
from featherweight.budget.units import AllocateBy
from featherweight.criteria import CRITERIA, NEEDS
from featherweight.errors import InputError, RecipeError, did_you_mean, short
from featherweight.files.edits import Snapshot, entries_left, graph_edit, structure_edit
from featherweight.lowrank.factor import materialise
from featherweight.measurement import measure
from featherweight.network import generators
from featherweight.network.calls import Example, Inputs, inputs_in
from featherweight.network.evaluating import evaluating
from featherweight.recipe.plan import resolve
from featherweight.recipe.schema import WEIGHTS, Constrain, CutUnits, Recipe, Rule, Stage, Train
from featherweight.recipe.selection import said
from featherweight.recipe.units import Criterion, Runtime, Units, Where
from featherweight.run.compressed import Compressed
from featherweight.run.cut_units import cut
from featherweight.run.on_graph import OUTPUTS_ALONE
from featherweight.run.report import Row, left
from featherweight.ship.activations import SAMPLES
from featherweight.task import LOOKED, Batch, Batches, Task
from featherweight.training.blocks import Left
from featherweight.training.distillation import distilled
from featherweight.training.fit import fit, recalibrate
from featherweight.training.schedule import BLOCKS, MOST_EPOCHS, Training
from featherweight.weights.constrained import freeze
from featherweight.weights.parametrized import plain
from featherweight.weights.sets import Codebook, Levels, LowRank
from featherweight.weights.views import WHOLE, View

BY_LABELS = ("taylor", "taylor_weight", "discriminative")
WITHOUT_LABELS = ("l1", "thinet", "channel_lasso", "obs", "collaborative")
RATE = 1e-3  # of Adam, where a network is taught by the dense one
STEEPEST = 1.0  # norm of the gradient, as it is clipped there (Pascanu et al., ICML 2013)
Evaluate = Callable[[nn.Module], float]
Ignore = Iterable[str | nn.Module]
Share = float | str
ROWS = View("o ... -> o (...)")


def prune(
    model: nn.Module,
    example_inputs: Example | Inputs,
    *,
    macs: Share | None = None,
    parameters: Share | None = None,
    bytes: Share | None = None,
    latency_ms: float | str | None = None,
    criterion: Criterion = "l1",
    allocate: AllocateBy = "uniform",
    multiple: Multiple = "auto",
    ignore: Ignore = (),
    data: Batches | Callable[[int], Batches] | None = None,
    loss: Callable[[nn.Module, Batch], Tensor] | None = None,
    refit: bool | None = None,
    reconstruct: int = 0,
    where: Where = "class",
    runtime: Runtime = "eager",
    evaluate: Evaluate | None = None,
) -> Compressed:
    """Cut channels, neurons, heads and recurrent units, physically, in the network's own class; `model` is not changed.

    macs, parameters, bytes  what is *kept* of the multiply-accumulates, parameters or bytes: a share (0.5, "50%") or so many
                             times fewer ("4x"); bytes also as a size ("100kB"). Or latency_ms: milliseconds of one example here
                             ("2ms"). One of them; macs=0.5 without
    criterion   which units go: l1 and l2 look at weights alone, the others at `data`, some through `loss(network, batch)`
    data        batches that are the network's inputs, begin with them, or hold them by name; labels are read by `loss` alone
    refit       fit the layers that read what is cut anew, on `data`; without a word where there are data and no loss
    reconstruct epochs of teaching every layer, and towards the end the outputs alone, what the dense network's give on `data`:
                no labels
    allocate    how the budget is spread: uniform, the same share of every layer; ranked, weighed, knapsack: by the criterion
    multiple    sizes are multiples of this: "auto", of 8 channels of convolutions, which ONNX Runtime runs faster (`multiples`)
    ignore      modules, or names or globs of them, whose outputs all stay
    where       "graph": cut also what the class cannot express. The network comes back as an exported module, which `load` opens
                without a class; it has no layers, so that `reconstruct` teaches it the outputs alone
    runtime     in which latency_ms is met, as measured in turns with the whole network: "onnx" or "c", the file that `export`
                writes, on one thread; "eager": PyTorch as it is
    evaluate    network -> score, for the report

    Raises RecipeError with every mistake in the arguments; Infeasible where the budget cannot be met by cutting units.

    >>> import torch, featherweight as fw
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> fw.prune(net, (torch.randn(1, 8),), macs=0.5).model[0].weight.shape
    torch.Size([16, 8])
    """
    problems = _problems(model, example_inputs)
    names = _names(model, ignore, problems)
    units = None
    try:
        macs = 0.5 if {macs, parameters, bytes, latency_ms} == {None} else macs
        budget = (_share(macs), _share(parameters), _share(size(bytes)), milliseconds(latency_ms))
        units = Units(criterion, *budget, allocate=allocate, multiple=multiple, ignore=names, runtime=runtime)
    except InputError as error:
        problems.append(str(error))
    if criterion not in CRITERIA:
        known = ", ".join(CRITERIA)
        problems.append(f"no criterion is named {criterion!r}; there are {known}.{did_you_mean(str(criterion), CRITERIA)}")
    elif criterion in BY_LABELS and (data is None or loss is None):
        without = ", ".join(WITHOUT_LABELS)
        problems.append(f"{criterion} looks at labels: give data and loss (network, batch) -> tensor; {without} do without")
    elif NEEDS[criterion] and data is None:
        problems.append(f"{criterion} looks at training samples: give data, such as a DataLoader")
    if data is None and (refit or reconstruct):
        problems.append("refit and reconstruct look at inputs: give data, such as a DataLoader or a list of tensors")
    if not isinstance(reconstruct, int) or not 0 <= reconstruct <= MOST_EPOCHS:
        problems.append(f"reconstruct is a number of epochs, given {short(reconstruct)}")
    if allocate not in ("uniform", "ranked", "weighed", "knapsack"):
        problems.append(f"allocate is uniform, ranked, weighed or knapsack, given {allocate!r}")
    if where not in get_args(Where):
        problems.append(f"where is class or graph, given {short(where)}")
    if problems or units is None:
        raise RecipeError(problems, "call of prune")
    task = Task(example_inputs, data or [], loss or _no_loss, evaluate or _no_score, _no_optimizer)
    if data is not None and loss is None:
        task = Task.unlabelled(model, data, example_inputs=example_inputs)
    units = replace(units, refit=(data is not None and loss is None) if refit is None else refit, where=where)
    said = []
    with generators.kept():
        network = plain(model)
        done = cut(network, task, units, 0)
        network = done.exported or network
        edits = [structure_edit(done.edit)] if done.edit is not None else []
        if done.exported is not None and reconstruct:
            edits = [graph_edit(done.exported)]
            network = Snapshot.of(done.exported, edits).build(model)  # the module that `load` gives, which can be trained
        if units.refit or reconstruct:
            recalibrate(network, task, 0)
        if reconstruct:
            said = [_reconstructed(plain(model), network, task, entries_left(edits), reconstruct)]
            said += [OUTPUTS_ALONE] if done.exported is not None else []
    stages: list[Stage] = [Train("dense"), CutUnits("pruned", units)]
    stages += [Train("reconstructed", Training(reconstruct), distill=BLOCKS)] if reconstruct else []
    recipe = Recipe("prune", tuple(stages))
    snapshot = Snapshot.of(network, edits)
    return _measured(model, network, snapshot, recipe, example_inputs, evaluate, spent=done.spent, told=said)


def _reconstructed(dense: nn.Module, network: nn.Module, task: Task, left: Left, epochs: int) -> str:
    """Teach `network` in place what the layers and the outputs of `dense` give; what came of it. Nothing where it came out no
    nearer."""
    dense.eval()

    def apart() -> float:
        with evaluating(network), torch.no_grad():
            looked = list(itertools.islice(iter(task.batches(0)), LOOKED))
            found = [float(distilled(task, network, batch, dense, replace(BLOCKS, distance="mse"), left)) for batch in looked]
        return sum(found) / max(1, len(found))

    before, held = apart(), {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    trained = [parameter for _, parameter in sorted(network.named_parameters()) if parameter.requires_grad]
    optimizer = Adam(trained, RATE)

    def clip(*_: object) -> None:  # one spike of a recurrence undoes an epoch
        clip_grad_norm_(trained, STEEPEST)

    optimizer.register_step_pre_hook(clip)
    fit(network, optimizer, task, Training(epochs, warmup=0.05), teacher=dense, distill=BLOCKS, left=left)
    recalibrate(network, task, 0)
    after = apart()
    if not after < before:
        network.load_state_dict(held)
        return f"reconstruct left the weights as they were: the outputs would be no nearer to the dense network's ({after:.3g})"
    return f"reconstruct: mean squared difference of the outputs from the dense network's {before:.3g} before, {after:.3g} after"


def factorize(
    model: nn.Module,
    example_inputs: Example | Inputs,
    *,
    macs: Share = 0.5,
    view: Literal["spatial", "channel"] = "spatial",
    ignore: Ignore = (),
    evaluate: Evaluate | None = None,
) -> Compressed:
    """Replace layers by two thin ones, their truncated SVD, at the ranks that keep `macs` and drop least; `model` is not changed.

    macs    what is *kept* of the multiply-accumulates: a share (0.5, "50%") or so many times fewer ("2x")
    view    of convolutions: spatial, k x 1 and 1 x k (Jaderberg et al. 2014); channel, k x k and 1 x 1 (Zhang et al. 2015)

    Layers for which no rank pays stay whole. Raises RecipeError with every mistake, FactorError where the budget cannot be met.

    >>> import torch, featherweight as fw
    >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    >>> fw.factorize(net, (torch.randn(1, 64),), macs=0.6).model[0]
    Sequential(
      (0): Linear(in_features=64, out_features=17, bias=False)
      (1): Linear(in_features=17, out_features=64, bias=True)
    )
    """
    what = LowRank() if view in ("spatial", "channel") else f"view is spatial or channel, given {view!r}"
    return _imposed("factorize", model, example_inputs, evaluate, ignore, what, view, macs=macs)


def quantize(
    model: nn.Module,
    example_inputs: Example | Inputs,
    *,
    bits: int = 8,
    per: Literal["row", "layer"] = "row",
    data: Batches | None = None,
    ignore: Ignore = (),
    evaluate: Evaluate | None = None,
) -> Compressed:
    """Round the weights to 2^bits equally spaced levels, with the scale of least squared error; `model` is not changed.

    bits  1 to 8; per: a scale for each output (row), or for each layer. Zeros stay zeros
    data  batches to calibrate on, such as a DataLoader: activations become 8-bit integers in the ONNX file that `export` writes,
          and what it says of their error is of these. Without it they stay as they are. The network's inputs are a batch itself,
          or its first entries, or those of their names

    Raises RecipeError with every mistake.

    >>> import torch, featherweight as fw
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> small = fw.quantize(net, (torch.randn(1, 8),), bits=4)
    >>> len(small.model[2].weight[0].unique()) <= 16
    True
    """
    levels: Levels | str = ""
    try:
        levels = Levels("uniform", bits)
    except InputError as error:
        levels = str(error)
    if per not in ("row", "layer"):
        levels = f"per is row or layer, given {per!r}" + (f"; {levels}" if isinstance(levels, str) else "")
    seen = _seen(data, example_inputs) if data is not None else ()
    done = _imposed("quantize", model, example_inputs, evaluate, ignore, levels, ROWS if per == "row" else WHOLE)
    return replace(done, seen=seen)


def cluster(
    model: nn.Module,
    example_inputs: Example | Inputs,
    *,
    values: int = 16,
    ignore: Ignore = (),
    evaluate: Evaluate | None = None,
) -> Compressed:
    """Let the weights of each layer share `values` values, found by k-means; `model` is not changed.

    Zeros stay zeros and are in no cluster. Raises RecipeError with every mistake.

    >>> import torch, featherweight as fw
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> len(fw.cluster(net, (torch.randn(1, 8),), values=5).model[0].weight.unique())
    5
    """
    book: Codebook | str = ""
    try:
        book = Codebook(values)
    except InputError as error:
        book = str(error)
    return _imposed("cluster", model, example_inputs, evaluate, ignore, book, WHOLE)


def _imposed(
    name: str,
    model: nn.Module,
    example_inputs: Example | Inputs,
    evaluate: Evaluate | None,
    ignore: Ignore,
    what: LowRank | Levels | Codebook | str,
    view: Any,
    macs: Share | None = None,
) -> Compressed:
    """Put the weights into sets and measure. `what`: a set, or what is wrong with what was asked of it."""
    problems = _problems(model, example_inputs)
    names = _names(model, ignore, problems)
    stage = None
    try:
        if isinstance(what, str):
            raise InputError(what)
        stage = Constrain(name, (Rule(WEIGHTS, what, view, ignore=names),), macs=_share(macs))
    except InputError as error:
        problems.append(str(error))
    if problems or stage is None:
        raise RecipeError(problems, f"call of {name}")
    original, network = plain(model), plain(model)
    plan = resolve(stage, network, example=example_inputs)
    with torch.no_grad():
        for target, wanted in plan.targets.items():
            freeze(network, target, wanted)
    thin = materialise(network, example=example_inputs)
    recipe = Recipe(name, (Train("dense"), stage))
    snapshot = Snapshot.of(network, thin.edits)
    return _measured(original, network, snapshot, recipe, example_inputs, evaluate, told=said(plan.left_out))


def _measured(
    model: nn.Module,
    network: nn.Module,
    snapshot: Snapshot,
    recipe: Recipe,
    example_inputs: Example | Inputs,
    evaluate: Evaluate | None,
    spent: Any = None,
    told: Sequence[str] = (),
) -> Compressed:
    original = plain(model)
    stage = next((one for one in recipe.stages if isinstance(one, CutUnits)), recipe.stages[-1])
    asked = stage.units.share if isinstance(stage, CutUnits) else getattr(stage, "macs", None)
    rows = [
        Row("dense", measure(original, example_inputs, evaluate), None, {}, 0, 0.0, None, {}),
        Row(
            stage.name, measure(network, example_inputs, evaluate), asked, left(network, original), 0, 0.0, None, {}, spent,
            tuple(told),
        ),
    ]  # fmt: skip
    return Compressed(network, snapshot, recipe, rows, original, example_inputs)


def _problems(model: Any, example_inputs: Any) -> list[str]:
    problems = []
    if not isinstance(model, nn.Module):
        problems.append(f"the model must be a torch.nn.Module, given: {type(model).__name__}")
    try:
        if not Inputs.of(example_inputs).tensors():
            problems.append("example_inputs hold no tensor: give the network's inputs, such as (torch.randn(1, 3, 224, 224),)")
    except InputError as error:
        problems.append(str(error))
    return problems


def _names(model: Any, ignore: Any, problems: list[str]) -> tuple[str, ...]:
    """`ignore` as names and patterns."""
    if isinstance(ignore, str | nn.Module):
        ignore = (ignore,)
    known = {id(module): name for name, module in model.named_modules()} if isinstance(model, nn.Module) else {}
    names = []
    for one in ignore:
        if isinstance(one, nn.Module):
            if known and id(one) not in known:
                problems.append(f"ignore holds a {type(one).__name__} that is not a module of the network")
            names.append(known.get(id(one), ""))
        elif isinstance(one, str):
            names.append(one)
        else:
            problems.append(f"ignore holds modules, names or globs, given a {type(one).__name__}")
    return tuple(names)


def _seen(data: Batches, example_inputs: Example | Inputs) -> tuple[Inputs, ...]:
    """The network's inputs in the first batches, until there are SAMPLES of them. Raises InputError."""
    found = []
    for batch in data:
        found.append(inputs_in(batch, example_inputs))
        if sum(one.batch for one in found) >= SAMPLES:
            break
    if not found:
        raise InputError("data holds no batch: there is nothing to calibrate on")
    return tuple(found)


def _share(given: Any) -> float | None:
    found = share(given)
    if found is not None and not isinstance(found, int | float):
        raise InputError(f"a budget is a share to keep (0.5, '50%') or so many times fewer ('4x'), given {given!r}")
    return found


def _no_loss(network: nn.Module, batch: Batch) -> Tensor:
    raise InputError("the criterion asks for a loss: give loss (network, batch) -> tensor")


def _no_score(network: nn.Module) -> float:
    return float("nan")


def _no_optimizer(parameters: Any) -> Any:
    raise InputError("nothing is trained here")
