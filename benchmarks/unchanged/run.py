"""Do the recipes of the tables still compute the same bits? One row each of LeNet-5, TRP and channels beside an earlier commit.

    featherweight reproduce unchanged --against REV

REV is checked out into a temporary folder. Both codes build the row's recipe with their own benchmark scripts and run it, one
after the other on this machine: LeNet-5's on scikit-learn's digits with every stage cut to two epochs, the other two on 1,024
random images that the dense network labels, with one epoch a stage. What is compared is every bit of the resulting state and the
names of its entries. No data set is needed; a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import dataclasses, hashlib, json, sys
import torch
import torch.nn.functional as F
try:
    from benchmarks.channels import run as channels
    from benchmarks.lenet5_pruning import run as lenet5_pruning
    from benchmarks.lib import cifar
    from benchmarks.trp import run as trp
except ImportError:  # before each benchmark had its folder
    sys.path.insert(0, "benchmarks")
    import channels, cifar, lenet5_pruning, trp
from featherweight import Task, compress
from featherweight import zoo
try:
    from featherweight.zoo import tasks
except ImportError:  # before there were rooms
    from featherweight import tasks
torch.set_num_threads(1)

def shorter(recipe, most):
    def cut(training):
        return dataclasses.replace(training, epochs=min(training.epochs, most))
    def phases(stage):
        return {name: cut(getattr(stage, name)) for name in ("train", "retrain") if hasattr(stage, name)}
    stages = [dataclasses.replace(stage, **phases(stage)) for stage in recipe.stages]
    return dataclasses.replace(recipe, stages=tuple(stages))

def images(network):
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randn(1024, 3, 32, 32, generator=dice)
    with torch.no_grad():
        labels = network.eval()(pixels).argmax(1)
    batches = [(pixels[i : i + 64], labels[i : i + 64]) for i in range(0, 1024, 64)]
    known = {field.name for field in dataclasses.fields(Task)}  # earlier versions took every output for logits
    logits = {"logits": lambda output: output} if "logits" in known else {}
    return Task(
        (pixels[:1],), lambda epoch: batches, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        lambda net: 0.0, lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9), **logits,
    )

def bits(result):
    held = result.model.state_dict()
    digest = hashlib.sha256()
    for name in sorted(held):
        digest.update(name.encode() + held[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()

def lenet5():
    torch.manual_seed(0)
    return compress(zoo.lenet5(), shorter(lenet5_pruning.recipe(lenet5_pruning.RUNS["short"]), 2), tasks.digits(0))

def resnet20(recipe):
    torch.manual_seed(0)
    dense = cifar.resnet20()
    return compress(dense, shorter(recipe, 1), images(dense))

found = {"LeNet-5, short": bits(lenet5())}
planned = trp.plans({view: {"stage1.0.conv1.weight": 1} for view in ("channel", "spatial")})  # ranks of rows that are not run
found["TRP + nuclear + distillation, spatial"] = bits(resnet20(planned["TRP + nuclear + distillation, spatial"].recipe))
cut = channels.rows()["collaborative, 52.6 %"]
found["channels: collaborative, 52.6 %"] = bits(resnet20(channels.recipe_of(cut, 1 - channels.SAVED[cut.saved])))
print(json.dumps(found))
"""


def states(code: Path) -> dict[str, str]:
    """Row -> the digest of the state that the code in `code` ends with."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env={**os.environ, "PYTHONPATH": str(code)}, cwd=code, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{code}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--against", metavar="REV", required=True, help="an earlier commit")
    chosen = given.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        earlier = Path(scratch) / "then"
        subprocess.run(["git", "worktree", "add", "-q", "--detach", earlier, chosen.against], cwd=ROOT, check=True)
        try:
            then, now = states(earlier), states(ROOT)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], cwd=ROOT, check=True)
    for row in now:
        print(f"{row}: {'the same bits' if then[row] == now[row] else 'OTHER BITS'} as {chosen.against}")
    raise SystemExit(int(then != now))


if __name__ == "__main__":
    main()
