"""Packed files: size against entropy, speed against size, and against general compressors.

python benchmarks/packed.py [--most 1e7]   writes benchmarks/packed.md; `--most 1e8` needs about 8 GB
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "packed"))
import networks

from featherweight import packed, zoo
from featherweight.codes import Scaled, Shared, SparseShared
from featherweight.coding import attach
from featherweight.edits import Snapshot
from featherweight.views import View

ROWS = View("o i -> o i")


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds of processor time, by which other work on the machine counts less than on the clock: the median of up
    to nine calls in about two seconds, the first of them left out where there is another, since it loads what others find.
    """
    seconds: list[float] = []
    while not seconds or (len(seconds) < 10 and sum(seconds) < 2):
        started = time.process_time()
        result = function()
        seconds.append(time.process_time() - started)
    return result, statistics.median(seconds[1:] or seconds)


class One(nn.Module):
    """A single matrix, so that no time goes into making a layer's random weights."""

    def __init__(self, rows: int, cols: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, cols))


def large(size: int, kind: str, random: np.random.Generator) -> tuple[Snapshot, One, float]:
    """A matrix of about `size` weights under a code, the class it goes into, and its empirical entropy in bytes."""
    rows = int(size**0.5)
    size = rows * rows
    model = One(rows, rows)
    levels = {"binary": 2, "ternary": 3, "16 shared": 16, "256 shared": 256, "10 % of 16": 16, "2 % of 4": 4}[kind]
    chances = random.dirichlet(np.ones(levels) * 4)
    if "%" in kind:
        places = np.flatnonzero(random.random(size, np.float32) < float(kind.split(" ")[0]) / 100)
        index = random.choice(levels, places.size, p=chances).astype(np.uint8)
        counts = np.array([size - places.size, *np.bincount(index)])
        code: Any = SparseShared(rows, rows, torch.from_numpy(places), torch.from_numpy(index), levels)
    else:
        index = np.searchsorted(np.cumsum(chances)[:-1], random.random(size, np.float32)).astype(np.uint8)
        counts = np.bincount(index)
        table = torch.from_numpy(index).view(rows, rows)
        code = Shared(table, levels) if "shared" in kind else Scaled(table, torch.linspace(-1, 1, levels))
    del index
    attach(model, "weight", ROWS, code)
    counts = counts[counts > 0].astype(float)
    floats = 4 * (rows if kind in ("binary", "ternary") else levels)
    entropy = float((counts * np.log2(counts.sum() / counts)).sum()) / 8
    return Snapshot.of(model, []), One(rows, rows), entropy + floats


def speeds(most: float) -> list[str]:
    lines = ["| weights | code | file | entropy + floats | over | encode MB/s | decode MB/s |", "|---|---|---|---|---|---|---|"]
    for kind in ("binary", "ternary", "16 shared", "256 shared", "10 % of 16", "2 % of 4"):
        for size in (1e5, 1e6, 1e7, 1e8):
            if size > most:
                continue
            snapshot, network, entropy = large(int(size), kind, np.random.default_rng(0))
            data, encode = timed(partial(packed.pack, snapshot, network))
            back, decode = timed(partial(packed.read, data, network))
            exact = all(torch.equal(tensor, snapshot.state[name]) for name, tensor in back.state.items())
            assert exact, f"{kind}, {size}"
            dense, over = 4e-6 * network.weight.numel(), len(data) - entropy
            allowed = "" if over <= 0.01 * entropy + 32 else " (above 1 % + 32)"
            lines.append(
                f"| {size:.0e} | {kind} | {len(data):,} | {entropy:,.0f} | {over:+,.0f} = {100 * over / entropy:+.2f} %{allowed} "
                f"| {dense / encode:,.0f} | {dense / decode:,.0f} |"
            )
            print(lines[-1], flush=True)
            snapshot, back, data = Snapshot([], {}), Snapshot([], {}), b""
    return lines


def lenets() -> list[str]:
    lines = [
        "| non-zeros | shared a layer | weights | places | rest | **file** | exact floats | gzip | zstd | safetensors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for nonzeros in (2500, 1400, 600):
        for shared in (4, 8, 16):
            exact = networks.sparse_lenet(nonzeros, shared)
            coarse = packed.rounded(packed.rounded(exact, "fixed8", ["*.original"]), "fixed5", ["*.bias"])
            size = packed.storage(coarse, zoo.lenet5())
            lines.append(
                f"| {nonzeros} | {shared} | {size.weights:,} | {size.places:,} | {size.rest} | **{size.file:,}** "
                f"| {len(packed.pack(exact, zoo.lenet5())):,} | {size.gzip:,} | {size.zstd:,} | {size.safetensors:,} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=float, default=1e7, help="weights of the largest matrix")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = [
        "# Packed files",
        "",
        "Written by `python benchmarks/packed.py`. One thread, processor time, median of up to nine calls after the first; "
        "MB are of fp32-equivalent weights.",
        "",
    ]
    parts += ["## LeNet-5, synthetic masks, shared values at 8 bits, biases at 5", "", "Bytes.", "", *lenets(), ""]
    parts += ["## Large matrices", "", *speeds(given.most), ""]
    Path(__file__).with_suffix(".md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
