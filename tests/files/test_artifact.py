"""Artifacts: replayed on a fresh network bitwise, in a fresh process without pickle; what is damaged or foreign is refused."""

from __future__ import annotations

import copy
import errno
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import featherweight
from featherweight.errors import ArtifactError, InputError, StorageError
from featherweight.files import artifact, edits, storage
from featherweight.files.artifact import DESCRIPTION, WEIGHTS, Description, describe, load, save
from featherweight.files.edits import Snapshot
from featherweight.weights.constrained import freeze
from featherweight.weights.sets import Levels, LowRank, TopK
from featherweight.weights.targets import Target
from featherweight.weights.views import View
from featherweight.zoo.networks import lenet_300_100

EVERY_KIND = pytest.mark.parametrize("kind", table.SAMPLE)
HIDDEN = View("(a p) i -> a (p i)", (("p", 2),))  # 12 x 96 -> 6 x 192


def compressed(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A toy with one code on a linear layer through a view, and one on its convolution."""
    network = table.toy().to(dtype)
    network.hidden.weight.data = table.suited(kind, network.hidden.weight.data)
    freeze(network, "hidden.weight", Target(table.SAMPLE[kind], HIDDEN))
    freeze(network, "conv.weight", Target(TopK(5)))
    return network


def write(network: nn.Module, folder: Path) -> dict[str, int]:
    snapshot = Snapshot.of(network, [])
    return save(folder, snapshot, Description(edits=snapshot.edits, recipe={"name": "r"}, report=[]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(compressed("sparse_shared"), tmp_path / "art")
    return tmp_path / "art"


# --- bitwise -------------------------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_fresh_network_gives_the_same_outputs_bitwise(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if kind == "factors" and dtype == torch.bfloat16:
        kind = "rows"  # there is no bfloat16 singular value decomposition
    network = compressed(kind, dtype)
    write(network, tmp_path / "art")
    fresh = table.toy(seed=99).to(dtype)
    loaded = load(tmp_path / "art", fresh)
    inputs = table.images().to(dtype)
    assert torch.equal(loaded(inputs), network(inputs))
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert not torch.equal(fresh(inputs), network(inputs)), "the given network must not change"


@pytest.mark.third
@EVERY_KIND
def test_what_is_loaded_still_trains_inside_its_set(kind: str, tmp_path: Path) -> None:
    write(compressed(kind), tmp_path / "art")
    loaded = load(tmp_path / "art", table.toy())
    before = loaded.hidden.weight.detach().clone()
    stepper = torch.optim.SGD(loaded.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        stepper.zero_grad()
        loaded(table.images()).square().mean().backward()
        stepper.step()
    after = loaded.hidden.weight.detach()
    assert not torch.equal(after, before)
    assert table.SAMPLE[kind].violation(HIDDEN.to_matrix(after)) < 1e-5


@EVERY_KIND
def test_a_snapshot_builds_the_same_network(kind: str) -> None:
    network = compressed(kind)
    built = Snapshot.of(network, []).build(table.toy(seed=99))
    assert torch.equal(built(table.images()), network(table.images()))


def test_a_snapshot_is_a_copy() -> None:
    network = compressed("sparse")
    snapshot = Snapshot.of(network, [])
    outputs = network(table.images()).detach().clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    assert torch.equal(snapshot.build(table.toy())(table.images()), outputs)


def test_sizes_told_are_the_sizes_on_disk(tmp_path: Path) -> None:
    sizes = write(compressed("rows"), tmp_path / "art")
    assert sizes == {file.name: file.stat().st_size for file in (tmp_path / "art").iterdir()}
    assert set(sizes) == {WEIGHTS, DESCRIPTION, "README.md"}
    assert artifact.file_sizes(tmp_path / "art") == sizes


FRESH = """
import pickle, sys

import torch
import featherweight
from featherweight.zoo.networks import lenet_300_100

def refuse(*args, **kwargs):
    raise SystemExit("something was unpickled")

pickle.Unpickler = pickle._Unpickler = pickle.load = pickle.loads = torch.load = refuse
sys.addaudithook(lambda event, args: refuse() if event == "pickle.find_class" else None)
torch.set_num_threads(1)
inputs = torch.linspace(-1, 1, 3 * 784).reshape(3, 1, 28, 28)
for folder in sys.argv[1:]:
    outputs = featherweight.load(folder, lenet_300_100())(inputs)
    print(outputs.detach().numpy().tobytes().hex())
"""


def test_a_fresh_process_without_pickle_gives_the_same_outputs_bitwise(tmp_path: Path) -> None:
    inputs = torch.linspace(-1, 1, 3 * 784).reshape(3, 1, 28, 28)
    expected = []
    for kind, one in table.SAMPLE.items():
        network = lenet_300_100()
        network.fc3.weight.data = table.suited(kind, network.fc3.weight.data)
        freeze(network, "fc3.weight", Target(one, View("o i -> i o" if kind == "rows" else "o i -> o i")))
        write(network, tmp_path / kind)
        expected.append(network(inputs).detach().numpy().tobytes().hex())
    root = Path(featherweight.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", FRESH, *(str(tmp_path / kind) for kind in table.SAMPLE)],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


# --- damaged, foreign, hostile -------------------------------------------------------------------------------------------


def refused(folder: Path, network: nn.Module | None = None, seconds: float = 5.0, megabytes: float = 64.0) -> str:
    """The message of the ArtifactError that loading must raise, in bounded time and memory."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(ArtifactError) as caught:
            load(folder, network or table.toy())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < seconds
    assert peak < megabytes * 2**20
    assert len(str(caught.value).encode()) < 2000  # whatever the file says
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / DESCRIPTION).read_text())
    change(data)
    (folder / DESCRIPTION).write_text(json.dumps(data))


def edit_of(data: dict[str, Any], parameter: str = "hidden.weight") -> dict[str, Any]:
    return next(edit for edit in data["edits"] if edit["parameter"] == parameter)


def test_the_whole_of_an_artifact_loads(folder: Path) -> None:
    rewrite(folder, lambda data: None)
    assert isinstance(load(folder, table.toy()), nn.Module)


TAMPERED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown key": lambda d: d.update(extra=1),
    "missing edits": lambda d: d.pop("edits"),
    "another version": lambda d: d.update(format=2),
    "no version of a format": lambda d: d.update(format="one"),
    "edits that are no list": lambda d: d.update(edits={}),
    "an edit that is no object": lambda d: d.update(edits=[1]),
    "an edit of no kind": lambda d: edit_of(d).pop("edit"),
    "an edit of an unknown kind": lambda d: edit_of(d).update(edit="exec"),
    "an edit of a kind that is a list": lambda d: edit_of(d).update(edit=["code"]),
    "a parameter that is not there": lambda d: edit_of(d).update(parameter="hidden.wait"),
    "a parameter that is a path": lambda d: edit_of(d).update(parameter="../../etc/passwd"),
    "a parameter of dunders": lambda d: edit_of(d).update(parameter="__class__.__init__"),
    "a parameter that is a number": lambda d: edit_of(d).update(parameter=7),
    "a module for a parameter": lambda d: edit_of(d).update(parameter="hidden"),
    "a buffer of a code for a parameter": lambda d: edit_of(d).update(parameter="conv.parametrizations.weight.0.code.index"),
    "the same parameter twice": lambda d: d["edits"].append(edit_of(d)),
    "a lost edit": lambda d: d["edits"].remove(edit_of(d)),
    "no pattern": lambda d: edit_of(d).pop("pattern"),
    "a pattern that does not fit": lambda d: edit_of(d).update(pattern="o i h w -> o (i h w)"),
    "a pattern that is none": lambda d: edit_of(d).update(pattern="(a p i -> a (p i)"),
    "a pattern with a name that is none": lambda d: edit_of(d).update(pattern="(a! p) i -> a! (p i)"),
    "a pattern that is very long": lambda d: edit_of(d).update(pattern="(" * 100_000),
    "a pattern that cannot be shown": lambda d: edit_of(d).update(pattern="\U000e0001" * 250 + " -> o"),
    "a parameter that cannot be shown": lambda d: edit_of(d).update(parameter="\U000e0001" * 80),
    "keys that take four bytes a letter": lambda d: d.update({"\U0001d4b3" * 190 + str(n): 1 for n in range(9)}),
    "sizes that do not divide": lambda d: edit_of(d).update(sizes=[["p", 5]]),
    "sizes of nothing": lambda d: edit_of(d).update(sizes=[["p", 0]]),
    "sizes below nothing": lambda d: edit_of(d).update(sizes=[["p", -2]]),
    "sizes that are words": lambda d: edit_of(d).update(sizes=[["p", "two"]]),
    "sizes without end": lambda d: edit_of(d).update(sizes=[["p", float("inf")]]),
    "sizes that are no pairs": lambda d: edit_of(d).update(sizes=[["p"]]),
    "sizes that are a number": lambda d: edit_of(d).update(sizes=3),
    "no code": lambda d: edit_of(d).pop("code"),
    "a code that is a number": lambda d: edit_of(d).update(code=3),
    "a code of an unknown kind": lambda d: edit_of(d)["code"].update(kind="pickled"),
    "a code of a kind that is a list": lambda d: edit_of(d)["code"].update(kind=["sparse"]),
    "a code of another kind": lambda d: edit_of(d)["code"].update(kind="sparse", sizes={"count": 11}),
    "more rows": lambda d: edit_of(d)["code"].update(rows=7),
    "rows below nothing": lambda d: edit_of(d)["code"].update(rows=-6),
    "rows that are a fraction": lambda d: edit_of(d)["code"].update(rows=6.5),
    "rows without end": lambda d: edit_of(d)["code"].update(rows=float("inf")),
    "rows that are no number": lambda d: edit_of(d)["code"].update(rows=float("nan")),
    "rows of many digits": lambda d: edit_of(d)["code"].update(rows=10**4000),
    "rows of still more digits": lambda d: edit_of(d)["code"].update(rows=int("9" * 4200) * 10**300),
    "columns of a word": lambda d: edit_of(d)["code"].update(cols="many"),
    "columns beyond memory": lambda d: edit_of(d)["code"].update(cols=2**62),
    "no sizes": lambda d: edit_of(d)["code"].update(sizes={}),
    "sizes of a code that are a list": lambda d: edit_of(d)["code"].update(sizes=[1, 2]),
    "an unknown size": lambda d: edit_of(d)["code"]["sizes"].update(depth=1),
    "a size beyond memory": lambda d: edit_of(d)["code"]["sizes"].update(count=2**62),
    "a size beyond the matrix": lambda d: edit_of(d)["code"]["sizes"].update(count=6 * 192 + 1),
    "a size below nothing": lambda d: edit_of(d)["code"]["sizes"].update(count=-1),
    "a size that is a fraction": lambda d: edit_of(d)["code"]["sizes"].update(count=1.5),
    "a size that is true": lambda d: edit_of(d)["code"]["sizes"].update(count=True),
    "a size that is a list": lambda d: edit_of(d)["code"]["sizes"].update(count=[]),
    "shared values of none": lambda d: edit_of(d)["code"]["sizes"].update(shared=0),
    "shared values beyond memory": lambda d: edit_of(d)["code"]["sizes"].update(shared=2**40),
    "shared of none": lambda d: edit_of(d)["code"].update(kind="shared", sizes={"count": 0}),
    "levels of none": lambda d: edit_of(d)["code"].update(kind="scaled", sizes={"count": 0}),
}


def json_of(data: Any) -> str:
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(data)
    finally:
        sys.set_int_max_str_digits(4300)


@pytest.mark.third
@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_description_that_was_tampered_with_is_refused(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    data = json.loads((folder / DESCRIPTION).read_text())
    change(data)
    (folder / DESCRIPTION).write_text(json_of(data))
    assert len(refused(folder)) > 20


def test_a_code_cannot_untie_two_weights_and_so_make_the_network_larger() -> None:
    network = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12))
    network[1].weight = network[0].weight
    code = {"kind": "factors", "rows": 1, "cols": 144, "sizes": {"rank": 1}}
    edit = {"edit": "code", "parameter": "0.weight", "pattern": "... -> () (...)", "sizes": [], "code": code}
    with pytest.raises(ArtifactError, match=r"edit 0 would untie '0\.weight'"):
        edits.replay(network, [edit])
    assert network[1].weight is network[0].weight


@pytest.mark.parametrize("kind", ["rows", "sparse", "sparse_shared", "sparse_scaled"])
def test_a_code_cannot_claim_more_places_than_its_matrix_has(kind: str) -> None:
    """Refused before anything of that size is made: `count` rows of a large layer are a file of bytes and gigabytes of memory."""
    layout = table.SAMPLE[kind].encode(table.suited(kind)).layout()
    layout["sizes"]["count"] = 7 if kind == "rows" else 49
    edit = {"edit": "code", "parameter": "weight", "pattern": "o i -> o i", "sizes": [], "code": layout}
    with pytest.raises(ArtifactError, match="count = "):
        edits.replay(nn.Linear(8, 6), [edit])


RAW: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"{",
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "deeply nested lists": b"[" * 1_000_000,
    "deeply nested objects": b'{"edits":' * 300_000,
    "deeply nested edits": b'{"edits": [{"edit": ' + b"[" * 500 + b"]" * 500 + b'}], "recipe": {}, "report": []}',
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
}


@pytest.mark.parametrize("content", RAW.values(), ids=RAW)
def test_a_description_that_is_none_is_refused(content: bytes, folder: Path) -> None:
    (folder / DESCRIPTION).write_bytes(content)
    assert DESCRIPTION in refused(folder) or "edit 0" in refused(folder)


def test_a_description_beyond_its_bound_is_not_even_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "LARGEST_DESCRIPTION", 100)
    assert "more than the 100" in refused(folder)


def test_unknown_keys_are_told_what_was_meant(folder: Path) -> None:
    rewrite(folder, lambda data: data.update(recipie={}))
    assert "Did you mean 'recipe'?" in refused(folder)


# safetensors: 8 bytes of header size, a JSON header, the numbers


def reheader(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_weights_are_refused(share: float, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: int(share * len(content))])
    assert WEIGHTS in refused(folder)


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a shape beyond the file": lambda h: h["out.bias"].update(shape=[2**40]),
    "offsets beyond the file": lambda h: h["out.bias"].update(data_offsets=[0, 2**40]),
    "offsets that overlap": lambda h: h["out.bias"].update(data_offsets=h["out.weight"]["data_offsets"]),
    "another type": lambda h: h["out.bias"].update(dtype="I32"),
    "an unknown type": lambda h: h["out.bias"].update(dtype="PICKLE"),
    "another shape": lambda h: h["out.weight"].update(shape=[12, 4]),
    "another name": lambda h: h.update({"out.bais": h.pop("out.bias")}),
    "a name that is a path": lambda h: h.update({"../../out.bias": h.pop("out.bias")}),
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS)
def test_weights_with_a_false_header_are_refused(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    reheader(folder, change)
    assert len(refused(folder)) > 20


def test_a_tensor_too_many_is_refused(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file(state | {"out.bais": torch.zeros(4)}, folder / WEIGHTS)
    assert "it holds 'out.bais', which the network does not have. Did you mean 'out.bias'?" in refused(folder)


@pytest.mark.parametrize("name", ["a" * 3000, "\U000e0001" * 400, "\U0001d4b3" * 900])
def test_a_tensor_of_a_long_name_is_refused_in_short(name: str, folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {name: torch.zeros(4)}, folder / WEIGHTS)
    assert "which the network does not have" in refused(folder)


def test_a_tensor_too_few_is_refused(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["out.bias"]
    save_file(state, folder / WEIGHTS)
    assert "it lacks 'out.bias'" in refused(folder)


def test_a_header_of_absurd_length_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert WEIGHTS in refused(folder)


def index_to(folder: Path, name: str, value: int) -> None:
    state = load_file(folder / WEIGHTS)
    key = next(key for key in state if key.endswith(f"hidden.parametrizations.weight.0.code.{name}"))
    state[key][-1] = value
    save_file(state, folder / WEIGHTS)


@pytest.mark.parametrize(("name", "value"), [("index", 3), ("position", 6 * 192), ("position", -1), ("position", 0)])
def test_an_index_out_of_range_is_refused(name: str, value: int, folder: Path) -> None:
    index_to(folder, name, value)
    assert "is damaged" in refused(folder)


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    assert WEIGHTS in refused(folder)
    (folder / DESCRIPTION).unlink()
    assert DESCRIPTION in refused(folder)
    assert DESCRIPTION in refused(tmp_path / "nowhere")


def test_another_class_is_refused_with_the_first_difference(folder: Path) -> None:
    assert "which Linear does not have" in refused(folder, nn.Linear(3, 2))
    other = table.toy()
    other.hidden = nn.Linear(96, 14)
    assert "hidden.weight" in refused(folder, other)
    deeper = table.toy()
    deeper.extra = nn.Linear(2, 2)
    assert "'extra.bias'" in refused(folder, deeper)


def test_every_single_flipped_byte_gives_the_error_or_a_network(folder: Path) -> None:
    """Any other exception would escape the caller who catches ArtifactError."""
    generator = np.random.default_rng(0)
    outcomes = {"refused": 0, "loaded": 0}
    for name, header in ((DESCRIPTION, None), (WEIGHTS, 1200)):
        whole = (folder / name).read_bytes()
        for place in generator.choice(len(whole[:header]), 60, replace=False):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(generator.integers(8))
            (folder / name).write_bytes(damaged)
            try:
                load(folder, table.toy())
                outcomes["loaded"] += 1
            except ArtifactError:
                outcomes["refused"] += 1
        (folder / name).write_bytes(whole)
    assert outcomes["refused"] > 60
    assert sum(outcomes.values()) == 120


def test_the_given_network_is_not_changed_by_a_refused_load(folder: Path) -> None:
    rewrite(folder, lambda data: data["edits"].append({"edit": "exec"}))
    network = table.toy()
    keys, outputs = list(network.state_dict()), network(table.images())
    refused(folder, network)
    assert list(network.state_dict()) == keys
    assert torch.equal(network(table.images()), outputs)


# --- writing -------------------------------------------------------------------------------------------------------------


def test_an_existing_folder_that_is_no_artifact_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match="is not an artifact"):
            write(compressed("sparse"), tmp_path / name)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_an_empty_folder_and_a_missing_parent_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        write(compressed("sparse"), folder)
        assert describe(folder).format == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_an_artifact_replaces_an_artifact(folder: Path) -> None:
    network = compressed("rows")
    write(network, folder)
    assert torch.equal(load(folder, table.toy())(table.images()), network(table.images()))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAILURES = {
    "weights": lambda patch: patch.setattr(artifact, "save_file", full),
    "description": lambda patch: patch.setattr(Path, "write_text", full),
    "fsync": lambda patch: patch.setattr(artifact.os, "fsync", full),
    "rename": lambda patch: patch.setattr(artifact.os, "rename", full),
}


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_a_full_disk_leaves_nothing_under_the_final_name(
    fail: Callable[[Any], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = compressed("sparse")
    fail(monkeypatch)
    with pytest.raises(StorageError, match="Free space"):
        write(network, tmp_path / "art")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fail", FAILURES.values(), ids=FAILURES)
def test_a_full_disk_leaves_the_artifact_that_was_there(
    fail: Callable[[Any], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    network = compressed("rows")
    fail(monkeypatch)
    with pytest.raises(StorageError):
        write(network, folder)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(("failing", "exchanges"), [(1, True), (1, False), (2, False)])
def test_a_rename_that_fails_halfway_puts_the_old_artifact_back(
    failing: int, exchanges: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system that can exchange two folders, and on one that can only rename them."""
    if not exchanges:
        monkeypatch.setattr(storage, "exchange", lambda one, other: False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, calls = os.rename, []

    def sometimes(*args: Any) -> None:
        calls.append(args)
        if len(calls) == failing:
            full()
        rename(*args)

    network = compressed("rows")
    monkeypatch.setattr(artifact.os, "rename", sometimes)
    with pytest.raises(StorageError):
        write(network, folder)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


# --- networks that already are what was asked for ------------------------------------------------------------------------


def test_a_loaded_network_can_be_copied_and_written_again(folder: Path, tmp_path: Path) -> None:
    loaded = copy.deepcopy(load(folder, table.toy()))
    write(loaded, tmp_path / "again")
    assert torch.equal(load(tmp_path / "again", table.toy())(table.images()), loaded(table.images()))


def test_a_set_of_no_size_is_kept(tmp_path: Path) -> None:
    for number, one in enumerate((TopK(0), LowRank(0), Levels("uniform", 8))):
        network = table.toy()
        freeze(network, "hidden.weight", Target(one, View("o i -> o i")))
        write(network, tmp_path / str(number))
        assert torch.equal(load(tmp_path / str(number), table.toy())(table.images()), network(table.images()))
