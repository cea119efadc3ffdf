"""One run of a network and what it gave: on a copy, from a given state of all generators, and with its buffers put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.network.calls import Inputs, tensors_of
from featherweight.structure.capture import as_trained, evaluation
from featherweight.structure.precision import Precision, computed_in

RUN_FAILURES = (Exception,)  # a network's own code may raise anything
Runner = Callable[[Inputs], Any]


@dataclass
class Observed:
    """What one run gave: all tensors of the outputs, and what the run was seen to do (see `precision.Watched`).

    failure  why it did not run; None where it did
    """

    outputs: list[Tensor] = field(default_factory=list)
    decisions: list[tuple[str, Tensor]] = field(default_factory=list)
    random: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    operations: int = 0
    failure: Exception | None = None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, all generators start from `seed`; afterwards they go on where they were."""
    python, numbers, processor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    graphics = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if graphics:
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(processor)
        if graphics:
            torch.cuda.set_rng_state_all(graphics)


def observe(call: Callable[[], Any], precision: Precision, decides: bool = False, seed: int = 0) -> Observed:
    """Run it once, drawing from `seed`."""
    found = Observed()
    with seeded(seed), computed_in(precision, decides) as mode:
        try:
            found.outputs = [readable(tensor.detach()).clone() for tensor in tensors_of(call())]
        except RUN_FAILURES as error:
            found.failure = error
    found.decisions, found.random, found.operations = mode.decisions, mode.random, mode.operations
    return found


def readable(tensor: Tensor) -> Tensor:
    """Quantised and sparse tensors as plain ones."""
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def run_in_eval(model: nn.Module, inputs: Inputs, precision: Precision) -> Observed:
    """What a network computes in eval mode. Its buffers are left as they were, whatever the run writes into them."""
    return observe(lambda: in_eval(model)(precision.inputs(inputs)), precision)


def run_in_training(model: nn.Module, inputs: Inputs, precision: Precision, seed: int = 0) -> Observed:
    """What a network computes in training mode; the statistics of its norms are left as they were."""
    with unchanged(model), as_trained(model):
        return observe(lambda: precision.inputs(inputs).call(model), precision, seed=seed)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Inside, buffers may change; afterwards they are what they were."""
    before = [(module, name, b, b.clone()) for module in model.modules() for name, b in module._buffers.items() if b is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                if buffer.is_inference():  # written to by nothing
                    continue
                buffer.copy_(value)
                module._buffers[name] = buffer


def in_eval(model: nn.Module) -> Runner:
    """Runs a network in eval mode."""

    def call(given: Inputs) -> Any:
        with unchanged(model), evaluation(model):
            return given.call(model)

    return call
