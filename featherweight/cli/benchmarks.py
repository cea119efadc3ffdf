"""The benchmarks of a checkout, `benchmarks/NAME/run.py`: they are not part of the installed package."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def benchmarks() -> dict[str, Path]:
    """Name -> file of each benchmark of the checkout that this package is in, else of the current folder."""
    for home in (Path(__file__).resolve().parent.parent.parent, Path.cwd()):
        files = sorted((home / "benchmarks").glob("*/run.py"))
        found = {path.parent.name.replace("_", "-"): path for path in files if _has_main(path)}
        if found:
            return found
    return {}


def purpose(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(_parsed(path)) or "").partition("\n")[0]


def run(path: Path, arguments: Sequence[str]) -> None:
    """Run a benchmark as a script."""
    sys.argv = [str(path), *arguments]  # the benchmark's own argument parser reads them
    sys.path.insert(0, str(path.parents[2]))  # benchmarks import what they share, as benchmarks.lib
    runpy.run_path(str(path), run_name="__main__")


def _has_main(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in _parsed(path).body)


def _parsed(path: Path) -> ast.Module:
    """Empty where it is no Python: the current folder may be anybody's."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])
