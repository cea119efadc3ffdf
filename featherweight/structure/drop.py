"""Drop residual branches whole."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from featherweight.network.calls import Inputs
from featherweight.network.copies import unwrapped
from featherweight.structure.blocks import Block, needed
from featherweight.structure.cut import Result, as_module, check_fresh, training_lost
from featherweight.structure.edit import Edit, apply, replaceable
from featherweight.structure.errors import NotExact, unknown
from featherweight.structure.gate import Check, Expected, exercises, training_failure, trains_otherwise
from featherweight.structure.graph import Graph
from featherweight.structure.observe import Runner, in_eval, run_in_training
from featherweight.structure.precision import Precision
from featherweight.structure.rewrite import Rewritten
from featherweight.structure.running import placed


def drop(model: nn.Module, graph: Graph, block: str | Sequence[str], *, where: Literal["any", "class"] = "any") -> Result:
    """Remove a residual branch whole, or several at once: the module around each becomes `nn.Identity` if that computes the
    same, else the exported module is given (with `where="class"`: NotExact is raised).

    The branch is taken to give 0, and what the cut network computes is compared with that, in float64 and on more values than
    the example's; in training mode it has to run as before. Unlike `prune` this changes what the network computes unless the
    branch gave 0. `x -> relu(x + F(x))` is the identity without F where x comes out
    of a ReLU; a block whose shortcut is a projection never is. Raises UnknownSite, StaleGraph.
    """
    names = list(dict.fromkeys([block] if isinstance(block, str) else block))
    found = [_block(graph, name) for name in names]
    model = unwrapped(model)
    check_fresh(model, graph)
    start = time.perf_counter()
    reference = _Reference(graph, found)
    paths, reason = [], ""
    for one in found:
        path, why = _surrounding(model, graph, one, names)
        reason = reason or why
        paths += [path] if path is not None and path not in paths else []
    if not reason:
        edit = Edit("drop", tuple((name, 0) for name in names), (), (), tuple(paths))
        check = reference.check(model, edit)
        if check.passed:
            check = replace(check, seconds=time.perf_counter() - start)
            return Result(model, "class", edit, check, apply(model, edit), {}, {})
        reason = f"without {', '.join(paths)} {check.reason}"
    if where == "class":
        raise NotExact(f"the network's class cannot go on without {', '.join(names)}: {reason}")
    result = as_module(model, graph, {}, _dropped(graph, reference.trunks), Check(None, 0.0), reason)
    check = reference.expected.compare(in_eval(reference.expected.precision.copy(result.model)))
    lost = training_lost(model, graph)
    if check.passed and lost:
        check = replace(check, error=None, mode="training", reason=f"the exported module {lost}")
    check = replace(check, seconds=time.perf_counter() - start)
    if not check.passed:
        return Result(model, "nothing", None, check, (), {}, dict.fromkeys(names, check.reason), check.reason)
    return Result(result.model, "graph", None, check, result.moved, {}, {}, reason)


def droppable(model: nn.Module, graph: Graph) -> dict[str, str]:
    """Block -> the module that can become `nn.Identity` in its place; those that the network's class cannot express are left
    out. `model` is not changed. Raises StaleGraph.
    """
    model = unwrapped(model)
    check_fresh(model, graph)
    paths = {name: _surrounding(model, graph, block, [name])[0] for name, block in graph.blocks.items()}
    return {name: path for name, path in paths.items() if path is not None}


def removable(model: nn.Module, graph: Graph) -> dict[str, tuple[str, ...]]:
    """Module that can become `nn.Identity` -> the blocks that go with it: one of a ResNet, attention and MLP of a transformer's
    layer. The smallest module around each block; `model` is not changed. Raises StaleGraph.
    """
    model = unwrapped(model)
    check_fresh(model, graph)
    found: dict[str, tuple[str, ...]] = {}
    for name, block in graph.blocks.items():
        if not any(name in inside for inside in found.values()):
            path, _ = _surrounding(model, graph, block, list(graph.blocks))
            if path is not None:
                found[path] = tuple(_inside(graph, path))
    return found


def branches(model: nn.Module, graph: Graph, blocks: Iterable[str]) -> dict[str, str]:
    """Block -> the module whose output is the branch, and nothing else: what multiplies it multiplies the branch. Blocks without
    one are left out. Found by setting that output to 0, in float64. `model` is not changed. Raises UnknownSite, StaleGraph.
    """
    model = unwrapped(model)
    check_fresh(model, graph)
    result = {}
    for name in blocks:
        block = _block(graph, name)
        reference = _Reference(graph, [block])
        operand = reference.nodes[0].args[block.branch]
        assert isinstance(operand, fx.Node)
        for path in _stack(operand):
            candidate = reference.expected.precision.copy(model)
            candidate.get_submodule(path).register_forward_hook(_nothing)
            if reference.expected.compare(in_eval(candidate)).passed:
                result[name] = path
                break
    return result


def _nothing(module: nn.Module, inputs: Any, output: Any) -> Any:
    return torch.zeros_like(output) if isinstance(output, Tensor) else output


def _block(graph: Graph, name: str) -> Block:
    if name not in graph.blocks:
        raise unknown("block", name, graph.blocks)
    return graph.blocks[name]


def _stack(node: fx.Node) -> list[str]:
    """The modules that a node is in, the innermost first, without the network itself."""
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return [path for path in reversed(paths) if path]


class _Reference:
    """What the network computes when some branches give 0: on the example, and on other values.

    The other values are for what holds of values only, as relu(x) = x does: an example alone might happen to be above 0.
    """

    def __init__(self, graph: Graph, blocks: Sequence[Block]) -> None:
        self.captured = graph.captured
        branch = {block.node: block.branch for block in blocks}
        self.nodes = [node for node in graph.captured.module.graph.nodes if node.name in branch]
        self.trunks: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:  # in the order of the network: a trunk may be an addition that goes too
            trunk = node.args[1 - branch[node.name]]
            assert isinstance(trunk, fx.Node)
            self.trunks[node] = self.trunks.get(trunk, trunk)
        zeroed = {node: branch[node.name] for node in self.nodes}

        def make(precision: Precision) -> Runner:
            tensors = {name: precision.cast(t.detach()) for name, t in graph.captured.tensors.items()}
            return lambda given: _without(graph, zeroed, tensors, given)

        self.expected = Expected(make, exercises(graph.captured), graph.captured.decides())

    def check(self, model: nn.Module, edit: Edit) -> Check:
        """The edited network held against it."""
        candidate = self.expected.precision.copy(model)
        apply(candidate, edit)
        check = self.expected.compare(in_eval(candidate))
        if not check.passed or not trains_otherwise(model, self.captured):
            return check
        whole, given = self.expected.precision.copy(model), self.expected.last
        wanted = run_in_training(whole, given, self.expected.precision)
        reason = training_failure(whole, wanted, candidate, given, self.expected.precision, exact=False)
        return replace(check, error=None, reason=reason, mode="training") if reason else check


def _surrounding(model: nn.Module, graph: Graph, block: Block, may_go: Sequence[str]) -> tuple[str | None, str]:
    """The smallest module around a branch that can become the identity, if all blocks in it `may_go`; else None and why."""
    reason = "no module around the branch computes only the trunk"
    node = next(node for node in graph.captured.module.graph.nodes if node.name == block.node)
    for path in _stack(node):
        inside = _inside(graph, path)
        if not replaceable(path, model.get_submodule(path)) or not set(inside) <= set(may_go):
            continue
        reference = _Reference(graph, [graph.blocks[name] for name in inside])
        check = reference.check(model, Edit("drop", tuple((name, 0) for name in inside), (), (), (path,)))
        if check.passed:
            return path, ""
        if check.error is None:
            reason = f"without {path} {check.reason}"
    return None, reason


def _inside(graph: Graph, path: str) -> list[str]:
    """The blocks whose additions are in a module."""
    stacks = {node.name: _stack(node) for node in graph.captured.module.graph.nodes if node.op == "call_function"}
    return [name for name, block in graph.blocks.items() if path in stacks[block.node]]


def _without(graph: Graph, zeroed: Mapping[fx.Node, int], tensors: Mapping[str, Tensor], inputs: Inputs) -> Any:
    """What the network computes when these operands of these additions are 0."""

    class Zeroed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in zeroed:
                operands = list(self.fetch_args_kwargs_from_env(n)[0])
                operands[zeroed[n]] = torch.zeros_like(operands[zeroed[n]])
                return n.target(*operands)  # type: ignore[operator]
            return super().run_node(n)

    return Zeroed(graph.captured.module).run(*placed(graph, tensors, inputs), enable_io_processing=False)


def _dropped(graph: Graph, trunks: Mapping[fx.Node, fx.Node]) -> Rewritten:
    """The graph with additions replaced by their trunks, and what nothing needs any more taken out."""
    source = graph.captured.module
    kept = needed(graph.walk, source.graph, dict(trunks))
    new = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in source.graph.nodes:
        if node in trunks:
            values[node] = values[trunks[node]]
        elif node.op == "placeholder" or node in kept:
            values[node] = new.node_copy(node, values.__getitem__)
    module = fx.GraphModule(copy.copy(source), new)
    return Rewritten(module, ())
