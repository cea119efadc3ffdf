"""Packed files: size against entropy, speed against size, and against general compressors.

featherweight reproduce packed [--most 1e7]   writes benchmarks/packed; `--most 1e8` needs about 8 GB
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

from benchmarks.lib.rows import ROOT

sys.path.insert(0, str(ROOT / "tests" / "files" / "packed"))
import networks

from featherweight import zoo
from featherweight.files import packed
from featherweight.files.edits import Snapshot
from featherweight.weights.codes import Scaled, Shared, SparseShared
from featherweight.weights.parametrized import attach
from featherweight.weights.views import View

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


class Matrices(nn.Module):
    """Square matrices and nothing else, so that no time goes into making a layer's random weights."""

    def __init__(self, count: int, rows: int):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(rows, rows) for _ in range(count))


def code(size: int, kind: str, random: np.random.Generator) -> tuple[Any, float]:
    """A square code of `size` weights, and the empirical entropy of what it holds, in bytes."""
    rows = int(size**0.5)
    levels = {"binary": 2, "ternary": 3, "16 shared": 16, "256 shared": 256, "10 % of 16": 16, "2 % of 4": 4}[kind]
    chances = random.dirichlet(np.ones(levels) * 4)
    if "%" in kind:
        places = np.flatnonzero(random.random(size, np.float32) < float(kind.split(" ")[0]) / 100)
        index = random.choice(levels, places.size, p=chances).astype(np.uint8)
        counts = np.array([size - places.size, *np.bincount(index)])
        made: Any = SparseShared(rows, rows, torch.from_numpy(places), torch.from_numpy(index), levels)
    else:
        index = np.searchsorted(np.cumsum(chances)[:-1], random.random(size, np.float32)).astype(np.uint8)
        counts = np.bincount(index)
        table = torch.from_numpy(index).view(rows, rows)
        made = Shared(table, levels) if "shared" in kind else Scaled(table, torch.linspace(-1, 1, levels))
    counts = counts[counts > 0].astype(float)
    floats = 4 * (rows if kind in ("binary", "ternary") else levels)
    return made, float((counts * np.log2(counts.sum() / counts)).sum()) / 8 + floats


def large(size: int, kind: str, random: np.random.Generator, count: int = 1) -> tuple[Snapshot, Matrices, float]:
    """`count` matrices of about `size` weights under a code, the class they go into, and their empirical entropy in bytes."""
    rows = int(size**0.5)
    model, entropy = Matrices(count, rows), 0.0
    for number in range(count):
        made, least = code(rows * rows, kind, random)
        attach(model, f"weights.{number}", ROWS, made)
        entropy += least
    return Snapshot.of(model, []), Matrices(count, rows), entropy


def speeds(most: float) -> list[str]:
    lines = ["| weights | code | file | entropy + floats | over | encode MB/s | decode MB/s |", "|---|---|---|---|---|---|---|"]
    for kind in ("binary", "ternary", "16 shared", "256 shared", "10 % of 16", "2 % of 4"):
        for size, count in ((1e5, 1), (1e5, 10), (1e6, 1), (1e7, 1), (1e8, 1)):
            if size > most:
                continue
            snapshot, network, entropy = large(int(size), kind, np.random.default_rng(0), count)
            data, encode = timed(partial(packed.pack, snapshot, network))
            back, decode = timed(partial(packed.read, data, network))
            exact = all(torch.equal(tensor, snapshot.state[name]) for name, tensor in back.state.items())
            assert exact, f"{kind}, {size}"
            dense, over = 4e-6 * sum(weight.numel() for weight in network.weights), len(data) - entropy
            allowed = "" if over <= 0.01 * entropy + 32 * count else " (above 1 % + 32)"
            lines.append(
                f"| {f'{count} x ' if count > 1 else ''}{size:.0e} | {kind} | {len(data):,} | {entropy:,.0f} "
                f"| {over:+,.0f} = {100 * over / entropy:+.2f} %{allowed} | {rate(dense / encode)} | {rate(dense / decode)} |"
            )
            print(lines[-1], flush=True)
            snapshot, back, data = Snapshot([], {}), Snapshot([], {}), b""
    return lines


def rate(megabytes: float) -> str:
    """A second."""
    return f"{megabytes:,.0f}" if megabytes >= 10 else f"{megabytes:.1f}"


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
        "Written by `featherweight reproduce packed`. One thread, processor time, median of up to nine calls after the first; "
        "MB are of fp32-equivalent weights.",
        "",
    ]
    parts += ["## LeNet-5, synthetic masks, shared values at 8 bits, biases at 5", "", "Bytes.", "", *lenets(), ""]
    parts += ["## Large matrices", "", *speeds(given.most), ""]
    Path(__file__).with_name("README.md").write_text("\n".join(parts))


if __name__ == "__main__":
    main()
