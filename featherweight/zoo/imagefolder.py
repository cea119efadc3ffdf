"""`imagefolder:PATH`: pictures in folders, one folder a class, below train/ and val/, or below PATH with a part held out.

In memory are names and nothing else: pictures are read when a batch is made, by processes of a DataLoader. A picture's changes
depend on the seed, the epoch and its number, so that an epoch taken up again is the same whatever processes draw it.
"""

from __future__ import annotations

import functools
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, Dataset

from featherweight.errors import DataError, shortened
from featherweight.files import storage
from featherweight.network.devices import device_of, multiplies_bfloat16
from featherweight.network.evaluating import evaluating
from featherweight.task import Task
from featherweight.zoo import own_data
from featherweight.zoo.own_data import Given, logits_in, require_outputs
from featherweight.zoo.sources import Pictures

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # by the name's end; nothing else is decoded
TRAIN, TEST = ("train",), ("val", "validation", "test")
# What decoders raise at bytes that make no sense.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)
LARGEST_PIXELS = 2**27  # of one picture
BATCH, RATE, DECAY = 64, 0.1, 1e-4  # the rate is of a batch of 256, and the base of a schedule
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of what is cut from a picture in training, as is usual for ImageNet


@dataclass(frozen=True)
class Names:
    """Pictures by name. paths: bytes, relative to `root`; labels (count,)."""

    root: Path
    paths: NDArray[np.bytes_]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, places: Tensor) -> Names:
        return Names(self.root, self.paths[places.numpy()], self.labels[places])


@dataclass(frozen=True)
class Folder:
    """The two parts, and the names of the classes in the order of their numbers."""

    train: Names
    test: Names
    classes: tuple[str, ...]


def task(given: Given, how: Pictures) -> Task:
    """The Task: SGD with Nesterov momentum at 0.1 for a batch of 256 (`rate=` for another), cross-entropy, top-1 in percent.

    Raises DataError where Pillow or a class is missing, at the first batch or score; and for a picture that cannot be decoded.
    """
    batch = int(given.settings.get("batch", BATCH))
    workers = int(given.settings.get("workers", min(8, max(0, (os.cpu_count() or 1) - 1))))
    rate = float(given.settings.get("rate", RATE * batch / 256))

    @functools.cache
    def folder() -> Folder:
        return scan(given.path, given.held)

    def train(epoch: int) -> Loaded:
        names = folder().train
        order = torch.randperm(len(names), generator=_generator(given.seed, epoch, -1))
        whole = (
            order[: len(order) // batch * batch] if len(order) >= batch else order
        )  # one picture alone has no batch statistics
        return Loaded(Decoded(names, how, given.seed, epoch), whole, batch, workers, how, given.device)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        pictures, labels = batch
        with torch.autocast(pictures.device.type, dtype=torch.bfloat16, enabled=multiplies_bfloat16(pictures.device)):
            logits = logits_in(network(pictures))
        require_outputs(logits, len(folder().classes))
        return F.cross_entropy(logits.float(), labels)

    def score(network: nn.Module) -> float:
        held = folder()
        place = device_of(network)
        batches = Loaded(Decoded(held.test, how, given.seed, None), torch.arange(len(held.test)), batch, workers, how, place)
        with evaluating(network), torch.inference_mode():
            return own_data.accuracy(network, batches, len(held.classes), lambda net, pictures: logits_in(net(pictures)))

    def optimizer(parameters: Iterable[Parameter]) -> Optimizer:
        every = list(parameters)
        groups = [
            {"params": [one for one in every if one.ndim > 1], "weight_decay": DECAY},
            {"params": [one for one in every if one.ndim <= 1], "weight_decay": 0.0},
        ]
        return SGD([group for group in groups if group["params"]], lr=rate, momentum=0.9, nesterov=True)

    example = torch.randn(1, how.channels, how.size, how.size, generator=_generator(0, 0, 0)).to(given.device)
    return Task((example,), train, loss, score, optimizer, logits=logits_in)


# --- names ---------------------------------------------------------------------------------------------------------------


def scan(root: Path, held: float) -> Folder:
    """The names of all pictures below `root`. Raises DataError where there are no two classes, or only the part to score on has
    one; and warns where that part lacks one."""
    if not root.is_dir():
        raise DataError(f"imagefolder: {root} is no folder: give one with a folder a class in it, or in its train/ and val/")
    parts = [next((root / name for name in names if (root / name).is_dir()), None) for names in (TRAIN, TEST)]
    if parts[0] is None:
        classes = _classes(root)
        names = _named(root, classes)
        train, test = own_data.split(names.labels, held, seed=0)  # the same for every seed: no run sees another's test part
        if not len(test):
            raise DataError(f"imagefolder: {root} has one picture a class and none to score on: add a folder val/ beside train/")
        held_out = names.at(test)
        own_data.same_classes(
            classes, _there(held_out, classes), f"imagefolder: {root}", "the training part", "the part held out"
        )
        return Folder(names.at(train), held_out, classes)
    classes = _classes(parts[0])
    if parts[1] is None:
        raise DataError(
            f"imagefolder: {root} has train/ and no val/ to score on: add it, or give {root / 'train'} for a part held out"
        )
    asked = ("imagefolder", str(parts[0]), str(parts[1]))
    folders = _folders(parts[1])
    if set(folders) - set(classes):
        own_data.same_classes(classes, folders, *asked)
    tested = _named(parts[1], classes, whole=False)  # numbers are those of train/, whatever is in val/
    own_data.same_classes(classes, _there(tested, classes), *asked)
    return Folder(_named(parts[0], classes), tested, classes)


def _there(names: Names, classes: Sequence[str]) -> list[str]:
    return [classes[number] for number in names.labels.unique().tolist()]


def _folders(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"imagefolder: {root} cannot be read: {error.strerror}") from None


def _classes(root: Path) -> tuple[str, ...]:
    found = _folders(root)
    if len(found) < 2:
        held = f"one, {found[0]!r}" if found else "none"
        raise DataError(f"imagefolder: {root} needs a folder for each of two classes or more, and has {held}")
    return tuple(found)


def _named(root: Path, classes: Sequence[str], whole: bool = True) -> Names:
    """`whole`: may no class be empty?"""
    paths: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_pictures(root / name))  # none where there is no such folder
        if not found and whole:
            raise DataError(f"imagefolder: {root / name} holds no picture ({', '.join(KINDS)})")
        paths += [os.fsencode(f"{name}/{one}") for one in found]
        labels += [label] * len(found)
    if not paths:
        raise DataError(f"imagefolder: {root} holds no picture ({', '.join(KINDS)})")
    return Names(root, np.array(paths, dtype=np.bytes_), torch.tensor(labels))


def _pictures(folder: Path) -> Iterator[str]:
    for place, inside, names in os.walk(folder):
        inside[:] = sorted(one for one in inside if not one.startswith("."))
        below = Path(place).relative_to(folder)
        yield from (str(below / name) for name in names if Path(name).suffix.lower() in KINDS and not name.startswith("."))


# --- pictures ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damaged:
    """In place of a picture: why it cannot be decoded. Worker processes pass it on, and an exception would lose its form."""

    said: str


@dataclass(frozen=True)
class Decoded(Dataset[Any]):
    """number -> (uint8 (channels, size, size), label). `epoch`: of training, in which pictures are cut at random and flipped."""

    names: Names
    how: Pictures
    seed: int
    epoch: int | None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor | Damaged, int]:
        path = self.names.root / os.fsdecode(self.names.paths[index])
        return self._decoded(path, index), int(self.names.labels[index])

    def _decoded(self, path: Path, index: int) -> Tensor | Damaged:
        try:
            from PIL import Image
        except ImportError:
            return Damaged("imagefolder: needs Pillow, which is not installed: pip install 'featherweight[images]'")
        try:
            with storage.opened(path, follow=True) as file, Image.open(file, formats=(KINDS[path.suffix.lower()],)) as picture:
                if math.prod(picture.size) > LARGEST_PIXELS:
                    return Damaged(f"imagefolder: {path} has {math.prod(picture.size):,} pixels, more than {LARGEST_PIXELS:,}")
                shown = picture.convert("L" if self.how.channels == 1 else "RGB")
        except (*BROKEN, Image.DecompressionBombError) as error:
            return Damaged(
                f"imagefolder: {path} cannot be decoded: {type(error).__name__}: {shortened(str(error))}. Move it away"
            )
        box, flipped = self._cut(shown.width, shown.height, index)
        cut = shown.resize((self.how.size, self.how.size), Image.Resampling.BILINEAR, box=box)
        pixels = torch.from_numpy(np.array(cut)).reshape(self.how.size, self.how.size, -1).permute(2, 0, 1)
        return (pixels.flip(2) if flipped else pixels).contiguous()

    def _cut(self, width: int, height: int, index: int) -> tuple[tuple[float, float, float, float], bool]:
        """The part of a picture that is shown, as (left, top, right, bottom), and whether it is mirrored."""
        if self.epoch is None:
            side = min(width, height) * self.how.share
            left, top = (width - side) / 2, (height - side) / 2
            return (left, top, left + side, top + side), False
        area, aspect, x, y, flip = torch.rand(5, generator=_generator(self.seed, self.epoch, index)).tolist()
        share = AREA[0] + area * (AREA[1] - AREA[0])
        ratio = math.exp(math.log(ASPECT[0]) + aspect * (math.log(ASPECT[1]) - math.log(ASPECT[0])))
        wide = min(width, math.sqrt(share * width * height * ratio))
        high = min(height, math.sqrt(share * width * height / ratio))
        left, top = x * (width - wide), y * (height - high)
        return (left, top, left + wide, top + high), flip < 0.5


@dataclass(frozen=True)
class Loaded:
    """The batches of an epoch, sized, iterable any number of times: normalised float32, and labels, on `device`."""

    pictures: Decoded
    order: Tensor
    batch: int
    workers: int
    how: Pictures
    device: torch.device

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mean, deviation = (
            torch.tensor(one[: self.how.channels], device=self.device).reshape(-1, 1, 1)
            for one in (self.how.mean, self.how.deviation)
        )
        loader: DataLoader[Any] = DataLoader(
            self.pictures,
            batch_sampler=[part.tolist() for part in self.order.split(self.batch)],
            num_workers=self.workers,
            collate_fn=_together,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # else each pass would draw from the caller's
        )
        for pixels, labels in loader:
            if isinstance(pixels, Damaged):
                raise DataError(pixels.said)
            sent = pixels.to(self.device, non_blocking=True).float().div(255)
            yield (sent - mean) / deviation, labels.to(self.device, non_blocking=True)


def _together(held: Sequence[tuple[Tensor | Damaged, int]]) -> tuple[Tensor | Damaged, Tensor]:
    damaged = next((picture for picture, _ in held if isinstance(picture, Damaged)), None)
    labels = torch.tensor([label for _, label in held])
    return (damaged, labels) if damaged is not None else (torch.stack([one for one, _ in held]), labels)  # type: ignore[misc]


def _generator(seed: int, epoch: int, index: int) -> torch.Generator:
    mixed = np.random.SeedSequence([seed, epoch, index + 1]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))
