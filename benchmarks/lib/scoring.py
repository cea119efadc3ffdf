"""What the benchmarks' own tasks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_eval(network: nn.Module) -> Iterator[None]:
    """Inside, the network is in eval mode; on exit in the mode that it was in."""
    was = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was)
