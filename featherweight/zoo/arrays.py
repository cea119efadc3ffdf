"""`npz:PATH`: arrays `x` and `y` of one file, and `x_test`, `y_test` beside them or a part held out.

Whole numbers in `y` are classes, others the values of a regression. 8-bit whole numbers in `x` are pixels and become 0..1.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, Optimizer

from featherweight.errors import DataError, InputError, shortened
from featherweight.files import storage
from featherweight.network.devices import device_of
from featherweight.network.evaluating import evaluating
from featherweight.task import Task
from featherweight.zoo import own_data
from featherweight.zoo.own_data import Given, logits_in, require_outputs

BATCH, RATE = 64, 1e-3
LARGEST_FILE = 2**34  # bytes; the arrays are held in memory
NAMES = ("x", "y", "x_test", "y_test")


@dataclass(frozen=True)
class Arrays:
    """x (count, ...), y (count,) int64 class numbers or (count, ...) float32; the places to train on and to score on."""

    x: Tensor
    y: Tensor
    train: Tensor
    test: Tensor
    classes: int  # 0 in a regression
    labels: bool = True


@dataclass(frozen=True)
class Drawn:
    """Batches of the samples at `order`, on `device`."""

    held: Arrays
    order: Tensor
    batch: int
    device: torch.device

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for places in self.order.split(self.batch):
            yield prepared(self.held.x[places]).to(self.device), self.held.y[places].to(self.device)


def task(given: Given, network: nn.Module | None = None) -> Task:
    """The Task: Adam at 1e-3 (`rate=` for another); cross-entropy and percent right, or squared error and minus its mean. Of a
    file without `y`, where there is a `network`: inputs of it and no labels (see `Task.unlabelled`).

    The file is read here: the example is its first sample. Raises DataError for a file without `x` and `y`, and for arrays whose
    counts, shapes or classes do not go together.
    """
    held = read(given, needed=network is None)
    batch, rate = int(given.settings.get("batch", BATCH)), float(given.settings.get("rate", RATE))

    def train(epoch: int) -> Drawn:
        dice = torch.Generator().manual_seed(1_000_003 * given.seed + epoch)
        order = held.train[torch.randperm(len(held.train), generator=dice)]
        return Drawn(held, order[: len(order) // batch * batch] if len(order) >= batch else order, batch, given.device)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        if not held.classes:
            return F.mse_loss(network(x), y)
        logits = logits_in(network(x))
        require_outputs(logits, held.classes)
        return F.cross_entropy(logits, y)

    def score(network: nn.Module) -> float:
        drawn = Drawn(held, held.test, batch, device_of(network))
        with evaluating(network), torch.inference_mode():
            if held.classes:
                return own_data.accuracy(network, drawn, held.classes, lambda net, x: logits_in(net(x)))
            squares = [F.mse_loss(network(x), y, reduction="sum") for x, y in drawn]
        return -float(sum(squares)) / held.y[held.test].numel()

    def optimizer(parameters: Iterable[Parameter]) -> Optimizer:
        return Adam(parameters, lr=rate)

    example = prepared(held.x[:1]).to(given.device)
    if held.labels is False and network is not None:
        test = Drawn(held, held.test, batch, given.device)
        return Task.unlabelled(network, train, test=test, optimizer=optimizer, example_inputs=(example,))
    return Task((example,), train, loss, score, optimizer, logits=logits_in if held.classes else None)


def prepared(x: Tensor) -> Tensor:
    """Pixels as 0..1; other whole numbers, such as tokens, as they are."""
    if x.dtype == torch.uint8:
        return x.float().div(255)
    return x.float() if x.is_floating_point() else x.long()


@functools.lru_cache(maxsize=1)
def _file(path: str, changed: int) -> tuple[dict[str, np.ndarray[Any, Any]], tuple[str, ...]]:
    """The arrays of our names, and every name that there is. `changed`: when, so that another file of that name is read anew."""
    try:
        with storage.opened(path, follow=True) as file:
            found = np.load(io.BytesIO(storage.content(file, LARGEST_FILE)), allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name: np.savez(FILE, x=..., y=...) writes named ones")
            return {name: found[name] for name in NAMES if name in found.files}, tuple(found.files)
    except Exception as error:  # whatever zipfile and numpy raise at bytes that make no sense
        said = error.strerror if isinstance(error, OSError) and error.strerror else shortened(str(error))
        raise DataError(f"npz: {path} cannot be read: {said}") from error


def read(given: Given, needed: bool = True) -> Arrays:
    """`needed`: a file without `y` is refused; else its y are zeros. Raises DataError."""
    what = f"npz: {given.path}"
    if not given.path.is_file():
        raise DataError(f"{what} is no file")
    arrays, names = _file(str(given.path), given.path.stat().st_mtime_ns)
    unlabelled = not needed and "x" in arrays and not {"y", "y_test"} & arrays.keys()
    if unlabelled:
        none = {of: np.zeros(len(arrays[one]), np.float32) for one, of in (("x", "y"), ("x_test", "y_test")) if one in arrays}
        arrays = arrays | none
    missing = [name for name in ("x", "y") if name not in arrays]
    if missing or ("x_test" in arrays) != ("y_test" in arrays):
        there = shortened(", ".join(names)) or "no array"
        raise DataError(f"{what} holds {there}, and needs x and y, and x_test and y_test or neither: rename them in np.savez")
    for one, of in (("x", "y"), ("x_test", "y_test")):
        samples, answers = (arrays.get(name, np.ones((1, 1))) for name in (one, of))
        if samples.ndim < 2 or answers.ndim < 1 or len(samples) != len(answers) or not len(samples):
            shapes = f"{one} of shape {samples.shape} and {of} of shape {answers.shape}"
            raise DataError(f"{what} holds {shapes}: {one} is (samples, ...), with a label for each in {of}")
    if "x_test" in arrays and arrays["x_test"].shape[1:] != arrays["x"].shape[1:]:
        raise DataError(f"{what}: samples of x have shape {arrays['x'].shape[1:]}, and of x_test {arrays['x_test'].shape[1:]}")
    try:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    except TypeError as error:
        raise DataError(f"{what} holds arrays of no numbers: {shortened(str(error))}") from None
    x = torch.cat([tensors[name] for name in ("x", "x_test") if name in tensors])
    test = tensors.get("y_test")
    if tensors["y"].is_floating_point():
        return replace(_values(tensors["y"], test, x, given), labels=not unlabelled)
    labels = tensors["y"].long()
    if labels.ndim != 1 or (test is not None and (test.ndim != 1 or test.is_floating_point())):
        raise InputError(
            f"{what}: whole numbers in y are one class a sample, given shape {tuple(labels.shape)}: use floats for values"
        )
    train, tested, classes = own_data.parts(labels, None if test is None else test.long(), given.held, what)
    return Arrays(x, labels if test is None else torch.cat([labels, test.long()]), train, tested, classes)


def _values(y: Tensor, test: Tensor | None, x: Tensor, given: Given) -> Arrays:
    if test is not None:
        count = len(y)
        return Arrays(x, torch.cat([y, test.to(y.dtype)]).float(), torch.arange(count), torch.arange(count, len(x)), 0)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    held = max(1, int(given.held * len(y)))
    return Arrays(x, y.float(), order[held:], order[:held], 0)
