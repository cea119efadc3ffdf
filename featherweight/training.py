"""Training: the user's problem as five values (`Task`) and the one loop that every stage runs (`fit`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from featherweight import generators
from featherweight.errors import InputError, TrainingError
from featherweight.recipe import Distillation, Training

Batch = Any


class Batches(Protocol):
    """A sized iterable of batches, such as a `DataLoader`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Any: ...


@dataclass(frozen=True)
class Task:
    """The user's problem: an example input and four callables.

    example    the positional inputs of the network, batch size 1
    batches    epoch -> the batches of that epoch; order and augmentation are functions of the epoch, so a run can resume
    loss       (network, batch) -> scalar tensor, differentiable
    score      network -> float on held-out data, higher is better (the built-in tasks: accuracy in percent)
    optimizer  parameters -> a fresh optimizer at its base learning rate
    """

    example: tuple[Tensor, ...]
    batches: Callable[[int], Batches]
    loss: Callable[[nn.Module, Batch], Tensor]
    score: Callable[[nn.Module], float]
    optimizer: Callable[[Iterable[Parameter]], Optimizer]


@dataclass(frozen=True)
class Step:
    """What `fit` tells after each optimizer step. `loss` is that batch's training loss, distillation included."""

    done: int
    total: int
    loss: float
    losses: Sequence[float]  # of this epoch so far
    began: generators.States  # where the generators stood when the epoch's batches were made


def fit(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    training: Training,
    *,
    first_epoch: int = 0,
    start: int = 0,
    earlier: Sequence[float] = (),
    random: generators.States | None = None,
    began: generators.States | None = None,
    teacher: nn.Module | None = None,
    distill: Distillation | None = None,
    after_step: Callable[[Step], None] = lambda step: None,
) -> float:
    """Train `model` in place for `training.epochs` of `task.batches(first_epoch + i)`; the mean loss of the last epoch, infinite
    where there is none.

    `start`: steps already done, for a resumed run; the same batches are passed over and the same rates follow. `earlier`,
    `random` and `began`: the losses of that epoch so far, and the states of the global generators then and when the epoch began.
    With `distill`, the outputs of `teacher` on the same inputs are matched. Raises TrainingError at a loss that is not finite.
    """
    per_epoch = len(task.batches(first_epoch))
    total = training.epochs * per_epoch
    base = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    model.train()
    losses = list(earlier)
    if random is not None:
        generators.restore(random)
    for epoch in range(start // per_epoch, training.epochs):
        passed = start - epoch * per_epoch if epoch == start // per_epoch else 0
        losses = losses if passed else []
        if passed and began is not None:
            generators.restore(began)  # so that the batches are the same where making them draws, as shuffling does
        began = generators.states()
        batches = iter(task.batches(first_epoch + epoch))
        for _ in range(passed):
            next(batches)
        if passed and random is not None:
            generators.restore(random)  # making the batches again has drawn from the generator, as a DataLoader does
        for index, batch in enumerate(batches):
            done = epoch * per_epoch + passed + index
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * training.factor(done / total)
            optimizer.zero_grad()
            loss = (
                task.loss(model, batch) if distill is None or teacher is None else distilled(task, model, batch, teacher, distill)
            )
            loss.backward()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {done + 1} of {total}: the rate is too high for this network, or a batch holds "
                    f"NaN. Lower the stage's rate ({training.rate} now) or look at the data; earlier checkpoints are intact"
                )
            optimizer.step()
            losses.append(value)
            after_step(Step(done + 1, total, value, losses, began))
    return sum(losses) / len(losses) if losses else math.inf


def distilled(task: Task, model: nn.Module, batch: Batch, teacher: nn.Module, distill: Distillation) -> Tensor:
    """The task's loss of a batch mixed with the distance from what `teacher` (in eval mode) puts out, both one tensor of logits
    (batch, classes). `model`'s are read by a hook, so that any loss function serves. Raises InputError for other outputs."""
    matched: list[Tensor] = []

    def match(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise InputError(
                f"distillation needs a network whose output is one tensor of logits (batch, classes), it gave {type(output)}"
            )
        with torch.no_grad():
            expected = F.log_softmax(teacher(*inputs).float() / distill.temperature, dim=1)
        logits = F.log_softmax(output.float() / distill.temperature, dim=1)
        divergence = F.kl_div(logits, expected, reduction="none", log_target=True).sum(1).mean()
        matched.append(distill.temperature**2 * divergence)

    handle = model.register_forward_hook(match)
    try:
        loss = task.loss(model, batch)
    finally:
        handle.remove()
    return (1 - distill.weight) * loss + distill.weight * torch.stack(matched).mean()


@torch.no_grad()
def recalibrate(model: nn.Module, task: Task, epoch: int, batches: int = 50) -> None:
    """Recompute the running statistics of batch norms, which belong to the weights before projection."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.train()
    for batch in itertools.islice(iter(task.batches(epoch)), batches):
        task.loss(model, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def squared_gradients(model: nn.Module, task: Task, epoch: int, batches: int = 50) -> dict[str, Tensor]:
    """Parameter name -> mean over `batches` of the squared batch gradient: the diagonal Fisher information up to scale."""
    model.train()
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    count = 0
    for batch in itertools.islice(iter(task.batches(epoch)), batches):
        model.zero_grad()
        task.loss(model, batch).backward()
        count += 1
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                squares[name].addcmul_(parameter.grad, parameter.grad)
    model.zero_grad()
    return {name: square / max(count, 1) for name, square in squares.items()}
