"""What the command line shows: a run while it goes, plans, and measurements beside their claims."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from featherweight.budget.costs import Spent
from featherweight.measurement import Measurement
from featherweight.recipe.schema import Recipe
from featherweight.recipe.selection import said
from featherweight.run import report
from featherweight.run.report import Row
from featherweight.ship.c import ExportedC
from featherweight.ship.export import Exported

PLAIN_WIDTH = 200  # columns where the output is not a terminal: a table is not to be folded in a file
LINES, LONGEST = 60, 2000  # of a message; characters of a line
WIDE, NARROW = 100, 80  # columns from which the table of results has room for all of its own, and for most


def _width(stream: TextIO) -> int | None:
    """The terminal's, or what $COLUMNS says."""
    return None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else PLAIN_WIDTH


def _colours() -> Literal["auto"] | None:
    """None, and no bold either, where NO_COLOR is set: see no-color.org."""
    return None if os.environ.get("NO_COLOR") else "auto"


def output() -> Console:
    """Standard output: results."""
    return Console(highlight=False, soft_wrap=False, width=_width(sys.stdout), color_system=_colours())


def messages() -> Console:
    """Standard error: progress, notes and errors."""
    return Console(highlight=False, stderr=True, width=_width(sys.stderr), color_system=_colours())


def note(message: str) -> None:
    """A message on standard error, not folded where it is not a terminal; never a traceback. Lines after the first are indented:
    a name from a file, with a line break in it, cannot look like a line of ours."""
    console = messages()
    first, *others = message.splitlines() or [""]
    if len(others) > LINES:
        others = [*others[:LINES], f"... ({len(others) - LINES} lines more)"]
    for line in [first, *(line if line.startswith("  ") else f"  {line}" for line in others)]:
        console.print(written(line), soft_wrap=not console.is_terminal)


def command(text: str) -> None:
    """A command on standard error, unfolded, so that it can be copied."""
    messages().print(written(text), soft_wrap=True)


def lines(text: str) -> None:
    """Lines on standard output, as they are wide."""
    sys.stdout.write("".join(f"{printable(line)}\n" for line in text.splitlines()))


def json_object(value: dict[str, Any]) -> None:
    """One JSON object on standard output. JSON has no NaN and no infinity: null stands for them."""
    sys.stdout.write(json.dumps(_finite(value), indent=2) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- tables --------------------------------------------------------------------------------------------------------------


def results(rows: Sequence[Row], out: Path, files: dict[str, int], commands: Sequence[str] = ()) -> None:
    """Print the report's table (without what there is no room for) and notes, the gain, the files written, and
    commands that go on from there."""
    screen = output()
    wide = screen.width >= WIDE
    left_out = () if wide else ("epochs",) if screen.width >= NARROW else ("epochs", "minutes", "residual", "asked")
    shown = [name for name in report.HEADERS if name not in left_out]
    cells = [[cell for name, cell in zip(report.HEADERS, line, strict=True) if name in shown] for line in report.table(rows)]
    screen.print(table(shown, cells, gap=2 if wide else 1))
    for remark in report.notes(rows):
        screen.print(written(remark, "yellow"))
    first, last = rows[0], rows[-1]
    if not first.targets and first is not last:
        score = change(first.measured.score, last.measured.score)
        screen.print()
        screen.print(written(f"{first.stage} to {last.stage}: {gain(first.measured, last.measured)}, {score}"))
    screen.print()
    for name, size in files.items():
        screen.print(written(f"wrote {out / name}  {size:,} bytes"), soft_wrap=True)
    if commands:
        screen.print()
        for number, text in enumerate(commands):
            screen.print(written(f"{'next:' if not number else '':5} {text}"), soft_wrap=True)


def gain(before: Measurement, after: Measurement) -> str:
    """What there is less of, the most first; what did not change by a twentieth is not told."""
    ratios = {
        "weights": before.nonzeros / max(1, after.nonzeros),
        "MACs": (before.macs or 0) / max(1, after.macs or 0),  # none where they could not be counted
        "bits": before.bits / max(1, after.bits),
    }
    told = sorted(((ratio, what) for what, ratio in ratios.items() if ratio >= 1.05), reverse=True)
    return ", ".join(f"{ratio:.1f}x fewer {what}" for ratio, what in told) or "nothing is smaller"


def change(before: float | None, after: float | None) -> str:
    """What became of a score, in its own unit."""
    if before is None or after is None:
        return "not scored"
    was, now = report.score(before, (after,)), report.score(after, (before,))
    by = f"{abs(float(now) - float(was)):.{len(now.partition('.')[2])}f}"  # as the two that are shown differ
    told = f"score {was} to {now}"
    return f"{told}, {by} {'lower' if after < before else 'higher'}" if now != was else f"{told}, the same"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> Table:
    """Text cells without boxes: the first `left` columns flush left, the others right."""
    made = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        made.add_column(Text(header), justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        made.add_row(*(written(cell) for cell in row))
    return made


def listed(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text: a table, or where that would break names, each under its name."""
    screen = output()
    if screen.width >= NARROW:
        screen.print(table(headers, rows, left=len(headers)))
        return
    for name, *cells in rows:
        screen.print(written(name))
        for cell in cells:
            screen.print(Padding(written(cell), (0, 0, 0, 2)))


def printable(text: str) -> str:
    """On one line, without control characters and not endless: names from a foreign file must not drive the terminal, turn its
    writing round or forge lines."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"
    return "".join(letter if letter.isprintable() else "?" for letter in short)


def written(text: str, style: str = "") -> Text:
    """A line as it may be printed; brackets are no markup."""
    return Text(printable(text), style=style)


def described(value: Any) -> str:
    """A set or driver as `TopK count=100`: its name and the fields that are set."""
    if value is None:
        return "none"
    fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    shown = [f"{name}={v:g}" if isinstance(v, float) else f"{name}={v}" for name, v in fields if v is not None and name != "kind"]
    return " ".join([type(value).__name__, *shown])


def plan(recipe: Recipe, stages: Sequence[dict[str, Any]]) -> None:
    """Print a plan as `jobs.plan` gives it."""
    screen = output()
    for stage in stages:
        screen.print(written(f"stage {stage['stage']}", "bold"))
        if stage["units"]:
            screen.print(written(f"  {_cut(stage['units'])}"))
            if stage.get("advice"):
                screen.print(written(f"  warning: {stage['advice']}", "yellow"))
        if stage["blocks"]:
            screen.print(written(f"  {_dropped(stage['blocks'])}"))
        if stage["adaptive"]:
            share = f"{100 * stage['adaptive']['parameters']:g} % of the parameters"
            screen.print(
                written(f"  learn in train which units and blocks to keep, and how many, for {share}; then cut the others")
            )
        phases = [(name, stage[name]) for name in ("train", "retrain") if stage[name]["epochs"]]
        for name, part in phases:
            epochs = f"{part['epochs']} epochs ({part['steps']:,} steps)"
            screen.print(written(f"  {name}: {epochs}, {part['shape']} rate, {part['rate']:g} x the base"))
        if not phases:
            screen.print(written("  no training"))
        if stage["targets"]:
            screen.print(written(f"  driver: {stage['driver']}"))
            options = ", ".join(f"{name} {_option(value)}" for name, value in stage["options"].items())
            screen.print(Padding(written(options), (0, 0, 0, 2)))
            cells = [
                (f"  {target['parameter']}", target["set"], target["view"], _count(target["size"]), _whole(target["of"]))
                for target in stage["targets"]
            ]
            if stage["budget"]:
                cells.append(("  together", "", "", _count(stage["budget"]["size"]), _whole(stage["budget"]["of"])))
            screen.print(table(("  parameter", "set", "view", "size", "of"), cells, left=3))
        for line in said(stage["left_out"]):
            screen.print(written(f"  {line.replace('no target', 'left out', 1)}"))
    steps = sum(stage[phase]["steps"] for stage in stages for phase in ("train", "retrain"))
    more = f"; with {recipe.candidates} candidates up to {recipe.candidates} times that" if recipe.candidates > 1 else ""
    screen.print(written(f"{recipe.epochs()} epochs, {steps:,} steps{more}"))
    if any(target["size"] is None and target["of"] for stage in stages for target in stage["targets"]):
        screen.print(
            written("later: the sum holds; it is spread over the parameters during the run, by the weights as they then are")
        )


def _cut(units: dict[str, Any]) -> str:
    """A budget of units in words."""
    what = next(name for name in ("macs", "parameters", "bytes", "latency_ms") if units[name] is not None)
    amount = (
        f"{units[what]:g} ms on this machine{_in(units)}" if what == "latency_ms" else f"{100 * units[what]:g} % of the {what}"
    )
    amount = f"{units[what]:,.0f} bytes" if what == "bytes" and units[what] > 1 else amount
    spread = _option(units["allocate"])
    kept = f"keep {amount}, {spread} over the sites {units['sites']}"
    multiples = "" if units["multiple"] == 1 else f", multiples of {units['multiple']}"
    multiples = ", multiples of 8 channels of convolutions" if units["multiple"] == "auto" else multiples
    return f"cut units by {units['criterion']}: {kept}{multiples}{', refit' if units['refit'] else ''}"


def _dropped(blocks: dict[str, Any]) -> str:
    """A budget of blocks in words."""
    what = next(name for name in ("macs", "parameters") if blocks[name] is not None)
    share, of = f"{100 * blocks[what]:g} % of the {what}", ", ".join(blocks["can_go"]) or "none"
    return f"take blocks out, those that the loss misses least, until {share} are left; can go: {of}"


def _in(units: dict[str, Any]) -> str:
    return "" if units.get("runtime", "eager") == "eager" else f" in {units['runtime']}"


def _option(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{name} {_option(part)}' for name, part in value.items())})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _whole(size: int | None) -> str:
    return "" if size is None else f"{size:,}"


def _count(size: int | None) -> str:
    return "later" if size is None else f"{size:,}"


COMPARED = {
    "score": "score",
    "parameters": "parameters",
    "nonzeros": "non-zeros",
    "macs": "MACs",
    "bits": "bits in codes",
}


def _number(value: float | None) -> str:
    if value is None:
        return "not counted"
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}"


def compared(measured: Measurement, claimed: Measurement) -> tuple[Table, list[str]]:
    """What was measured beside what the report says, with what the sizes leave out; and the names of the numbers that differ."""
    rows, differ = [], []
    for name, title in COMPARED.items():
        ours, theirs = getattr(measured, name), getattr(claimed, name)
        if name == "score" and ours is None and theirs is None:  # made without data
            continue
        same = math.isclose(ours, theirs, rel_tol=1e-9) if name == "score" and None not in (ours, theirs) else ours == theirs
        if not same:
            differ.append(title)
        rows.append((title, _number(ours), _number(theirs), "" if same else "DIFFERS"))
    made = table(("", "measured", "report says", ""), rows)
    if measured.notes:
        made.caption = Text("\n".join(printable(f"sizes: {note}") for note in measured.notes), justify="left")
    return made, differ


def inspection(numbers: Table, left: dict[str, dict[str, Any]], files: dict[str, int]) -> None:
    """Print what `compared` gave, the coded parameters one by one, and the files."""
    screen = output()
    screen.print(numbers)
    screen.print()
    cells = [
        (name, held["code"], f"{held['nonzeros']:,}", f"{held['of']:,}", f"{100 * held['nonzeros'] / held['of']:.2f} %")
        for name, held in left.items()
    ]
    screen.print(table(("parameter", "code", "non-zeros", "of", "kept"), cells, left=2))
    screen.print()
    screen.print(table(("file", "bytes"), [(name, f"{size:,}") for name, size in files.items()]))


def outline(title: str, found: dict[str, Any]) -> None:
    """Print a network's structure as `outline.outline` gives it."""
    screen = output()
    screen.print(written(f"{title}: {found['parameters']:,} parameters, {found['macs']:,} MACs", "bold"))
    cells = [
        (site["site"], f"{site['units']:,}", f"{site['macs_a_unit']:,}", f"{site['parameters_a_unit']:,}", site["changes"])
        for site in found["sites"]
    ]
    screen.print(table(("site", "units", "MACs a unit", "parameters a unit", "changes"), cells))
    if found["blocks"]:
        blocks = [(block["block"], f"{block['macs']:,}") for block in found["blocks"]]
        screen.print()
        screen.print(written("blocks that can go whole", "bold"))
        screen.print(table(("block", "MACs"), blocks))
    if found["frozen"]:
        screen.print()
        screen.print(written("frozen", "bold"))
        screen.print(table(("parameter", "why"), list(found["frozen"].items()), left=2))
    for operation, count in found["uncounted"].items():
        screen.print(written(f"not in the MACs: {operation} ({count} times) has no counting rule"))


def cuts(found: dict[str, Any]) -> None:
    """Print what a budget would cut, as `outline.cuts` gives it."""
    screen = output()
    cells = [(name, f"{site['units']:,}", f"{site['of']:,}") for name, site in found["kept"].items()]
    screen.print(table(("site", "keeps", "of"), cells))
    for what in ("macs", "parameters", "bytes"):
        after, before = found[what]["after"], found[what]["before"]
        amount = found["asked"].get(what)
        asked = "" if amount is None else f", asked {100 * amount:g} %" if amount <= 1 else f", asked {amount:,.0f}"
        name = "MACs" if what == "macs" else what
        screen.print(written(f"{name}: {after:,} of {before:,}, {100 * after / max(before, 1):.2f} %{asked}"))
    spent = Spent.from_dict(found["spent"])
    if spent.note or spent.what == "latency_ms":
        screen.print(written(str(spent)))
    for remark in spent.remarks():
        screen.print(written(remark))
    if found.get("advice"):
        screen.print(written(f"warning: {found['advice']}", "yellow"))


def storage(rows: Sequence[tuple[str, int, float]], path: Path) -> None:
    """Print what a packed file takes beside other means."""
    output().print(table(("storage", "bytes", "smaller"), [(what, f"{size:,}", f"{times:,.1f}x") for what, size, times in rows]))
    output().print()
    output().print(written(f"wrote {path}"), soft_wrap=True)


def exported(done: Exported) -> None:
    """What was written, and how far the file's outputs are from the network's."""
    screen, batches = output(), ", ".join(str(batch) for batch in done.batches)
    size = "any batch size" if done.dynamic_batch else f"batch size {batches} only"
    size += ", any length" if done.any_length else ", other sizes as in the example"
    version = f", opset {done.opset}" if done.opset is not None else ""
    screen.print(written(f"{done.path}: {done.bytes:,} bytes{version}, {size}"))
    screen.print(f"run again from the file at batch {batches}: differs by {done.relative:.1e} of the largest output, at most")
    if done.integers is not None:
        layers, left = len(done.integers["layers"]), done.integers["left"]
        screen.print(
            f"integers: {layers - len(left)} of {layers} layers, calibrated on {done.integers['samples']} samples, on which the "
            f"outputs differ by {done.integers['error']:.1%} (root mean square)"
        )
        for name, why in left.items():
            screen.print(written(f"  in float32: {name} ({why})"))
        if rounded := done.integers["rounded"]:
            screen.print(written(f"  rounded once more, to int8: {', '.join(rounded)}"))
    if done.score is not None:
        screen.print(f"score of the file: {done.score:.2f}")


def exported_c(done: ExportedC) -> None:
    """What was written, how far its outputs are from the network's, and what it takes of a small machine."""
    screen = output()
    screen.print(written(f"{done.path}: {done.bytes:,} bytes of C, tables of {done.tables:,}, arena of {done.ram:,}"))
    if done.relative is None:
        screen.print("not compiled and not compared with the network")
    else:
        screen.print(f"compiled and run: differs by {done.relative:.1e} of the largest output")
    if done.flash is not None:
        screen.print(written(f"{done.flash:,} bytes of flash {f'on {done.target}' if done.target else 'here'}"))
    screen.print(f"{len(done.sparse)} layers over their non-zeros, {len(done.dense)} over all their weights")
    if done.score is not None:
        screen.print(f"score of the file: {done.score:.2f}")


def export_noted(name: str, measured: dict[str, Any]) -> None:
    """What an artifact's description says of a file that was exported into it."""
    relative = measured.get("relative")
    said = f"{relative:.1e} of the largest output" if isinstance(relative, float) else "an unknown amount"
    output().print(written(f"{name}: differed from the network by {said} when it was exported and run"))
