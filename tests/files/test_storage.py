"""Files are opened as what they are: links inside a foreign folder are not followed, pipes do not hang, no write is half."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import table
import torch
from safetensors.torch import save_file
from torch import nn

from featherweight.cli import inputs
from featherweight.errors import ArtifactError, FeatherweightError, InputError, StorageError, did_you_mean
from featherweight.files import artifact, checkpoint, packed, storage
from featherweight.files.edits import Snapshot
from featherweight.recipe import reading as recipe
from featherweight.zoo import datasets

BLANK = artifact.Description(edits=[], recipe={}, report=[])
NET = nn.Linear(3, 2)


@pytest.fixture
def art(tmp_path: Path) -> Path:
    artifact.save(tmp_path / "art", Snapshot.of(NET, []), BLANK)
    return tmp_path / "art"


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def linked(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)


def linked_to_a_good_one(path: Path) -> None:
    path.with_suffix(".good").write_bytes(GOOD[path.name])
    path.symlink_to(path.with_suffix(".good"))


GOOD: dict[str, bytes] = {}
KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a socket": bound_socket,
    "a link to a device": linked("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": linked("nowhere"),
    "a link to a good one": linked_to_a_good_one,
}


@pytest.mark.parametrize("name", [artifact.DESCRIPTION, artifact.WEIGHTS])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_what_is_no_regular_file_in_an_artifact_is_refused_by_name_at_once(
    make: Callable[[Path], None], name: str, art: Path
) -> None:
    GOOD[name] = (art / name).read_bytes()
    (art / name).unlink()
    make(art / name)
    began = time.monotonic()
    for use in (lambda: artifact.load(art, NET), lambda: artifact.snapshot(art)):
        with pytest.raises(ArtifactError, match=name):
            use()
    assert time.monotonic() - began < 2
    assert name not in artifact.file_sizes(art)


@pytest.mark.parametrize("make", [kind for name, kind in KINDS.items() if name != "a link to a good one"])
@pytest.mark.parametrize("name", ["x.fwz", "x.safetensors", "x.pt", "x.yaml", "checkpoint.pt", "x.bin"])
def test_so_is_every_other_file_that_is_read(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / name
    make(path)
    read = {
        "x.fwz": lambda: packed.load(path, NET),
        "x.safetensors": lambda: inputs._load(NET, path, "net"),
        "x.pt": lambda: inputs._load(NET, path, "net"),
        "x.yaml": lambda: recipe.read(path),
        "checkpoint.pt": lambda: checkpoint.read(path),
        "x.bin": lambda: datasets._verified(path, datasets.File("x.bin", 0, "")),
    }[name]
    with pytest.raises(FeatherweightError, match=name):
        read()


def test_a_link_that_the_user_names_is_followed_to_a_regular_file(art: Path, tmp_path: Path) -> None:
    """As in a cache of weights, or `runs/latest`; what lies inside the folder is another matter."""
    (tmp_path / "latest").symlink_to("art")
    assert torch.equal(artifact.load(tmp_path / "latest", nn.Linear(3, 2)).weight, NET.weight)
    (tmp_path / "w.safetensors").symlink_to(art / artifact.WEIGHTS)
    other = nn.Linear(3, 2)
    inputs._load(other, tmp_path / "w.safetensors", "net")
    assert torch.equal(other.weight, NET.weight)
    packed.write(tmp_path / "real.fwz", Snapshot.of(NET, []), NET)
    (tmp_path / "n.fwz").symlink_to("real.fwz")
    assert torch.equal(packed.load(tmp_path / "n.fwz", nn.Linear(3, 2)).weight, NET.weight)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a description": (artifact.DESCRIPTION, lambda art: artifact.note_export(art, "x.onnx", {})),
    "a packed file": ("model.fwz", lambda art: packed.write(art / "model.fwz", Snapshot.of(NET, []), NET)),
    "a checkpoint": ("checkpoint.pt", lambda art: checkpoint.write(art / "checkpoint.pt", {"a": 1})),
}


@pytest.mark.parametrize(("name", "write"), WRITERS.values(), ids=WRITERS)
def test_nothing_is_written_through_a_link_whatever_its_name(name: str, write: Callable[[Path], object], art: Path) -> None:
    victim = art.parent / "victim"
    victim.write_text("precious")
    stem = name.rpartition(".")[0]
    for planted in (f"{name}.part", f"{stem}.part", f".{name}.part", f"{name}.tmp", f".{name}.abcdefgh.part"):
        (art / planted).symlink_to(victim)
    if name != artifact.DESCRIPTION:
        (art / name).symlink_to(victim)
    write(art)
    assert victim.read_text() == "precious"
    assert not (art / name).is_symlink()


def test_an_output_that_is_a_link_or_a_device_is_not_replaced(art: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("art")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="is a link to art"):
        artifact.save(tmp_path / "link", Snapshot([], {}), BLANK)
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(InputError, match="is a link"):
        artifact.save(tmp_path / "dangling", Snapshot([], {}), BLANK)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "dangling"])
    os.mkfifo(tmp_path / "pipe.fwz")
    with pytest.raises(StorageError, match="it is a pipe"):
        packed.write(tmp_path / "pipe.fwz", Snapshot.of(NET, []), NET)
    assert (tmp_path / "pipe.fwz").is_fifo()


def test_names_with_line_ends_and_of_full_length_are_names(tmp_path: Path) -> None:
    for name in ("two\nlines", "n" * 255, "-rf", "\udcff"):
        artifact.save(tmp_path / name, Snapshot.of(NET, []), BLANK)
        artifact.save(tmp_path / name, Snapshot.of(NET, []), BLANK)
        assert torch.equal(artifact.load(tmp_path / name, nn.Linear(3, 2)).weight, NET.weight)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_path_with_a_zero_byte_is_refused_by_name() -> None:
    for use in (lambda: artifact.load("a\0b", NET), lambda: packed.load("a\0b.fwz", NET)):
        with pytest.raises(ArtifactError):
            use()
    with pytest.raises(FeatherweightError):
        artifact.save("a\0b", Snapshot([], {}), BLANK)


def test_what_a_killed_writer_left_half_done_is_removed_and_a_living_ones_is_not(art: Path) -> None:
    old, young = (art.parent / f".art.{name}.part" for name in ("abcdefgh", "stuvwxyz"))
    for part in (old, young):
        part.mkdir()
    for part in (old,):
        os.utime(part, (0, 0))
    artifact.save(art, Snapshot.of(NET, []), BLANK)
    assert not old.exists() and young.exists()


def test_several_writers_and_a_reader_of_one_artifact_never_see_half_of_one(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    ended = threading.Event()

    def save(version: int) -> None:
        snapshot = Snapshot([], {"x": torch.full((300,), float(version))})
        artifact.save(tmp_path / "art", snapshot, artifact.Description(model=str(version), edits=[], recipe={}, report=[]))

    def writer(version: int) -> None:
        try:
            while not ended.is_set():
                save(version)
        except (FeatherweightError, OSError) as error:
            failures.append(error)

    save(0)
    threads = [threading.Thread(target=writer, args=(version,)) for version in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            described, state = artifact._read(tmp_path / "art", artifact._whole)
            assert set(state["x"].tolist()) == {float(described.model or -1)}
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == ["art"]


def test_one_run_at_a_time_in_a_workdir_and_none_is_left_locked(tmp_path: Path) -> None:
    with storage.claimed(tmp_path / "w"):
        with pytest.raises(InputError, match=r"another run is going on .*--workdir"), storage.claimed(tmp_path / "w"):
            pass
        child = os.fork()
        if not child:  # a worker of a DataLoader: it must not keep the lock when its parent is gone
            time.sleep(60)
            os._exit(0)
    with storage.claimed(tmp_path / "w"):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert list((tmp_path / "w").iterdir()) == []


def test_a_lock_that_is_a_link_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / storage.LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError), storage.claimed(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


# --- weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}]
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_weights_of_torch_save_are_read(suffix: str, wrap: Callable[[object], object], tmp_path: Path) -> None:
    network = table.toy()
    torch.save(wrap(network.state_dict()), tmp_path / f"w{suffix}")
    other = table.toy(seed=5)
    inputs._load(other, tmp_path / f"w{suffix}", "toy")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in network.state_dict().items())


def test_weights_that_are_none_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(NET, tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    save_file(dict(NET.state_dict()), tmp_path / "w.bin")
    for name, said in (("whole.pt", "state_dict"), ("none.pt", "no state dict"), ("w.bin", "safetensors.*makes one")):
        with pytest.raises(FeatherweightError, match=said):
            inputs._load(NET, tmp_path / name, "net")


def test_a_suggestion_costs_little_whatever_the_names(tmp_path: Path) -> None:
    began = time.monotonic()
    assert did_you_mean("k" * 10_000_000, ["keep"]) == ""
    names = [f"{'ab' * 90}{number}" for number in range(30_000)]
    did_you_mean("ba" * 95, names)
    assert did_you_mean("recipie", ["report", "recipe"]) == " Did you mean 'recipe'?"
    assert time.monotonic() - began < 5
