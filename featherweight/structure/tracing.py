"""A network traced: exported, walked over, and made a graph of what can go."""

from __future__ import annotations

import contextlib

from torch import nn

from featherweight.network.calls import Example, Inputs
from featherweight.network.copies import unwrapped
from featherweight.structure.blocks import find_blocks
from featherweight.structure.capture import Captured, capture
from featherweight.structure.errors import StructureError
from featherweight.structure.graph import Graph
from featherweight.structure.lengths import Varying, other_lengths, varying
from featherweight.structure.rules import RULES
from featherweight.structure.walk import Walk


def trace(model: nn.Module, example: Example | Inputs, *, soft: bool = False, dynamic_batch: bool = False) -> Graph:
    """Find everything that can be removed from `model` without changing what the rest computes.

    model    any module that torch.export can capture; it is not changed and may be on the meta device. Names are those of the
             network inside `torch.compile`, `DataParallel` and the like
    example  the inputs, batch size 1: a tuple by position, or a dict by name; None, numbers and nests of tensors may be among
             them (a batch of 1 is doubled for the analysis; MACs are those of the example)
    soft     also offer sites whose removal changes the statistic of a layer, group or root-mean-square norm, or a
             mean; `Site.soft` says so

    What only training mode reads (an auxiliary head) is cut with the rest. What depends on the size of the example (rows of a
    table of positions) is no unit: where something might, the network is exported for another size too, if it takes one.

    Raises BadExample, DataDependentControlFlow, NotExportable.
    """
    model = unwrapped(model)
    captured = capture(model, example, dynamic_batch=dynamic_batch)
    others = other_lengths(model, captured)
    graph = analyse(captured, model, soft)
    if others and graph.doubtful():
        graph = analyse(captured, model, soft, _varying(model, captured))
    graph.others = others
    return graph


def _varying(model: nn.Module, captured: Captured) -> Varying:
    """What follows the size of the input, by exports for other sizes; those that cannot be exported say nothing."""
    found: list[Captured] = []
    for other in other_lengths(model, captured, shorter=True):
        with contextlib.suppress(StructureError):
            found.append(capture(model, other))
    return varying(captured, found)


def analyse(captured: Captured, model: nn.Module, soft: bool = False, varying: Varying | None = None) -> Graph:
    """The graph of an exported network. `varying`: what is known to follow the size of the input.

    Groups of a convolution lose the same places, or go whole, where that leaves something to cut; else the network is walked
    again with groups that only have to lose equally many.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]

    def walked(counted: frozenset[str]) -> Walk:
        walk = Walk(captured, soft, counted, varying=varying or {})
        walk.run(RULES)
        return walk

    first = walk = walked(frozenset())
    while not walk.stuck() <= walk.counted:
        walk = walked(walk.counted | walk.stuck())
    graph = max((Graph(w, names) for w in ([first] if walk is first else [first, walk])), key=Graph.removable)
    graph.blocks = find_blocks(graph.walk, graph.macs_by_node())
    return graph
