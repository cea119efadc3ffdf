"""The .fwz files of benchmarks/lenet5_storage: a later version reads them as the rows of the benchmark say they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featherweight import zoo
from featherweight.files import packed
from featherweight.weights.parametrized import plain

BENCHMARKS = Path(__file__).parents[3] / "benchmarks" / "lenet5_storage"
ROWS = [json.loads(line) for line in (BENCHMARKS / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["row"])
def test_the_file_is_as_its_row_says(row: dict[str, Any]) -> None:
    file = BENCHMARKS / "artifacts" / row["file"]
    weights = [w for name, w in plain(packed.load(file, zoo.lenet5())).named_parameters() if name.endswith("weight")]
    assert file.stat().st_size == row["storage"]["file"]
    assert sum(int(w.count_nonzero()) for w in weights) == row["left"]
    assert max(w.abs().unique().numel() for w in weights) == row["bits"]


def test_every_file_has_a_row() -> None:
    assert {row["file"] for row in ROWS} == {file.name for file in BENCHMARKS.glob("artifacts/*.fwz")}
