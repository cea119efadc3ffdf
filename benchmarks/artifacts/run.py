"""Does every artifact and packed file under benchmarks/ still open, and measure what its report or its table says?

    featherweight reproduce artifacts                 all of them; MNIST and CIFAR-10 are needed
    featherweight reproduce artifacts resnet56        those whose names hold this

An artifact holds its report, and `featherweight inspect` compares. A packed file has no report: its score and bytes are looked
for in the row of its benchmark that names it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.lib.rows import ROOT

NETWORKS = {"resnet20": ("resnet20_projection", "cifar10"), "resnet56": ("resnet56_projection", "cifar10")}  # else LeNet-5


def inspected(path: Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, what was measured, and what was said."""
    model, data = NETWORKS.get(path.name.partition("-")[0], ("lenet5", "mnist"))
    words = ["inspect", str(path), "--model", model, "--data", data, "--json"]
    done = subprocess.run([sys.executable, "-m", "featherweight", *words], capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr.strip()


def row_of(file: Path) -> dict[str, Any] | None:
    """The row of the benchmark's table that names a packed file."""
    rows = [json.loads(line) for line in (file.parents[1] / "rows.jsonl").read_text().splitlines()]
    return next((row for row in rows if row.get("file") == file.name), None)


def wrong(path: Path) -> str:
    """What does not agree; "" if all does."""
    code, told, said = inspected(path)
    if code:
        return said or f"exit code {code}"
    if path.suffix != ".fwz":
        return ""
    row = row_of(path)
    if row is None:
        return "no row names it"
    measured = {"bytes": told["bytes"], "score": told["measured"]["score"]}
    expected = {"bytes": row["storage"]["file"], "score": row["score"]}
    return "" if measured == expected else f"measured {measured}, the table says {expected}"


def main() -> None:
    given = sys.argv[1:]
    shipped = sorted((ROOT / "benchmarks").glob("*/artifacts/*"))
    paths = [path for path in shipped if not given or any(part in path.name for part in given)]
    failed = 0
    for path in paths:
        problem = wrong(path)
        failed += bool(problem)
        print(f"{path.name}: {problem or 'as its report says'}", flush=True)
    raise SystemExit(int(failed > 0))


if __name__ == "__main__":
    main()
