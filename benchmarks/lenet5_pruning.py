"""LeNet-5 on MNIST pruned to the extreme: the rows of benchmarks/lenet5-pruning.md.

    featherweight reproduce lenet5-pruning                 every run that is not done yet, then the table
    python benchmarks/lenet5_pruning.py --run 'seed 1'        one run (two side by side suit two cores)
    python benchmarks/lenet5_pruning.py --table            only the table, from the rows there are

A run is taken up where it was killed. Settings were chosen on 10,000 images held out from the training set; the test set is
used for the rows alone. Every figure is the last epoch's.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from featherweight import compress, tasks, zoo
from featherweight.recipe import Recipe, Stage, Training
from featherweight.recipes import progressive_admm
from featherweight.report import Row

HERE = Path(__file__).parent
ROWS = HERE / "lenet5-pruning.jsonl"
TABLE = HERE / "lenet5-pruning.md"
ARTIFACTS = HERE / "artifacts"
WORK = HERE.parent / "runs" / "lenet5-pruning"

BATCH = 256
HIDDEN = "re:(conv1|conv2|fc1).weight"
DENSE_EPOCHS = 14


@dataclass(frozen=True)
class Run:
    """One path through the stages. `jumps`: (ratio asked, ADMM epochs, retraining epochs) of each stage after the narrowing."""

    seed: int
    jumps: tuple[tuple[float, int, int], ...]
    changes: dict[str, Any] = field(default_factory=dict)  # to the recipe's arguments
    gradual: bool = False  # a projection after every epoch at a falling density, in place of ADMM
    keep_artifacts: bool = False


FULL = ((40, 4, 3), (80, 8, 3), (167.5, 16, 4), (247, 16, 4), (301, 14, 4), (702, 40, 8))
SHORT = ((40, 3, 2), (120, 6, 2), (301, 12, 3))
RUNS = {
    "seed 0": Run(0, FULL, keep_artifacts=True),
    "seed 1": Run(1, FULL, keep_artifacts=True),
    "seed 2": Run(2, FULL, keep_artifacts=True),
    "short": Run(0, SHORT),
    "short, no distillation": Run(0, SHORT, {"distill": 0.0}),
    "short, magnitudes by LAMP": Run(0, SHORT, {"fisher": 0.0, "allocate": "lamp"}),
    "short, gradual magnitude by LAMP, no ADMM": Run(0, SHORT, {"fisher": 0.0, "allocate": "lamp"}, gradual=True),
}


def recipe(run: Run) -> Recipe:
    """The stages of `run`. The dense network is trained before, on augmented images (see `train`): "dense" has no epochs here."""
    per_epoch = -(-60_000 // BATCH)
    stages: list[Stage] = []
    before = 1.0
    for ratio, epochs, retrain_epochs in run.jumps:
        first = not stages
        arguments: dict[str, Any] = {
            "ratios": (ratio,),
            "epochs": epochs,
            "retrain_epochs": retrain_epochs,
            "rate": 10.0,
            "retrain_rate": 4.0,
            "every": per_epoch // 2,
            "rho": 0.03,
            "rho_max": 1.65,
            "growth": (1.65 / 0.03) ** (1 / (0.8 * 2 * epochs)),  # rho_max after four fifths of the projections, two an epoch
            "narrow": 0.31 if first else None,
            "narrow_targets": HIDDEN,
            "narrow_epochs": 3,
        }
        part = progressive_admm(**arguments | run.changes).stages[0 if first else 1 :]
        stages += [*part[:-1], *(falling(part[-1], before, ratio, epochs) if run.gradual else part[-1:])]
        before = ratio
    return Recipe("progressive_admm", tuple(stages), "arXiv 1810.07378, 1903.09769")


def falling(stage: Stage, before: float, ratio: float, epochs: int) -> list[Stage]:
    """As many epochs without ADMM: a projection before each, the ratio growing geometrically; then the retraining."""
    steps = [before * (ratio / before) ** ((i + 1) / epochs) for i in range(epochs)]
    one = replace(stage, driver=None, respread=False, train=Training(0), retrain=Training(1, 10.0, "constant"), sweep=False)
    ramp = [replace(one, name=f"{step:.1f}x in {stage.name}", keep=1 / step) for step in steps]
    return [*ramp, replace(stage, driver=None, respread=False, train=Training(0))]


def train(name: str, run: Run) -> list[Row]:
    """Run `run` to its end, saving an artifact after each ratio where asked."""
    torch.manual_seed(run.seed)
    torch.set_num_threads(1)
    augmented = tasks.mnist(run.seed, batch_size=128, augment=True)
    plain = tasks.mnist(run.seed, batch_size=BATCH, augment=False)
    dense = Recipe("dense", (Stage("dense", train=Training(DENSE_EPOCHS, 2.0, warmup=0.03)),))
    network = zoo.lenet5().to(memory_format=torch.channels_last)
    shared = WORK / f"dense{run.seed}"
    baseline = compress(network, dense, augmented, workdir=shared, checkpoint_seconds=60)
    print(f"{name}: dense {baseline.rows[-1].measured.score:.2f}", flush=True)
    whole = recipe(run)
    rows: list[Row] = []
    ends = [i + 1 for i, stage in enumerate(whole.stages) if stage.name in {f"{ratio:g}x" for ratio, _, _ in run.jumps}]
    for end in ends:
        part = replace(whole, stages=whole.stages[:end])  # the same workdir takes each longer recipe up where the last ended
        result = compress(baseline.model, part, plain, workdir=WORK / file_name(name), checkpoint_seconds=60)
        rows = [*baseline.rows, *result.rows[1:]]
        print(f"{name}: {rows[-1].stage} {rows[-1].measured.score:.2f} at {1 / (rows[-1].kept or 1):.1f}x", flush=True)
        if run.keep_artifacts and end != ends[0]:
            result.save(ARTIFACTS / f"lenet5-{part.stages[-1].name}-{file_name(name)}", model="lenet5", data="mnist")
    return rows


def file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=RUNS, help="only this run")
    parser.add_argument("--table", action="store_true", help="only the table")
    chosen = parser.parse_args(arguments)
    done = {line["run"] for line in read()}
    for name in [] if chosen.table else [chosen.run] if chosen.run else RUNS:
        if name in done:
            continue
        started = time.time()
        rows = train(name, RUNS[name])
        line = {"run": name, "minutes": round((time.time() - started) / 60, 1), "rows": [row.to_dict() for row in rows]}
        with open(ROWS, "a") as file:
            file.write(json.dumps(line) + "\n")
    TABLE.write_text(table())
    print(TABLE.read_text())


def read() -> list[dict]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def table() -> str:
    lines = ["TODO"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
