"""Channel pruning of CIFAR ResNets: every criterion under one fine-tuning budget, the rows of benchmarks/channels.

    featherweight reproduce channels                                 every row that is not done yet, then the table
    featherweight reproduce channels --row 'collaborative, 52.6 %'   one row
    featherweight reproduce channels --table                         only the table, from the rows there are
    featherweight reproduce channels --again [--row ..]              rows marked u, which are cut otherwise now, in their place
    featherweight reproduce channels --held-out 0.3 --row ..            at 0.3 of the base rate, on 45,000 images; no row

ResNet-20, an epoch of which takes a third of the time, starts from the ResNet-20 of `trp/artifacts`, ResNet-56 from
that of `resnet56/artifacts`. A few rows of ResNet-56, last in order, are tuned for 40 or 60 epochs, two to
three hours of a core each. A row is taken up where it was killed. Every figure is the last epoch's.
`--held-out` scores on 5,000 training images that it does not train on, and prints only. Needs ONNX Runtime, and for its rows
torch-pruning: `pip install -e ".[benchmarks]"`.
"""

from __future__ import annotations

import copy
import importlib
import json
import time
from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import nn

from benchmarks.channels.plans import CHANGED, LEAST, METHODS, NETWORKS, PEERS, SAVED, SOFT, TAUGHT, Cut, rows
from benchmarks.channels.table import table, uneven
from benchmarks.lib import cifar
from benchmarks.lib.rows import Line, Rows, parser, wanted
from featherweight import Recipe, Task, Train, Training, compress, measure, structure
from featherweight.recipes import RECIPES
from featherweight.ship import bench
from featherweight.ship.runtimes import require
from featherweight.structure.count import count_macs
from featherweight.training.distillation import distilled
from featherweight.training.fit import recalibrate
from featherweight.zoo import tasks

ROWS = Rows(__file__)
WORK = ROWS.work

HELD_OUT = 5_000
ROUNDS = 60


def run(cut: Cut, held_out: int = 0, again: bool = False) -> Line:
    """Cut, measure, fine-tune, measure. `again`: not from the checkpoints of the row that this one replaces."""
    method, seed = cut.method, cut.seed
    dense = NETWORKS[cut.network][0]()
    torch.manual_seed(seed)
    task, share = tasks.cifar10(seed, held_out), 1 - SAVED[cut.saved]
    row = cut.name + (f" {cut.tuning.rate:g} held out" if held_out else "") + (" again" if again else "")
    work = WORK / row.replace(",", "").replace(" ", "-").replace("%", "")
    if method in METHODS:
        recipe = soft(dense, task.example_inputs, share, cut.tuning) if method == SOFT else recipe_of(cut, share)
        result = compress(cifar.channels_last(dense), recipe, task, workdir=work, checkpoint_seconds=60)
        narrow, tuned = result.rows[-2:]
        # soft filters go while all train: there is no network before tuning
        before, seconds = (None, 0.0) if method == SOFT else (narrow.measured.score, narrow.seconds)
        network = result.model
    else:
        began = time.perf_counter()
        network = by_torch_pruning(method, dense, share, task)
        seconds = time.perf_counter() - began
        recalibrate(network, task, 0)
        before = measure(network, task.example_inputs, task.evaluate).score
        recipe = Recipe("tuned", (Train("tuned", train=cut.tuning),))
        learned = taught(task, dense) if cut.long else task
        result = compress(cifar.channels_last(network), recipe, learned, workdir=work, checkpoint_seconds=60)
        tuned, network = result.rows[-1], result.model
    timed = bench.bench({"dense": dense, "cut": network}, task.example_inputs, runtimes=("onnx",), rounds=ROUNDS)
    return {
        "before": before,
        "top1": tuned.measured.score,
        "macs": tuned.measured.macs,
        "parameters": tuned.measured.parameters,
        "ms": timed.timings[-1].median,
        "dense_ms": timed.timings[0].median,
        "verdict": str(timed.comparisons[0]),
        "selection_minutes": seconds / 60,
        "tuning_minutes": tuned.seconds / 60,
        "precision": "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32",
    }


def recipe_of(cut: Cut, share: float) -> Recipe:
    """The recipe of a row's method at a budget, tuned as all rows are."""
    name, changed = CHANGED.get(cut.method, (cut.method, {}))
    _, narrow, tuned = RECIPES[name](macs=share, sites=cifar.INNER).stages
    assert narrow.units is not None
    tuned = replace(tuned, train=cut.tuning, distill=TAUGHT if cut.long else None)
    return Recipe(cut.method, (replace(narrow, units=replace(narrow.units, **({"multiple": 1} | changed))), tuned))


def soft(dense: nn.Module, example: tuple[torch.Tensor, ...], share: float, tuning: Training) -> Recipe:
    """soft_filters inside the blocks, keeping what leaves `share` of the MACs: they fall with the share of filters kept."""
    graph = structure.trace(dense, example)
    inner = {name: graph.sites[name].size for name in cifar.inner(graph.sites)}
    saved_by_half = 1 - graph.macs({name: size // 2 for name, size in inner.items()}) / graph.macs()
    keep = 1 - 0.5 * (1 - share) / saved_by_half
    training = {"every": 391, "epochs": tuning.epochs, "rate": tuning.rate, "retrain_epochs": 0}
    return RECIPES[SOFT](keep=keep, targets=rf"{cifar.INNER}\.weight", **training)


def by_torch_pruning(method: str, dense: nn.Module, share: float, task: Task) -> nn.Module:
    """torch-pruning's own pruner at the ratio, found by bisection, that keeps most nearly `share` of the MACs."""
    torch_pruning = importlib.import_module("torch_pruning")
    whole, _ = count_macs(dense, task.example_inputs)
    taylor = "Taylor" in method
    kinds = torch_pruning.importance
    importance = kinds.GroupTaylorImportance() if taylor else kinds.GroupMagnitudeImportance(p=2)
    low, high, found = 0.0, 0.9, {}
    for _ in range(8):
        ratio = (low + high) / 2
        network = copy.deepcopy(dense)
        pruner = torch_pruning.pruner.BasePruner(
            network, task.example_inputs, importance=importance, pruning_ratio=ratio, ignored_layers=[network.fc]
        )
        if taylor:
            batches = iter(task.batches(0))
            for _ in range(8):  # 1,024 images, as the other criteria
                task.loss(network, next(batches)).backward()
        pruner.step()
        macs, _ = count_macs(network, task.example_inputs)
        assert macs is not None and whole is not None
        found[abs(macs - share * whole)] = network  # layers are narrow: often no ratio hits the share
        low, high = (low, ratio) if macs <= share * whole else (ratio, high)
    best = found[min(found)]
    best.zero_grad()
    return best


def taught(task: Task, dense: nn.Module) -> Task:
    """The task of a network that came here cut: to a stage it is itself the dense network."""
    teacher = cifar.channels_last(dense).eval()
    return replace(task, loss=lambda network, batch: distilled(task, network, batch, teacher, TAUGHT))


def ready(network: str) -> bool:
    """Is there a baseline that is good enough?"""
    folder = NETWORKS[network][1]
    score = cifar.measured(folder).score if folder.exists() else None
    return score is not None and score >= LEAST[network]


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__, rows())
    made.add_argument("--again", action="store_true", help="run the rows marked u anew; what they were stays in brackets")
    made.add_argument("--held-out", type=float, metavar="RATE", help="at this share of the base rate; writes no row")
    chosen = made.parse_args(arguments)
    torch.set_num_threads(1)
    if not chosen.table:
        require("onnxruntime", "to time each row when it is trained")  # said now, and not after half an hour
    peers = find_spec("torch_pruning") is not None
    possible = [name for name, cut in rows().items() if (peers or cut.method not in PEERS) and ready(cut.network)]
    if chosen.row not in (None, *possible):
        raise SystemExit(f"{chosen.row}: torch-pruning is not installed, or the baseline is not as good as {LEAST} yet")

    if chosen.held_out is not None:
        for name in wanted(chosen, possible):
            cut = replace(rows()[name], tuning=replace(rows()[name].tuning, rate=chosen.held_out))
            print(json.dumps({"row": name} | run(cut, HELD_OUT)), flush=True)
    elif chosen.again:
        marked = {name: row for name, row in ROWS.done().items() if uneven(rows()[name], row)}
        for name in wanted(chosen, [name for name in possible if name in marked]):
            replaced = {key: marked[name][key] for key in ("before", "top1")}
            ROWS.put({"row": name} | run(rows()[name], again=True) | {"replaced": replaced})
            print(f"{name}: done", flush=True)
            ROWS.write(table)
    else:
        ROWS.fill(wanted(chosen, possible), lambda name: run(rows()[name]), table)


if __name__ == "__main__":
    main()
