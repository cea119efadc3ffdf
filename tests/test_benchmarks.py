"""Benchmarks are code that runs for hours and is run seldom: that it still reads its own rows is tried here.

The tables are what their scripts make of the committed rows, to the character: a name that moved in the package, a row that was
edited by hand or a table that was is found at once.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.parent.name for path in (ROOT / "benchmarks").glob("*/run.py"))
WITH_ROWS = [name for name in SCRIPTS if (ROOT / "benchmarks" / name / "rows.jsonl").exists()]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)  # another test's folder of that name


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_table_is_what_its_script_makes_of_the_rows(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}.run")
    done = module.ROWS.done()
    assert done, "rows that nothing reads"
    assert module.table(done) == (ROOT / "benchmarks" / name / "README.md").read_text()


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in WITH_ROWS])
def test_a_script_without_rows_finds_what_it_imports(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}.run").main)


def test_the_figures_of_the_readme_are_those_of_the_rows() -> None:
    """Written by `featherweight reproduce readme`, and by nobody else."""
    module = importlib.import_module("benchmarks.readme.run")
    assert module.README.read_text() == module.written(module.README.read_text())
    assert module.PICTURE.read_text() == module.picture()


def test_the_figures_of_the_page_on_scale_are_those_of_the_rows() -> None:
    """Written by `featherweight reproduce plan`, and by nobody else."""
    module = importlib.import_module("benchmarks.plan.run")
    page = module.PAGE.read_text()
    assert page == module.written(page, module.ROWS.done()) and "| weights |" in page


def test_the_sparse_language_model_ships_as_its_row_says() -> None:
    module = importlib.import_module("benchmarks.language.run")
    row = module.ROWS.done()[f"trained, 90 %, {module.SHIPPED[0]}, seed {module.SHIPPED[1]}"]
    file = module.ROWS.artifacts / "trained_90.fwz"
    assert file.stat().st_size == row["bytes"]
    found = module.left(module.load(file, module.decoder.decoder()))
    assert found == {"left": row["left"], "of": row["of"]} and found["left"] < 0.1001 * found["of"]
