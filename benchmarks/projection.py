"""What projecting costs: the low-rank projection of Trained Rank Pruning every 20 steps against plain steps, ResNet-20.

In each round a plain training step (batch 128, bfloat16 autocast, channels-last, random images) and both projections of all 18
convolutions are timed in turns; the ratio is (20 steps + a projection) / 20 steps of that round. Times are the processor's, in
this process, so that other programs matter little. One thread by default.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from featherweight import zoo
from featherweight.drivers import Target
from featherweight.ranks import CHANNEL, SPATIAL, convolutions
from featherweight.sets import LowRank
from featherweight.svd import truncated_all
from featherweight.views import View

ENERGY = 0.02


def median_and_quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:8.4f}  ({low:.4f} .. {high:.4f})"


def seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="plain steps a round")
    parser.add_argument("--every", type=int, default=20, help="steps from a projection to the next")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = zoo.resnet20().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (128,))
    weights = {name: model.get_parameter(name).detach() for name in convolutions(model)}

    def steps() -> None:
        for _ in range(options.steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    def by_sets(view: View) -> list[tuple[Tensor, Tensor]]:
        """As Periodic does it: a projection, then the pull there."""
        target = Target(LowRank(energy=ENERGY), view)
        projected = [target.project(weight) for weight in weights.values()]
        return [(weight, target.pull(weight)) for weight in projected]

    def by_gram(view: View) -> list[tuple[Tensor, Tensor]]:
        """Projection and pull from one batched decomposition."""
        thins = truncated_all({name: view.to_matrix(weight) for name, weight in weights.items()}, energy=ENERGY)
        shapes = [tuple(weight.shape) for weight in weights.values()]
        return [
            (view.to_weight(thin.matrix().float(), shape), view.to_weight(thin.pull().float(), shape))
            for thin, shape in zip(thins.values(), shapes, strict=True)
        ]

    ways: dict[str, Callable[[], object]] = {
        "channel-wise, sets": lambda: by_sets(CHANNEL),
        "channel-wise, svd.py": lambda: by_gram(CHANNEL),
        "spatial-wise, sets": lambda: by_sets(SPATIAL),
        "spatial-wise, svd.py": lambda: by_gram(SPATIAL),
    }
    taken: dict[str, list[float]] = {name: [] for name in ["step", *ways]}
    for round_number in range(options.rounds + 1):
        one = seconds(steps) / options.steps
        times = {name: seconds(call) for name, call in ways.items()}
        if round_number:  # the first one warms up
            taken["step"].append(one)
            for name, value in times.items():
                taken[name].append(value)
    load = os.getloadavg()[0]
    print(f"threads {options.threads}, rounds {options.rounds}, load average {load:.1f}; medians (quartiles)")
    print(f"{'a plain step':24} {median_and_quartiles([1000 * t for t in taken['step']])} ms")
    for name in ways:
        print(f"{name:24} {median_and_quartiles([1000 * t for t in taken[name]])} ms")
    for name in ways:
        ratios = [1 + one / (options.every * step) for one, step in zip(taken[name], taken["step"], strict=True)]
        print(f"{'overhead, ' + name:34} {median_and_quartiles(ratios)} x plain steps")
    for view in ("channel", "spatial"):
        pairs = zip(taken[f"{view}-wise, sets"], taken[f"{view}-wise, svd.py"], strict=True)
        print(f"{'speed-up of svd.py, ' + view + '-wise':34} {median_and_quartiles([old / new for old, new in pairs])} x")


if __name__ == "__main__":
    main()
