"""Readers and downloads on tiny files made here, augmentations against plain loops, and the real files if present."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import itertools
import math
import os
import struct
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator

from featherweight.zoo import datasets
from featherweight.zoo.datasets import DataDamaged, DataMissing, Dataset, File, Source

SOMEWHERE = Path("somewhere")
NO_NETWORK: tuple[str, ...] = ()


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + content


def pattern(count: int, modulus: int, start: int = 0) -> bytes:
    return bytes((start + 7 * place) % modulus for place in range(count))


TINY_MNIST = {
    "train-images-idx3-ubyte": idx((6, 4, 3), pattern(72, 256)),
    "train-labels-idx1-ubyte": idx((6,), pattern(6, 10)),
    "t10k-images-idx3-ubyte": idx((2, 4, 3), pattern(24, 256, start=100)),
    "t10k-labels-idx1-ubyte": idx((2,), bytes([9, 0])),
}
TINY_CIFAR10 = {
    f"{name}.bin": b"".join(bytes([(number + record) % 10]) + pattern(3072, 256, number + record) for record in range(2))
    for number, name in enumerate(["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"])
}


def source_of(
    folder: str, contents: dict[str, bytes], mirrors: tuple[str, ...] = NO_NETWORK, archive: str | None = None
) -> Source:
    files = tuple(File(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items())
    return Source(folder, files, mirrors, archive)


def lay_out(root: Path, folder: str, contents: dict[str, bytes]) -> None:
    (root / folder).mkdir(parents=True)
    for name, content in contents.items():
        (root / folder / name).write_bytes(content)


# --- readers -------------------------------------------------------------------------------------------------------------


def test_tiny_mnist(tmp_path: Path) -> None:
    lay_out(tmp_path, "mnist", TINY_MNIST)
    dataset = datasets.mnist(tmp_path, source_of("mnist", TINY_MNIST))
    assert dataset.train_inputs.shape == (6, 1, 4, 3) and dataset.train_inputs.dtype == torch.uint8
    assert bytes(dataset.train_inputs.flatten().tolist()) == pattern(72, 256)
    assert dataset.train_inputs[1, 0, 2, 1] == (7 * (12 + 2 * 3 + 1)) % 256  # rows before columns
    assert bytes(dataset.test_inputs.flatten().tolist()) == pattern(24, 256, start=100)
    assert dataset.train_labels.tolist() == [0, 7, 4, 1, 8, 5] and dataset.train_labels.dtype == torch.int64
    assert dataset.test_labels.tolist() == [9, 0]


def test_tiny_cifar10(tmp_path: Path) -> None:
    lay_out(tmp_path, "cifar10", TINY_CIFAR10)
    dataset = datasets.cifar10(tmp_path, source_of("cifar10", TINY_CIFAR10))
    assert dataset.train_inputs.shape == (10, 3, 32, 32) and dataset.train_inputs.dtype == torch.uint8
    assert dataset.test_inputs.shape == (2, 3, 32, 32)
    assert dataset.train_labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert dataset.test_labels.tolist() == [5, 6]
    # Record 1 of batch 3 (number 2): channel 2, row 5, column 9 is byte 2 * 1024 + 5 * 32 + 9 of the record's pixels.
    assert dataset.train_inputs[5, 2, 5, 9] == (3 + 7 * (2048 + 160 + 9)) % 256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with b''"),
        (b"\0\0\x08", "starts with"),
        (b"\x1f\x8b\x08\x01" + bytes(8), "starts with"),  # still gzipped
        (b"\0\0\x0d\x01" + bytes(8), "starts with"),  # floats
        (b"\0\0\x08\x00", "starts with"),  # no dimensions
        (b"\0\0\x08\xff" + bytes(40), "starts with"),
        (b"\0\0\x08\x03" + bytes(7), "too few for a header of 3 dimensions"),
        (idx((2, 3), bytes(5)), r"shape \[2, 3\], but 5 bytes follow"),
        (idx((2, 3), bytes(7)), "but 7 bytes follow"),
        (idx((2**32 - 1, 2**32 - 1, 2**32 - 1), bytes(1)), "but 1 bytes follow"),  # must not try to allocate that
        (idx((0, 2**31), b""), "but 0 bytes follow"),
    ],
)
def test_damaged_idx(content: bytes, message: str) -> None:
    with pytest.raises(DataDamaged, match=message) as caught:
        datasets.parse_idx(bytearray(content), SOMEWHERE)
    assert "somewhere" in str(caught.value)


@pytest.mark.parametrize("size", [0, 3072, 3074, 2 * 3073 - 1])
def test_cifar10_batch_of_wrong_length(size: int) -> None:
    with pytest.raises(DataDamaged, match=f"somewhere: {size} bytes"):
        datasets.parse_cifar10(bytearray(size), SOMEWHERE)


def test_cifar10_label_out_of_range() -> None:
    with pytest.raises(DataDamaged, match="a label is 10; labels are 0 to 9"):
        datasets.parse_cifar10(bytearray([10] + [0] * 3072), SOMEWHERE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", idx((5,), bytes(5)), "labels of shape"),  # one label too few
        ("train-labels-idx1-ubyte", idx((6,), bytes([0, 1, 2, 3, 4, 10])), "a label is 10"),
        ("t10k-images-idx3-ubyte", idx((24,), bytes(24)), "images of shape"),
    ],
)
def test_mnist_files_that_do_not_fit_together(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    contents = TINY_MNIST | {name: content}
    lay_out(tmp_path, "mnist", contents)
    with pytest.raises(DataDamaged, match=message):
        datasets.mnist(tmp_path, source_of("mnist", contents))


def test_wrong_checksum_is_named(tmp_path: Path) -> None:
    name = "t10k-labels-idx1-ubyte"
    lay_out(tmp_path, "mnist", TINY_MNIST | {name: idx((2,), bytes([9, 1]))})  # a valid file, but not the right one
    with pytest.raises(DataDamaged, match=rf"{name}: SHA-256 is .* instead of {hashlib.sha256(TINY_MNIST[name]).hexdigest()}"):
        datasets.mnist(tmp_path, source_of("mnist", TINY_MNIST))


def test_truncated_file_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, "cifar10", TINY_CIFAR10 | {"data_batch_4.bin": TINY_CIFAR10["data_batch_4.bin"][:-1]})
    with pytest.raises(DataDamaged, match=r"data_batch_4\.bin: 6145 bytes instead of 6146"):
        datasets.cifar10(tmp_path, source_of("cifar10", TINY_CIFAR10))


# --- missing files and downloads -----------------------------------------------------------------------------------------


def test_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(tmp_path))
    assert datasets.data_root() == tmp_path
    lay_out(tmp_path, "mnist", TINY_MNIST)
    assert len(datasets.mnist(source=source_of("mnist", TINY_MNIST)).test_labels) == 2
    monkeypatch.delenv("FEATHERWEIGHT_DATA")
    assert datasets.data_root() == Path.home() / ".cache" / "featherweight" / "data"


def test_data_missing_says_what_to_put_where(tmp_path: Path) -> None:
    present = dict(list(TINY_MNIST.items())[:2])
    lay_out(tmp_path, "mnist", present)
    nowhere = (tmp_path / "nowhere").as_uri()
    with pytest.raises(DataMissing) as caught:
        datasets.mnist(tmp_path, source_of("mnist", TINY_MNIST, (nowhere, nowhere + "2")))
    text = str(caught.value)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        assert str(tmp_path / "mnist" / name) in text
        assert f"{nowhere}/{name}.gz or {nowhere}2/{name}.gz" in text
    assert "train-images" not in text and "2 files are missing" in text
    assert "FEATHERWEIGHT_DATA" in text and "failed: " in text


def test_public_addresses(tmp_path: Path) -> None:
    for source in (datasets.MNIST, datasets.CIFAR10):
        assert source.mirrors and all(mirror.startswith("https://") for mirror in source.mirrors)
        assert datasets.missing_files(source, tmp_path) == list(source.files)
        assert all(len(bytes.fromhex(file.sha256)) == 32 for file in source.files)
    assert datasets.MNIST.address(datasets.MNIST.mirrors[0], datasets.MNIST.files[3]).endswith("/mnist/t10k-labels-idx1-ubyte.gz")
    source = datasets.CIFAR10
    assert source.address(source.mirrors[0], source.files[0]).endswith("/~kriz/cifar-10-binary.tar.gz")


def mirror_of(folder: Path, contents: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder.as_uri()


def test_download_of_single_files(tmp_path: Path) -> None:
    mirror = mirror_of(tmp_path / "mirror", TINY_MNIST)
    dataset = datasets.mnist(tmp_path / "root", source_of("mnist", TINY_MNIST, (mirror,)))
    assert dataset.test_labels.tolist() == [9, 0]
    assert sorted(path.name for path in (tmp_path / "root" / "mnist").iterdir()) == sorted(
        TINY_MNIST
    )  # nothing temporary is left


def test_download_takes_the_next_mirror_if_one_lies(tmp_path: Path) -> None:
    name = "t10k-images-idx3-ubyte"
    lying = mirror_of(tmp_path / "lying", TINY_MNIST | {name: TINY_MNIST[name][:-1] + b"?"})
    honest = mirror_of(tmp_path / "honest", TINY_MNIST)
    datasets.mnist(tmp_path / "root", source_of("mnist", TINY_MNIST, (lying, honest)))
    assert (tmp_path / "root" / "mnist" / name).read_bytes() == TINY_MNIST[name]
    with pytest.raises(DataMissing, match=f"{name} as downloaded has SHA-256"):
        datasets.mnist(tmp_path / "other", source_of("mnist", TINY_MNIST, (lying,)))
    assert not (tmp_path / "other" / "mnist" / name).exists()


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[: len(packed) // 2], lambda packed: b"<html>" + packed, lambda packed: b""]
)
def test_damaged_download_is_data_missing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    mirror = mirror_of(tmp_path / "mirror", TINY_MNIST)
    path = tmp_path / "mirror" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataMissing, match="train-images-idx3-ubyte"):
        datasets.mnist(tmp_path / "root", source_of("mnist", TINY_MNIST, (mirror,)))


def test_endless_download_is_cut_off(tmp_path: Path) -> None:
    name = "train-labels-idx1-ubyte"
    mirror = mirror_of(tmp_path / "mirror", TINY_MNIST | {name: TINY_MNIST[name] + bytes(50_000_000)})  # 50 kB packed
    with pytest.raises(DataMissing, match=f"{name} as downloaded"):
        datasets.mnist(tmp_path / "root", source_of("mnist", TINY_MNIST, (mirror,)))


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers as its `answer` says, which is of the test."""

    def do_GET(self) -> None:
        try:
            self.server.answer(self)  # type: ignore[attr-defined]
        except OSError:
            self.close_connection = True  # the reader has had enough

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def found(handler: Mirror) -> None:
    handler.send_response(200)
    handler.end_headers()


def drips(handler: Mirror) -> None:
    found(handler)
    for byte in gzip.compress(b"x" * 1000) * 10:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.05)


def drips_headers(handler: Mirror) -> None:
    for _ in range(100):
        handler.wfile.write(b"H")
        time.sleep(0.05)


def sends_without_end(handler: Mirror) -> None:
    found(handler)
    while True:
        handler.wfile.write(os.urandom(1 << 20))


def redirects_to(address: str) -> Callable[[Mirror], None]:
    def answer(handler: Mirror) -> None:
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()
        while "endless" in address:
            handler.wfile.write(bytes(1 << 20))

    return answer


def long_name(handler: Mirror) -> None:
    found(handler)
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    handler.wfile.write(packer.compress(name.tobuf()))
    for _ in range(400):
        handler.wfile.write(packer.compress(bytes(1 << 20)))


MIRRORS = {
    "a byte at a time": (drips, "KiB a second", None),
    "a header at a time": (drips_headers, "no answer within", None),
    "bytes without end": (sends_without_end, "Not a gzipped file", None),
    "a file of this machine": (redirects_to("file:///etc/passwd"), "not allowed|no address of the web", None),
    "a circle": (redirects_to("/labels.gz"), "redirect", None),
    "a redirect without end": (redirects_to("/endless"), "redirect", None),
    "a name of a gigabyte": (long_name, "more than the", "a.tar.gz"),
}


@pytest.mark.parametrize(("answer", "why", "archive"), MIRRORS.values(), ids=MIRRORS)
def test_a_hostile_mirror_is_left_in_time(
    answer: Callable[[Mirror], None], why: str, archive: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.downloads, "PATIENCE", 0.4)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.answer = answer  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    start = time.monotonic()
    try:
        with pytest.raises(DataMissing, match=why):
            source = source_of("set", {"labels": b"1234"}, (f"http://127.0.0.1:{server.server_port}",), archive)
            datasets.download(source, tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - start < 5.0
    assert list((tmp_path / "set").iterdir()) == []


def archive_of(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_download_of_an_archive(tmp_path: Path) -> None:
    members = {f"cifar-10-batches-bin/{name}": content for name, content in TINY_CIFAR10.items()}
    archive_of(tmp_path / "tiny.tar.gz", {"../../escape.txt": b"no", "cifar-10-batches-bin/readme.html": b"hello"} | members)
    source = source_of("cifar10", TINY_CIFAR10, (tmp_path.as_uri(),), "tiny.tar.gz")
    assert datasets.cifar10(tmp_path / "root", source).test_labels.tolist() == [5, 6]
    assert sorted(path.name for path in (tmp_path / "root" / "cifar10").iterdir()) == sorted(TINY_CIFAR10)
    assert not list(tmp_path.rglob("escape.txt"))


def test_archive_without_a_file(tmp_path: Path) -> None:
    archive_of(tmp_path / "tiny.tar.gz", {name: content for name, content in TINY_CIFAR10.items() if name != "test_batch.bin"})
    source = source_of("cifar10", TINY_CIFAR10, (tmp_path.as_uri(),), "tiny.tar.gz")
    with pytest.raises(DataMissing, match=r"tiny\.tar\.gz does not hold test_batch\.bin"):
        datasets.cifar10(tmp_path / "root", source)


# --- digits and held-out parts -------------------------------------------------------------------------------------------


def test_digits_split_is_stratified_and_fixed() -> None:
    pytest.importorskip("sklearn")
    dataset = datasets.digits()
    assert dataset.train_inputs.shape == (1437, 1, 28, 28) and dataset.test_inputs.shape == (360, 1, 28, 28)
    assert dataset.train_inputs.dtype == torch.float32
    assert dataset.train_inputs.min() == 0 and 0.99 < dataset.train_inputs.max() <= 1
    whole = torch.cat([dataset.train_labels, dataset.test_labels]).bincount()
    assert (dataset.test_labels.bincount() - whole / 5).abs().max() < 1  # each class to within one image of its fifth
    again = datasets.digits()
    assert torch.equal(again.test_inputs, dataset.test_inputs) and torch.equal(again.train_labels, dataset.train_labels)
    distinct = torch.cat([dataset.train_inputs, dataset.test_inputs]).flatten(1).unique(dim=0)
    assert len(distinct) == 1797  # the parts do not overlap


def numbered(train: int, test: int) -> Dataset:
    return Dataset(
        torch.arange(train).reshape(train, 1, 1, 1),
        torch.arange(train) % 10,
        torch.arange(test).reshape(test, 1, 1, 1),
        torch.arange(test),
    )


def test_held_out_splits_the_training_set() -> None:
    dataset = numbered(100, 5)
    part = datasets.held_out(dataset, 20)
    train, test = part.train_inputs.flatten().tolist(), part.test_inputs.flatten().tolist()
    assert len(test) == 20 and sorted(train + test) == list(range(100))
    assert test != list(range(80, 100))  # a permutation, not the tail of the file
    assert part.train_labels.tolist() == [number % 10 for number in train] and part.test_labels.tolist() == [n % 10 for n in test]
    order = torch.randperm(100, generator=Generator().manual_seed(0)).tolist()
    assert test == order[-20:]
    assert datasets.held_out(dataset, 20, seed=1).test_inputs.flatten().tolist() != test


@pytest.mark.parametrize("count", [-1, 0, 100, 101])
def test_held_out_refuses_other_counts(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot hold out {count} of 100 .* 1 to 99"):
        datasets.held_out(numbered(100, 5), count)


# --- augmentation --------------------------------------------------------------------------------------------------------


def test_crop_and_flip_against_a_search() -> None:
    """Every output must be one of the 2 * (2p+1)^2 shifts and flips of its own image, and many different ones must occur."""
    images = torch.randint(1, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=Generator().manual_seed(1))
    output = datasets.crop_and_flip(images, Generator().manual_seed(2), padding=2)
    assert output.shape == images.shape and output.dtype == torch.uint8
    seen = set()
    for image, moved in zip(images, output, strict=True):
        padded = torch.zeros(3, 10, 9, dtype=torch.uint8)
        padded[:, 2:8, 2:7] = image
        matches = []
        for row, column in itertools.product(range(5), range(5)):
            crop = padded[:, row : row + 6, column : column + 5]
            matches += [(row, column, flip) for flip in (False, True) if torch.equal(moved, crop.flip(2) if flip else crop)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(5))
    assert {flip for _, _, flip in seen} == {False, True}


def test_crop_and_flip_without_strength_is_the_identity() -> None:
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(datasets.crop_and_flip(images, Generator(), padding=0, flips=False), images)


def test_augmentations_are_functions_of_the_generator() -> None:
    images = torch.rand(8, 1, 28, 28)
    for augment in (datasets.crop_and_flip, lambda i, g: datasets.affine(i, g, degrees=10, scale=0.1, shear=10, translate=2)):
        first = augment(images, Generator().manual_seed(3))
        assert torch.equal(first, augment(images, Generator().manual_seed(3)))
        assert not torch.equal(first, augment(images, Generator().manual_seed(4)))


def test_affine_without_strength_is_the_identity() -> None:
    images = torch.rand(8, 2, 28, 20)
    assert torch.allclose(datasets.affine(images, Generator()), images, atol=1e-5)


def test_affine_keeps_shape_range_and_differs_between_images() -> None:
    images = torch.rand(1, 1, 28, 28).expand(16, 1, 28, 28)
    output = datasets.affine(images, Generator().manual_seed(0), degrees=15, scale=0.2, shear=15, translate=3)
    assert output.shape == images.shape and output.dtype == images.dtype
    assert output.min() >= 0 and output.max() <= 1 + 1e-6
    assert len(output.flatten(1).unique(dim=0)) == 16


BLOB = torch.zeros(200, 1, 41, 41)
BLOB[:, :, 20, 30] = 1.0  # a point 10 pixels to the right of the centre


def centroids(images: torch.Tensor) -> torch.Tensor:
    """Centre of mass of each image as (x, y), relative to the centre pixel (20, 20)."""
    places = torch.arange(41.0) - 20
    mass = images.sum(dim=(1, 2, 3))
    return torch.stack([(images.sum(dim=(1, 2)) * places).sum(1) / mass, (images.sum(dim=(1, 3)) * places).sum(1) / mass], dim=1)


def test_affine_turns_by_up_to_the_degrees() -> None:
    turned = centroids(datasets.affine(BLOB, Generator().manual_seed(0), degrees=30))
    angles = torch.atan2(turned[:, 1], turned[:, 0]) * 180 / math.pi
    assert angles.abs().max() < 31.5 and angles.max() > 27 and angles.min() < -27
    assert (turned.norm(dim=1) - 10).abs().max() < 0.5


def test_affine_scales_by_up_to_the_factor() -> None:
    distances = centroids(datasets.affine(BLOB, Generator().manual_seed(0), scale=0.2))[:, 0]
    assert 7.7 < distances.min() < 8.4 and 11.6 < distances.max() < 12.3


def test_affine_shifts_by_up_to_the_pixels() -> None:
    shifts = centroids(datasets.affine(BLOB, Generator().manual_seed(0), translate=3)) - torch.tensor([10.0, 0.0])
    for axis in range(2):
        assert 2.8 < shifts[:, axis].max() < 3.05 and -3.05 < shifts[:, axis].min() < -2.8


def test_affine_shears_horizontally() -> None:
    high = torch.zeros(200, 1, 41, 41)
    high[:, :, 10, 20] = 1.0  # 10 pixels above the centre
    sheared = centroids(datasets.affine(high, Generator().manual_seed(0), shear=20))
    furthest = 10 * math.tan(math.radians(20))
    assert (sheared[:, 1] + 10).abs().max() < 0.3  # rows stay
    assert furthest - 0.4 < sheared[:, 0].max() < furthest + 0.2 and -furthest - 0.2 < sheared[:, 0].min() < -furthest + 0.4
    assert (centroids(datasets.affine(BLOB, Generator().manual_seed(0), shear=20)) - torch.tensor([10.0, 0.0])).abs().max() < 0.3


def test_affine_refuses_what_it_cannot_do() -> None:
    with pytest.raises(TypeError, match=r"given torch\.uint8.*images\.float"):
        datasets.affine(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), Generator())
    with pytest.raises(ValueError, match=r"scale is 1\.0"):
        datasets.affine(torch.zeros(1, 1, 4, 4), Generator(), scale=1.0)


# --- the real files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [datasets.MNIST, datasets.CIFAR10], ids=lambda source: source.folder)
def test_real_files(source: Source) -> None:
    if datasets.missing_files(source):
        pytest.skip(f"no {source.folder} in {datasets.data_root()}; the first use of the task downloads it")
    offline = replace(source, mirrors=NO_NETWORK)
    dataset = datasets.mnist(source=offline) if source is datasets.MNIST else datasets.cifar10(source=offline)
    train, shape = (60_000, (1, 28, 28)) if source is datasets.MNIST else (50_000, (3, 32, 32))
    assert dataset.train_inputs.shape == (train, *shape) and dataset.test_inputs.shape == (10_000, *shape)
    assert len(dataset.train_labels) == train and dataset.test_labels.bincount().sum() == 10_000
    first = [5, 0, 4, 1, 9] if source is datasets.MNIST else [6, 9, 9, 4, 1]  # as the authors' files begin
    assert dataset.train_labels[:5].tolist() == first
    # Pixels, not a permutation of them: neighbours in a row and in a column are alike in photographs and in pen strokes.
    pixels = dataset.train_inputs[:500].float()
    spread = pixels.std()
    assert (pixels[..., 1:] - pixels[..., :-1]).abs().mean() < 0.3 * spread
    assert (pixels[..., 1:, :] - pixels[..., :-1, :]).abs().mean() < 0.3 * spread
