"""Auxiliary losses: small heads on the features inside a network, judged by the task's own loss.

A head turns the output of a module, a *pivot*, into what the network itself puts out: where that is several tensors, into its
logits, as the task says. The task's loss of a module that gives just that is the auxiliary loss; so any task has one, whatever
its labels look like.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.criteria.readers import Readers
from featherweight.criteria.statistics import Stats
from featherweight.errors import InputError, did_you_mean, shortened
from featherweight.network.calls import Inputs, changed, tensors_of
from featherweight.network.evaluating import evaluating
from featherweight.structure import Graph, trace
from featherweight.task import Batch, Task
from featherweight.training.distillation import one_tensor
from featherweight.weights.parametrized import plain


class Head(nn.Module):
    """Batch norm, ReLU, mean over positions, linear: (batch, channels, positions...) -> the shape of the network's output.
    `axis`: the dimension of the channels, 1 or -1.
    """

    def __init__(self, channels: int, output: Sequence[int], axis: int = 1) -> None:
        super().__init__()
        self.output, self.axis = tuple(output), axis
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, int(torch.Size(output).numel()))

    def forward(self, feature: Tensor) -> Tensor:
        """(batch, channels, positions...), or with the channels last, -> (batch, *output)."""
        feature = feature.movedim(self.axis, 1)
        positions = feature.flatten(2) if feature.ndim > 2 else feature[..., None]
        # in the precision of the head, whatever autocast made of the feature
        normed = torch.relu(self.norm(positions.to(self.linear.weight.dtype)))
        return self.linear(normed.mean(2)).unflatten(1, self.output)


class Replay(nn.Module):
    """Gives one value, whatever its inputs: what the task's loss is given in the network's place."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The value."""
        return self.value


@contextmanager
def features(model: nn.Module, pivots: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Inside, the dictionary holds each pivot's output, a tensor (batch, channels, ...), and the network's under "", of the last
    run. Raises InputError.
    """
    modules = dict(model.named_modules())
    for name in pivots:
        if name not in modules:
            raise InputError(f"the network has no module {name!r} for an auxiliary head.{did_you_mean(name, modules)}")
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if name and (not isinstance(output, Tensor) or output.ndim < 2):
                raise InputError(f"auxiliary heads need a tensor (batch, channels, ...) from {name!r}: name other modules")
            found[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in ("", *pivots)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def losses(model: nn.Module, heads: Mapping[str, nn.Module], task: Task, batch: Batch) -> dict[str, Tensor]:
    """The network's own loss, under "", and that of each pivot's head, from one run of the network."""
    with features(model, list(heads)) as found:
        result = {"": task.loss(model, batch)}
    for pivot, head in heads.items():
        result[pivot] = task.loss(_giving(head(found[pivot]), task, found[""]), batch)
    return result


def _giving(made: Tensor, task: Task, output: Any) -> Replay:
    """What puts out `output` with a head's result in place of what the head stands for; all else in it is a constant."""
    replaced = _stood_for(task, output)
    return Replay(changed(output, lambda tensor: made if tensor is replaced else tensor.detach()))


def _stood_for(task: Task, output: Any) -> Tensor:
    """The tensor of the network's output that a head gives in its place. Raises InputError where the task does not say which."""
    found = one_tensor(task, output, "auxiliary heads give one tensor in the network's place")
    if found.ndim < 2:
        raise InputError(f"auxiliary heads give (batch, ...), and the network {tuple(found.shape)}: choose another recipe")
    if all(tensor is not found for tensor in tensors_of(output)):
        raise InputError(
            "auxiliary heads give logits in the network's place, so the task's `logits` has to pick a tensor out of the output "
            "and not compute one: choose another recipe, or auxiliary=False"
        )
    return found


def with_auxiliary(
    task: Task,
    heads: Mapping[str, nn.Module],
    least: float = 0.01,
    most: float = math.inf,
    mean: Callable[[Tensor], Tensor] = Tensor.detach,
) -> Task:
    """The task whose loss adds that of each head, weighted by max(least, (L_head / L_own)^2) as the authors' code of DCP does.

    most    bound of the weight: where the network's own loss nears 0 the weight nears infinity, and the heads alone would train
    mean    of a loss over the processes that share a batch

    To train the heads along, set them to train, let them require gradients, and give their parameters to the optimizer too.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        each = losses(model, heads, task, batch)
        own = each.pop("")
        whole = mean(own)
        weights = {pivot: max(least, min(most, float(mean(value) / whole) ** 2)) for pivot, value in each.items()}
        return own + sum((weights[pivot] * value for pivot, value in each.items()), own.new_zeros(()))

    return dataclasses.replace(task, loss=loss)


def default_pivots(model: nn.Module, graph: Graph, count: int = 2) -> tuple[str, ...]:
    """`count` residual blocks, evenly spaced in the order in which they run; without blocks, modules that do products."""
    runs = list(dict.fromkeys(counted.module for counted in graph.walk.counts))[:-1]  # the last gives the output itself
    fit = _giving_features(model, graph.captured.inputs)
    runs = [name for name in runs if name in fit and "parametrizations" not in name.split(".")]  # which give weights
    blocks = [name for name in graph.blocks if name in fit]
    modules = blocks if len(blocks) > count else [name for name in runs if name]
    chosen = [modules[(i + 1) * len(modules) // (count + 1)] for i in range(count)] if modules else []
    return tuple(dict.fromkeys(chosen))


def _giving_features(model: nn.Module, inputs: Inputs) -> set[str]:
    """The modules whose output is one tensor with the batch and more dimensions."""
    found: set[str] = set()

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 1 and output.shape[0] == inputs.batch:
                found.add(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with evaluating(model), torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _axis(module: nn.Module) -> int:
    """Where the channels of its output lie: last, after linear layers without convolutions."""
    kinds = [type(inside) for inside in module.modules()]
    convolves = any(issubclass(kind, _ConvNd) for kind in kinds)
    return -1 if not convolves and any(issubclass(kind, nn.Linear) for kind in kinds) else 1


def trained_heads(
    model: nn.Module, stats: Stats, pivots: Sequence[str], rounds: int = 10, rate: float = 1e-2, seed: int = 0
) -> dict[str, nn.Module]:
    """A head for each pivot, trained by Adam for `rounds` passes over the calibration batches. The network does not change."""
    heads: dict[str, nn.Module] = {}
    with evaluating(model), features(model, pivots) as found:
        stats.task.loss(model, next(stats.batches()))  # with gradients: a loss may differentiate inside
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for pivot in pivots:
                axis = _axis(model.get_submodule(pivot))
                made = Head(found[pivot].shape[axis], _stood_for(stats.task, found[""]).shape[1:], axis)
                heads[pivot] = made.to(found[pivot].device, next(model.parameters()).dtype)
        optimizer = torch.optim.Adam([p for head in heads.values() for p in head.parameters()], lr=rate)
        for _ in range(rounds):
            for batch in stats.batches():
                optimizer.zero_grad()
                try:
                    stats.task.loss(model, batch)  # fills `found`
                    each = [_giving(head(found[pivot].detach()), stats.task, found[""]) for pivot, head in heads.items()]
                    torch.stack([stats.task.loss(given, batch) for given in each]).sum().backward()
                except (RuntimeError, ValueError) as error:
                    raise InputError(
                        f"auxiliary heads need a loss of the network's outputs alone, called once a batch; this one fails on a "
                        f"head's outputs ({shortened(str(error).strip())}). Take a recipe without them, such as collaborative"
                    ) from error
                optimizer.step()
    for head in heads.values():
        head.eval().requires_grad_(False)
    return heads


def new_heads(
    model: nn.Module, task: Task, epoch: int, pivots: Sequence[str] | None = None, rounds: int = 10, batches: int = 8
) -> dict[str, nn.Module]:
    """Heads at `pivots`, else at the default ones, trained for `rounds` passes over the first `batches` of an epoch.

    The network does not change.
    """
    if pivots is None:
        pivots = default_pivots(model, trace(plain(model), task.example_inputs))
    return trained_heads(model, Stats(task, epoch, 0, batches, (), Readers((), {})), pivots, rounds)
