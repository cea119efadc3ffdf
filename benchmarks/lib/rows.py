"""What the benchmarks with rows share: a row is a line of a .jsonl file, done once; the table is written anew after each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]  # of the checkout
Line = dict[str, Any]  # plain data; "row": its name


class Rows:
    """The rows of one benchmark, beside its script: `rows.jsonl`, and the table in `README.md`."""

    def __init__(self, script: str) -> None:
        self.folder = Path(script).resolve().parent
        self.file = self.folder / "rows.jsonl"
        self.artifacts = self.folder / "artifacts"  # what a row leaves, and ships
        self.work = ROOT / "runs" / self.folder.name  # what a row needs while it runs

    def done(self) -> dict[str, Line]:
        """Name -> row, in the order in which they were measured."""
        lines = [json.loads(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []
        return {line["row"]: line for line in lines}

    def fill(self, names: Iterable[str], measure: Callable[[str], Line], table: Callable[[dict[str, Line]], str]) -> None:
        """Measure each row that is not done yet, in order; then print the table."""
        for name in names:
            if name in self.done():
                continue
            self.put({"row": name} | measure(name))
            print(f"{name}: done", flush=True)
            self.write(table)
        self.write(table)
        print(table(self.done()))

    def run(
        self,
        doc: str | None,
        names: Iterable[str],
        measure: Callable[[str], Line],
        table: Callable[[dict[str, Line]], str],
        arguments: list[str] | None = None,
    ) -> None:
        """A benchmark as a program: the rows that its arguments ask for, on one thread."""
        rows = list(names)
        chosen = parser(doc, rows).parse_args(arguments)
        torch.set_num_threads(1)
        self.fill(wanted(chosen, rows), measure, table)

    def put(self, line: Line) -> None:
        """A new row at the end, or in place of the row of that name."""
        lines = self.done()
        if line["row"] not in lines:  # other processes may append, too
            with open(self.file, "a") as file:
                file.write(json.dumps(line) + "\n")
            return
        lines[line["row"]] = line
        part = self.file.with_suffix(".part")
        part.write_text("".join(json.dumps(one) + "\n" for one in lines.values()))
        part.replace(self.file)

    def write(self, table: Callable[[dict[str, Line]], str]) -> None:
        (self.folder / "README.md").write_text(table(self.done()))


def parser(doc: str | None, names: Iterable[str] | None = None) -> argparse.ArgumentParser:
    """The arguments that all these benchmarks have: --row and --table. `names`: of the rows, where they are known beforehand."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--row", choices=None if names is None else list(names), help="only this row")
    made.add_argument("--table", action="store_true", help="only the table")
    return made


def wanted(chosen: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """The rows that the arguments ask for."""
    return [] if chosen.table else [name for name in names if chosen.row in (None, name)]
