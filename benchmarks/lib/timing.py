"""What the benchmarks of speed share: networks timed in turns, and a table of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from featherweight import Task
from featherweight.ship import bench

ROUNDS = 40


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def task() -> Task:
    """Random images of CIFAR-10's size, and nothing to learn."""
    images = torch.randn(8, 3, 32, 32)
    return Task((images[:1],), lambda epoch: [images], lambda network, batch: network(batch).sum(), lambda network: 0.0, sgd)


class Table:
    """Rows of medians with quartiles, and a verdict against the first of the networks that were timed together."""

    def __init__(self, introduction: str, *columns: str) -> None:
        self.text = [introduction.format(rounds=ROUNDS)]
        self.text += [f"| network | batch | runtime | {' | '.join(columns)} |", "|" + "---|" * (3 + len(columns))]
        self.warnings: list[str] = []

    def add(self, name: str, batch: int, variants: Mapping[str, nn.Module], also: Mapping[str, str] | None = None) -> None:
        """Time `variants`; `also`: what else to say of each."""
        found = bench.bench(variants, task().example_inputs, runtimes=("eager", "onnx"), batches=(batch,), rounds=ROUNDS)
        verdicts = {(one.variant, one.runtime): str(one) for one in found.comparisons}
        for timing in found.timings:
            cells = [name, batch, timing.runtime, timing.variant, *([also[timing.variant]] if also else [])]
            cells += [f"{timing.median:.2f} ({timing.low:.2f} to {timing.high:.2f})"]
            cells += [verdicts.get((timing.variant, timing.runtime), "")]
            self.text.append(f"| {' | '.join(map(str, cells))} |")
        self.warnings += [f"{name}: {warning}" for warning in found.warnings]

    def write(self, file: Path) -> None:
        file.write_text("\n".join([*self.text, "", *dict.fromkeys(self.warnings), ""]))
        print(file.read_text())
