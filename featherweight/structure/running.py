"""An exported graph run on tensors of the network, whole or cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from featherweight.network.calls import Inputs
from featherweight.structure.entries import pick
from featherweight.structure.graph import Graph
from featherweight.structure.observe import Runner

Masks = Mapping[tuple[str, int], NDArray[np.bool_]]


def sliced(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    result = dict(tensors)
    for (name, dim), mask in masks.items():
        result[name] = pick(result[name].detach(), dim, len(mask), np.flatnonzero(mask).tolist())
    return result


def placed(graph: Graph, tensors: Mapping[str, Tensor], given: Inputs) -> list[object]:
    """What the exported graph is called with: the network's tensors, and these inputs."""
    inputs = iter(given.leaves())
    return [
        tensors[name] if kind in ("parameter", "buffer", "constant") else next(inputs) for kind, name in graph.captured.sources
    ]


def graph_runner(graph: Graph, module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> Runner:
    """Runs an exported graph on these tensors of the network; what it writes into its buffers is gone afterwards."""

    def call(given: Inputs) -> object:
        held = {name: tensor.clone() if graph.kinds[name] == "buffer" else tensor for name, tensor in tensors.items()}
        return fx.Interpreter(module).run(*placed(graph, held, given), enable_io_processing=False)

    return call
