"""What ADMM costs a training step: ratios to a plain step, both in one process, turn by turn.

    python benchmarks/overhead.py            prints the table and writes benchmarks/overhead.md

Every ratio is the median over pairs of (with / without) measured back to back, so a busy machine slows both alike; the
quartiles say how much to believe it. No absolute time is kept: they are this machine's business.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import ADMM, Codebook, Imposed, Levels, Target, TopK
from featherweight.allocate import magnitude
from featherweight.drivers import Spread
from featherweight.zoo import NETWORKS

TABLE = Path(__file__).with_suffix(".md")


def steps(network: nn.Module, inputs: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One training step under bfloat16 autocast, as the built-in tasks take it."""

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def imposed_ratio(
    name: str, shape: tuple[int, ...], every: int, pairs: int, wanted: Callable[[nn.Parameter], Target]
) -> list[float]:
    """Time of `every` steps with ADMM, one projection included, over that of the plain steps between them; `pairs` of them.

    wanted   weight -> what must hold of it
    """
    torch.manual_seed(0)
    inputs = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, shape[:1])
    runs = []
    for with_admm in (True, False):
        network = NETWORKS[name]().to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.Adam(network.parameters(), 1e-4)
        weights = {n: p for n, p in network.named_parameters() if p.ndim > 1}
        if with_admm:
            targets = {n: wanted(p) for n, p in weights.items()}
            fisher = any(target.fisher for target in targets.values())
            total = sum(p.numel() for p in weights.values()) // 20
            driver = ADMM(0.03, every, 1.1, 1.0, "proximal" if fisher else "gradient")
            squares = {n: torch.ones_like(p) for n, p in weights.items()} if fisher else None
            spread = Spread(tuple(targets), total, magnitude) if fisher else None
            imposed = Imposed(driver, network, optimizer, targets, squares=squares, spread=spread)
            imposed.__enter__()  # left open: what freezes at the end is no part of a step
        runs.append(steps(network, inputs, labels, optimizer))
    return ratios(runs[0], runs[1], pairs, every)


def pruned(weight: nn.Parameter) -> Target:
    return Target(TopK(max(1, weight.numel() // 20)), masked=True)


def weighed(weight: nn.Parameter) -> Target:
    return replace(pruned(weight), fisher=0.25)


def quantised(weight: nn.Parameter) -> Target:
    return Target(Levels("uniform", 3))


def clustered(weight: nn.Parameter) -> Target:
    return Target(Codebook(16))


def projection_ratio(size: int, share: float, pairs: int) -> list[float]:
    """Time of one Z and U update of `size` weights over that of one `torch.topk` of as many from the same tensor."""
    torch.manual_seed(0)
    weight, count = torch.randn(size), int(size * share)
    driver, target = ADMM(0.1, 1), Target(TopK(count))
    state = driver.start(weight, target, None)
    with torch.no_grad():
        return ratios(lambda: driver.project(state, weight, target, None), lambda: weight.abs().topk(count, sorted=False), pairs)


def ratios(first: Callable[[], object], second: Callable[[], object], pairs: int, times: int = 1) -> list[float]:
    """first / second, `times` calls of each, taken in turn call by call and in changing order; the first pair does not count.

    Processor time of this process, not the clock: other jobs on the machine take turns with it.
    """
    found = []
    for pair in range(pairs + 1):
        spent = {first: 0.0, second: 0.0}
        for call in range(times):
            for action in (first, second) if (pair + call) % 2 else (second, first):
                began = time.process_time()
                action()
                spent[action] += time.process_time() - began
        if pair:
            found.append(spent[first] / spent[second])
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=100_000_000, help="size of the projection benchmark")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", default="", help="only rows whose name holds this; prints them, writes no table")
    chosen = parser.parse_args(arguments)
    pairs = chosen.pairs
    few = max(3, pairs // 3)

    def lenet(wanted: Callable[[nn.Parameter], Target], every: int = 40) -> Callable[[], list[float]]:
        return lambda: imposed_ratio("lenet5", (128, 1, 28, 28), every, pairs if every == 40 else few, wanted)

    update = f"Z and U update of {chosen.weights // 10**6} M weights, 5 % kept, over one topk"
    cases: list[tuple[str, float, Callable[[], list[float]]]] = [
        ("LeNet-5, pruning by gradient, a projection in 40 steps", 1.05, lenet(pruned)),
        ("LeNet-5, pruning, weighed by squared gradients and spread anew, 40", 1.05, lenet(weighed)),
        (update, 1.5, lambda: projection_ratio(chosen.weights, 0.05, pairs)),
        (
            "VGG-16 (14.7 M weights), pruning by gradient, 20",
            1.05,
            lambda: imposed_ratio("vgg16_cifar10", (128, 3, 32, 32), 20, few, pruned),
        ),
        ("LeNet-5, quantisation to 3 bits, 234 (half an epoch)", 1.10, lenet(quantised, 234)),
        ("LeNet-5, 16 shared values, 234", 1.10, lenet(clustered, 234)),
    ]
    lines = [
        "# Overhead of ADMM",
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {pairs} pairs a row, {max(3, pairs // 3)} for VGG-16.",
        "",
    ]
    lines += ["| what | ratio (median) | quartiles | asked |", "|---|---|---|---|"]
    for name, limit, measure in cases:
        if chosen.only not in name:
            continue
        low, middle, high = statistics.quantiles(measure(), n=4)
        lines.append(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | at most {limit} |")
        print(lines[-1], flush=True)
        if not chosen.only:
            TABLE.write_text("\n".join(lines) + "\n")  # after every row: the last ones take minutes


if __name__ == "__main__":
    main()
