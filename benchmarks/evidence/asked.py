"""What was asked of the networks, beside what the rows say; and how far the known motif alone gets."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.lib.rows import Line
from featherweight.evidence import compare, motifs
from featherweight.zoo import sequences
from featherweight.zoo.dna import one_hot

SEEDS = (0, 1, 2)
KNOWN = {"mafk": "MA0496.3", "oct4": "MA0142.1", "p73": "MA0861.1", "ctcf": "MA0139.1"}  # of JASPAR 2022
LEAST = {"pearson": 0.90, "spearman": 0.70, "top": 0.75}
SAME = {"Mafk, 10x": "mafk cnn 10x", "Oct4, 10x, twice the epochs": "oct4 cnn 10x twice the epochs"}


def known_area(data: sequences.Sequences, file: Path) -> float:
    """AUC on the test part of the best place of one known matrix, by log-odds, on either strand."""
    (matrix,) = (motif.matrix for motif in motifs.read(file) if motif.name.startswith(KNOWN[data.name]))
    part = data.test.window(data.window)
    odds = torch.from_numpy(np.log2(np.clip(matrix, 1e-3, 1) / 0.25)).float()
    both = torch.stack([odds.T, odds.flip(0, 1).T])  # (strands, bases, length)
    scores: Tensor = torch.nn.functional.conv1d(one_hot(part.codes), both).flatten(1).amax(1)
    return compare.delong(part.labels.numpy(), scores.numpy(), scores.numpy())[0][0].auc


def table(done: dict[str, Line]) -> list[str]:
    """Lines of the page: medians of three seeds against what was asked."""
    text = ["", "## What was asked of the small networks", "", "Medians of three seeds; the pair are two dense networks.", ""]
    text += ["| what | to meet | measured | |", "|---|---|---|---|"]
    for name, row in SAME.items():
        lines = [done[f"{row} {seed}"] for seed in SEEDS if f"{row} {seed}" in done]
        lost = [line["dense_auc"] - line["auc"] for line in lines]
        text.append(judged(f"{name}: AUC lost", "at most .005", statistics.median(lost), statistics.median(lost) <= 0.005))
        for key, least in LEAST.items():
            own, pair = (statistics.median(line["numbers"][f"{of}{key}"] for line in lines) for of in ("", "yardstick_"))
            if key == "top":  # medians of a number that goes in tenths tie: above the pair is asked of the means
                means = [statistics.median(line["numbers"][f"{of}top_mean"] for line in lines) for of in ("", "yardstick_")]
                asked, met = f"at least {least:g}; the mean above the pair's {means[1]:.3f}", own >= least and means[0] > means[1]
                text.append(judged(f"{name}: top 10", asked, own, met, f", mean {means[0]:.3f}"))
            else:
                asked = f"at least {least:g} and above the pair's {pair:.3f}"
                text.append(judged(f"{name}: {key.title()} of sizes", asked, own, own >= least and own > pair))
    few = [done[f"mafk cnn 4 bits {seed}"] for seed in SEEDS]
    own, lost_bits = (
        statistics.median(values)
        for values in ([line["numbers"]["pearson"] for line in few], [line["dense_auc"] - line["auc"] for line in few])
    )
    text.append(judged("Mafk, 4 bits: Pearson", "at least .97", own, own >= 0.97))
    text.append(judged("Mafk, 4 bits: AUC lost", "at most .002", lost_bits, lost_bits <= 0.002))
    for by, most in (("optimised", 1e-3), ("seqlets", 1e-6)):
        for row in ("mafk cnn", "mafk cnn 10x"):
            named = [done[f"{row} {seed}"]["motifs"][by] for seed in SEEDS if f"{row} {seed}" in done]
            worst = max(one["q"] for one in named)
            first = sorted({one["nearest"].split(".")[-1] for one in named})
            met = worst <= most and all("maf" in one.lower() for one in first)
            text.append(
                judged(
                    f"{row}: motif, {by}", f"MAF's family first, q at most {most:g}", worst, met, f" at most: {', '.join(first)}"
                )
            )
    for kind in ("cnn", "cnn_rnn", "rnn"):
        for how in ("centred", "integrated_gradients"):
            found = [done[f"planted {kind} {seed}"]["pointing"][f"{how}, test"] for seed in SEEDS]
            middle = statistics.median(found)
            text.append(judged(f"planted, {kind}: inside against outside, {how}", "at least .90", middle, middle >= 0.90))
    for kind in ("cnn", "cnn_rnn", "rnn"):
        pairs = [
            (done[f"planted {kind} {s}"], done[f"planted {kind} 10x {s}"]) for s in SEEDS if f"planted {kind} 10x {s}" in done
        ]
        for how in ("centred, test", "integrated_gradients, test"):
            apart = [abs(small["pointing"][how] - dense["pointing"][how]) for dense, small in pairs]
            if apart:
                what = f"planted, {kind} 10x: apart from the dense one's, {how.removesuffix(', test')}, the most of {len(apart)}"
                text.append(judged(what, "at most .03", max(apart), max(apart) <= 0.03))
    return text


def judged(what: str, asked: str, found: float, met: bool, more: str = "") -> str:
    number = f"{found:.4f}" if abs(found) >= 5e-5 or found == 0 else f"{found:.0e}"
    return f"| {what} | {asked} | {number}{more} | {'met' if met else '**not met**'} |"
