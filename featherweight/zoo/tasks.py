"""The built-in tasks: digits, MNIST and CIFAR-10 as `Task` values, for the command line, the benchmarks and the tests.

`device`: where the batches and the example go. The score follows the network.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, Adam, Optimizer

from featherweight.errors import InputError
from featherweight.network.devices import CPU, chosen, device_of, multiplies_bfloat16
from featherweight.network.evaluating import evaluating
from featherweight.task import Task, itself
from featherweight.zoo import datasets
from featherweight.zoo.datasets import Dataset

LabelledImages = tuple[Tensor, Tensor]  # float32 (batch, channels, height, width), int64 (batch,)

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_DEVIATION = (0.2470, 0.2435, 0.2616)


# --- batches -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochBatches:
    """The batches of one epoch: sized, iterable any number of times, and indexable, so a resumed run can skip what it has seen.

    Batch i depends only on the data, the order, the seed, the epoch and i, and not on whether the batches before it were made.
    """

    inputs: Tensor  # (count, channels, height, width)
    labels: Tensor  # (count,)
    order: Tensor  # permutation of 0 .. count - 1
    batch_size: int
    seed: int
    epoch: int
    prepare: Callable[[Tensor, Generator], Tensor]  # raw inputs of a batch -> what the network gets
    device: torch.device = CPU  # where a batch goes; it is drawn and prepared on the CPU, so that it is the same on all of them

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __getitem__(self, index: int) -> LabelledImages:
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)} batches: give 0 to {len(self) - 1}")
        picked = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.prepare(self.inputs[picked], _generator(self.seed, self.epoch, "batch", index))
        return _sent(images, self.device), _sent(self.labels[picked], self.device)

    def __iter__(self) -> Iterator[LabelledImages]:
        return (self[index] for index in range(len(self)))


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`, from pinned memory where it is a GPU's, so that the copy does not wait for the step before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _generator(seed: int, epoch: int, use: str, index: int) -> Generator:
    # PyTorch's CPU generator keeps 32 bits of a seed, so the numbers are mixed into 32 bits instead of being set side by side.
    digest = hashlib.blake2b(f"{seed} {epoch} {use} {index}".encode(), digest_size=4).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big"))


def _task(
    read: Callable[[], Dataset],
    held_out: int,
    pixels: Tensor,
    seed: int,
    batch_size: int,
    train_view: Callable[[Tensor, Generator], Tensor],
    test_view: Callable[[Tensor], Tensor],
    loss: Callable[[nn.Module, LabelledImages], Tensor],
    optimizer: Callable[[Iterable[Parameter]], Optimizer],
    device: torch.device | str,
) -> Task:
    """`read`: the data set, called with the first batch or score, since what asks for structure needs no data. `pixels`: of the
    shape and type of one of its images, (1, channels, height, width)."""
    place = chosen(device)

    @functools.cache
    def dataset() -> Dataset:
        return datasets.held_out(read(), held_out) if held_out else read()

    def batches(epoch: int) -> EpochBatches:
        held = dataset()
        order = torch.randperm(len(held.train_labels), generator=_generator(seed, epoch, "order", 0))
        return EpochBatches(held.train_inputs, held.train_labels, order, batch_size, seed, epoch, train_view, place)

    def score(network: nn.Module) -> float:
        return accuracy(network, dataset().test_inputs, dataset().test_labels, test_view)

    return Task((test_view(pixels).to(place),), batches, loss, score, optimizer, logits=itself)


def _pixels(channels: int, side: int) -> Tensor:
    """A random image, uint8, and not zeros: every path through a network is to carry numbers."""
    return torch.randint(0, 256, (1, channels, side, side), dtype=torch.uint8, generator=_generator(0, 0, "example", 0))


# --- losses and scores ---------------------------------------------------------------------------------------------------


def cross_entropy(network: nn.Module, batch: LabelledImages) -> Tensor:
    """Mean cross-entropy of the batch in nats, in the network's own precision."""
    images, labels = batch
    return F.cross_entropy(logits_of(network(images), len(labels)), labels)


def cross_entropy_autocast(network: nn.Module, batch: LabelledImages) -> Tensor:
    """Mean cross-entropy of the batch in nats; under bfloat16 autocast where that is fast, the loss itself in float32."""
    images, labels = batch
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=multiplies_bfloat16(images.device)):
        logits = logits_of(network(images), len(labels))
    return F.cross_entropy(logits.float(), labels)


def logits_of(output: Any, count: int) -> Tensor:
    """The output of a network for `count` images, which has to be logits (count, classes). Raises InputError for any other."""
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == count and output.shape[1] >= datasets.CLASSES:
        return output
    given = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise InputError(
        f"the built-in data needs one tensor of class logits (images, {datasets.CLASSES}), and {count} images give "
        f"{given}: give the --data that this network was made for"
    )


def accuracy(
    network: nn.Module, inputs: Tensor, labels: Tensor, view: Callable[[Tensor], Tensor], batch_size: int = 250
) -> float:
    """Percent of the inputs whose largest logit is at their label; eval mode, float32, without autocast, where the network is."""
    correct, device = 0, device_of(network)
    with evaluating(network), torch.inference_mode(), torch.autocast(device.type, enabled=False):
        for images, answers in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            logits = logits_of(network(view(images).to(device)), len(answers))
            correct += int((logits.argmax(dim=1).cpu() == answers).sum())
    return 100.0 * correct / len(labels)


def _adam(parameters: Iterable[Parameter]) -> Optimizer:
    return Adam(parameters, lr=1e-3)


def _nesterov(parameters: Iterable[Parameter]) -> Optimizer:
    # Weight decay shrinks weights; on biases and batch-norm affines (one dimension) it only costs accuracy.
    everything = list(parameters)
    groups = [
        {"params": [parameter for parameter in everything if parameter.ndim > 1], "weight_decay": 5e-4},
        {"params": [parameter for parameter in everything if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return SGD([group for group in groups if group["params"]], lr=0.1, momentum=0.9, nesterov=True)


# --- the tasks -----------------------------------------------------------------------------------------------------------


def digits(seed: int = 0, held_out: int = 0, *, device: torch.device | str = "cpu") -> Task:
    """scikit-learn's digits at 28x28: Adam at 1e-3, batch 64, no augmentation, float32. An epoch of LeNet-5 takes about a second.

    With held_out > 0 the score is on that many training images, which are then not trained on, and the test set is not used.
    The first batch or score raises DataMissing where scikit-learn is not installed.
    """
    pixels = digits_in_unit_range(_pixels(1, 28))
    return _task(datasets.digits, held_out, pixels, seed, 64, _as_is, _unchanged, cross_entropy, _adam, device)


def _as_is(images: Tensor, generator: Generator) -> Tensor:
    return images


def _unchanged(images: Tensor) -> Tensor:
    return images


def mnist(
    seed: int = 0, held_out: int = 0, augment: bool = True, batch_size: int = 128, *, device: torch.device | str = "cpu"
) -> Task:
    """MNIST, pixels in 0..1: Adam at 1e-3, small affine changes unless `augment` is False, bfloat16 autocast
    where the processor multiplies bfloat16.

    With held_out > 0 the score is on that many training images, which are then not trained on, and the test set is not used.
    The first batch or score reads the files and raises DataMissing or DataDamaged.
    """
    return _task(
        datasets.mnist,
        held_out,
        _pixels(1, 28),
        seed,
        batch_size,
        _moved_digits if augment else _plain_digits,
        digits_in_unit_range,
        cross_entropy_autocast,
        _adam,
        device,
    )


def digits_in_unit_range(images: Tensor) -> Tensor:
    return images.float().div(255)


def _plain_digits(images: Tensor, generator: Generator) -> Tensor:
    return digits_in_unit_range(images)


def _moved_digits(images: Tensor, generator: Generator) -> Tensor:
    return datasets.affine(digits_in_unit_range(images), generator, degrees=10, scale=0.1, shear=10, translate=2)


def cifar10(seed: int = 0, held_out: int = 0, augment: bool = True, *, device: torch.device | str = "cpu") -> Task:
    """CIFAR-10, normalised: SGD with Nesterov momentum 0.9, rate 0.1, weight decay 5e-4 on weights, batch 128, bfloat16
    autocast where the processor multiplies bfloat16.

    Training images are cropped with padding 4 and flipped unless `augment` is False.
    The rate is the base of a schedule, not one to stay at.
    With held_out > 0 the score is on that many training images, which are then not trained on, and the test set is not used.
    The first batch or score reads the files and raises DataMissing or DataDamaged.
    """
    return _task(
        datasets.cifar10,
        held_out,
        _pixels(3, 32),
        seed,
        128,
        _moved_photographs if augment else _plain_photographs,
        normalised_photographs,
        cross_entropy_autocast,
        _nesterov,
        device,
    )


def normalised_photographs(images: Tensor) -> Tensor:
    # The layout that oneDNN's convolutions want: where the processor multiplies bfloat16, that is two to three times as fast with
    # it as float32, and float32 itself is faster with it than without.
    mean = 255 * torch.tensor(CIFAR10_MEAN).reshape(3, 1, 1)
    deviation = 255 * torch.tensor(CIFAR10_DEVIATION).reshape(3, 1, 1)
    return images.float().sub(mean).div(deviation).contiguous(memory_format=torch.channels_last)


def _plain_photographs(images: Tensor, generator: Generator) -> Tensor:
    return normalised_photographs(images)


def _moved_photographs(images: Tensor, generator: Generator) -> Tensor:
    return normalised_photographs(datasets.crop_and_flip(images, generator))


class NamedTask(Protocol):
    """What the functions of this file have in common."""

    def __call__(self, seed: int = 0, held_out: int = 0, *, device: torch.device | str = "cpu") -> Task: ...


TASKS: dict[str, NamedTask] = {"digits": digits, "mnist": mnist, "cifar10": cifar10}
BATCHES = {"digits": 23, "mnist": 469, "cifar10": 391}  # of an epoch: a plan is made without the data
