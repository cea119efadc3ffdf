"""Distillation: what is added to the task's loss for outputs that differ from the dense network's."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import InputError
from featherweight.network.calls import changed, tensors_of
from featherweight.network.evaluating import evaluating
from featherweight.task import Batch, Task, loss_in_eval
from featherweight.training import blocks
from featherweight.training.schedule import Distillation

SAID = "say so in the task: Task(..., logits=lambda output: ..., classes=1), the output's logits and the dimension of the classes"
NOT_CALLED = "distillation reads the outputs of the network when the task's loss calls it, and it never does: give distill=0"
FITTED = 0.25  # share by which outputs must fit their own samples better than others' for a network to count as trained
LOOKS = 8  # batches on which that is seen


def distilled(
    task: Task,
    model: nn.Module,
    batch: Batch,
    teacher: nn.Module,
    distill: Distillation,
    left: blocks.Left | None = None,
    inner: float = 1.0,
) -> Tensor:
    """The task's loss of a batch, and the distance of the outputs from those of `teacher` (in eval mode) on the same inputs.

    `model`'s outputs are read by a hook, so any loss function serves, however it calls the network. Where it does several times,
    all calls count alike. For `distance="blocks"`: `left`, which entries of the teacher's tensors `model` has still, and `inner`,
    what the distance of a layer weighs beside that of the outputs. Raises InputError for outputs that cannot be matched.
    """
    distances: list[Tensor] = []
    layers: list[Tensor] = []

    def match(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        with torch.no_grad(), theirs.listening():
            expected = teacher(*args, **kwargs)
        distances.append(_distance(task, output, expected, distill))
        if distill.distance == "blocks":
            layers.extend(blocks.distances(ours, theirs, left or {}))

    ours, theirs = (blocks.Heard(network if distill.distance == "blocks" else None) for network in (model, teacher))
    handle = model.register_forward_hook(match, with_kwargs=True)
    try:
        with ours.listening():
            loss = task.loss(model, batch)
    finally:
        handle.remove()
    if not distances:
        raise InputError(NOT_CALLED)
    apart = torch.stack([*distances, *(inner * layer for layer in layers)]).sum() / (len(distances) + inner * len(layers))
    return distill.loss * loss + distill.weight * apart


def check(distill: Distillation, task: Task, model: nn.Module, batch: Batch) -> None:
    """Raises InputError where outputs of `model`, as it is and in eval mode, cannot be matched as `distill` asks."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
    )
    try:
        task.loss(model, batch)
    finally:
        handle.remove()
    if not calls:
        raise InputError(NOT_CALLED)
    with evaluating(model), torch.no_grad():
        for args, kwargs, output in calls:
            _distance(task, output, model(*args, **kwargs), distill)


def _distance(task: Task, output: Any, expected: Any, distill: Distillation) -> Tensor:
    """Of one call's outputs from the teacher's."""
    if distill.distance == "kl":
        dim = task.classes
        ours, theirs = logits_of(task, output), logits_of(task, expected)
        goal = F.log_softmax(theirs.float() / distill.temperature, dim=dim)
        found = F.log_softmax(ours.float() / distill.temperature, dim=dim)
        divergence = F.kl_div(found, goal.detach(), reduction="none", log_target=True).sum(dim).mean()
        return distill.temperature**2 * divergence
    pairs = list(zip(_values(task, output), _values(task, expected), strict=False))
    shapes = [[tuple(value.shape) for value in _values(task, given)] for given in (output, expected)]
    if not pairs or shapes[0] != shapes[1]:
        raise InputError(
            f"distillation by {distill.distance} compares floating outputs, of the same shapes in training and in eval mode; "
            f"given {shapes[0]} and {shapes[1]}. Name the one to compare: Task(..., logits=lambda output: ...); or give distill=0"
        )
    if distill.distance == "blocks":
        return torch.stack([blocks.apart(one, other) for one, other in pairs]).mean()
    return torch.stack([F.mse_loss(one.float(), other.float()) for one, other in pairs]).mean()


def _values(task: Task, output: Any) -> list[Tensor]:
    found = tensors_of(output if task.logits is None else task.logits(output))
    return [tensor for tensor in found if tensor.is_floating_point()]


def logits_of(task: Task, output: Any) -> Tensor:
    """The logits in an output, as the task says. Raises InputError where there are none."""
    if task.logits is None:
        raise InputError(
            f"distillation matches logits, and the task does not say which output is logits: {SAID}. Outputs that are not logits "
            "are matched by Distillation(distance='mse'), or not with distill=0"
        )
    try:
        logits = task.logits(output)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"the task's `logits` fails on what the network puts out, {_described(output)}: {type(error).__name__}: {error}. It "
            "gets the output of training mode and of eval mode, which may differ"
        ) from None
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise InputError(f"the task's `logits` must give a floating tensor, it gave {_described(logits)}: {SAID}")
    if not -logits.ndim <= task.classes < logits.ndim or logits.shape[task.classes] < 2:
        raise InputError(
            f"the task's logits of shape {tuple(logits.shape)} hold no two classes along dimension {task.classes}: {SAID}. A "
            "single output has no softmax: Distillation(distance='mse') matches it, or distill=0"
        )
    return logits


def one_tensor(task: Task, output: Any, why: str) -> Tensor:
    """The output where it is a tensor, else its logits, as the task says. Raises InputError, which begins with `why`."""
    if isinstance(output, Tensor):
        return output
    if task.logits is None:
        raise InputError(
            f"{why}, and the network gives a {type(output).__name__}: say which part of it is the logits, "
            "Task(..., logits=lambda output: ...)"
        )
    return logits_of(task, output)


def settled(asked: Distillation | None, task: Task, teacher: nn.Module, epoch: int) -> tuple[Distillation | None, str]:
    """What is distilled in a stage, and a sentence on why where that was left open (`Distillation.auto`), else "".

    Left open, it is on where the task says which output is logits, these are of two or more classes, and `teacher` is trained:
    its outputs fit their own samples better than those of other samples. Nothing is drawn from the global generator.
    """
    if asked is None or not asked.auto:
        return asked, ""
    if task.logits is None:
        return None, "no distillation: the task does not say which output is logits (Task.logits)"
    seen: list[str] = []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        try:
            logits_of(task, output)
        except InputError as error:
            seen.append(str(error))

    handle = teacher.register_forward_hook(look)
    try:
        own, others = fit_of(task, teacher, epoch)
    except Exception as error:  # noqa: BLE001 - whatever the user's loss raises
        seen.append(f"the task's loss fails in eval mode: {type(error).__name__}: {error}")
    finally:
        handle.remove()
    if seen:
        return None, f"no distillation: {seen[0]}"
    if others - own <= FITTED * max(abs(own), abs(others)):
        return None, (
            f"no distillation: the dense network is not trained, its loss is {own:.3g} and with outputs exchanged between "
            f"samples {others:.3g}"
        )
    return asked, f"distilled from the dense network, added to the loss with weight {asked.weight:g}"


def promised(asked: Distillation | None, task: Task) -> str:
    """What can be said of a stage's distillation before it runs; "" where nothing is asked."""
    if asked is None:
        return ""
    if asked.auto:
        return settled(asked, task, nn.Identity(), 0)[1] if task.logits is None else "if the dense network is trained by then"
    return f"{asked.weight:g} times the {asked.distance} from the dense network, {asked.loss:g} times the loss"


def fit_of(task: Task, model: nn.Module, epoch: int) -> tuple[float, float]:
    """Mean loss of a few batches in eval mode, and what it is when every sample gets the output of another one.

    Outputs are moved round by half a batch, and by one more; of the two the larger loss counts. Samples that come in turns, such
    as 0 1 2 0 1 2, meet their like after some shifts, but not after two in succession.
    """
    sums = [0.0, 0.0]
    with torch.random.fork_rng(devices=[]), evaluating(model):
        count = 0
        for batch in itertools.islice(iter(task.batches(epoch)), LOOKS):
            sums[0] += float(loss_in_eval(task, model, batch).detach())
            exchanged = []
            for more in (0, 1):
                handle = model.register_forward_hook(functools.partial(_exchange, more))
                try:
                    exchanged.append(float(loss_in_eval(task, model, batch).detach()))
                finally:
                    handle.remove()
            sums[1] += max(exchanged)
            count += 1
    return sums[0] / max(count, 1), sums[1] / max(count, 1)


def _exchange(more: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The output with the samples of the batch moved round by half of it and `more`."""
    return changed(output, lambda tensor: tensor.roll(tensor.shape[0] // 2 + more, 0) if tensor.ndim else tensor)


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
