"""The examples that two networks are compared on, of sequences, images or anything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.task import Task
from featherweight.zoo import datasets, dna, tasks
from featherweight.zoo.sequences import Part, Sequences

IMAGES = {  # data set -> its classes, and what makes a network's input of its pixels
    "digits": (tuple("0123456789"), tasks.digits_in_unit_range),
    "mnist": (tuple("0123456789"), tasks.digits_in_unit_range),
    "cifar10": (
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        tasks.normalised_photographs,
    ),
}


@dataclass(frozen=True)
class Examples:
    """What is looked at.

    inputs     what the network gets, the batch first; labels: int64 (count,)
    classes    their names
    names      of the examples
    how        in words, where they come from
    codes      of sequences: numbers (count, length)
    planted    of sequences with a planted site: from and to, (count, 2), -1 where there is none
    pictures   of images: what is shown, uint8 (count, 1 or 3, height, width)
    choosing   inputs and labels of other examples, on which thresholds are chosen
    """

    kind: Literal["sequences", "images", "other"]
    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]
    how: str
    codes: Tensor | None = None
    planted: Tensor | None = None
    pictures: Tensor | None = None
    choosing: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)


def of_sequences(held: Sequences, count: int | None = None) -> Examples:
    """The test part of DNA, at most `count` of it, as many of each class as it has; thresholds from the part for choosing."""
    part, other = held.test.window(held.window), held.validation.window(held.window)
    if count is not None and count < len(part):
        part = _shortened(part, count)
    return Examples(
        "sequences",
        dna.one_hot(part.codes),
        part.labels,
        ("background", "site"),
        part.names,
        f"{held.how}; {len(part)} sequences of the test part, its central {held.window} bases",
        codes=part.codes,
        planted=part.planted,
        choosing=(dna.one_hot(other.codes), other.labels),
    )


def _shortened(part: Part, count: int) -> Part:
    """The first of each class, in the shares of the whole."""
    share = count / len(part)
    kept = torch.cat([torch.nonzero(part.labels == label).flatten()[: max(1, round(share * int((part.labels == label).sum())))]
                      for label in (1, 0)])  # fmt: skip
    places = None if part.planted is None else part.planted[kept]
    return Part(tuple(part.names[number] for number in kept.tolist()), part.codes[kept], part.labels[kept], places)


def of_images(name: str, count: int | None = None) -> Examples:
    """The first `count` images of the test part of a built-in data set; thresholds are not chosen, the largest logit answers."""
    classes, prepared = IMAGES[name]
    held: datasets.Dataset = getattr(datasets, name)()
    pixels, labels = held.test_inputs[:count], held.test_labels[:count]
    shown = pixels if pixels.dtype == torch.uint8 else (255 * pixels).round().to(torch.uint8)
    return Examples(
        "images",
        prepared(pixels) if pixels.dtype == torch.uint8 else pixels,
        labels,
        classes,
        tuple(f"test image {number + 1}" for number in range(len(labels))),
        f"{name}: the first {len(labels):,} images of the test part",
        pictures=shown,
    )


def of_task(task: Task, name: str, count: int | None = None) -> Examples:
    """The first `count` of the task's own training batches of (inputs, labels): a Task holds no others. Raises InputError."""
    wanted, inputs, labels = count or 256, [], []
    for batch in task.batches(0):
        pair = batch if isinstance(batch, tuple | list) else ()
        if (
            len(pair) != 2
            or not all(isinstance(part, Tensor) for part in pair)
            or pair[1].ndim != 1
            or len(pair[0]) != len(pair[1])
        ):
            raise InputError(
                f"{name}: evidence is looked at in batches of (inputs, labels), tensors with the examples first and one label "
                "each; this task's batches are other. Make a Task for it whose batches are pairs"
            )
        inputs.append(pair[0].cpu())
        labels.append(pair[1].cpu().long())
        if sum(map(len, labels)) >= wanted:
            break
    if not labels:
        raise InputError(f"{name}: batches(0) holds no batch")
    given, answers = torch.cat(inputs)[:wanted], torch.cat(labels)[:wanted]
    kind: Literal["images", "other"] = "images" if given.ndim == 4 else "other"
    return Examples(
        kind,
        given,
        answers,
        tuple(str(number) for number in range(int(answers.max()) + 1)),
        tuple(f"example {number + 1}" for number in range(len(answers))),
        f"{name}: the first {len(answers):,} examples of the TRAINING batches of epoch 0, since a Task holds no others",
        pictures=_as_pictures(given) if kind == "images" else None,
    )


def _as_pictures(inputs: Tensor) -> Tensor:
    """Whatever numbers, spread over 0 to 255, each image by itself; one or three channels."""
    shown = inputs[:, :3] if inputs.shape[1] >= 3 else inputs[:, :1]
    low, high = shown.amin(dim=(1, 2, 3), keepdim=True), shown.amax(dim=(1, 2, 3), keepdim=True)
    return (255 * (shown - low) / (high - low).clamp(min=1e-12)).round().to(torch.uint8)
