"""Data sets: scikit-learn's digits, MNIST and CIFAR-10 from their authors' own files, and augmentations as tensor operations.

The files lie in `$FEATHERWEIGHT_DATA`, else `~/.cache/featherweight/data`, uncompressed, as `mnist/train-images-idx3-ubyte` and
`cifar10/data_batch_1.bin` and so on. Missing files are downloaded. Each file is checked against its SHA-256 at every load:
that takes about 0.3 s for CIFAR-10, which is not worth the bookkeeping to avoid it.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from featherweight.errors import DataError
from featherweight.files import download as downloads
from featherweight.files import storage

CLASSES = 10
SLACK = 2**20  # bytes that a download may have beyond its files: headers, and what does not compress


class DataMissing(DataError):
    """Files of a data set are not there and could not be downloaded."""


class DataDamaged(DataError, ValueError):
    """A file of a data set is there, but it is not the file it should be."""


@dataclass(frozen=True)
class Dataset:
    """A classification problem in memory.

    inputs are (count, channels, height, width), uint8 in 0..255 or float32 in 0..1; labels are (count,) int64.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def held_out(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """The training set alone, with `count` of its samples as the test part: for choosing settings without seeing the test set.

    The test part is the last `count` of a permutation of the training set that depends only on its size and the seed.
    Raises ValueError unless 0 < count < training samples.
    """
    total = len(dataset.train_labels)
    if not 0 < count < total:
        raise ValueError(f"cannot hold out {count} of {total} training samples: give a count from 1 to {total - 1}")
    order = torch.randperm(total, generator=Generator().manual_seed(seed))
    train, test = order[:-count], order[-count:]
    return Dataset(
        dataset.train_inputs[train], dataset.train_labels[train], dataset.train_inputs[test], dataset.train_labels[test]
    )


# --- where the files come from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """One file as it lies in the data folder."""

    name: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Source:
    """The files of one data set and the public addresses that have them.

    folder    folder under the data root, and the prefix of messages
    files     what must lie in it
    mirrors   addresses of folders, tried in this order
    archive   name of one .tar.gz in a mirror with all files in it; None where a mirror has each file alone, as NAME.gz
    """

    folder: str
    files: tuple[File, ...]
    mirrors: tuple[str, ...]
    archive: str | None

    def address(self, mirror: str, file: File) -> str:
        """Where `mirror` has `file`."""
        return f"{mirror}/{self.archive}" if self.archive else f"{mirror}/{file.name}.gz"


MNIST = Source(
    folder="mnist",
    files=(
        File("train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        File("train-labels-idx1-ubyte", 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        File("t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        File("t10k-labels-idx1-ubyte", 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    archive=None,
)

CIFAR10 = Source(
    folder="cifar10",
    files=(
        File("data_batch_1.bin", 30_730_000, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
        File("data_batch_2.bin", 30_730_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
        File("data_batch_3.bin", 30_730_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
        File("data_batch_4.bin", 30_730_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
        File("data_batch_5.bin", 30_730_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
        File("test_batch.bin", 30_730_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
    ),
    mirrors=("https://www.cs.toronto.edu/~kriz",),
    archive="cifar-10-binary.tar.gz",
)


def data_root() -> Path:
    """`$FEATHERWEIGHT_DATA`, else `~/.cache/featherweight/data`."""
    given = os.environ.get("FEATHERWEIGHT_DATA")
    return Path(given) if given else Path.home() / ".cache" / "featherweight" / "data"


def missing_files(source: Source, root: Path | None = None) -> list[File]:
    """Those files of the source that are not in `root` (None: `data_root()`); says nothing about their content."""
    folder = (root or data_root()) / source.folder
    return [file for file in source.files if not (folder / file.name).is_file()]


# --- the data sets -------------------------------------------------------------------------------------------------------


def digits() -> Dataset:
    """scikit-learn's 8x8 digits, 28x28 by bilinear interpolation, float32 in 0..1: 1,437 for training and 360 for testing.

    The split is fixed: every fifth of the images sorted by class, so each class has its share.
    Raises DataMissing without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataMissing(
            "the digits data set comes with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    bundled = load_digits()
    small = torch.tensor(bundled.images, dtype=torch.float32).div(16).unsqueeze(1)  # (1797, 1, 8, 8)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)
    labels = torch.tensor(bundled.target, dtype=torch.int64)
    by_class = labels.argsort(stable=True)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[by_class[::5]] = True
    return Dataset(images[~is_test], labels[~is_test], images[is_test], labels[is_test])


def mnist(root: Path | None = None, source: Source = MNIST) -> Dataset:
    """MNIST, (60000 and 10000, 1, 28, 28) uint8. Raises DataMissing or DataDamaged. `root` None: `data_root()`."""
    train_images, train_labels, test_images, test_labels = (parse_idx(content, path) for path, content in _contents(source, root))
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataDamaged(f"mnist: images of shape {tuple(images.shape)} with labels of shape {tuple(labels.shape)}")
        _check_labels(labels, "mnist")
    return Dataset(train_images.unsqueeze(1), train_labels.long(), test_images.unsqueeze(1), test_labels.long())


def cifar10(root: Path | None = None, source: Source = CIFAR10) -> Dataset:
    """CIFAR-10, (50000 and 10000, 3, 32, 32) uint8. Raises DataMissing or DataDamaged. `root` None: `data_root()`."""
    parts = [parse_cifar10(content, path) for path, content in _contents(source, root)]
    test_images, test_labels = parts.pop()
    return Dataset(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), test_images, test_labels)


def parse_idx(content: bytearray, path: Path) -> Tensor:
    """An IDX file of bytes -> uint8 tensor of the shape in its header, sharing the buffer's memory. `path` is for messages only.

    Header: 0, 0, 8 (unsigned byte), the number of dimensions, then each dimension as a big-endian 32-bit integer.
    Raises DataDamaged where the header or the length is not exactly that.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 3:
        raise DataDamaged(
            f"{path}: starts with {bytes(content[:4])!r}; an IDX file of bytes starts with 0, 0, 8, and 1 to 3 dimensions"
        )
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataDamaged(f"{path}: {len(content)} bytes are too few for a header of {dimensions} dimensions ({header} bytes)")
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if math.prod(shape) != len(content) - header or 0 in shape:
        raise DataDamaged(f"{path}: the header says shape {shape}, but {len(content) - header} bytes follow")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape)


def parse_cifar10(content: bytearray, path: Path) -> tuple[Tensor, Tensor]:
    """A CIFAR-10 binary batch -> images (count, 3, 32, 32) uint8 and labels (count,) int64. `path` is for messages only.

    A record is one label byte, then 1,024 red, 1,024 green and 1,024 blue bytes by rows.
    Raises DataDamaged on any other length or label.
    """
    record = 1 + 3 * 32 * 32
    if not content or len(content) % record:
        raise DataDamaged(f"{path}: {len(content)} bytes; a CIFAR-10 batch is a positive multiple of {record} bytes")
    records = torch.frombuffer(content, dtype=torch.uint8).reshape(-1, record)
    _check_labels(records[:, 0], str(path))
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def _check_labels(labels: Tensor, where: str) -> None:
    if int(labels.max()) >= CLASSES:
        raise DataDamaged(f"{where}: a label is {int(labels.max())}; labels are 0 to {CLASSES - 1}")


def _contents(source: Source, root: Path | None) -> Iterator[tuple[Path, bytearray]]:
    """Path and verified content of each file of the source in order, after downloading what is missing."""
    root = root or data_root()
    if missing_files(source, root):
        download(source, root)
    for file in source.files:
        path = root / source.folder / file.name
        yield path, _verified(path, file)


def _verified(path: Path, file: File) -> bytearray:
    # The bytes that are hashed are the bytes that are parsed; a file of the wrong size is not read at all.
    advice = "Move it away and run again to download it, or put the right file there."
    content = bytearray(file.size)
    try:
        with storage.opened(path, follow=True) as stream:  # a data folder is the user's own, and may be of links
            size = os.fstat(stream.fileno()).st_size
            if size != file.size:
                raise DataDamaged(f"{path}: {size} bytes instead of {file.size}. {advice}")
            count = stream.readinto(content)
    except OSError as error:
        raise DataDamaged(f"{path} cannot be read: {error.strerror}. {advice}") from None
    digest = hashlib.sha256(content).hexdigest()
    if count != file.size or digest != file.sha256:
        raise DataDamaged(f"{path}: SHA-256 is {digest} instead of {file.sha256}. {advice}")
    return content


# --- download ------------------------------------------------------------------------------------------------------------


def download(source: Source, root: Path | None = None) -> None:
    """Fetch the missing files of the source into `root` (None: `data_root()`), each verified before it gets its name.

    Raises DataMissing, with the files, their addresses and each mirror's failure, if one file can be had from no mirror.
    """
    root = root or data_root()
    failures: list[str] = []
    for mirror in source.mirrors:
        try:
            _download_from(mirror, source, root)
            return
        except (OSError, http.client.HTTPException, EOFError, zlib.error, tarfile.TarError, DataDamaged, ValueError) as error:
            failures.append(f"{mirror}: {type(error).__name__}: {str(error)[:200]}")
    folder = root / source.folder
    wanted = missing_files(source, root)
    lines = [f"{source.folder}: {len(wanted)} files are missing in {folder} and could not be downloaded."]
    lines += [f"  failed: {failure}" for failure in failures]
    lines += ["Put these files there, uncompressed, or set FEATHERWEIGHT_DATA to the folder that holds " + source.folder + "/:"]
    for file in wanted:
        addresses = " or ".join(source.address(mirror, file) for mirror in source.mirrors)
        lines.append(f"  {folder / file.name}  ({file.size} bytes, from {addresses})")
    raise DataMissing("\n".join(lines))


def _download_from(mirror: str, source: Source, root: Path) -> None:
    wanted = missing_files(source, root)
    folder = root / source.folder
    folder.mkdir(parents=True, exist_ok=True)
    if source.archive is None:
        for file in wanted:
            with downloads.opened(source.address(mirror, file), SLACK + file.size) as stream, gzip.open(stream) as unpacked:
                # one more byte than allowed shows that there is too much, however much there is
                _store(unpacked.read(file.size + 1), file, folder)
        return
    by_name = {file.name: file for file in wanted}
    most = SLACK + 2 * sum(file.size for file in source.files)
    # A stream: nothing is extracted by the archive's own paths, only known names are looked at.
    with downloads.opened(f"{mirror}/{source.archive}", most) as stream, gzip.open(stream) as unpacked:
        archive = downloads.bounded(unpacked, most)
        for name, size in downloads.members(archive):
            found = by_name.pop(Path(name).name, None)
            if found is not None:
                _store(archive.read(min(size, found.size + 1)), found, folder)
            if not by_name:
                return
    raise DataDamaged(f"{source.archive} does not hold {', '.join(by_name)}")


def _store(content: bytes, file: File, folder: Path) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataDamaged(f"{file.name} as downloaded has SHA-256 {digest} instead of {file.sha256}")
    handle, temporary = tempfile.mkstemp(prefix=f"{file.name}.", suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as target:
            target.write(content)
            target.flush()
            os.fsync(target.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock other users out of a shared data folder
        os.replace(temporary, folder / file.name)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


# --- augmentation --------------------------------------------------------------------------------------------------------


def crop_and_flip(images: Tensor, generator: Generator, padding: int = 4, flips: bool = True) -> Tensor:
    """Shift each image by up to `padding` pixels in both directions (zeros come in) and mirror half of them left to right.

    (batch, channels, height, width) of any dtype -> the same. The usual augmentation of CIFAR-10 (arXiv 1512.03385, section 4.2).
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    offsets = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    rows = offsets[0] + torch.arange(height)  # (batch, height)
    columns = torch.arange(width).expand(batch, width)
    if flips:
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = offsets[1] + columns  # (batch, width)
    places = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # (batch, height, width) into a padded channel
    index = places.reshape(batch, 1, height * width).expand(batch, channels, height * width)
    return padded.reshape(batch, channels, -1).gather(2, index).reshape(images.shape)


def affine(
    images: Tensor, generator: Generator, degrees: float = 0.0, scale: float = 0.0, shear: float = 0.0, translate: float = 0.0
) -> Tensor:
    """Turn, scale, shear and shift each image about its centre, with strengths drawn uniformly for each; bilinear, zeros come in.

    images     (batch, channels, height, width) float -> the same
    degrees    the angle is in -degrees .. degrees
    scale      the factor is in 1 - scale .. 1 + scale; below 1
    shear      the horizontal shear angle is in -shear .. shear, in degrees
    translate  both shifts are in -translate .. translate, in pixels
    """
    if not images.is_floating_point():
        raise TypeError(f"affine needs floating-point images, given {images.dtype}: convert them first, images.float()")
    if not 0 <= scale < 1:
        raise ValueError(
            f"scale is {scale}; it must be at least 0 and below 1, since the factor is drawn from 1 - scale .. 1 + scale"
        )
    batch, _, height, width = images.shape
    draws = torch.rand(5, batch, generator=generator) * 2 - 1  # each in -1 .. 1
    angle, slant = torch.deg2rad(draws[0] * degrees), torch.tan(torch.deg2rad(draws[1] * shear))
    shrink = 1 / (1 + draws[2] * scale)
    # affine_grid wants the map from output to input coordinates, both in -1 .. 1: rotation @ shear / factor, then the shift.
    cosine, sine = torch.cos(angle) * shrink, torch.sin(angle) * shrink
    shift_x, shift_y = draws[3] * translate * 2 / width, draws[4] * translate * 2 / height
    first = torch.stack([cosine, cosine * slant - sine, shift_x], dim=1)
    second = torch.stack([sine, sine * slant + cosine, shift_y], dim=1)
    maps = torch.stack([first, second], dim=1).to(images.dtype)  # (batch, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
