"""A run is taken up only by the same network, task and recipe, from a checkpoint that is whole, with every generator put back."""

from __future__ import annotations

import pickle
import random
import struct
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from featherweight import measurement
from featherweight.compression import Compressed, compress
from featherweight.errors import ArtifactError, FeatherweightError, InputError
from featherweight.files import checkpoint
from featherweight.network import generators
from featherweight.recipe.schema import Constrain, Recipe, Rule, Train
from featherweight.run.state import CHECKPOINT, FIRST_KEYS, NETWORK
from featherweight.run.watch import Progress
from featherweight.task import Task
from featherweight.training.schedule import Training
from featherweight.weights.drivers import Periodic
from featherweight.weights.sets import TopK

RECIPE = Recipe(
    "short",
    (
        Train("dense", train=Training(1)),
        Constrain("prune", (Rule("0.weight", TopK(9)),), driver=Periodic(2), train=Training(2), retrain=Training(1)),
    ),
)
INPUTS = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_counting_of_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "count_macs", lambda model, example: (1, ()))


def network(seed: int = 0, hidden: int = 4, act: nn.Module | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, hidden), act or nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 3))


def drawn(epoch: int) -> list[torch.Tensor]:
    """Batches with noise from numpy's and Python's global generators, and an order from the epoch."""
    order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch))
    return [INPUTS[part] * random.uniform(0.9, 1.1) + float(np.random.normal(0, 0.1)) for part in order.split(6)]


class Lazy:
    """The same, drawn batch by batch while the epoch goes on."""

    def __init__(self, epoch: int) -> None:
        self.order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch)).split(6)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Any:
        for part in self.order:
            yield INPUTS[part] * random.gauss(1, 0.1) + float(np.random.normal(0, 0.1))


def task(batches: Callable[[int], Any] = Lazy, **changes: Any) -> Task:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        batch = batch.to(next(model.parameters()).dtype)
        return (model(batch) - batch[:, :3]).square().mean()

    given = Task((INPUTS[:1],), batches, loss, lambda model: 0.0, lambda parameters: Adam(parameters, lr=0.01))
    return replace(given, **changes)


def stopped_after(steps: int) -> Callable[[Progress], None]:
    seen: list[Progress] = []

    def monitor(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == steps:
            raise KeyboardInterrupt

    return monitor


def seeded() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def interrupted(workdir: Path, steps: int = 7, **changes: Any) -> Path:
    seeded()
    with pytest.raises(KeyboardInterrupt):
        compress(network(), RECIPE, task(**changes), workdir=workdir, monitor=stopped_after(steps))
    return workdir / CHECKPOINT


def same(left: Compressed, right: Compressed) -> bool:
    a, b = left.snapshot.state, right.snapshot.state
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- the same only -------------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Task], str]] = {
    "other values": (lambda: network(seed=1), task, "network 0.* has other values"),
    "other shapes": (lambda: network(hidden=6), task, r"network 0.bias float32 \(4,\) then, float32 \(6,\) now"),
    "another type": (lambda: network().double(), lambda: task(example_inputs=(INPUTS[:1].double(),)), "float64"),
    "another activation": (lambda: network(act=nn.GELU()), task, "modules 1 ReLU.* then, GELU"),
    "another example": (network, lambda: task(example_inputs=(INPUTS[1:2],)), "example input 0 has other values"),
    "fewer batches": (network, lambda: task(lambda epoch: drawn(epoch)[:3]), "batches of epoch 0 4 then, 3 now"),
    "another optimizer": (network, lambda: task(optimizer=lambda p: SGD(p, lr=0.01)), "optimizer .*Adam.* then, .*SGD"),
    "another rate": (network, lambda: task(optimizer=lambda p: Adam(p, lr=0.02)), "optimizer"),
}


@pytest.mark.third
@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(("model", "work", "said"), OTHERS.values(), ids=OTHERS)
def test_the_run_of_something_else_is_refused_and_told_apart(
    model: Callable[[], nn.Module], work: Callable[[], Task], said: str, finished: bool, tmp_path: Path
) -> None:
    """It used to come back itself, as the result of the network that was given."""
    if finished:
        compress(network(), RECIPE, task(), workdir=tmp_path)
    else:
        interrupted(tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=f"{'a finished' if finished else 'an unfinished'} run of something else.*{said}"):
        compress(model(), RECIPE, work(), workdir=tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_what_the_caller_names_must_be_the_same_too(tmp_path: Path) -> None:
    compress(network(), RECIPE, task(), workdir=tmp_path, identity={"seed": 0})
    with pytest.raises(InputError, match="seed 0 then, 1 now"):
        compress(network(), RECIPE, task(), workdir=tmp_path, identity={"seed": 1})
    compress(network(), RECIPE, task(), workdir=tmp_path, identity={"seed": 0})


def test_a_second_run_in_the_folder_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def second(progress: Progress) -> None:
        if not errors:
            try:
                compress(network(), RECIPE, task(), workdir=tmp_path)
            except InputError as error:
                errors.append(error)

    thread = threading.Thread(target=lambda: compress(network(), RECIPE, task(), workdir=tmp_path, monitor=second))
    thread.start()
    thread.join()
    assert "another run is going on" in str(errors[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, NETWORK.format(1), NETWORK.format(2)]


# --- generators ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [drawn, Lazy])
@pytest.mark.parametrize("steps", [2, 5, 9, 14])
def test_batches_that_draw_from_numpy_and_python_resume_bit_identically(
    batches: Callable[[int], Any], steps: int, tmp_path: Path
) -> None:
    seeded()
    expected = compress(network(), RECIPE, task(batches))
    interrupted(tmp_path, steps, batches=batches)
    random.random(), np.random.rand(), torch.rand(1)  # another process stands elsewhere
    assert same(compress(network(), RECIPE, task(batches), workdir=tmp_path), expected)


def test_the_callers_generators_stand_where_they_stood(tmp_path: Path) -> None:
    def next_numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    seeded()
    random.gauss(0, 1), np.random.normal()  # each keeps a second number for the next call
    states = generators.states()
    expected = next_numbers()
    for workdir in (None, tmp_path):
        generators.restore(states)
        compress(network(), RECIPE, task(), workdir=workdir)
        assert next_numbers() == expected
    generators.restore(states)
    with pytest.raises(KeyboardInterrupt):
        compress(network(), RECIPE, task(), monitor=stopped_after(3))
    assert next_numbers() == expected


# --- checkpoints from anywhere -------------------------------------------------------------------------------------------


def check_not_taken_up(workdir: Path, seconds: float = 5.0) -> None:
    """It must be refused by name, soon."""
    began = time.monotonic()
    with pytest.raises(FeatherweightError, match="delete it to start over"):
        compress(network(), RECIPE, task(), workdir=workdir)
    assert time.monotonic() - began < seconds


def set_in(saved: Any, path: str, value: Any) -> None:
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
    for part in parents:
        saved = saved[part]
    if value is KeyError:
        del saved[last]
    else:
        saved[last] = value


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
DOUBLED: list[Any] = [1, 2]
for _ in range(30):
    DOUBLED = [DOUBLED, DOUBLED]
WRONG: list[tuple[str, Any]] = [
    ("pool", 3), ("pool", []), ("pool", [{}]), ("pool/0/network", None), ("pool/0/network", "../network-0"),
    ("pool/0/network", -1), ("pool/0/network", 7), ("pool/0/network", 10**30), ("pool/0/rows", [1]),
    ("pool/0/rows", [{}]), ("pool/0/rows/0/measured", {}), ("pool/0/loss", "low"), ("pool/0/loss", float("nan")),
    ("pool/0/more", 1), ("baseline", []), ("baseline", 7), ("recipe", None), ("recipe", {"name": 1}),
    ("stage", 99), ("stage", -1), ("stage", 1.0), ("stage", True), ("newest", 7), ("newest", -1), ("epochs", 5), ("random", None),
    ("random/torch", torch.zeros(3)), ("random/torch", torch.zeros(3, dtype=torch.uint8)), ("random/python", [3, (1, 2), None]),
    ("random/numpy", [torch.zeros(2), 0, 0, 0.0]), ("random/numpy/1", 10**6), ("unfinished/phase", "rest"),
    ("unfinished/steps", -1),
    ("unfinished/steps", 10**9), ("unfinished/snapshot/state/0.bias", torch.zeros(2**12)), ("unfinished/optimizer", {}),
    ("unfinished/optimizer", KeyError),
    ("unfinished/optimizer/state/0/exp_avg", torch.zeros(1, 2, 3)),
    ("unfinished/optimizer/param_groups", [1]),
    ("unfinished/guide", {"x": 1}), ("unfinished/residuals", {"x": "y"}), ("unfinished/seconds", float("inf")),
    ("unfinished/losses", ["x"]),
    ("unfinished/spent", {"what": 1}), ("unfinished/heads", {"x": {"y": 1}}), ("fingerprint", []),
    ("fingerprint", {"network": 1}),
    ("featherweight", 1), ("results", ENDLESS), ("unfinished/guide", {"x": ENDLESS}),
    ("unfinished/guide", {"x": DOUBLED}), ("more", 1),
    ("stage", 10**30), ("pool", [1] * 100_000), ("recipe", {"stages": [1] * 100_000}),
]  # fmt: skip
WRONG_NETWORK: list[tuple[str, Any]] = [
    ("edits", [1]), ("edits", [{}]), ("edits", None), ("state", {"0.weight": 1}), ("state", {}), ("state", KeyError), ("more", 1),
    ("state/0.weight", torch.zeros(7)), ("state/0.weight", ENDLESS),
    ("edits", [{"edit": "graph", "network": {"format": 1, "tensors": {}, "nodes": [torch.zeros(5)]}}]),
]  # fmt: skip


def test_the_right_keys_with_wrong_things_in_them_are_refused_by_name(tmp_path: Path) -> None:
    """Types, ranges, and what only its taker can judge: shapes in the state of an optimizer, a driver's state."""
    path = interrupted(tmp_path, 8)
    finished = path.with_name(NETWORK.format(torch.load(path, weights_only=True)["pool"][0]["network"]))
    whole = {file: file.read_bytes() for file in (path, finished)}
    for file, place, value in [*((path, *wrong) for wrong in WRONG), *((finished, *wrong) for wrong in WRONG_NETWORK)]:
        for name, content in whole.items():
            name.write_bytes(content)
        saved = torch.load(file, weights_only=True)
        set_in(saved, place, value)
        torch.save(saved, file)
        try:
            compress(network(), RECIPE, task(), workdir=tmp_path)
        except FeatherweightError as error:
            assert len(str(error)) < 2000, place
            assert "delete it to start over" in str(error) or "delete the folder" in str(error), (place, str(error))
        else:
            pytest.fail(f"{place} = {value!r:.50} was taken up")
    finished.unlink()
    path.write_bytes(whole[path])
    with pytest.raises(ArtifactError, match="is missing, which the checkpoint beside it names; delete the folder"):
        compress(network(), RECIPE, task(), workdir=tmp_path)
    finished.write_bytes(whole[finished])
    compress(network(), RECIPE, task(), workdir=tmp_path)


def test_a_checkpoint_of_the_first_version_says_so(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    saved = torch.load(path, weights_only=True)
    torch.save({key: saved.get(key) for key in FIRST_KEYS}, path)
    with pytest.raises(ArtifactError, match=r"before it told its version.*delete it to start over"):
        compress(network(), RECIPE, task(), workdir=tmp_path)
    torch.save(saved | {"featherweight": "9.9", "brains": 1}, path)
    with pytest.raises(ArtifactError, match=r"written by '9\.9'"):
        compress(network(), RECIPE, task(), workdir=tmp_path)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezipped(path: Path, held: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)


def test_damaged_pickles_inside_right_zips_are_refused_by_name(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    held = members(path)
    (key,) = (name for name in held if name.endswith("data.pkl"))
    dice, outcomes = random.Random(0), {"refused": 0, "read": 0}
    for _ in range(400):
        data = bytearray(held[key])
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        rezipped(path, held | {key: bytes(data)})
        try:
            checkpoint.read(path)
            outcomes["read"] += 1
        except ArtifactError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100 and sum(outcomes.values()) == 400


def op(text: bytes) -> bytes:
    return b"\x80\x02" + text + b"."


NESTED_KEY = b"K\x01q\x00" + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
PICKLES = {
    "memory by a constructor": op(b"cbuiltins\nbytearray\n" + b"J" + struct.pack("<i", 2**31 - 1) + b"\x85R"),
    "memory by doubling": op(b"c_codecs\nencode\nq\x00X\x04\x00\x00\x00aaaaX\x03\x00\x00\x00hex\x86R"),
    "a key whose hash never ends": op(b"}" + NESTED_KEY + b"K\x01s"),
    "a class": pickle.dumps(OrderedDict, protocol=2),
    "a call of what is called": op(b"ccollections\nOrderedDict\n)R)R"),
    "an endless stack": op(b"N" * 500_000),
    "nesting without end": op(b"]" * 100_000 + b"a" * 99_999),
    "no end": b"\x80\x02}",
    "nothing": b"",
    "another protocol": pickle.dumps({}, protocol=4),
    "a storage that is not there": op(
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x009X\x03\x00\x00\x00cpuK\x01tQ"
    ),
}


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_would_take_all_time_or_memory_is_refused_at_once(data: bytes, tmp_path: Path) -> None:
    interrupted(tmp_path)
    path = tmp_path / CHECKPOINT
    rezipped(path, {"checkpoint/data.pkl": data, "checkpoint/version": b"3\n"})
    check_not_taken_up(tmp_path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    """A stride of 0 makes a tensor of any size out of four bytes; taken up, it would be written out."""
    path = interrupted(tmp_path)
    saved = torch.load(path, weights_only=True)
    saved["unfinished"]["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1).expand(2**40)
    torch.save(saved, path)
    check_not_taken_up(tmp_path)


def test_bombs_of_zip_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    held = members(path)
    (key,) = (name for name in held if name.endswith("data.pkl"))
    rezipped(path, held | {key: b"N0" * 10_000_000}, zipfile.ZIP_DEFLATED)
    check_not_taken_up(tmp_path)
    rezipped(path, held | {f"checkpoint/data/{number}x": b"" for number in range(20_000)})
    check_not_taken_up(tmp_path)
    with open(path, "wb") as sparse:
        sparse.truncate(2**40)
    check_not_taken_up(tmp_path)
