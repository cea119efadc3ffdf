"""The contract with the user's problem, checked on one batch before any training. Everything here is refused by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import InputError, RecipeError
from featherweight.network.calls import Inputs
from featherweight.network.devices import on_one_device
from featherweight.network.evaluating import evaluating
from featherweight.recipe.plan import resolve
from featherweight.recipe.schema import Constrain, CutUnits, Recipe, Stage
from featherweight.run.on_graph import check_graph
from featherweight.structure.capture import first_line
from featherweight.task import Batch, Task, steps_of
from featherweight.training import distillation
from featherweight.training.fit import rehearsing
from featherweight.weights.optimizers import check_codes
from featherweight.weights.targets import weights_of


@dataclass(frozen=True)
class Checked:
    """What the check met. `batch`: the first one; `trained`: the parameters that the task's optimizer holds."""

    batch: Batch
    trained: frozenset[str]


def check_task(task: Task, model: nn.Module) -> Checked:
    """Raises InputError where the task cannot be trained or scored with `model`.

    The example is run, one batch in training mode too, the score is asked once, one optimizer is built. `model` and the global
    generator are what they were afterwards.
    """
    _check_example(task.example_inputs, model)
    steps_of(task, 0)
    with torch.random.fork_rng(devices=[]):
        with rehearsing(model):
            batch = next(iter(task.batches(0)))
            _check_loss(task, model, batch)
        with rehearsing(model), evaluating(model):
            _check_score(task.evaluate(model))
        return Checked(batch, _held_by_optimizer(task, model))


def check_run(recipe: Recipe, task: Task, model: nn.Module) -> None:
    """Raises InputError, or RecipeError, where `recipe` cannot be run on `model` for `task`: before anything is trained."""
    checked = check_task(task, model)
    check_distillation(recipe, task, model, checked.batch)
    for stage in recipe.stages:
        if isinstance(stage, Constrain):
            targets = resolve(stage, model, example=task.example_inputs).targets
            weights_of(model, targets)
            check_trained(targets, checked.trained, stage)
            if targets and stage.retrain.epochs:
                check_codes(task.optimizer, model, targets.keys())
        elif isinstance(stage, CutUnits) and stage.on_graph:
            check_graph(stage, task, model, checked.batch)


def check_distillation(recipe: Recipe, task: Task, model: nn.Module, batch: Batch) -> None:
    """Raises InputError where a stage asks for a distillation that these outputs cannot have. Where it is left open, it is
    settled when the stage begins."""
    asked = {stage.distill for stage in recipe.stages if stage.distill and stage.epochs and not stage.distill.auto}
    with torch.random.fork_rng(devices=[]), rehearsing(model):
        for distill in sorted(asked, key=repr):
            distillation.check(distill, task, model, batch)


def _held_by_optimizer(task: Task, model: nn.Module) -> frozenset[str]:
    """The parameters that the task's optimizer trains. Raises InputError where it is none of the parameters that it was given."""
    parameters = dict(model.named_parameters())
    optimizer = task.optimizer([parameter for _, parameter in sorted(parameters.items())])
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise InputError(
            f"the task's `optimizer` gave a {type(optimizer).__name__}: it gets the parameters and returns an optimizer, such as "
            "optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-3)"
        )
    if (closure := inspect.signature(optimizer.step).parameters.get("closure")) and closure.default is inspect.Parameter.empty:
        raise InputError(
            f"{type(optimizer).__name__} of the task's `optimizer` steps only with a closure, called as often as it likes: "
            "give one that steps without, such as torch.optim.AdamW, or train in your own loop inside featherweight.constrain"
        )
    held = {id(parameter) for group in groups for parameter in group["params"]}
    found = frozenset(name for name, parameter in parameters.items() if id(parameter) in held)
    if not found:
        raise InputError(
            "the task's `optimizer` holds none of the parameters that it was given: it was built over another network's. Build "
            "it from its argument, anew at each call: optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-3)"
        )
    return found


def check_trained(targets: Iterable[str], trained: Collection[str], stage: Stage) -> None:
    """Raises RecipeError where the stage trains towards targets that the optimizer does not hold."""
    missing = [name for name in targets if name not in trained] if stage.epochs else []
    if missing:
        raise RecipeError(
            [
                f"stage {stage.name!r}: the task's optimizer does not hold {', '.join(missing)}: leave them out of the rule's "
                "targets, set requires_grad_(False) on what is not trained, or give the optimizer all parameters that it gets"
            ],
            "plan",
        )


def _check_example(example: Any, model: nn.Module) -> None:
    """The network runs on it."""
    inputs = Inputs.of(example)
    if not inputs.tensors():
        raise InputError(
            "the task's `example_inputs` hold no tensor: give the network's inputs as a tuple by position, such as "
            "(torch.randn(1, 3, 224, 224),), or as a dict by name"
        )
    with torch.random.fork_rng(devices=[]), rehearsing(model), evaluating(model), torch.no_grad():
        try:
            inputs.call(model)
        except Exception as error:  # whatever the network's own code raises
            raise InputError(
                f"the network does not run on the task's `example_inputs` ({inputs}): {type(error).__name__}: "
                f"{first_line(error)}. Give its inputs as it is called, a tuple by position or a dict by name"
            ) from error


def _check_loss(task: Task, model: nn.Module, batch: Batch) -> None:
    with on_one_device(model, batch):
        loss = task.loss(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"the task's `loss` must give a tensor of one number, such as the mean over the batch; it gave {given}")
    if not loss.requires_grad:
        raise InputError(
            "the task's `loss` does not depend on any trained parameter: is it computed under no_grad, from .item() or from "
            "detached outputs, or is every parameter frozen (requires_grad=False)?"
        )


def _check_score(score: Any) -> None:
    if isinstance(score, Real) and not isinstance(score, bool) and math.isfinite(score):
        return
    given = repr(score) if isinstance(score, Real) else f"a {type(score).__name__}"
    raise InputError(
        f"the task's `evaluate` must give a finite number, higher is better; it gave {given}. Write float(...) round a tensor, "
        "and return the worst score where it is not defined"
    )
