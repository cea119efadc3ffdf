"""Inputs of another size: an example shows what a network does at one length, and what depends on that length is no structure.

A table of positions has as many rows as the longest input; a network that was traced on a shorter one reads a part of it. So
does a mask, and whatever else the code cuts to the size of its input. Two traces at two sizes tell what follows the input from
what the network's own sizes fix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from featherweight.network.calls import Inputs, tensors_of
from featherweight.structure.capture import Captured
from featherweight.structure.nodes import ints, operation
from featherweight.structure.observe import RUN_FAILURES, in_eval

MOST_OTHERS = 2  # sizes of an example (of two sequences, for instance) that are given another value each
GROWTH = 2  # times the numbers of the example that other inputs may hold

Varying = dict[str, frozenset[int]]  # node -> its dimensions that follow the sizes of the inputs


def sizes_of(inputs: Inputs) -> list[int]:
    """The different sizes above 1 in an example, batches left out, those that most dimensions have first."""
    found: dict[int, int] = {}
    for tensor in inputs.tensors():
        for size in tensor.shape[1 if inputs.has_batch(tensor) else 0 :]:
            if size > 1:
                found[size] = found.get(size, 0) + 1
    return sorted(found, key=lambda size: (-found[size], -size))


def resized(inputs: Inputs, before: int, after: int) -> Inputs:
    """The same with every dimension of `before` entries, batches left out, made `after` long: entries are left out, or the
    first half is repeated: what is taken over all of them, such as a mean, is another then."""

    places = [place if place < before else place % max(1, before // 2) for place in range(after)]

    def change(tensor: Tensor) -> Tensor:
        for dim in range(1 if inputs.has_batch(tensor) else 0, tensor.dim()):
            if tensor.shape[dim] == before:
                tensor = tensor.index_select(dim, torch.tensor(places, device=tensor.device))
        return tensor

    return inputs.map(change)


def _candidates(inputs: Inputs, size: int, shorter: bool) -> Iterator[Inputs]:
    """Other values of one size, those first that are asked for; longer ones only where that is no work to speak of."""
    entries = sum(tensor.numel() for tensor in inputs.tensors())
    for after in (size // 2, 2 * size, size + 1) if shorter else (2 * size, size // 2, size + 1):
        if after > 0:
            other = resized(inputs, size, after)
            if sum(tensor.numel() for tensor in other.tensors()) <= GROWTH * entries:
                yield other


def other_lengths(model: nn.Module, captured: Captured, shorter: bool = False) -> tuple[Inputs, ...]:
    """Inputs that the network takes besides its example, each with one size of the example changed; of one sample where a batch
    of one was doubled. Empty where the network takes no other size than the example's.

    shorter  ask for shorter ones first: a table as long as the example is read whole by all longer ones
    """
    return _taken(model, captured.sample(), shorter, each=1)


def lengths_taken(model: nn.Module, inputs: Inputs) -> tuple[Inputs, ...]:
    """Inputs of two other lengths for each size of the example that may have another; empty where none may."""
    return _taken(model, inputs, shorter=True, each=2)


def _taken(model: nn.Module, inputs: Inputs, shorter: bool, each: int) -> tuple[Inputs, ...]:
    found: list[Inputs] = []
    sizes = 0
    with torch.no_grad():
        for size in sizes_of(inputs):
            before = len(found)
            for other in _candidates(inputs, size, shorter):
                try:
                    runs = bool(tensors_of(in_eval(model)(other)))
                except RUN_FAILURES:
                    continue
                if runs:
                    found.append(other)
                if len(found) == before + each:
                    break
            sizes += len(found) > before
            if sizes == MOST_OTHERS:
                break
    return tuple(found)


def varying(captured: Captured, others: Sequence[Captured]) -> Varying:
    """The dimensions of the nodes that have another size in an export for other inputs. Exports run the same code, so that their
    nodes have the same names as long as they do the same."""
    found: dict[str, set[int]] = {}
    for other in others:
        nodes = {node.name: node for node in other.module.graph.nodes}
        for node in captured.module.graph.nodes:
            twin = nodes.get(node.name)
            if twin is None or operation(twin) != operation(node):
                continue
            for mine, its in zip(_shapes(node), _shapes(twin), strict=False):
                differ = {dim for dim, (a, b) in enumerate(zip(mine, its, strict=False)) if a != b}
                found.setdefault(node.name, set()).update(differ)
    return {name: frozenset(dims) for name, dims in found.items() if dims}


def renamed(known: Varying, captured: Captured, other: Captured) -> Varying:
    """What is known of one export under the names of another of the same network, for inputs of any size: there, slices that take
    all of a dimension (`x[:, None]` has one) come between, so that the numbers in names are others."""
    mine, its = ([node for node in one.module.graph.nodes if _shapes(node)] for one in (captured, other))
    twins = iter(its)
    found: Varying = {}
    for node in mine:
        twin = next(twins, None)
        while twin is not None and operation(twin) != operation(node) and operation(twin) == "slice":
            twin = next(twins, None)
        if twin is None or operation(twin) != operation(node):
            return known
        if node.name in known:
            found[twin.name] = known[node.name]
    return found


def _shapes(node: fx.Node) -> list[tuple[int, ...]]:
    value = node.meta.get("val")
    return [ints(part.shape) for part in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(part, Tensor)]
