"""What ADMM and trained rank pruning cost a training step: ratios to a plain step, both in one process, turn by turn.

    featherweight reproduce overhead               every row that is not done yet, then the table
    featherweight reproduce overhead --row NAME    one row

Every ratio is the median over pairs of (with / without) measured back to back, so a busy machine slows both alike; the
quartiles say how much to believe it. No absolute time is kept: they are this machine's business.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.lib.cifar import channels_last
from benchmarks.lib.rows import Line, Rows, parser, wanted
from featherweight import ADMM, Codebook, Levels, LowRank, Periodic, Target, TopK, View
from featherweight.recipes.trained_ranks import TARGETS
from featherweight.weights.constrained import Constrained
from featherweight.weights.counts import magnitude
from featherweight.weights.targets import Spread
from featherweight.zoo import tasks
from featherweight.zoo.networks import NETWORKS

ROWS = Rows(__file__)
CHANNEL, SPATIAL = View("o i h w -> o (i h w)"), View("o i h w -> (i h) (o w)")


def steps(network: nn.Module, inputs: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One training step as the built-in tasks take it."""

    def step() -> None:
        optimizer.zero_grad()
        tasks.cross_entropy_autocast(network, (inputs, labels)).backward()
        optimizer.step()

    return step


Impose = Callable[[nn.Module, torch.optim.Optimizer, int], Constrained]  # network, its optimizer, steps between projections


def imposed_ratio(name: str, shape: tuple[int, ...], every: int, pairs: int, impose: Impose) -> list[float]:
    """`pairs` times: what `every` steps under a driver take, one projection included, over the plain steps between them."""
    torch.manual_seed(0)
    inputs = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, shape[:1])
    runs = []
    for imposed in (True, False):
        network = channels_last(NETWORKS[name]()).train()
        optimizer = torch.optim.Adam(network.parameters(), 1e-4)
        if imposed:
            impose(network, optimizer, every).__enter__()  # left open: what freezes at the end is no part of a step
        runs.append(steps(network, inputs, labels, optimizer))
    return ratios(runs[0], runs[1], pairs, every)


def admm(target: Callable[[nn.Parameter], Target]) -> Impose:
    """Every weight drawn to `target(weight)`."""

    def impose(network: nn.Module, optimizer: torch.optim.Optimizer, every: int) -> Constrained:
        weights = {name: weight for name, weight in network.named_parameters() if weight.ndim > 1}
        targets = {name: target(weight) for name, weight in weights.items()}
        fisher = any(one.fisher for one in targets.values())
        total = sum(weight.numel() for weight in weights.values()) // 20
        driver = ADMM(0.03, every, 1.1, 1.0, "proximal" if fisher else "gradient")
        squares = {name: torch.ones_like(weight) for name, weight in weights.items()} if fisher else None
        spread = Spread(tuple(targets), total, magnitude) if fisher else None
        return Constrained(driver, network, optimizer, targets, squares=squares, spread=spread)

    return impose


def pruned(weight: nn.Parameter) -> Target:
    return Target(TopK(max(1, weight.numel() // 20)), masked=True)


def weighed(weight: nn.Parameter) -> Target:
    return replace(pruned(weight), fisher=0.25)


def quantised(weight: nn.Parameter) -> Target:
    return Target(Levels("uniform", 3))


def clustered(weight: nn.Parameter) -> Target:
    return Target(Codebook(16))


def low_rank(view: View) -> Impose:
    """Trained Rank Pruning with the nuclear norm, as its recipe imposes it on all convolutions."""

    def impose(network: nn.Module, optimizer: torch.optim.Optimizer, every: int) -> Constrained:
        names = [name for name, _ in network.named_parameters() if re.fullmatch(TARGETS.removeprefix("re:"), name)]
        targets = {name: Target(LowRank(energy=0.02), view) for name in names}
        return Constrained(Periodic(every, 3e-4), network, optimizer, targets)

    return impose


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


def cases() -> dict[str, tuple[float, int, Callable[[int], list[float]]]]:
    """Row -> (the ratio asked, how many pairs, pairs -> ratios)."""

    def lenet(target: Callable[[nn.Parameter], Target], every: int) -> Callable[[int], list[float]]:
        return lambda pairs: imposed_ratio("lenet5", (128, 1, 28, 28), every, pairs, admm(target))

    def cifar(network: str, impose: Impose) -> Callable[[int], list[float]]:
        return lambda pairs: imposed_ratio(network, (128, 3, 32, 32), 20, pairs, impose)

    return {
        "LeNet-5, pruning by gradient, a projection in 40 steps": (1.05, 9, lenet(pruned, 40)),
        "LeNet-5, pruning, weighed by squared gradients and spread anew, 117 (half an epoch)": (1.05, 5, lenet(weighed, 117)),
        "LeNet-5, quantisation to 3 bits, 234 (half an epoch)": (1.10, 3, lenet(quantised, 234)),
        "LeNet-5, 16 shared values, 234": (1.10, 3, lenet(clustered, 234)),
        "Z and U update of 100 M weights, 5 % kept, over one topk": (1.5, 9, lambda pairs: projection_ratio(10**8, 0.05, pairs)),
        "VGG-16 (14.7 M weights), pruning by gradient, 20": (1.05, 3, cifar("vgg16_cifar10", admm(pruned))),
        "ResNet-20, trained rank pruning channel-wise, 20": (1.10, 9, cifar("resnet20", low_rank(CHANNEL))),
        "ResNet-20, trained rank pruning spatial-wise, 20": (
            1.10,
            9,
            cifar("resnet20", low_rank(SPATIAL)),
        ),
    }


def measure(name: str) -> Line:
    torch.set_num_threads(1)
    limit, pairs, ratio = cases()[name]
    low, middle, high = statistics.quantiles(ratio(pairs), n=4)
    return {"ratio": middle, "low": low, "high": high, "asked": limit, "pairs": pairs, "torch": torch.__version__}


def table(done: dict[str, Line]) -> str:
    """The whole of README.md from the rows there are."""
    text = [
        "# Overhead of ADMM and of trained rank pruning",
        "",
        "Regenerated by `featherweight reproduce overhead`; 1 thread, batch 128.",
        "",
    ]
    text += ["| what | ratio (median) | quartiles | pairs | asked |", "|---|---|---|---|---|"]
    for name, line in done.items():
        quartiles = f"{line['low']:.3f} to {line['high']:.3f}"
        text.append(f"| {name} | {line['ratio']:.3f} | {quartiles} | {line['pairs']} | at most {line['asked']} |")
    if missing := [name for name in cases() if name not in done]:
        text += ["", f"Not run yet: {'; '.join(missing)}."]
    return "\n".join([*text, ""])


def main(arguments: list[str] | None = None) -> None:
    chosen = parser(__doc__, cases()).parse_args(arguments)
    ROWS.fill(wanted(chosen, cases()), measure, table)


if __name__ == "__main__":
    main()
