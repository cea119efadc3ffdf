"""Which ingredient pays: recipes with one part taken out, at equal epochs, on held-out samples: the rows of benchmarks/ablation.

    featherweight reproduce ablation                                        every row that is not done yet, then the table
    featherweight reproduce ablation --row 'pruning, no distillation, seed 0'  one row
    featherweight reproduce ablation --table                                only the table, from the rows there are

Networks and data are those of benchmarks/ordinary, scored on samples of a seed of their own. Needs no download and no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks.lib.rows import Line, Rows
from benchmarks.ordinary.run import KINDS, TEST, Kind, dense, score_of, task_of
from featherweight import Constrain, CutUnits, FeatherweightError, Recipe, Task, Training, compress
from featherweight.recipes import admm_quantization, collaborative, l1_filters, progressive_admm, quantize_aware, taylor

ROWS = Rows(__file__)
SEEDS = (0, 1, 2)
HELD_OUT = 5  # seed of the samples that are scored: nothing else is made of it
MACS = 0.6  # kept
FIVE = ("5x", "7x", "10x", "14x", "20x")  # the first three fill the pool of candidates, the others start from each

Variants = dict[str, Callable[[], Recipe]]

INTRODUCTION = f"""# Which ingredient pays

Written by `featherweight reproduce ablation`. Each recipe as it is, and with one part changed, on the networks and data of
[ordinary](../ordinary/README.md), after as many epochs at the same rate. Scores are of {TEST:,} held-out samples that nothing was
trained on or chosen by, last epoch: accuracy in percent (u-net: of pixels; regression and two inputs: 100 R2), the mean of
{len(SEEDS)} seeds of the order of the batches, for one dense network. In a line that differs from the first, each cell is the
difference, and in brackets is its standard error, from the differences of the seeds. The last column is the mean over the
networks.
"""


def changed(recipe: Recipe, kind: type[Any], **fields: Any) -> Recipe:
    """`recipe` with `fields` in all stages of a kind."""
    return replace(recipe, stages=tuple(replace(one, **fields) if isinstance(one, kind) else one for one in recipe.stages))


def without_admm(recipe: Recipe) -> Recipe:
    """Each stage projects at once, and trains in all its epochs inside the set."""
    stages = [
        replace(one, driver=None, train=Training(0), retrain=replace(one.retrain, epochs=one.epochs))
        if isinstance(one, Constrain)
        else one
        for one in recipe.stages
    ]
    return replace(recipe, stages=tuple(stages))


def cut(recipe: Recipe, **fields: Any) -> Recipe:
    """`recipe` with fields of the units of its stage that cuts."""
    stages = [replace(one, units=replace(one.units, **fields)) if isinstance(one, CutUnits) else one for one in recipe.stages]
    return replace(recipe, stages=tuple(stages))


VARIANTS: dict[str, Variants] = {
    "pruning": {
        "as it is": progressive_admm,
        "no distillation": lambda: progressive_admm(distill=0.0),
        "temperature 1 for 4": lambda: progressive_admm(temperature=1.0),
        "selection by magnitude (fisher 0)": lambda: progressive_admm(fisher=0.0),
        "no respread": lambda: progressive_admm(respread=False),
        "no sweep": lambda: progressive_admm(sweep=False),
        "spread by LAMP": lambda: progressive_admm(allocate="lamp", respread=False),
        "one stage": lambda: progressive_admm(("20x",), epochs=12, retrain_epochs=12),
        "no ADMM": lambda: without_admm(progressive_admm()),
        "five stages (40 epochs)": lambda: progressive_admm(FIVE),
        "five stages, three candidates (72 epochs)": lambda: progressive_admm(FIVE, candidates=3),
    },
    "three bits": {
        "as it is": lambda: admm_quantization((3,)),
        "no distillation": lambda: admm_quantization((3,), distill=0.0),
        "temperature 1 for 4": lambda: admm_quantization((3,), temperature=1.0),
        "no ADMM": lambda: without_admm(admm_quantization((3,))),
        "straight through": lambda: quantize_aware(3, None, how="straight_through", epochs=4, retrain_epochs=admm_retraining()),
    },
    "units": {
        "as it is": lambda: collaborative(MACS),
        "no refit": lambda: cut(collaborative(MACS), refit=False),
        "pairs of the loss, as in the paper": lambda: cut(collaborative(MACS), curvature="loss"),
        "no pairs (taylor), refit": lambda: cut(taylor(MACS), refit=True),
        "no data for the choice (l1), refit": lambda: cut(l1_filters(MACS), refit=True),
        "l1, no refit": lambda: l1_filters(MACS),
        "knapsack": lambda: collaborative(MACS, allocate="knapsack"),
        "distillation": lambda: collaborative(MACS, distill=1.0),
        "distillation at temperature 1": lambda: collaborative(MACS, distill=1.0, temperature=1.0),
    },
}
WORDS = {
    "pruning": "`progressive_admm` to 20 times fewer weights, by 5 and 10, 24 epochs.",
    "three bits": "`admm_quantization` to 3 bits.",
    "units": f"`collaborative` at {100 * MACS:g} % of the MACs, 20 epochs of fine-tuning; then the scores before it.",
}


def admm_retraining() -> int:
    """Epochs after the first four of `admm_quantization`."""
    return admm_quantization((3,)).epochs() - 4


def ordered(task: Task, seed: int) -> Task:
    """With another order of the batches in every epoch."""
    return replace(task, train=lambda epoch: task.train(1000 * seed + epoch))  # type: ignore[operator]


def names() -> dict[str, tuple[str, str, int]]:
    return {
        f"{what}, {variant}, seed {seed}": (what, variant, seed)
        for seed in SEEDS
        for what, variants in VARIANTS.items()
        for variant in variants
    }


def scored(kind_name: str, kind: Kind, recipe: Recipe, seed: int) -> Line:
    task = ordered(task_of(kind), seed)
    network, _ = dense(kind_name, kind, task_of(kind))
    held_out = kind.samples(TEST, HELD_OUT)
    torch.manual_seed(seed)
    task = replace(task, evaluate=lambda found: score_of(kind, found, held_out))
    try:
        rows = compress(network, recipe, task).rows
    except FeatherweightError as error:
        return {"refused": str(error)}
    return {"scores": [row.measured.score for row in rows], "epochs": rows[-1].epochs}


def run(name: str) -> Line:
    what, variant, seed = names()[name]
    began = time.perf_counter()
    found = {kind_name: scored(kind_name, kind, VARIANTS[what][variant](), seed) for kind_name, kind in KINDS.items()}
    return {"networks": found, "seconds": round(time.perf_counter() - began)}


def table(done: dict[str, Line]) -> str:
    """The whole of README.md from the rows there are."""
    text = [INTRODUCTION]
    for what, variants in VARIANTS.items():
        text += [f"## {what.capitalize()}", "", WORDS[what], ""]
        text += section(done, what, variants, -1)
        if what == "units":
            text += ["", *section(done, what, variants, -2)]
        text += [""]
    if missing := [name for name in names() if name not in done]:
        text += [f"Not run yet: {len(missing)} of {len(names())} rows.", ""]
    return "\n".join(text)


def section(done: dict[str, Line], what: str, variants: Variants, stage: int) -> list[str]:
    if len(rows_of(done, what, "as it is")) < len(SEEDS):
        return []
    kinds = [kind for kind in KINDS if all("scores" in row["networks"][kind] for row in rows_of(done, what, "as it is"))]
    text = [f"| {what} | {' | '.join(kinds)} | mean |", "|---|" + "---|" * (len(kinds) + 1)]
    base = {kind: [row["networks"][kind]["scores"][stage] for row in rows_of(done, what, "as it is")] for kind in kinds}
    for variant in variants:
        rows = rows_of(done, what, variant)
        cells, differences = [], []
        for kind in kinds:
            found = [row["networks"][kind].get("scores", [None, None])[stage] for row in rows]
            apart = [one - other for one, other in zip(found, base[kind], strict=False) if one is not None]
            if len(apart) < len(SEEDS):
                cells.append("-")
            elif variant == "as it is":
                cells.append(f"{mean(found):.2f}")
            else:
                cells.append(f"{mean(apart):+.2f} ({stdev(apart) / len(apart) ** 0.5:.2f})")
                differences.append(mean(apart))
        last = f"{mean(differences):+.2f}" if differences else ""
        if variant == "as it is":
            last = f"{mean(mean(scores) for scores in base.values()):.2f}"
        text.append(f"| {variant} | {' | '.join(cells)} | {last} |")
    refused = [kind for kind in KINDS if kind not in kinds]
    return [*text, *(["", f"Refused on {' and '.join(refused)}: nothing can go, or not as much."] if refused else [])]


def rows_of(done: dict[str, Line], what: str, variant: str) -> list[Line]:
    return [done[name] for name, (of, one, _) in names().items() if (of, one) == (what, variant) and name in done]


def main(arguments: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    ROWS.run(__doc__, names(), run, table, arguments)


if __name__ == "__main__":
    main()
