"""Which networks can be traced, cut and verified: one row per network, each in its own process with a limit of time and memory.

    featherweight reproduce coverage run [--only TEXT] [--minutes N]    measure what is missing in rows.jsonl (resumable)
    featherweight reproduce coverage table                              write README.md from rows.jsonl
    featherweight reproduce coverage one SUITE NAME                     one network, printed
    featherweight reproduce coverage draw                               draw 40 of timm's architectures into timm.txt

Needs the packages pytorchcv and transformers; torchvision's families are measured where torchvision can be imported, torch-
pruning's columns
where torch-pruning can. Weights are random, batch norms get random statistics, and a random half of the units of every site
goes at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

from benchmarks.coverage.measure import half_size, measure
from benchmarks.coverage.peer import torch_pruning
from benchmarks.coverage.process import in_process, warm_up
from benchmarks.coverage.suites import DRAWN, draw, networks
from benchmarks.coverage.table import table
from benchmarks.lib.rows import Rows

ROWS = Rows(__file__)
PART = "one: this library; peer: torch-pruning; half: half of the MACs in ONNX Runtime, beside the dense network"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "one", "peer", "half", "draw"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--only", default="")
    parser.add_argument("--part", choices=["one", "peer", "half", "all"], default="one", help=PART)
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    if options.what == "one":
        print(json.dumps(measure(*options.rest)))
    elif options.what == "peer":
        print(json.dumps(torch_pruning(*options.rest)))
    elif options.what == "half":
        print(json.dumps(half_size(*options.rest)))
    elif options.what == "draw":
        DRAWN.write_text("\n".join(draw()) + "\n")
    elif options.what == "run":
        done = ROWS.done()
        warm_up()
        stop = time.monotonic() + 60 * options.minutes
        parts = ("one", "half", "peer") if options.part == "all" else (options.part,)
        for (suite, name), part in itertools.product(networks(options.only), parts):
            title = f"{suite}/{name} {part}"
            if title in done or time.monotonic() > stop:
                continue
            row = {"row": title, "suite": suite, "name": name, "part": part} | in_process(part, suite, name)
            ROWS.put(row)
            print(
                suite,
                name,
                row.get("crash")
                or [
                    row.get(k)
                    for k in ("why", "graph", "graph_error", "class", "class_sites", "tp", "half", "faster")
                    if k in row
                ],
                flush=True,
            )
    ROWS.write(table)


if __name__ == "__main__":
    main()
