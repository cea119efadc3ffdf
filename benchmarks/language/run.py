"""A small language model with few weights: one shot, layer after layer, and trained.

    featherweight reproduce language                                  every row that is not done yet, then the table
    featherweight reproduce language --row 'one shot, 70 %, admm'
    featherweight reproduce language --table                          only the table, from the rows there are

A decoder of 2.07 M parameters on text that the machine has, trained here. Settings are the recipes' defaults; perplexity is asked
on a part that is held out and, once a row, on a test part. On a machine with other text the shipped network is judged by that;
without the file it is trained anew.
"""

from __future__ import annotations

import copy
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.language import decoder, text
from benchmarks.language.decoder import CONTEXT
from benchmarks.language.table import table
from benchmarks.lib.rows import ROOT, Line, Rows
from benchmarks.overhead.run import ratios
from featherweight import ADMM, Distillation, Recipe, Target, Task, TopK, Train, Training, compress, load
from featherweight.files import packed
from featherweight.files.edits import Snapshot
from featherweight.recipes import RECIPES
from featherweight.training.fit import Step, fit
from featherweight.weights.constrained import Constrained
from featherweight.weights.counts import magnitude
from featherweight.weights.targets import Spread

ROWS = Rows(__file__)
DENSE = ROWS.artifacts / "dense.fwz"
SHARES = {"50 %": "2x", "70 %": 0.3, "80 %": 0.2, "90 %": 0.1, "2:4": "2:4"}  # zeros -> what is kept
METHODS = ("magnitude", "wanda", "sparsegpt", "admm")
SAMPLES = 128  # windows of 128 tokens that the layers are watched on
POWERS = {"p = 1/4": 0.25, "p = 0": 0.0, "p = 1/2": 0.5}
SEEDS = (0, 1, 2)
RATE = 2e-3  # of AdamW, of the dense training
KEPT, EPOCHS, EPOCH = 0.1, 6, 25  # of the trained rows: their share of weights, epochs, steps of an epoch
PULLED: dict[str, Any] = {"epochs": 3, "retrain_epochs": 3, "rate": 1.0, "retrain_rate": 1.0}
GRADUAL = {"gradual": "uniform", "gradual over all layers": "magnitude"}  # how its zeros are spread
SHIPPED = ("admm p = 1/4", 0)
PACES = (12, 20)  # steps between projections; 20 is what is left open in a training of 400 steps or more
TEACHER = Distillation(1.0, 4.0)  # beside the loss, of all trained rows


def names() -> list[str]:
    shot = [f"one shot, {share}, {method}" for share in SHARES for method in METHODS]
    hows = (*GRADUAL, *(f"admm {power}" for power in POWERS))
    trained = [f"trained, 90 %, {how}, seed {seed}" for seed in SEEDS for how in hows]
    return ["dense", *shot, *trained, *(f"overhead, {every}" for every in PACES)]


def measure(name: str) -> Line:
    kind, *rest = name.split(", ")
    if kind == "dense":
        return dense()
    if kind == "one shot":
        return one_shot(*rest)
    if kind == "trained":
        return trained(rest[1], int(rest[2].removeprefix("seed ")))
    return overhead(int(rest[0]))


@functools.cache
def tokens() -> dict[str, Tensor]:
    return decoder.parts(ROWS.work)


@functools.cache
def network() -> nn.Module:
    """The dense one, as it is shipped."""
    return load(DENSE, decoder.decoder())


def judged(found: nn.Module) -> Line:
    """Perplexity a token on both parts; bytes of text a token, with which it is that of a byte."""
    return {part: decoder.perplexity(found, tokens()[part]) for part in ("held", "test")}


def dense() -> Line:
    """Trained here unless it is shipped."""
    line: Line = {}
    if not DENSE.exists():
        torch.manual_seed(0)
        start, began = decoder.decoder(), time.perf_counter()
        stages = (Train("rising", train=Training(19, floor=0.6, warmup=0.04)), Train("settling", train=Training(4, 0.6)))
        done = compress(start, Recipe("dense", stages), decoder.task(tokens(), RATE), workdir=ROWS.work / "dense")
        ship(done.model, DENSE)
        line = {"steps": 23 * decoder.STEPS, "seconds": time.perf_counter() - began}
    found = text.corpus()
    sizes = {part: len(tokens()[part]) for part in tokens()}
    about = {"digest": found.digest, "characters": found.characters, "tokens": sizes}
    size = {"parameters": sum(p.numel() for p in network().parameters()), "bytes": DENSE.stat().st_size}
    return line | about | size | judged(network())


def ship(model: nn.Module, path: Path) -> int:
    """Packed, its numbers in bfloat16: half the bytes, which are returned. Every row starts from the dense network that ships."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return packed.write(path, Snapshot.of(model, []), decoder.decoder())


def unjudged(task: Task) -> Task:
    """Without the perplexity that a report would ask of every stage: a row asks it once."""
    return replace(task, evaluate=lambda model: 0.0)


def one_shot(share: str, method: str) -> Line:
    recipe = RECIPES["layerwise_admm"](SHARES[share], method, allocate="uniform", samples=SAMPLES)
    done = compress(network(), recipe, unjudged(decoder.task(tokens(), RATE)))
    return judged(done.model) | left(done.model) | {"said": list(done.rows[-1].said)}


def pruned(model: nn.Module) -> list[Tensor]:
    """The weights that are to be sparse: of all linear layers but the head."""
    return [layer.weight for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "head"]


def left(model: nn.Module) -> Line:
    return {"left": sum(int(w.count_nonzero()) for w in pruned(model)), "of": sum(w.numel() for w in pruned(model))}


# --- trained -------------------------------------------------------------------------------------------------------------


def trained(how: str, seed: int) -> Line:
    """Equal steps, batches, teacher, optimizer and rate."""
    task, began = unjudged(decoder.task(tokens(), RATE, seed=1 + seed, steps=EPOCH)), time.perf_counter()
    if how in GRADUAL:
        found = gradual(copy.deepcopy(network()), task, GRADUAL[how])
        line: Line = {}
    else:
        done = compress(network(), pruning(POWERS[how.removeprefix("admm ")], **PULLED), task)
        found, line = done.model, {"said": list(done.rows[-1].said), "residual": max(done.rows[-1].residuals.values())}
        if (how, seed) == SHIPPED:
            line["bytes"] = ship(found, ROWS.artifacts / "trained_90.fwz")
    return {"steps": EPOCHS * EPOCH, "seconds": time.perf_counter() - began} | judged(found) | left(found) | line


def pruning(power: float, **settings: Any) -> Recipe:
    return RECIPES["progressive_admm"]((KEPT,), fisher=power, distill=TEACHER, **{"sweep": False} | settings)


def gradual(model: nn.Module, task: Task, spread: str) -> nn.Module:
    """Gradual magnitude pruning (Zhu and Gupta 2017): the share of zeros rises as 1 - (1 - t)^3 over three quarters of the steps,
    the least weights go, and masks are held. `spread`: over all layers by magnitude, or the same share of each (uniform)."""
    weights = pruned(model)
    masks = [torch.ones_like(weight) for weight in weights]

    @torch.no_grad()
    def hold(step: Step) -> None:
        at = min(1.0, step.done / (0.75 * step.total))
        if step.done % 5 == 0:
            kept = 1 - (1 - KEPT) * (1 - (1 - at) ** 3)
            groups = [list(range(len(weights)))] if spread == "magnitude" else [[i] for i in range(len(weights))]
            for group in groups:
                sizes = torch.cat([(weights[i].abs() * masks[i]).flatten() for i in group])
                least = sizes.topk(round(kept * sizes.numel())).values[-1]
                for i in group:
                    masks[i] *= weights[i].abs() * masks[i] >= least
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)

    teacher = copy.deepcopy(network()).eval()
    training = Training(EPOCHS, warmup=0.05)
    fit(model, task.optimizer(model.parameters()), task, training, teacher=teacher, distill=TEACHER, after_step=hold)
    return model


# --- what ADMM costs -----------------------------------------------------------------------------------------------------


def overhead(every: int) -> Line:
    """Steps of AdamW and of AdamW under ADMM, projections and all, in turns; the most memory of each in a process of its own."""
    pairs = 5
    found = ratios(stepping(True, every)[0], stepping(False, every)[0], pairs, every)
    low, middle, high = statistics.quantiles(found, n=4)
    used = {}
    for how in ("plain", "admm"):
        call = [sys.executable, "-c", f"from benchmarks.language.run import memory; print(memory({how == 'admm'}))"]
        used[how] = int(subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    return {"ratio": middle, "low": low, "high": high, "pairs": pairs, "every": every, "memory": used}


def stepping(imposed: bool, every: int) -> tuple[Callable[[], None], nn.Module]:
    """A training step on the same windows, of a network under ADMM with selection by |w| E[g^2]^1/4 or of one that is not."""
    model = decoder.decoder().train()
    optimizer = decoder.task({"train": torch.zeros(CONTEXT + 1, dtype=torch.int64)}, RATE).optimizer(model.parameters())
    batch = torch.randint(0, decoder.TOKENS, (decoder.BATCH, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    if imposed:
        targets = {n: Target(TopK(w.numel() // 10), fisher=0.25) for n, w in model.named_parameters() if n.startswith("blocks")}
        targets = {n: target for n, target in targets.items() if model.get_parameter(n).ndim > 1}
        squares = {n: torch.ones_like(model.get_parameter(n)) for n in targets}
        total = sum(target.set.size() for target in targets.values())
        spread = Spread(tuple(targets), total, magnitude)
        driver = ADMM(0.03, every, 1.1, 1.0, "proximal")
        Constrained(driver, model, optimizer, targets, squares=squares, spread=spread).__enter__()

    def step() -> None:
        optimizer.zero_grad()
        decoder.loss(model, batch).backward()
        optimizer.step()

    return step, model


def memory(imposed: bool) -> int:
    """Bytes that this process has more at its most, over thirteen steps, than before it made the network."""
    torch.set_num_threads(1)
    torch.ones(64, 64).matmul(torch.ones(64, 64))
    before = peak()
    step, _ = stepping(imposed, 12)
    for _ in range(13):
        step()
    return peak() - before


def peak() -> int:
    """The most memory of this process so far, in bytes; unlike `ru_maxrss`, not that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(arguments: list[str] | None = None) -> None:
    ROWS.run(__doc__, names(), measure, table, arguments)


if __name__ == "__main__":
    main()
