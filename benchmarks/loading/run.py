"""How long files take to load, beside an earlier commit: an artifact of ResNet-56 and the stored graph of a vision transformer.

    featherweight reproduce loading                  what it takes now
    featherweight reproduce loading --against REV    in turns with the code of REV, checked out into a temporary folder

Each turn is a fresh process that loads the same files several times and tells its fastest. Quote the ratio, not the times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.lib.cifar import RESNET56
from benchmarks.lib.rows import ROOT

TURNS, REPEATS = 7, 5
CHILD = """
import json, sys, time
import torch
try:
    from featherweight.files import artifact
except ImportError:  # before there were rooms
    from featherweight import artifact
from featherweight import zoo
torch.set_num_threads(1)
folder, repeats, times = sys.argv[1], int(sys.argv[2]), {"resnet56": [], "transformer": []}
network = zoo.resnet56_projection()
for _ in range(repeats):
    start = time.perf_counter()
    artifact.load(sys.argv[3], network)
    times["resnet56"].append(time.perf_counter() - start)
    start = time.perf_counter()
    artifact.load(folder)
    times["transformer"].append(time.perf_counter() - start)
print(json.dumps({name: min(taken) for name, taken in times.items()}))
"""


class VisionTransformer(nn.Module):
    """Patches of 16, 12 layers of width 192, as the smallest one published."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 16, 16)
        layer = nn.TransformerEncoderLayer(192, 3, 768, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.head = nn.Linear(192, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


def stored(folder: Path) -> None:
    """The transformer without one unit of its widest site, as a graph."""
    from featherweight import save_cut
    from featherweight.structure import prune, trace

    torch.manual_seed(0)
    network = VisionTransformer().eval()
    graph = trace(network, (torch.randn(1, 3, 224, 224),))
    site = max(graph.sites, key=lambda name: graph.sites[name].size)
    save_cut(folder, prune(network, graph, site, range(graph.sites[site].size - 1), where="graph").model)


def once(code: Path, folder: Path) -> dict[str, float]:
    """Seconds of the fastest load of each file, by the code in `code`."""
    artifact = str(RESNET56)
    command = [sys.executable, "-c", CHILD, str(folder), str(REPEATS), artifact]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(code)}, cwd=code, capture_output=True, check=True)
    return json.loads(done.stdout.decode().splitlines()[-1])


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--against", metavar="REV", help="an earlier commit")
    chosen = given.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, codes = Path(scratch) / "transformer", {"now": ROOT}
        stored(folder)
        if chosen.against:
            codes["then"] = Path(scratch) / "then"
            subprocess.run(["git", "worktree", "add", "-q", "--detach", codes["then"], chosen.against], cwd=ROOT, check=True)
        try:
            taken = [{name: once(code, folder) for name, code in codes.items()} for _ in range(TURNS)]
        finally:
            if chosen.against:
                subprocess.run(["git", "worktree", "remove", "--force", codes["then"]], cwd=ROOT, check=True)
    for file in ("resnet56", "transformer"):
        now = statistics.median(turn["now"][file] for turn in taken)
        print(f"{file}: {1000 * now:.0f} ms, the median of {TURNS} turns")
        if chosen.against:
            ratios = sorted(turn["now"][file] / turn["then"][file] for turn in taken)
            print(f"  over {chosen.against}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
