"""How many multiply-accumulates one example takes, counted on the exported graph."""

from __future__ import annotations

from torch import nn

from featherweight.network.calls import Example, Inputs
from featherweight.network.copies import UnsupportedNetwork
from featherweight.structure.errors import StructureError
from featherweight.structure.tracing import trace
from featherweight.weights.parametrized import plain


def count_macs(model: nn.Module, example: Example | Inputs) -> tuple[int | None, tuple[str, ...]]:
    """MACs of one example on the exported graph, and what they leave out: operations without a rule.

    None where the network cannot be exported; the reason stands in the second place.
    """
    try:
        graph = trace(plain(model), example)
    except (StructureError, UnsupportedNetwork) as error:
        return None, (str(error),)
    return graph.macs() // Inputs.of(example).batch, tuple(sorted(graph.uncounted))
