"""Which networks can be traced, cut and verified: one row per network, each in its own process with a limit of time and memory.

    featherweight reproduce coverage run [--only TEXT] [--minutes N]    measure what is missing in rows.jsonl (resumable)
    featherweight reproduce coverage table                              write README.md from rows.jsonl
    featherweight reproduce coverage one SUITE NAME                     one network, printed

Needs the packages pytorchcv and transformers; torchvision's families are measured where torchvision can be imported, torch-
pruning's columns
where torch-pruning can. Weights are random, batch norms get random statistics, and a random half of the units of every site
goes at once.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.coverage.measure import in_process, measure, torch_pruning, warm_up
from benchmarks.coverage.suites import networks
from benchmarks.coverage.table import table
from benchmarks.lib.rows import Rows

ROWS = Rows(__file__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "one", "peer"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--only", default="")
    parser.add_argument("--part", choices=["one", "peer"], default="one", help="this library, or torch-pruning")
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    if options.what == "one":
        print(json.dumps(measure(*options.rest)))
    elif options.what == "peer":
        print(json.dumps(torch_pruning(*options.rest)))
    elif options.what == "run":
        done = ROWS.done()
        warm_up()
        stop = time.monotonic() + 60 * options.minutes
        for suite, name in networks(options.only):
            title = f"{suite}/{name} {options.part}"
            if title in done or time.monotonic() > stop:
                continue
            row = {"row": title, "suite": suite, "name": name, "part": options.part} | in_process(options.part, suite, name)
            ROWS.put(row)
            print(
                suite,
                name,
                row.get("crash")
                or [row.get(k) for k in ("why", "graph", "graph_error", "class", "class_sites", "tp") if k in row],
                flush=True,
            )
    ROWS.write(table)


if __name__ == "__main__":
    main()
