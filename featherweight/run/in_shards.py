"""Runs whose networks lie in shards while they train: what is refused before, how a network is spread out and gathered again, and
what a checkpoint holds of it, which is whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from featherweight.errors import FeatherweightError, InputError, shortened
from featherweight.files.edits import Edit, Snapshot, code_edits
from featherweight.network import evaluating, generators
from featherweight.network.copies import copied
from featherweight.recipe.schema import Constrain, LearnUnits, Recipe, Stage
from featherweight.task import Task
from featherweight.training.engine import Engine
from featherweight.training.shards import whole
from featherweight.weights import optimizers


def snapshot_of(network: nn.Module, structural: list[Edit], keep: bool = True) -> Snapshot:
    """The snapshot of a network in shards; without its state where this process does not `keep` it. Every process takes part."""
    return Snapshot(structural + code_edits(network), whole(dict(network.state_dict()), keep))


def load(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """The state of an optimizer, whole, into one that may train parameters in shards."""
    parameters, state = optimizers.held_by(optimizer), dict(saved["state"])
    for number, parameter in enumerate(parameters):
        if hasattr(parameter, "device_mesh") and number in state:
            state[number] = {key: _spread(value, parameter) for key, value in state[number].items()}
    optimizer.load_state_dict({**saved, "state": state})


def _spread(value: Any, like: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, torch.Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def check(recipe: Recipe, task: Task, original: nn.Module, engine: Engine) -> None:
    """Raises InputError for a recipe, a network or an optimizer that does not train in shards; a batch is tried on a copy."""
    for stage in recipe.stages:
        if why := _refused(stage):
            raise InputError(f"stage {stage.name!r} {why}; leave shard=True out, so that each process has the whole network")
    with generators.kept():
        try:
            _step(task, copied(original), engine)
        except FeatherweightError:
            raise
        except Exception as error:  # whatever the network's, the loss's or torch's own code raises
            raise InputError(
                f"this {type(original).__name__} does not train in shards ({type(error).__name__}: "
                f"{shortened(str(error).strip())}): the loss has to call the network itself, not its parts or parameters, and "
                "the optimizer to work entry by entry. Leave shard=True out"
            ) from error


def _step(task: Task, network: nn.Module, engine: Engine) -> None:
    """A step of training, as `fit` makes it."""
    engine.share_out(network)
    optimizer: Any = optimizers.build(task.optimizer, network)
    with evaluating.training(network), engine.together(network):
        part, share = engine.share(next(iter(task.batches(0))))
        with engine.computing(0):
            loss = task.loss(network, part)
        engine.backward(loss, share)
        optimizer.step()
    for parameter, state in optimizer.state.items():
        _require_entrywise(optimizer, parameter, state)


def _require_entrywise(optimizer: Any, parameter: Any, state: dict[str, Any]) -> None:
    """Raises InputError for what an optimizer keeps of a weight in another shape, which no shard is of."""
    for name, held in state.items():
        if isinstance(held, torch.Tensor) and held.numel() > 1 and held.shape != parameter.shape:
            raise InputError(
                f"{type(optimizer).__name__} keeps {name!r} {tuple(held.shape)} of a weight {tuple(parameter.shape)}: "
                "in shards an optimizer keeps numbers of each entry, as AdamW does. Give such a one, or leave shard=True out"
            )


def _refused(stage: Stage) -> str:
    """Why a stage does not run in shards, "" where it does."""
    if isinstance(stage, LearnUnits):
        return "learns which units go, by gates over whole layers, and is not run in shards"
    if getattr(stage, "auxiliary", False):
        return "trains auxiliary heads, which are not put into shards"
    if not isinstance(stage, Constrain):
        return ""
    if stage.activations is not None:
        return "rounds activations, which is not tried in shards"
    if stage.train.epochs:
        if stage.driver is not None and stage.driver.kind != "admm":
            return f"is driven by {type(stage.driver).__name__}, which does not pull on shards as ADMM does"
        if stage.masked and any(rule.set.masked() != rule.set for rule in stage.rules):
            return "imposes levels or shared values under a mask (masked=True), and in shards no mask is looked at"
    return ""
