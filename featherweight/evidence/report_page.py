"""The page of one or more runs: what was asked and what came of it, read from the artifacts' files alone."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from featherweight.errors import ArtifactError, InputError, shortened
from featherweight.evidence import svg
from featherweight.evidence.page import Page
from featherweight.files import artifact
from featherweight.files.description import Description
from featherweight.run import report
from featherweight.run.report import Row
from featherweight.structure import trace
from featherweight.structure.errors import StructureError
from featherweight.zoo.networks import NETWORKS
from featherweight.zoo.tasks import TASKS

KINDS = ("small-net", "dense", "other")  # colours of runs, in turns; so do the shapes
SHAPES = ("circle", "square", "cross")
SIGNS = ("orange circles", "blue squares", "grey crosses")
MOST_LAYERS = 400  # rows of a table of layers


@dataclass(frozen=True)
class Run:
    """An artifact: its name on the page, its description, its rows, and the entries of each tensor that it stores."""

    name: str
    described: Description
    rows: list[Row]
    stored: dict[str, int]
    files: dict[str, int]
    written: float


def read(folder: Path) -> Run:
    """Raises ArtifactError."""
    described = artifact.describe(folder)
    try:
        rows = [Row.from_dict(row) for row in described.report]
    except ValidationError as error:
        raise ArtifactError(f"{folder}: its report cannot be read: {shortened(str(error.errors()[0]['msg']))}") from None
    stored = {name: tensor.numel() for name, tensor in artifact.snapshot(folder).state.items()}
    files = {name: size for name, size in artifact.file_sizes(folder).items() if not name.endswith(".html")}
    return Run(folder.name or str(folder), described, rows, stored, files, (folder / artifact.DESCRIPTION).stat().st_mtime)


def build(folders: Sequence[Path]) -> Page:
    """The page of these artifacts. Raises ArtifactError for one that is damaged, InputError for none, or one given twice."""
    if not folders:
        raise InputError("give at least one artifact's folder")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same artifact is given twice")
    runs = [read(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # the last folders alone do not tell them apart
        runs = [Run(str(folder), *list(vars(run).values())[1:]) for folder, run in zip(folders, runs, strict=True)]
    page = Page(f"Compression: {runs[0].name}" if len(runs) == 1 else f"Compression: {len(runs)} runs")
    for run in runs:
        if len(runs) > 1:
            page.heading(run.name)
        _came(page, run)
    charts = [chart for chart in (_chart(runs, what, name) for what, name in AXES.items()) if chart]
    if charts:
        page.heading("Score against size")
        page.paragraph("A point a stage, each run in its own shape; the last is filled. Dashed: nothing seen is both smaller and "
                       "better.", soft=True)  # fmt: skip
        page.figures(charts)
    for run in runs:
        of = f": {run.name}" if len(runs) > 1 else ""
        if run.rows:
            page.heading(f"Stage by stage{of}")
            page.table(report.HEADERS, report.table(run.rows))
            page.bullets(report.notes(run.rows))
            _course(page, run)
        _layers(page, run, of)
        _provenance(page, run, of)
    return page


# --- what came of it -----------------------------------------------------------------------------------------------------


def _came(page: Page, run: Run) -> None:
    """What was asked and what came of it, in a line or two."""
    if not run.rows:
        page.paragraph("The artifact holds a cut network and no report: nothing was asked of it, and nothing measured.")
        return
    first, last = run.rows[0].measured, run.rows[-1].measured
    asked = [f"{row.stage}: {100 * row.asked:.3g} % of its targets' weights" for row in run.rows if row.asked is not None]
    asked += [f"{row.stage}: {row.spent}" for row in run.rows if row.spent is not None]
    name = str(run.described.recipe.get("name", "no recipe"))
    page.paragraph(f"Asked: {shortened(name)}{' (' + '; '.join(asked) + ')' if asked else ''}.")
    fewer = []
    if first.score is not None and last.score is not None:
        fewer.append(f"score {report.score(first.score, (last.score,))} to {report.score(last.score, (first.score,))}")
    fewer += [_times("weights that are not zero", first.nonzeros, last.nonzeros)]
    fewer.append(_times("bytes in codes", first.bits / 8, last.bits / 8))
    if first.macs and last.macs:
        fewer.append(_times("MACs", first.macs, last.macs))
    page.paragraph(f"Came of it, {run.rows[0].stage} to {run.rows[-1].stage}: {'; '.join(fewer)}.")


def _times(what: str, before: float, after: float) -> str:
    times = f" ({before / after:.1f}x fewer)" if after and before > after else ""
    return f"{what} {svg.number(before)} to {svg.number(after)}{times}"


AXES = {"bytes": "bytes in codes", "macs": "MACs of one example", "nonzeros": "weights that are not zero"}


def _amount(row: Row, what: str) -> float | None:
    return row.measured.bits / 8 if what == "bytes" else getattr(row.measured, what)


def _chart(runs: Sequence[Run], what: str, name: str) -> tuple[str, str] | None:
    """Score over a size, all runs in one picture; None where there are not two sizes."""
    points = []
    for number, run in enumerate(runs):
        for row in run.rows:
            amount = _amount(row, what)
            score = row.measured.score
            if amount and score is not None and math.isfinite(score):
                points.append((amount, score, number, row.stage))
    sizes, scores = [point[0] for point in points], [point[1] for point in points]
    if len(set(sizes)) < 2:
        return None
    plane = svg.Plane((min(sizes), max(sizes)), (min(scores), max(scores)), name, "score", logarithmic=True)
    plane.line(front([(size, score) for size, score, *_ in points]), "front")
    for number, run in enumerate(runs):
        own = [point for point in points if point[2] == number]
        kind, shape = KINDS[number % len(KINDS)], SHAPES[number % len(SHAPES)]
        plane.line([point[:2] for point in own], kind)
        for place, (size, score, _, stage) in enumerate(own):
            filled = "square" if place == len(own) - 1 else shape
            plane.point(size, score, kind, filled, f"{run.name}, {stage}: {score:.4g} at {svg.number(size)}", 3.4)
    legend = "; ".join(f"{SIGNS[number % 3]} {run.name}" for number, run in enumerate(runs)) if len(runs) > 1 else ""
    return plane.drawn(f"score against {name}"), f"score against {name}{': ' + legend if legend else ''}"


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (size, score) that none beats in both: sizes rise, and so do scores."""
    best: list[tuple[float, float]] = []
    for size, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((size, score))
    return best


def _course(page: Page, run: Run) -> None:
    """Losses and residuals over the epochs of all stages; of an artifact that holds none of an epoch, over the stages."""
    charts = []
    course = [(row.epochs - len(row.course) + n, *ended) for row in run.rows for n, ended in enumerate(row.course, 1)]
    losses = [(epoch, loss) for epoch, loss, _ in course]
    residuals = [(epoch, residual) for epoch, _, residual in course if residual is not None]
    if not course:
        losses = [(row.epochs, row.loss) for row in run.rows if row.loss is not None]
        residuals = [(row.epochs, max(row.residuals.values())) for row in run.rows if row.residuals]
    ends = ", ".join(f"{row.stage} to {row.epochs}" for row in run.rows if row.epochs)
    series = {"mean training loss of an epoch": losses, "largest primal residual": residuals}
    for name, points in series.items():
        finite = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
        if len(finite) > 1:
            values = [y for _, y in finite]
            ages = [x for x, _ in finite]
            plane = svg.Plane((min(ages), max(ages)), (min(0.0, *values), max(values)), "epochs of training so far", name)
            plane.line(finite, "dense")
            for x, y in finite:
                plane.point(x, y, "dense", "circle", f"{y:.4g} after {x:g} epochs")
            charts.append((plane.drawn(f"{name} over the training"), f"{name}; stages end: {ends}"))
    if charts:
        page.figures(charts)


# --- layers --------------------------------------------------------------------------------------------------------------


def _layers(page: Page, run: Run, of: str) -> None:
    """Each parameter that something was done to: weights, channels, rank, code."""
    cuts, done = _done(run.described.edits)
    targets: dict[str, tuple[int, int]] = {}
    for row in run.rows:
        targets |= row.targets
    names = list(dict.fromkeys([*targets, *cuts, *done]))[:MOST_LAYERS]
    frozen = _frozen(run)
    if names:
        page.heading(f"Layer by layer{of}")
        rows = []
        for name in names:
            left, whole = targets.get(name, (None, None))
            share = f"{100 * left / whole:.3g} %" if left is not None and whole else ""
            sizes = ["" if size is None else f"{size:,}" for size in (whole, left)]
            rows.append([name, *sizes, share, "; ".join(cuts.get(name, [])), "; ".join(done.get(name, [])), frozen.get(name, "")])
        headers = ("parameter", "weights before", "left", "share", "units before and after", "stored as", "why not cut")
        page.table(headers, rows, left=True)
    others = {name: why for name, why in frozen.items() if name not in names}
    if others:
        page.details(
            f"parameters whose units cannot be cut, and why: {len(others)}", "\n".join(f"{n}: {w}" for n, w in others.items())
        )


def _done(edits: Sequence[dict[str, Any]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Parameter -> its dimensions before and after; parameter -> rank and code. What an edit does not say is left out."""
    first: dict[tuple[str, int], int] = {}
    last: dict[tuple[str, int], int] = {}
    done: dict[str, list[str]] = defaultdict(list)
    for edit in edits:
        kind, name = edit.get("edit"), shortened(str(edit.get("parameter")))
        if kind == "factor":
            done[name].append(f"two layers of rank {edit.get('rank')}")
        elif kind == "code" and isinstance(code := edit.get("code"), dict):
            sizes = code.get("sizes") if isinstance(code.get("sizes"), dict) else {}
            known = ", ".join(f"{key} {value}" for key, value in sizes.items()) if isinstance(sizes, dict) else ""
            done[name].append(shortened(f"{code.get('kind')}{': ' + known if known else ''}"))
        elif kind == "structure" and isinstance(change := edit.get("change"), dict):
            if change.get("kind") != "cut":
                done[shortened(str(change.get("block", change.get("kind"))))].append("left out")
            for cut in change.get("cuts") or []:
                try:
                    parameter, dim, size, keep = cut
                    after = len(change["keeps"][keep])
                except (TypeError, ValueError, KeyError, IndexError):
                    continue
                first.setdefault((str(parameter), int(dim)), int(size))
                last[(str(parameter), int(dim))] = after
    cuts: dict[str, list[str]] = defaultdict(list)
    for (parameter, dim), size in first.items():
        cuts[parameter].append(f"dimension {dim}: {size} to {last[(parameter, dim)]}")
    return cuts, done


def _frozen(run: Run) -> dict[str, str]:
    """Parameter -> why its units cannot go, of a built-in network; a user's own is not here to be looked at."""
    if run.described.model not in NETWORKS or run.described.data not in TASKS:
        return {}
    try:
        return dict(trace(NETWORKS[run.described.model](), TASKS[run.described.data]().example_inputs).frozen)
    except StructureError:
        return {}


def _provenance(page: Page, run: Run, of: str) -> None:
    page.heading(f"Where it comes from{of}")
    described = run.described
    seconds = sum(row.seconds for row in run.rows)
    facts = {
        "network": described.model or "not a built-in one",
        "data": described.data or "not a built-in one",
        "written by": f"featherweight {described.featherweight}",
        "description written": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.written)),
        "time": f"{seconds / 60:.1f} minutes in all stages",
        "files": "; ".join(f"{name} {size:,} bytes" for name, size in run.files.items()),
        "tensors stored": f"{len(run.stored)}, {sum(run.stored.values()):,} numbers",
    }
    for name, export in described.exports.items():
        facts[f"exported to {shortened(name)}"] = shortened(json.dumps(export), 400)
    facts["not recorded"] = "seed and machine: an artifact does not hold them"
    page.table(("", ""), list(facts.items()), left=True)
    if described.recipe:
        page.details("the recipe", json.dumps(described.recipe, indent=1))
