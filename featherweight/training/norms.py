"""Batch norms whose batch lies in several processes: mean and variance of all of it. torch's SyncBatchNorm is for GPUs alone,
and is another class, which the edits of a network do not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Sum = Callable[[Tensor], Tensor]  # over all processes, in place


@contextmanager
def synchronised(modules: Iterable[nn.Module], total: Sum, takes_part: Callable[[], bool]) -> Iterator[None]:
    """Inside, the batch norms of `modules` that train take their statistics over the batches of all processes. `takes_part`: is
    this process's batch part of it, or a stand-in for none?"""
    norms = {one for module in modules for one in module.modules() if isinstance(one, _BatchNorm)}
    for norm in norms:
        vars(norm)["forward"] = _forward(norm, total, takes_part)
    try:
        yield
    finally:
        for norm in norms:
            del vars(norm)["forward"]


def _forward(norm: _BatchNorm, total: Sum, takes_part: Callable[[], bool]) -> Callable[[Tensor], Tensor]:
    own = norm.forward

    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return own(x)
        norm._check_input_dim(x)
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        values, part = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, float(takes_part())
        count = total(values.new_tensor([part * (values.numel() // values.shape[1])])).item()
        mean = _Total.apply(values.sum(dims) * part, total) / count
        away = values - mean.view(shape)
        variance = _Total.apply(away.square().sum(dims) * part, total) / count
        _follow(norm, mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        made = away * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            made = made * norm.weight.view(shape) + norm.bias.view(shape)
        return made.to(x.dtype)

    return forward


@torch.no_grad()
def _follow(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Running statistics, as the norm itself would move them."""
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    momentum = norm.momentum
    if momentum is None:
        assert norm.num_batches_tracked is not None
        momentum = 1 / float(norm.num_batches_tracked)
    for running, now in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.mul_(1 - momentum).add_(now.to(running.dtype), alpha=momentum)


class _Total(torch.autograd.Function):
    """A sum over processes: each hears of the gradients of all."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, total: Sum) -> Tensor:
        ctx.total = total
        return total(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.total(gradient.contiguous().clone()), None
