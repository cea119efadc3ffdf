"""On a machine with a GPU: the laws of `tests/on_device`, then ResNet-50 against itself at half the MACs, eager and compiled.

    PYTHONPATH=. python tests/on_device/run.py [--batch 32] [--size 224] [--device cuda]

Six minutes at most. Without a GPU the laws are skipped; `--device cpu --size 64 --batch 2 --width 16` tries the rest.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.budget.units import allocate
from featherweight.network.devices import chosen, multiplies_bfloat16, synchronise
from featherweight.ship.bench import interleaved, judge
from featherweight.structure import Graph, prune, trace

HERE = Path(__file__).parent
LAWS_AT_MOST = 200  # seconds


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 on a residual stream (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.short = (
            nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(h)) + self.short(x))


class ResNet50(nn.Module):
    """(batch, 3, size, size) -> (batch, 1000)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        blocks, inputs = list[nn.Module](), width
        for stage, count in enumerate((3, 4, 6, 3)):
            for number in range(count):
                blocks.append(Bottleneck(inputs, width << stage, 2 if stage and not number else 1))
                inputs = 4 * (width << stage)
        self.blocks, self.out = nn.Sequential(*blocks), nn.Linear(inputs, 1000)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        return self.out(self.blocks(h).mean((2, 3)))


def halved(network: nn.Module, graph: Graph) -> nn.Module:
    """A copy at half the MACs: the same share of units everywhere, the first of each site, since only time is looked at."""
    sizes = allocate(
        "uniform", {name: [0.0] * (site.size + 1) for name, site in graph.sites.items()}, graph.macs, graph.macs() / 2, 8
    )
    mine = copy.deepcopy(network)
    prune(mine, graph, {name: range(size) for name, size in sizes.items()}, where="class")
    return mine


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 32), ("size", 224), ("width", 64), ("rounds", 20)):
        options.add_argument(f"--{name}", type=int, default=default)
    options.add_argument("--device", default="cuda")
    asked = options.parse_args()
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-rs", str(HERE)]
    try:
        failed = subprocess.run(command, timeout=LAWS_AT_MOST, check=False).returncode
    except subprocess.TimeoutExpired:
        failed = 1
        say(f"the laws took more than {LAWS_AT_MOST} s and were stopped")
    device = chosen(asked.device)
    torch.manual_seed(0)
    dense = ResNet50(asked.width).eval().to(device)
    example = (torch.randn(1, 3, asked.size, asked.size, device=device),)
    graph = trace(dense, example)
    cut = halved(dense, graph)
    where = torch.cuda.get_device_name() if device.type == "cuda" else str(device)
    say(f"{where}: {graph.macs():,} MACs, and {trace(cut, example).macs():,}")
    images = torch.randn(asked.batch, 3, asked.size, asked.size, device=device)

    def timed(network: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def once() -> object:
            with torch.inference_mode():
                result = network(images)
            synchronise(device)
            return result

        return once

    for way, made in (("eager", lambda n: n), ("compiled", torch.compile)):
        for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))[: 1 + multiplies_bfloat16(device)]:
            images = images.to(dtype)
            calls = {name: timed(made(copy.deepcopy(n).to(dtype))) for name, n in (("dense", dense), ("half", cut))}
            times = interleaved(calls, asked.rounds, warm_up=3)
            ratio, spread, verdict = judge(times["dense"], times["half"])
            medians = {name: 1000 * sorted(taken)[len(taken) // 2] for name, taken in times.items()}
            say(
                f"{way} {kind}, batch {asked.batch}: dense {medians['dense']:.2f} ms, half {medians['half']:.2f} ms, "
                f"ratio {ratio:.2f}, spread {spread:.0%}: {verdict}"
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())
