"""Reports: what was asked and what was measured, as plain data and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter
from torch import nn

from featherweight.budget.costs import Spent
from featherweight.measurement import Measurement
from featherweight.weights.parameters import parameters_of
from featherweight.weights.parametrized import coded, decoded


@dataclass(frozen=True)
class Row:
    """One stage. `targets`: name -> (non-zero weights left, weights in the original network); `asked`: the share to keep."""

    stage: str
    measured: Measurement
    asked: float | None
    targets: dict[str, tuple[int, int]]
    epochs: int  # of training on this path so far
    seconds: float  # of this stage
    loss: float | None  # mean training loss of the last epoch, if there was one
    residuals: dict[str, float]  # primal residual of each target when it was frozen
    spent: Spent | None = None  # of a stage that cut units: its budget, and what was made of it
    said: tuple[str, ...] = ()  # what was left out of the stage, and what was decided in it, in sentences
    course: tuple[tuple[float, float | None], ...] = ()  # of each epoch: mean training loss, largest primal residual at its end

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """Checked and of the right types whatever `data` holds. Raises pydantic's ValidationError, a ValueError."""
        return _ROW.validate_python(data)

    @property
    def kept(self) -> float | None:
        """Share of the targets' weights that are not zero."""
        whole = sum(of for _, of in self.targets.values())
        return sum(left for left, _ in self.targets.values()) / whole if whole else None


_ROW: TypeAdapter[Row] = TypeAdapter(Row)


def score(value: float | None, beside: Sequence[float | None] = ()) -> str:
    """A score as text: with as many decimals as the largest of it and those `beside` it needs for four digits, two at least.

    A task's score is what its owner makes it: percents, a share in 0..1, the negative of a small loss.
    """
    if value is None:
        return ""
    numbers = [abs(number) for number in (value, *beside) if number is not None and math.isfinite(number)]
    largest = max(numbers, default=0.0)
    decimals = 2 if largest == 0 else min(max(2, 3 - math.floor(math.log10(largest))), 12)
    return f"{value:.{decimals}f}"


ZEROS = (
    "the weights that went are zeros, which PyTorch and ONNX Runtime multiply like others: the network is smaller in a file "
    "(pack), and faster in C (export --format c) or, 2:4 on a CUDA device that can, by semi_structured"
)
HEADERS = ("stage", "score", "asked", "kept", "ratio", "non-zeros", "kB in codes", "MACs", "residual", "epochs", "minutes")


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as text cells under HEADERS. `ratio`: weights of the targets over those left; `kB`: 1000 bytes."""
    scores = [row.measured.score for row in rows]
    return [
        (
            row.stage,
            score(row.measured.score, scores),
            "" if row.asked is None else f"{100 * row.asked:.3g} %",
            "" if row.kept is None else f"{100 * row.kept:.3g} %",
            "" if not row.kept else f"{1 / row.kept:.1f}x",
            f"{row.measured.nonzeros:,}",
            f"{row.measured.bits / 8000:,.1f}",
            ("?" if row.measured.macs is None else f"{row.measured.macs:,}") + ("*" if row.measured.uncounted else ""),
            f"{max(row.residuals.values()):.3f}" if row.residuals else "",
            str(row.epochs),
            f"{row.seconds / 60:.1f}",
        )
        for row in rows
    ]


def text(rows: Sequence[Row]) -> str:
    """A plain-text table, and notes on what could not be counted or did not close."""
    cells = [HEADERS, *table(rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADERS))]
    lines = [
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join([*lines, *notes(rows)])


def notes(rows: Sequence[Row], health: float = 0.1) -> list[str]:
    """What belongs under the table: warnings, and budgets that were measured or not met within 1 %."""
    found = []
    uncounted = sorted({name for row in rows for name in row.measured.uncounted})
    if uncounted:
        found.append(f"* MACs are not, or not all, counted: {'; '.join(uncounted)}")
    found += sorted({f"sizes: {note}" for row in rows for note in row.measured.notes})
    found += [f"stage {row.stage!r}: {row.spent}" for row in rows if row.spent and (row.spent.note or row.asked is None)]
    sentences: dict[str, list[str]] = {}
    for row in rows:
        for sentence in row.said:
            sentences.setdefault(sentence, []).append(repr(row.stage))
    found += [f"stage {', '.join(stages)}: {sentence}" for sentence, stages in sentences.items()]
    for row in rows:
        if row.spent:
            found += [f"stage {row.stage!r}: {remark}" for remark in row.spent.remarks()]
    for row in rows:
        if row.spent and row.spent.gaps:
            site, worst = max(row.spent.gaps.items(), key=lambda gap: gap[1])
            found.append(
                f"stage {row.stage!r}: proved at {len(row.spent.gaps)} sites: no other choice of as many units saves more than "
                f"{100 * worst:.2g} % of the damage ({site})"
            )
    for row in rows:
        open_targets = [name for name, residual in row.residuals.items() if residual > health]
        if open_targets:
            found.append(
                f"stage {row.stage!r}: primal residual above {health} at {', '.join(open_targets)}: W and Z had not closed"
            )
    return found + ([ZEROS] if only_zeros(rows) else [])


def only_zeros(rows: Sequence[Row]) -> bool:
    """Have weights gone, and no multiplication with them?"""
    macs = [row.measured.macs for row in (*rows[:1], *rows[-1:])]
    return len(rows) > 1 and (rows[-1].kept or 1) < 1 and macs[0] is not None and macs[0] == macs[1]


def left(network: nn.Module, original: nn.Module) -> dict[str, tuple[int, int]]:
    """Coded parameter -> (its non-zero weights, its weights in the original network)."""
    now, before = parameters_of(network), decoded(original)
    return {name: (int(now.values[name].count_nonzero()), before[name].numel()) for name in sorted(now.codes)}


def weights_left(network: nn.Module, original: nn.Module) -> dict[str, dict[str, Any]]:
    """Coded parameter -> its code, its non-zero weights, and its weights in the original network."""
    codes = coded(network)
    return {
        name: {"code": codes[name].code.kind, "nonzeros": nonzeros, "of": of}
        for name, (nonzeros, of) in left(network, original).items()
    }
