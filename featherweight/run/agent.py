"""What AMC's agent is told of a layer, and how it is rewarded: by training batches that nothing else looked at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.budget.amc import Place
from featherweight.budget.units import Sizes
from featherweight.criteria.readers import producers
from featherweight.errors import InputError
from featherweight.network.calls import Inputs
from featherweight.network.evaluating import evaluating
from featherweight.run.ranked import Ranked
from featherweight.task import Batch, Task
from featherweight.training.distillation import logits_of


def place_of(ranked: Ranked, site: str, sizes: tuple[int, ...]) -> Place:
    """What AMC's agent is told of the layer that makes the units of a site."""
    name = producers(ranked.graph, site)
    path = name[0][0].rpartition(".")[0] if name else ""
    layer = ranked.network.get_submodule(path)
    if not isinstance(layer, _ConvNd):
        return Place(site, sizes, inputs=layer.in_features if isinstance(layer, nn.Linear) else 0, height=1, width=1)
    made: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: made.append(output))
    try:
        with evaluating(ranked.network), torch.no_grad():
            Inputs.of(ranked.stats.task.example_inputs).call(ranked.network)
    finally:
        handle.remove()
    return Place(site, sizes, layer.in_channels, made[0].shape[2], made[0].shape[-1], layer.stride[0], layer.kernel_size[0])


def reward_of(ranked: Ranked, samples: int) -> Callable[[Sizes], float]:
    """sizes -> how good the network so cut is, untuned, on training batches of about `samples` that nothing else here looked at:
    the share of right answers where a batch is (inputs, class of each), else minus the loss. The task's score is never asked.

    Raises InputError where the epoch is one batch.
    """
    task, count = ranked.stats.task, ranked.stats.count
    held: list[Batch] = []
    seen = 0
    for batch in itertools.islice(iter(task.batches(ranked.stats.epoch)), count, None):
        held.append(batch)
        seen += Inputs((batch,)).batch
        if seen >= samples:
            break
    if not held:
        raise InputError(
            f"the search is judged by training batches that the criterion did not look at, and the epoch holds {count}: give "
            "smaller batches, or fewer `samples`"
        )

    def reward(sizes: Sizes) -> float:
        network = ranked.copy(sizes)
        with evaluating(network):  # with gradients: a loss may differentiate inside
            return sum(judged(network, task, batch) for batch in held) / len(held)

    return reward


def more(task: Task, epoch: int, count: int) -> bool:
    """Does the epoch hold more than `count` batches?"""
    return next(itertools.islice(iter(task.batches(epoch)), count, None), None) is not None


def judged(network: nn.Module, task: Task, batch: Batch) -> float:
    """The share of right answers where the batch is a pair with the class of each sample, else minus the loss. The network is
    called as the task's loss calls it."""
    given: list[Any] = []
    handle = network.register_forward_hook(lambda module, inputs, output: given.append(output))
    try:
        loss = task.loss(network, batch)
    finally:
        handle.remove()
    if given and isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(labels := batch[1], Tensor):
        logits = given[-1] if isinstance(given[-1], Tensor) or task.logits is None else logits_of(task, given[-1])
        if isinstance(logits, Tensor) and logits.ndim == 2 and labels.dtype == torch.int64 and labels.shape == logits.shape[:1]:
            return float((logits.argmax(1) == labels).float().mean())
    return -float(loss.detach())
