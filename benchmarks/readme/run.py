"""The tables and the picture of the project's README, from committed rows alone: no figure there is typed by hand.

    featherweight reproduce readme      writes both anew

Only rows whose network ships are quoted, so that `featherweight reproduce artifacts` or `inspect` can confirm them.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

from benchmarks.lib.rows import ROOT, Line

README, PICTURE = ROOT / "README.md", ROOT / "docs" / "measured.svg"
BEGIN, END = "<!-- measured: written by `featherweight reproduce readme` -->\n", "<!-- end of measured -->"
FROM, TO = "<!-- networks: written by `featherweight reproduce readme` -->\n", "<!-- end of networks -->"
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {  # of benchmarks/coverage: suite, what a name ends in or begins with
    "pytorchcv: dense outputs, sound": (
        "pytorchcv",
        ("_cityscapes", "_voc", "_coco", "_celebamaskhq", "_widerface", "jasper", "quartznet", "superpointnet"),
    ),
    "pytorchcv: CIFAR-10's": ("pytorchcv", ("_cifar10",)),
    "pytorchcv: ImageNet's": ("pytorchcv", ("",)),
    "timm: drawn by lot": ("timm", ("",)),
    "transformers": ("transformers", ("",)),
}
SHOWN = 8  # names of a family
EXACT = 1e-9  # of the largest output
PUBLISHED = ((167, 99.0, "arXiv 1810.07378"), (246, 99.2, "arXiv 1903.09769"))  # weights left on LeNet-5, times fewer
SEEDS = (0, 1, 2)


def rows(name: str) -> dict[str, Line]:
    """Name -> row of a benchmark."""
    lines = (ROOT / "benchmarks" / name / "rows.jsonl").read_text().splitlines()
    return {line["row"]: line for line in map(json.loads, lines)}


def stage(line: Line, name: str) -> dict[str, Any] | None:
    """What was measured at the end of a stage of a run."""
    return next((one["measured"] for one in line["rows"] if one["stage"] == name), None)


def lenet5(at: str) -> list[tuple[float, float]]:
    """(times fewer weights, accuracy) of the three seeds at one stage."""
    found = []
    for seed in SEEDS:
        for one in rows("lenet5_pruning")[f"seed {seed}"]["rows"]:
            if one["stage"] == at and one["targets"]:
                left = sum(nonzeros for nonzeros, _ in one["targets"].values())
                found.append((430_500 / left, one["measured"]["score"]))
    return found


def weights() -> tuple[str, str]:
    found = lenet5("301x")
    ratio, score = (statistics.median(part) for part in zip(*found, strict=True))
    worst = min(score for _, score in found)
    return "LeNet-5 on MNIST, weights", (
        f"{ratio:.0f} times fewer at {score:.2f} %, the worst of three seeds {worst:.2f} % (dense {dense_lenet5():.2f} %)"
    )


def dense_lenet5() -> float:
    """The median of the three seeds."""
    return statistics.median(stage(rows("lenet5_pruning")[f"seed {seed}"], "dense")["score"] for seed in SEEDS)  # type: ignore[index]


def files() -> tuple[str, str]:
    lines = [line for line in rows("lenet5_storage").values() if line["score"] >= 99.0 and "binary" not in line["row"]]
    best: list[Line] = []
    for line in sorted(lines, key=lambda line: line["storage"]["file"]):
        if not best or line["score"] > best[-1]["score"]:
            best.append(line)
    least, most = (f"{line['storage']['file']:,} bytes at {line['score']:.2f} %" for line in (best[0], best[-1]))
    return "LeNet-5 as one file", f"from {least} to {most} (dense {best[0]['storage']['dense']:,} bytes)"


def in_c() -> tuple[str, str]:
    times = rows("ship")["LeNet-5"]["times"]
    by_cut = times["ONNX, 301x cut"]["us"] / times["C, 301x"]["us"]
    return "the same at 301 times fewer, as C", (
        f"{times['C, 301x']['ratio']:.1f} times as fast as the dense network and {by_cut:.1f} times as fast as the cut one, "
        "both in ONNX Runtime on one thread"
    )


def integers() -> tuple[str, str]:
    def told(row: str, variant: str) -> str:
        line = rows("ship")[row]
        first = next(iter(line["times"]))
        (before, was), (after, now) = (line["notes"][one].split(", ", 1) for one in (first, variant))
        smaller = int(was.split()[0].replace(",", "")) / int(now.split()[0].replace(",", ""))
        return f"{line['times'][variant]['ratio']:.1f} times, {smaller:.1f} times smaller, {after} ({before})"

    deep, half = "ResNet-56, half and integers", "ONNX, integers"
    return "8-bit integers in ONNX Runtime, faster by", (
        f"ResNet-20 {told('ResNet-20, integers', half)}; ResNet-56 {told(deep, f'{half}, dense')}; without half of its blocks "
        f"{told(deep, f'{half}, half the MACs')}"
    )


def few_bits() -> tuple[str, str]:
    told = []
    for bits, name in (("3 bits", "ResNet-20, 3 bits, straight through"), ("one bit", "ResNet-20, binary, straight through")):
        line = rows("cifar_bits")[name]
        size, dense = line["storage"]["file"], line["storage"]["dense"]
        told.append(f"{bits} {line['score']:.2f} %, a file of {size:,} bytes, {dense / size:.1f} times smaller")
    return "ResNet-20 on CIFAR-10, every weight of every layer", (
        f"{'; '.join(told)} (dense {line['dense']:.2f} %, {dense:,} bytes); one seed each"
    )


def evidence() -> tuple[str, str]:
    lines = [rows("evidence")[f"mafk cnn 10x {seed}"] for seed in (0, 1, 2)]

    def middle(of: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(of, lines))

    auc, dense = middle(lambda line: line["auc"]), middle(lambda line: line["dense_auc"])
    own, pair = (middle(lambda line, of=of: line["numbers"][f"{of}pearson"]) for of in ("", "yardstick_"))  # type: ignore[misc]
    return "Deep Motif's CNN, Mafk sites, 10 times fewer weights", (
        f"AUC {auc:.4f} (dense {dense:.4f}); correlation of its attributions with the dense one's {own:.3f}, of those of two "
        f"dense seeds {pair:.3f}; medians of three seeds"
    )


def ordinary() -> tuple[str, str]:
    from benchmarks.ordinary.run import NOISE, behind

    done = rows("ordinary").values()
    rival = [line for line in done if "magnitude" in line]
    ahead = sum(line["score"] > line["magnitude"] + NOISE for line in rival)
    lost = sum(map(behind, rival))
    refused = sum("refused" in line for line in done)
    return "six ordinary networks, every recipe by default", (
        f"{len(done)} runs; beside magnitude pruning to the same size {ahead} better, {len(rival) - ahead - lost} within "
        f"{NOISE:g} points, {lost} worse; {refused} refused with a named error, {len(done) - len(rival) - refused} that saved "
        "nothing"
    )


def coverage() -> tuple[str, str]:
    found = [line for line in rows("coverage").values() if line["part"] == "one" and ("traced" in line or "crash" in line)]
    exact = [line for line in found if line.get("graph") == "graph" and (line.get("graph_error") or 0) <= 1e-9]
    wrong = sum(line.get("graph") == "graph" and (line.get("graph_error") or 0) > 1e-9 for line in found)
    whole = sum(line.get("class") == "class" and line["class_sites"][0] == line["class_sites"][1] for line in found)
    part = sum(line.get("class") == "class" and line["class_sites"][0] < line["class_sites"][1] for line in found)
    return "networks of others, half of every site cut", (
        f"the exported graph of {len(exact)} of {len(found)} cut exactly, {wrong} wrongly, {len(found) - len(exact) - wrong} not "
        f"read; in their own class {whole} completely, {part} in part, {len(found) - whole - part} not"
    )


QUOTED: dict[str, Callable[[], tuple[str, str]]] = {
    "lenet5_pruning": weights,
    "lenet5_storage": files,
    "ship": in_c,
    "ship ": integers,
    "cifar_bits": few_bits,
    "evidence": evidence,
    "ordinary": ordinary,
    "coverage": coverage,
}


def _minutes(names: Callable[[str], bool], folder: str, each: str) -> str:
    """Of the median row of these; "" where rows do not say."""
    told = [line["minutes"] for name, line in rows(folder).items() if names(name) and line.get("minutes")]
    return f"{statistics.median(told):.0f} minutes{each}" if told else ""


def _sum(folder: str) -> str:
    """Of all rows of a folder, whose keys end in seconds."""
    whole = sum(value for line in rows(folder).values() for key, value in line.items() if key.endswith("seconds") and value)
    return f"{whole / 60:.0f} minutes in all"


TOOK: dict[str, Callable[[], str]] = {  # what rows say of the time that they took, on this project's machine of two processors
    "lenet5_pruning": lambda: _minutes(lambda name: name in {f"seed {seed}" for seed in SEEDS}, "lenet5_pruning", " a seed"),
    "lenet5_storage": lambda: _minutes(lambda name: "binary" not in name, "lenet5_storage", " a file"),
    "cifar_bits": lambda: _minutes(lambda name: name == "ResNet-20, 3 bits, straight through", "cifar_bits", " at 3 bits"),
    "evidence": lambda: _minutes(lambda name: name.startswith("mafk cnn 10x"), "evidence", " a seed"),
    "ordinary": lambda: _sum("ordinary"),
    "coverage": lambda: _sum("coverage"),
}


def table() -> str:
    """Markdown: what was measured, the command that measures it again, and how long that took where rows say it."""
    text = ["| what | measured | again by | its rows took |", "|---|---|---|---|"]
    for name, quoted in QUOTED.items():
        what, told = quoted()
        folder = name.strip()
        command = f"`featherweight reproduce {folder.replace('_', '-')}`"
        took = TOOK[name]() if name in TOOK else ""
        text.append(f"| {what} | {told} | {command}, [rows](benchmarks/{folder}/README.md) | {took} |")
    return "\n".join([*text, ""])


def networks() -> str:
    """Markdown: by family, how many networks of others were tried with half of every site cut, and what came of it."""
    lines = list(rows("coverage").values())
    left = {line["row"].rsplit(" ", 1)[0]: line for line in lines if line["part"] == "one"}
    peers = {line["row"].rsplit(" ", 1)[0]: line for line in lines if line["part"] == "peer"}
    text = [
        "| networks of | among them | tried | cut exactly | in their own class | torch-pruning |",
        "|---|---|---|---|---|---|",
    ]
    for family, (suite, ends) in FAMILIES.items():
        own = {
            name: left.pop(name)
            for name, line in list(left.items())
            if line["suite"] == suite and any(line["name"].endswith(end) or line["name"].startswith(end) for end in ends)
        }
        exact = [name for name, line in own.items() if line.get("graph") == "graph" and (line["graph_error"] or 0) <= EXACT]
        cut = [name for name, line in own.items() if line.get("class") == "class" and line["class_error"] <= EXACT]
        part = sum(own[name]["class_sites"][0] < own[name]["class_sites"][1] for name in cut)
        told = [peers[name].get("tp", "") for name in own if name in peers]
        theirs = f"{told.count('exact')} of {len(told)} exact"
        theirs += f", {told.count('runs, not checked')} unchecked" if "runs, not checked" in told else ""
        names = sorted({line["name"].partition("_")[0] for line in own.values()} - {"test", "tf"})
        shown = ", ".join(names[len(names) * at // SHOWN] for at in range(min(SHOWN, len(names))))
        in_class = f"{len(cut)}, {part} of them in part" if part else str(len(cut))
        text.append(f"| {family} | {shown} .. | {len(own)} | {len(exact)} | {in_class} | {theirs} |")
    assert not left, f"of no family: {', '.join(left)}"
    return "\n".join([*text, ""])


# --- the picture ---------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 760, 300
OURS, OTHERS, GREY = "#0072b2", "#d55e00", "#777"  # two colours that a colour-blind reader tells apart


def picture() -> str:
    """SVG: LeNet-5's accuracy against times fewer weights, beside the papers; and what 301 times fewer are worth at run time."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>LeNet-5 on MNIST: accuracy against weights left, and the time of one image</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *_accuracy(50, 40, 360, 210),
        *_times(500, 40, 230, 210),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, words: str, anchor: str = "start", fill: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'


def _accuracy(left: float, top: float, width: float, height: float) -> Iterable[str]:
    low, high, least, most = 98.5, 99.7, 30, 900

    def at(ratio: float, score: float) -> tuple[float, float]:
        x = left + width * math.log(ratio / least) / math.log(most / least)
        return x, top + height * (high - score) / (high - low)

    yield _text(left, top - 18, "accuracy, %, against times fewer weights")
    for score in (98.5, 99.0, 99.5):
        _, y = at(least, score)
        yield f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        yield _text(left - 6, y + 4, f"{score:g}", "end", GREY)
    dense = dense_lenet5()
    _, y = at(least, dense)
    yield f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{OURS}" stroke-dasharray="5 4"/>'
    yield _text(left + width, y - 5, f"dense, {dense:.2f}", "end", OURS)
    for ratio in (40, 80, 160, 320, 640):
        x, _ = at(ratio, low)
        yield _text(x, top + height + 18, f"{ratio}x", "middle", GREY)
    for name in ("40x", "80x", "247x", "301x", "702x"):
        for ratio, score in lenet5(name):
            x, y = at(ratio, score)
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{OURS}" fill-opacity=".8"/>'
    for ratio, score, _ in PUBLISHED:
        x, y = at(ratio, score)
        yield f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{OTHERS}"/>'
    yield f'<circle cx="{left + 12}" cy="{top + height - 34}" r="4" fill="{OURS}"/>' + _text(
        left + 22, top + height - 30, "here, three seeds (702x: one)"
    )
    yield f'<rect x="{left + 8}" y="{top + height - 18}" width="8" height="8" fill="{OTHERS}"/>' + _text(
        left + 22, top + height - 10, "published: " + ", ".join(source for *_, source in PUBLISHED)
    )


def _times(left: float, top: float, width: float, height: float) -> Iterable[str]:
    times = rows("ship")["LeNet-5"]["times"]
    shown = {"ONNX Runtime, dense": "ONNX, dense", "ONNX Runtime, cut": "ONNX, 301x cut", "C, 301x": "C, 301x"}
    slowest, cut = times["ONNX, dense"]["us"], statistics.median(score for _, score in lenet5("301x"))
    yield _text(left, top - 18, "accuracy, and time of one image")
    for number, (words, key) in enumerate(shown.items()):
        y, share = top + 60 * number, times[key]["us"] / slowest
        colour = OURS if key.startswith("C") else OTHERS
        yield _text(left, y + 12, f"{words}: {cut if '301x' in key else dense_lenet5():.2f} %")
        yield f'<rect x="{left}" y="{y + 18}" width="{max(2.0, width * 0.8 * share):.1f}" height="18" fill="{colour}"/>'
        yield _text(left + width * 0.8 * share + 6, y + 32, f"{100 * share:.0f} %")


def written(text: str) -> str:
    """A README with the tables of today between their marks."""
    for begin, end, made in ((BEGIN, END, table()), (FROM, TO, networks())):
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{made}{end}{after}"
    return text


def main() -> None:
    README.write_text(written(README.read_text()))
    PICTURE.write_text(picture())
    print(f"{table()}\n{networks()}")


if __name__ == "__main__":
    main()
