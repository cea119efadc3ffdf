"""Training: the one loop that every stage runs (`fit`), and the passes over training data that are no training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from featherweight.errors import TrainingError
from featherweight.network import evaluating, generators
from featherweight.network.evaluating import buffers_kept
from featherweight.task import Batch, Task, steps_of
from featherweight.training.blocks import Left
from featherweight.training.distillation import distilled
from featherweight.training.engine import ALONE, Engine
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.parametrized import coded
from featherweight.weights.sharded import is_sharded

LOOK_EVERY = 16  # steps between looks at the losses on an accelerator, which each look makes wait


class Losses(Sequence[float]):
    """The training losses of an epoch so far. They stay on the device until one is read, and are then checked to be finite.

    Reading raises TrainingError, naming the first step whose loss is not.
    """

    def __init__(self, training: Training, total: int, first: int, earlier: Iterable[float] = ()) -> None:
        self._training, self._total, self._first = training, total, first  # `first`: steps done when the epoch began
        self._read = list(earlier)
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """One more. On the CPU it is read at once, which costs nothing there; on an accelerator after a few others."""
        self._waiting.append(loss.detach())
        if loss.device.type == "cpu" or len(self._waiting) >= LOOK_EVERY:
            self.read()

    def read(self) -> list[float]:
        """All of them."""
        waiting, self._waiting = self._waiting, []
        for loss in waiting:
            value = float(loss)
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} at step {self._first + len(self._read) + 1} of {self._total}: the rate is too high for "
                    f"this network, or a batch holds NaN. Lower the stage's rate ({self._training.rate} now) or look at the "
                    "data; earlier checkpoints are intact"
                )
            self._read.append(value)
        return self._read

    def __len__(self) -> int:
        return len(self._read) + len(self._waiting)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        return self.read()[index]


@dataclass(frozen=True)
class Step:
    """What `fit` tells after each optimizer step. `losses`: the training losses of this epoch so far, distillation included."""

    done: int
    total: int
    losses: Sequence[float]  # of this epoch so far
    began: generators.States  # where the generators stood when the epoch's batches were made

    @property
    def loss(self) -> float:
        """That batch's. On an accelerator, reading it waits for the step to end."""
        return self.losses[-1]


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
    left: Left | None = None,
    after_step: Callable[[Step], None] = lambda step: None,
    engine: Engine = ALONE,
    also: Sequence[nn.Parameter] = (),
) -> float:
    """Train `model` in place for `training.epochs` of `task.batches(first_epoch + i)`; the mean loss of the last epoch, infinite
    where there is none.

    Modules that are kept in eval mode (see `evaluating.kept_in_eval`) stay in it; every module has its own mode again at the end.
    `start`: steps already done, for a resumed run; the same batches are passed over and the same rates follow. `earlier`,
    `random` and `began`: the losses of that epoch so far, and the states of the global generators then and when the epoch began.
    With `distill`, the outputs of `teacher` on the same inputs are matched; `left`: what `model` still has of its tensors.
    `engine`: the processes that share each batch, and `also` what they train beside what the optimizer holds. Raises
    TrainingError at a loss that is not finite, a few steps later on an accelerator, and where an epoch has other batches than
    its length says.
    """
    if not training.epochs:
        return math.inf
    per_epoch = steps_of(task, first_epoch)
    total = training.epochs * per_epoch
    base = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
    trained = [*(parameter for group in optimizer.param_groups for parameter in group["params"]), *also]
    losses = Losses(training, total, 0, earlier)  # of a run that was interrupted after its last step
    with evaluating.training(model):
        if random is not None:
            generators.restore(random)
        for epoch in range(start // per_epoch, training.epochs):
            passed = start - epoch * per_epoch if epoch == start // per_epoch else 0
            losses = Losses(training, total, epoch * per_epoch, earlier if passed else ())
            if passed and began is not None:
                generators.restore(began)  # so that the batches are the same where making them draws, as shuffling does
            began = generators.states()
            batches = iter(task.batches(first_epoch + epoch))
            for _ in range(passed):
                next(batches, None)
            if passed and random is not None:
                generators.restore(random)  # making the batches again has drawn from the generator, as a DataLoader does
            for batch in _counted(batches, passed, per_epoch, first_epoch + epoch):
                done = epoch * per_epoch + len(losses)
                for group, rate in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = rate * training.factor(done / total)
                optimizer.zero_grad()
                part, share = engine.share(batch)
                with engine.computing(done):
                    if distill is None or teacher is None:
                        loss = task.loss(model, part)
                    else:
                        inner = 1 - done / total  # layers show the way; at the end the outputs alone count
                        loss = distilled(task, model, part, teacher, distill, left, inner)
                engine.backward(loss, share)
                losses.add(engine.reduce(trained, loss, share))
                optimizer.step()
                after_step(Step(done + 1, total, losses, began))
            losses.read()
    return sum(losses) / len(losses) if losses else math.inf


def _counted(batches: Iterator[Batch], passed: int, count: int, epoch: int) -> Iterator[Batch]:
    """The batches after the first `passed` of an epoch that has to have `count`."""
    given = passed
    for batch in batches:
        given += 1
        if given > count:
            break
        yield batch
    if given != count:
        amount = "more" if given > count else f"only {given}"
        raise TrainingError(
            f"the task's `train` gives {amount} in epoch {epoch} where the run counts on {count} batches, as in the first: "
            "give as many in every epoch, such as featherweight.Steps(loader, count)"
        )


def recalibrate(model: nn.Module, task: Task, epoch: int, batches: int = 50) -> None:
    """Recompute the running statistics of batch norms, which belong to the weights before projection.

    Of the norms that train (see `evaluating.kept_in_eval`) and that the passes reach. All else is what it was on exit: the
    statistics of other norms, other buffers, gradients, momenta and modes; after an error the statistics of all norms, too.
    """
    with rehearsing(model) as refilled:
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and _can_refill(module)]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
            for batch in itertools.islice(iter(task.batches(epoch)), batches):
                task.loss(model, batch)  # with gradients: a loss may differentiate inside
            refilled.update(norm for norm in norms if norm.num_batches_tracked)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _can_refill(norm: _BatchNorm) -> bool:
    """Does training move its statistics? Without the counter there is no cumulative average."""
    return norm.training and norm.track_running_stats and norm.running_mean is not None and norm.num_batches_tracked is not None


def squared_gradients(model: nn.Module, task: Task, epoch: int, batches: int = 50, engine: Engine = ALONE) -> dict[str, Tensor]:
    """Parameter name -> mean over `batches` of the squared batch gradient: the diagonal Fisher information up to scale.

    The network is what it was on exit, buffers and gradients included. Batches are dealt out to the processes of `engine`, whose
    sums are added up; of a network in shards every process takes its share of each, and has its part of what is given.
    """
    squares = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    count, sharded = 0, any(map(is_sharded, squares.values()))
    with rehearsing(model), engine.together(model) if sharded else nullcontext():
        for batch in itertools.islice(iter(task.batches(epoch)), batches):
            count += 1
            if not sharded and not engine.mine(count - 1):
                continue
            model.zero_grad()
            part, share = engine.share(batch) if sharded else (batch, 1.0)
            engine.backward(task.loss(model, part), share)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    squares[name].addcmul_(parameter.grad, parameter.grad)
    if not sharded:
        engine.total(list(squares.values()))
    return {name: square / max(count, 1) for name, square in squares.items()}


@contextmanager
def rehearsing(model: nn.Module) -> Iterator[set[nn.Module]]:
    """Inside, the network runs as in training, and parameters start without gradients; on exit modes, gradients and buffers are
    what they were. Modules put into the set that is given keep what has become of their buffers, unless an error ends the block.
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    codes = {module for viewed in coded(model).values() for module in viewed.modules()}  # no pass changes their large buffers
    with evaluating.training(model), buffers_kept(model, codes) as spared:
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield spared
        finally:
            for parameter, gradient in gradients:
                fits = gradient is None or gradient.shape == parameter.shape  # not of before the parameter was coded
                parameter.grad = gradient if fits else None
