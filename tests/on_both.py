"""One piece of work on the CPU and on a GPU: the GPU is pretended, or in `tests/on_device` the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pretend import CPU, Pretend, is_there
from residual import residual
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._pytree import tree_leaves, tree_map

from featherweight import Task
from featherweight.recipe.schema import Constrain, Recipe, Rule
from featherweight.training.schedule import Training
from featherweight.weights.drivers import ADMM
from featherweight.weights.sets import TopK

GPU = "cuda"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # another order of summation


def moved(value: Any, device: Any) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def all_there(*values: Any) -> bool:
    """Are all tensors in these values, and of these modules, on the GPU?"""
    leaves = [
        leaf for value in values for leaf in (value.state_dict().values() if isinstance(value, nn.Module) else tree_leaves(value))
    ]
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return all(map(is_there, found)) and bool(found)


def agree(one: Any, other: Any) -> bool:
    """Equal, but for the rounding of sums in another order, whatever the values are nested in."""
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(
        torch.allclose(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu(), **CLOSE, equal_nan=True)
        if isinstance(a, (Tensor, float))
        else a == b
        for a, b in zip(ones, others, strict=True)
    )


def on_both(work: Callable[[Any], Any]) -> Any:
    """What `work` gives on the CPU, after the GPU gave the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        here = work(CPU)
        with Pretend():
            torch.manual_seed(0)
            there = work(GPU)
    assert agree(here, there)
    return here


def batches_of(count: int, device: Any) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(count, 16, 1, 6, 6, generator=generator), torch.randint(0, 3, (count, 16), generator=generator)
    return [(x.to(device), y.to(device)) for x, y in zip(images, labels, strict=True)]


def task_on(device: Any, count: int = 2) -> Task:
    """The task of `residual()` with batches on a device, as its owner puts them there."""
    held = batches_of(count, device)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network.eval()(held[0][0]).argmax(1) == held[0][1]).float().mean())

    return Task((held[0][0][:1],), lambda epoch: held, loss, score, lambda p: SGD(p, 0.05, momentum=0.9))


def network_on(device: Any) -> nn.Module:
    return residual(4).to(device)


def pruned() -> Recipe:
    rule = Rule("*.weight", TopK())
    return Recipe("pruned", (Constrain("prune", (rule,), keep=0.5, driver=ADMM(0.1, 2), train=Training(2), retrain=Training(1)),))
