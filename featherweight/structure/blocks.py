"""Residual branches that can go whole: `trunk + branch` becomes `trunk`. Found here, dropped by `drop`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from torch import fx

from featherweight.structure.nodes import operation, shape_of
from featherweight.structure.walk import Walk


@dataclass(frozen=True)
class Block:
    """A residual branch that can go whole: `trunk + branch` becomes `trunk`.

    name        the module that holds the branch
    node        the addition in the exported graph
    branch      which operand of the addition is the branch
    parameters  what only the branch reads
    """

    name: str
    node: str
    branch: int
    parameters: tuple[str, ...]
    macs: int


def find_blocks(walk: Walk, macs_of: dict[str, int]) -> dict[str, Block]:
    """All additions one of whose operands is computed from the other. `macs_of`: graph node -> its multiply-accumulates."""
    graph = walk.captured.module.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    additions = []
    for node in graph.nodes:
        if operation(node) in ("add", "add_") and len(node.all_input_nodes) == 2:
            a, b = node.args[0], node.args[1]
            if isinstance(a, fx.Node) and isinstance(b, fx.Node) and shape_of(a) == shape_of(b) == shape_of(node) is not None:
                additions.append((node, a, b))
    result: dict[str, Block] = {}
    everything = needed(walk, graph, {})
    for node, a, b in additions:
        for trunk, branch, position in ((a, b, 1), (b, a, 0)):
            if order[trunk] < order[branch] and _reaches(trunk, branch, order):
                gone = everything - needed(walk, graph, {node: trunk})
                parameters = tuple(dict.fromkeys(walk.owner[n] for n in gone if n in walk.owner and _is_parameter(walk, n)))
                if parameters:
                    stem = _path(parameters) or walk.module_of(node) or node.name
                    name = (
                        stem
                        if stem not in result
                        else next(f"{stem}#{k}" for k in range(2, 10**6) if f"{stem}#{k}" not in result)
                    )
                    result[name] = Block(name, node.name, position, parameters, sum(macs_of.get(n.name, 0) for n in gone))
                break
    return result


def _is_parameter(walk: Walk, node: fx.Node) -> bool:
    return any(kind == "parameter" and name == walk.owner[node] for kind, name in walk.captured.sources)


def _path(names: Sequence[str]) -> str:
    """The module that holds all of these parameters."""
    parts = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return ".".join(level[0] for level in shared)


def _reaches(source: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Is target computed from source?"""
    stack, seen = [target], {target}
    while stack:
        for parent in stack.pop().all_input_nodes:
            if parent is source:
                return True
            if parent not in seen and order[parent] > order[source]:
                seen.add(parent)
                stack.append(parent)
    return False


def needed(walk: Walk, graph: fx.Graph, replaced: dict[fx.Node, fx.Node]) -> set[fx.Node]:
    """What the outputs need when these nodes are replaced by others; writes into tensors that are needed are needed too."""
    needed: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op == "output"]
    writes = [
        node for node in graph.nodes if node.op == "call_function" and operation(node).endswith("_") and node not in replaced
    ]
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        stack += [replaced.get(parent, parent) for parent in node.all_input_nodes]
        if not stack:
            roots = {walk.root_of(n) for n in needed}
            stack = [
                w
                for w in writes
                if w not in needed and walk.root_of(w) in roots and not set(_inputs(w, replaced)) & set(replaced)
            ]
    return needed


def _inputs(node: fx.Node, replaced: dict[fx.Node, fx.Node]) -> Iterable[fx.Node]:
    return (replaced.get(n, n) for n in node.all_input_nodes)
