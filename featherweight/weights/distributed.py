"""DistributedDataParallel around a network whose parameters are replaced: found, and made to say so."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import distributed, nn

from featherweight.errors import TrainingError


class Wrappers:
    """The DistributedDataParallel wrappers that `model` is, holds, or is called through between `open` and `close`.

    Such a wrapper averages the gradients of the parameters that it was made with. `parameters_replaced` makes each of them
    raise TrainingError at its next forward pass with gradients, instead of going on with ranks that drift apart.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._found: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._handle: Any = None

    def open(self) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            return
        self._found.update(m for m in self.model.modules() if isinstance(m, nn.parallel.DistributedDataParallel))
        self._handle = self.model.register_forward_pre_hook(self._called)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def parameters_replaced(self) -> None:
        for wrapper in self._found:
            wrapper.register_forward_pre_hook(_refuse)

    def _called(self, module: nn.Module, inputs: Any) -> None:
        active = nn.parallel.DistributedDataParallel._get_active_ddp_module()
        if active is not None:
            self._found.add(active)


class StaleWrapper(TrainingError, RuntimeError):
    """A wrapper for several processes that does not know the parameters its network has now."""


def _refuse(wrapper: nn.Module, inputs: Any) -> None:
    if torch.is_grad_enabled():  # to evaluate, no gradients are averaged
        raise StaleWrapper(
            "wrap the network (ddp.module) anew, and build the optimizer from it: this DistributedDataParallel was made before "
            "the network's parameters were replaced by codes, and would not average their gradients. To evaluate, use "
            "torch.no_grad()"
        )
