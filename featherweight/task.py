"""The user's problem: an example, how the network's outputs are read, and four callables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from featherweight.errors import FeatherweightError, InputError, shortened
from featherweight.network.calls import Example, Inputs

Batch = Any


class Batches(Protocol):
    """A sized iterable of batches, such as a `DataLoader`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


def itself(output: Any) -> Any:
    """The output as it is: `Task(logits=itself)` of a network whose one output is the logits."""
    return output


@dataclass(frozen=True)
class Task:
    """The user's problem: an example input, four callables, and which output holds the logits.

    example    the network's inputs, batch size 1: a tuple by position, a dict by name, or `calls.Inputs` for both. None, numbers
               and nests of tensors may be among them
    batches    epoch -> the batches of that epoch; order and augmentation are functions of the epoch, so a run can resume
    loss       (network, batch) -> scalar tensor, differentiable. It calls the network as it likes, positionally or by keyword
    score      network -> float on held-out data, higher is better (the built-in tasks: accuracy in percent)
    optimizer  parameters -> a fresh optimizer at its base learning rate; called anew in each phase of a stage, and once to be
               looked at before. Where weights have become codes it gets what of them is trained, such as the values left
    logits     output of the network -> its logits, such as `lambda output: output["logits"]` or `itself`; in training mode and in
               eval mode. None: no output is logits, as in regression
    classes    the dimension of the classes in them: 1 for (batch, classes, ...), -1 for (batch, time, classes)
    """

    example: Example | Inputs
    batches: Callable[[int], Batches]
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module], float]
    optimizer: Callable[[Iterable[Parameter]], Optimizer]
    logits: Callable[[Any], Tensor] | None = None
    classes: int = 1


def loss_in_eval(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    """The task's loss of a network in eval mode. Raises InputError where it takes only what training mode gives."""
    try:
        return task.loss(model, batch)
    except FeatherweightError:
        raise
    except Exception as error:  # whatever the user's code raises
        raise InputError(
            f"the task's loss fails in eval mode while the network is watched: {type(error).__name__}: "
            f"{shortened(str(error).strip())}. Let it take what the network gives there too; where units are to be ranked, l1 "
            "and l2 look at weights alone"
        ) from error


@dataclass(frozen=True)
class Steps:
    """`count` batches of an iterable that does not know its length, such as a DataLoader over a stream."""

    batches: Iterable[Batch]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(iter(self.batches), self.count)


def steps_of(task: Task, epoch: int) -> int:
    """Batches in an epoch. Raises InputError where their number is not known, or 0."""
    batches = task.batches(epoch)
    try:
        count = len(batches)
    except TypeError:
        raise InputError(
            f"batches({epoch}) of the task gives a {type(batches).__name__} without a length, and rates follow the share of the "
            "steps that is done. Give a list or a DataLoader over a sized data set, or say how many batches an epoch is: "
            "batches=lambda epoch: featherweight.Steps(loader, 500)"
        ) from None
    if count == 0:
        raise InputError(
            f"batches({epoch}) of the task holds no batch: there is nothing to train on. Is the data set empty, or smaller than "
            "one batch with drop_last=True?"
        )
    return count
