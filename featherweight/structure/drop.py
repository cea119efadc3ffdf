"""Drop a residual branch whole."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, fx, nn

from featherweight.structure.blocks import needed
from featherweight.structure.capture import float64, to_float64
from featherweight.structure.cut import Result, as_module, check_fresh, placed
from featherweight.structure.edit import Edit, apply
from featherweight.structure.errors import unknown
from featherweight.structure.gate import RUN_FAILURES, TOLERANCE, Check, difference, double_copy, run
from featherweight.structure.graph import Graph
from featherweight.structure.rewrite import Rewritten


def drop(model: nn.Module, graph: Graph, block: str) -> Result:
    """Remove a residual branch whole: the module around it becomes `nn.Identity` if that computes the same, else the exported
    module is given.

    The branch is taken to give 0, and what the cut network computes is compared with that, in float64. Unlike `prune` this
    changes what the network computes unless the branch gave 0. Raises UnknownSite, StaleGraph.
    """
    if block not in graph.blocks:
        raise unknown("block", block, graph.blocks)
    check_fresh(model, graph)
    found = graph.blocks[block]
    start = time.perf_counter()
    node = next(n for n in graph.captured.module.graph.nodes if n.name == found.node)
    reference = _without(graph, node, found.branch)
    stack = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    reason = "no module around the branch computes only the trunk"
    for path in reversed([p for p in stack if p]):
        edit = Edit("drop", ((block, 0),), (), (), (path,))
        candidate = double_copy(model)
        apply(candidate, edit)
        try:
            error = difference(reference, run(candidate, graph.captured.inputs))
        except RUN_FAILURES as problem:
            reason = f"without {path!r} it does not run: {problem}"
            continue
        if error <= TOLERANCE:
            return Result(model, "class", edit, Check(error, time.perf_counter() - start), apply(model, edit), {}, {})
    rewritten = _dropped(graph, node, found.branch)
    result = as_module(model, graph, {}, rewritten, Check(None, 0.0), reason)
    error = difference(reference, run(double_copy(result.model), graph.captured.inputs))
    check = Check(error, time.perf_counter() - start, "" if error <= TOLERANCE else f"its output differs by {error:.1e}")
    if not check.passed:
        return Result(model, "nothing", None, check, (), {}, {block: check.reason}, check.reason)
    return Result(result.model, "graph", None, check, result.moved, {}, {}, reason)


def _without(graph: Graph, addition: fx.Node, branch: int) -> list[Tensor]:
    """What the network computes when the branch gives 0."""

    class Zeroed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n is addition:
                operands = list(self.fetch_args_kwargs_from_env(n)[0])
                operands[branch] = torch.zeros_like(operands[branch])
                return n.target(*operands)  # type: ignore[operator]
            return super().run_node(n)

    tensors = {name: to_float64(t.detach()) for name, t in graph.captured.tensors.items()}
    with float64():
        outputs = Zeroed(graph.captured.module).run(*[to_float64(t) for t in placed(graph, tensors)], enable_io_processing=False)
    return [o.clone() for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]


def _dropped(graph: Graph, addition: fx.Node, branch: int) -> Rewritten:
    """The graph with the addition replaced by its trunk, and what nothing needs any more taken out."""
    source = graph.captured.module
    kept = needed(graph.walk, source.graph, {addition: addition.args[1 - branch]})  # type: ignore[dict-item]
    new = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        if node is addition:
            values[node] = values[addition.args[1 - branch]]
        elif node.op == "placeholder" or node in kept:
            values[node] = new.node_copy(node, values.__getitem__)
    module = fx.GraphModule(copy.copy(source), new)
    return Rewritten(module, ())
