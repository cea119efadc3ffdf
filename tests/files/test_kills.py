"""Killed at any moment, whoever writes a file leaves the old one or the new one, whole; a full disk leaves the old one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import featherweight
from featherweight.files import artifact
from featherweight.files.edits import Snapshot

PRELUDE = """
import os, random, resource, signal, sys, time
from pathlib import Path
import torch
from torch import nn
from featherweight.files import artifact
from featherweight.files import checkpoint
from featherweight.ship import export
from featherweight.files import packed
from featherweight.network.calls import Inputs
from featherweight.files.edits import Snapshot
from featherweight.errors import StorageError
torch.set_num_threads(1)
os.fsync = lambda handle: None  # a kill leaves its writes to the kernel
place, dice = Path(sys.argv[1]), random.Random(int(sys.argv[2]))

def fork(action):
    child = os.fork()
    if child:
        return child
    try:
        os._exit(action() or 0)
    finally:
        os._exit(1)

def killed(write, read, name, times=int(os.environ.get("KILLS", 6)), longest=0.02):
    "`write(version)` again and again in children that are killed; `read()` must give a version that was written whole."
    seen = set()
    write(0)
    for _ in range(times):
        told, tell = os.pipe()
        def loop():
            for version in range(1_000_000):
                write(version % 2)
                os.write(tell, b".")
        child = fork(loop)
        os.close(tell)
        assert os.read(told, 1) == b".", "the writer failed"
        time.sleep(dice.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        seen.add(read())
    assert seen <= {0, 1}, seen
    write(1)
    assert read() == 1
    print(name, sorted(seen))
"""

SAVED = """
def save(version):
    snapshot = Snapshot([], {"x": torch.full((5000,), float(version))})
    artifact.save(place / "art", snapshot, artifact.Description(model=str(version), edits=[], recipe={}, report=[]))

def saved():
    described, snapshot = artifact.describe(place / "art"), artifact.snapshot(place / "art")
    (value,) = set(snapshot.state["x"].tolist())
    assert described.model == str(int(value)), "the description of one with the weights of the other"
    return int(value)
"""

SAVE = SAVED + 'killed(save, saved, "save")'

RENAMES = (
    SAVED
    + """
from featherweight.files import storage
exchange, storage.exchange = storage.exchange, lambda one, other: False
killed(save, saved, "save by renames")
storage.exchange = exchange
"""
)

CHECKPOINT = """
def write(version):
    checkpoint.write(place / "c.pt", {"tensor": torch.full((5000,), float(version)), "version": version})

def read():
    held = checkpoint.read(place / "c.pt")
    assert set(held["tensor"].tolist()) == {held["version"]}
    return held["version"]

killed(write, read, "checkpoint")
"""

PACK = """
networks = [nn.Linear(40, 40), nn.Linear(40, 40)]
for version, network in enumerate(networks):
    nn.init.constant_(network.weight, version), nn.init.constant_(network.bias, version)

def write(version):
    packed.write(place / "n.fwz", Snapshot.of(networks[version], []), networks[version])

def read():
    (value,) = set(packed.load(place / "n.fwz", nn.Linear(40, 40)).weight.flatten().tolist())
    return int(value)

killed(write, read, "pack")
"""

EXPORT = """
networks = [nn.Linear(4, 4), nn.Linear(4, 4)]
for version, network in enumerate(networks):
    nn.init.constant_(network.weight, version), nn.init.constant_(network.bias, version + 1)
example = (torch.ones(1, 4),)
programs = [export._program(network, Inputs.of(example), True) for network in networks]  # a second each, and writes nothing
export._program = lambda network, example, *options: programs[int(network.bias[0]) - 1]

export.pt2_runner, export.compare = (lambda part: None), (lambda network, run, inputs: (0.0, 0.0))  # as slow, and reads only

def write(version):
    export.export(networks[version], example, place / "n.pt2", "pt2")

known = {}

def read():
    content = (place / "n.pt2").read_bytes()
    if content not in known:
        (known[content],) = set(torch.export.load(place / "n.pt2").module()(torch.zeros(2, 4)).flatten().tolist())
    return int(known[content]) - 1

killed(write, read, "export", longest=0.05)
"""

BESIDE = """
# A graph that names the file of its weights, as the ONNX exporter writes one above 2 GB.
def weights_beside(network, example, part, *options):
    Path(f"{part}.data").write_text(str(int(network.bias[0])))
    part.write_text(f"{int(network.bias[0])} {part.name}.data")

networks = [nn.Linear(1, 1), nn.Linear(1, 1)]
for version, network in enumerate(networks):
    nn.init.constant_(network.bias, version)
export._onnx_writer = lambda *given: weights_beside
export.compare = lambda network, run, inputs: (0.0, 0.0)
export.onnx_runner = lambda part: None

def write(version):
    export.export(networks[version], (torch.ones(1, 1),), place / "n.onnx")

def read():
    version, weights = (place / "n.onnx").read_text().split()
    assert (place / weights).read_text() == version, "the graph of one with the weights of the other"
    return int(version)

killed(write, read, "weights beside")
assert len([file for file in place.iterdir() if file.name.endswith(".data")]) <= 2
"""

FULL = """
network = nn.Linear(300, 300)
small = nn.Linear(2, 2)
artifact.save(place / "art", Snapshot.of(small, []), artifact.Description(edits=[], recipe={}, report=[]))
packed.write(place / "n.fwz", Snapshot.of(small, []), small)
(place / "n.pt2").write_bytes(b"an earlier one")
before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
described = artifact.Description(edits=[], recipe={}, report=[])
writers = {
    "save": lambda: artifact.save(place / "art", Snapshot.of(network, []), described),
    "pack": lambda: packed.write(place / "n.fwz", Snapshot.of(network, []), network),
    "export": lambda: export.export(network, (torch.ones(1, 300),), place / "n.pt2", "pt2"),
}
def refused(write):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        write()
    except StorageError:
        return 42
for name, write in writers.items():
    _, status = os.waitpid(fork(lambda: refused(write)), 0)
    assert os.waitstatus_to_exitcode(status) == 42, (name, status)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before, name
print("full")
"""

PROGRAMS = {
    "full": FULL,
    "save": SAVE,
    "save by renames": RENAMES,
    "checkpoint": CHECKPOINT,
    "pack": PACK,
    "export": EXPORT,
    "weights beside": BESIDE,
}


def run(program: str, place: Path) -> str:
    """Its output, from one process that imports everything once and forks the writers."""
    seed = os.getpid()
    environment = os.environ | {"PYTHONPATH": str(Path(featherweight.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRELUDE + program, str(place), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=environment)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    return done.stdout


def test_killed_at_a_few_moments_or_out_of_space_there_is_the_old_or_the_new(tmp_path: Path) -> None:
    """One process for all: importing torch takes longer than the rest. `featherweight reproduce kills`: 1,000 moments each."""
    parts = []
    for name, program in PROGRAMS.items():
        folder = tmp_path / name
        folder.mkdir()
        parts.append(f"place = Path({str(folder)!r})\n{program}")
    told = run("\n".join(parts), tmp_path)
    assert [line.split(" [")[0] for line in told.splitlines()] == list(PROGRAMS)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_kill_between_two_renames_left_is_taken_up(there: bool, tmp_path: Path) -> None:
    """As earlier versions left it: `.NAME.xxxxxxxx.old` is put back where nothing has the name, else removed."""

    def write(name: str, value: float) -> None:
        described = artifact.Description(edits=[], recipe={}, report=[])
        artifact.save(tmp_path / name, Snapshot([], {"x": torch.tensor([value])}), described)

    write("art", 1.0)
    (tmp_path / "art").rename(tmp_path / ".art.abcd_012.old")
    if there:
        write("art", 2.0)
        assert artifact.snapshot(tmp_path / "art").state["x"].item() == 2.0
    else:
        assert artifact.snapshot(tmp_path / "art").state["x"].item() == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["art"]
