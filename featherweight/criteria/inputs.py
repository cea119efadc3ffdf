"""What layers are given: the second moments of their inputs over calibration samples, some layers at a time.

The network runs up to the last of these layers and no further, in eval mode. Sums are held on the CPU, in float64. So layers
can be changed one after the other, each judged by what those before it give by then, with the sums of one in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.criteria.patches import patches
from featherweight.criteria.readers import Layer
from featherweight.network.calls import Example, Inputs, first_tensor
from featherweight.network.evaluating import evaluating
from featherweight.task import Task, loss_in_eval

PLACES = 64  # of a convolution's output, drawn for each sample; of a linear layer's input all count
Seen = Callable[[str, Tensor], None]


class _Reached(BaseException):  # no Exception, so that no loss takes it for a failure of its own
    """The network has run as far as is looked at."""


def in_order(model: nn.Module, example: Example | Inputs, layers: Sequence[str]) -> dict[tuple[str, ...], int]:
    """The layers in the order in which they run on the example, those that are given the same tensor together, and how many calls
    there are of them. Those that do not run are left out.
    """
    given: dict[int, tuple[Tensor, list[str]]] = {}  # by the tensor, which is held so that no other gets its number
    calls: dict[str, int] = {}

    def look(name: str, x: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if calls[name] == 1:
            given.setdefault(id(x), (x, []))[1].append(name)

    with _watching(model, layers, look):
        Inputs.of(example).call(model)
    return {tuple(names): sum(calls[name] for name in names) for _, names in given.values()}


def second_moments(
    model: nn.Module,
    task: Task,
    layers: Sequence[str],
    calls: int,
    samples: int,
    epoch: int = 0,
    seed: int = 0,
    ones: bool = False,
) -> dict[str, Tensor]:
    """Layer -> (groups, d, d), the mean of x x^T of the vectors that it multiplies its weight by (see `patches`); a layer
    that saw no vector is left out. Over the first batches of `epoch` that hold `samples` samples.

    calls   of these layers by one run of the network, after which it is left
    ones    each vector ends with a 1, so that d is one more, and the last row holds the means
    """
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    dice = Generator().manual_seed(seed)
    left, seen = 0, 0

    def add(name: str, x: Tensor) -> None:
        nonlocal left
        found = _vectors(model.get_submodule(name), x, dice)  # (groups, rows, d)
        found = torch.nn.functional.pad(found, (0, 1), value=1.0) if ones else found
        if found.numel():
            with torch.autocast(x.device.type, enabled=False):  # the user's own, in which this hook runs, would round it
                product = (found.mT @ found).double().cpu()
            sums[name] = sums[name].add_(product) if name in sums else product
            rows[name] = rows.get(name, 0) + found.shape[1]
        left -= 1
        if left == 0:
            raise _Reached

    def begin(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        nonlocal left, seen
        first = first_tensor((inputs, named))
        left, seen = calls, seen + (1 if first is None else first.shape[0])

    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with _watching(model, layers, add):
            for batch in task.batches(epoch):
                with suppress(_Reached):
                    loss_in_eval(task, model, batch)
                if seen >= samples:
                    break
    finally:
        handle.remove()
    return {name: total / rows[name] for name, total in sums.items()}


@contextmanager
def _watching(model: nn.Module, layers: Sequence[str], look: Seen) -> Iterator[None]:
    """Inside, the network is in eval mode without gradients, and `look` is given the input of each call of these layers."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def given(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = next(iter((*inputs, *named.values())), None)
            if isinstance(x, Tensor):
                look(name, x)

        return given

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in layers]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _vectors(layer: nn.Module, x: Tensor, dice: Generator) -> Tensor:
    """(groups, rows, d) in float32 or the input's own higher precision."""
    assert isinstance(layer, Layer)
    if not isinstance(layer, _ConvNd):
        return x.reshape(1, -1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
    if x.ndim == len(layer.kernel_size) + 1:  # a sample without a batch
        x = x[None]
    found = patches(layer, x, PLACES, dice)
    found = found.to(torch.promote_types(x.dtype, torch.float32))
    return found.unflatten(1, (layer.groups, found.shape[1] // layer.groups)).transpose(0, 1)


def groups_of(layer: nn.Module) -> int:
    """Into how many groups a layer's inputs and outputs fall."""
    return layer.groups if isinstance(layer, _ConvNd) else 1


def matrix_of(layer: nn.Module, weight: Tensor) -> Tensor:
    """(groups, rows, d) of a weight (outputs, inputs of a group, kernel...)."""
    groups = groups_of(layer)
    return weight.reshape(groups, weight.shape[0] // groups, prod(weight.shape[1:]))
