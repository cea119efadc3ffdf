"""Every ordinary network, called as its owner calls it, is cut, swept and exported, and computes what it has to in both modes.

The oracle is the network itself with the removed units set to 0, in float64; it knows nothing of the package's own comparison.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ordinary import ORDINARY, Ordinary
from torch import Tensor, nn

from featherweight.network.calls import Inputs
from featherweight.network.copies import copied_whole
from featherweight.ship import export
from featherweight.structure import Graph, drop, prune, sweep, trace
from featherweight.structure.count import as_it_runs
from featherweight.weights.parametrized import plain

# an example by position, or one by name
EXAMPLES = {name: ordinary.kwargs or ordinary.args for name, ordinary in ORDINARY.items()}
# tests of one network stand together (scope="module"), so that it is traced once
CUT = [name for name in ORDINARY if name not in ("foreign parametrizations", "old weight norm")]  # nothing of these can go

ON_THE_GRAPH = ("foreign parametrizations", "complex outputs", "random in eval")  # they multiply in ways that have no rule
WITH_BLOCKS = ("encoder, keyword, dict",)


@functools.cache
def traced(name: str) -> tuple[nn.Module, Graph]:
    network = ORDINARY[name].make()
    return network, trace(network, EXAMPLES[name])


@pytest.mark.parametrize("name", ORDINARY)
def test_a_run_counts_what_the_graph_does(name: str) -> None:
    """Where every operation is known; the count is the graph's else."""
    network, graph = traced(name)
    counted = as_it_runs(plain(network), EXAMPLES[name])
    assert counted == (graph.macs() if name not in ON_THE_GRAPH else None)


def fresh(name: str) -> tuple[nn.Module, Graph]:
    """A network of one's own, with a graph of its own."""
    network, graph = traced(name)
    graph = copy.copy(graph)
    graph.sites, graph.frozen = dict(graph.sites), dict(graph.frozen)
    return copied_whole(network), graph


def tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = {part.name: getattr(output, part.name) for part in dataclasses.fields(output)}
    parts = list(output.values()) if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else []
    return [tensor for part in parts for tensor in tensors(part)]


def double(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(double(part) for part in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


@torch.no_grad()
def outputs(network: nn.Module, ordinary: Ordinary, seed: int) -> list[Tensor]:
    """On inputs of the example's kind that the package has not seen, with random numbers drawn alike."""
    dice = torch.Generator().manual_seed(100 + seed)

    def other(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(other(part) for part in value)
        floats = isinstance(value, Tensor) and value.is_floating_point()
        return torch.randn(value.shape, generator=dice, dtype=torch.float64) if floats else value

    torch.manual_seed(seed)
    network = copied_whole(network).double().eval()
    return tensors(network(*(other(value) for value in ordinary.args), **{k: other(v) for k, v in ordinary.kwargs.items()}))


def alike(wanted: list[Tensor], got: list[Tensor]) -> None:
    assert len(wanted) == len(got) > 0
    for one, other in zip(wanted, got, strict=True):
        assert one.shape == other.shape and one.numel()
        if one.is_floating_point() or one.is_complex():
            assert float((one - other).abs().max()) <= 1e-9 * float(one.abs().max())
        else:
            assert torch.equal(one, other)


def trains(network: nn.Module, ordinary: Ordinary) -> None:
    """Forward and backward in training mode; some parameter gets a gradient."""
    network.train()
    ordinary.loss(network).backward()
    assert any(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def half(graph: Graph) -> dict[str, list[int]]:
    return {name: list(range(0, site.size, 2)) for name, site in graph.sites.items()}


@pytest.mark.third
@pytest.mark.parametrize("name", CUT, scope="module")
def test_half_of_each_site_goes_and_both_modes_work(name: str) -> None:
    ordinary = ORDINARY[name]
    network, graph = fresh(name)
    dense = copied_whole(network).double()
    result = prune(network, graph, half(graph))
    assert result.where in ("class", "graph") and not result.refused and result.check.passed
    held = dict(dense.named_parameters())
    with torch.no_grad():
        for (tensor, dim), mask in result.masks.items():
            if tensor in held:
                held[tensor].index_fill_(dim, torch.from_numpy(~mask).nonzero().flatten(), 0.0)
    for seed in (0, 1):
        alike(outputs(dense, ordinary, seed), outputs(result.model, ordinary, seed))
    trains(result.model, ordinary)


@pytest.mark.third
@pytest.mark.parametrize("name", CUT, scope="module")
def test_what_is_dead_goes_and_nothing_changes(name: str) -> None:
    ordinary = ORDINARY[name]
    network, graph = fresh(name)
    held = dict(network.named_parameters())
    with torch.no_grad():
        for site in graph.sites.values():  # all that the first unit owns
            for part in site.unit(0):
                if part.parameter in held:
                    held[part.parameter].index_fill_(part.dim, torch.tensor(part.index), 0.0)
    dense = copied_whole(network)
    result = sweep(network, graph)
    assert result.where != "nothing" and result.check.passed
    alike(outputs(dense, ordinary, 0), outputs(result.model, ordinary, 0))
    trains(result.model, ordinary)


@pytest.mark.parametrize("name", CUT, scope="module")
def test_each_block_goes_or_stays_for_a_reason(name: str) -> None:
    assert bool(traced(name)[1].blocks) == (name in WITH_BLOCKS)
    for block in traced(name)[1].blocks:
        network, graph = fresh(name)
        result = drop(network, graph, block)
        assert result.check.passed or result.refused[block]
        trains(result.model, ORDINARY[name])


@pytest.mark.third
@pytest.mark.parametrize("name", list(ORDINARY))
def test_it_is_exported_as_its_owner_calls_it(name: str, tmp_path: Path) -> None:
    network = ORDINARY[name].make()
    if name == "random in eval":
        with pytest.raises(export.ExportError, match="draws random numbers in eval mode"):
            export.export(network, EXAMPLES[name], tmp_path / "model.pt2", "pt2")
        return
    done = export.export(network, EXAMPLES[name], tmp_path / "model.pt2", "pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        given = export.resized(EXAMPLES[name], 3)
        wanted, got = tensors(given.call(network.eval())), tensors(given.call(loaded))
    assert done.batches == (1, 2, 5) and [t.shape for t in wanted] == [t.shape for t in got]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(wanted, got, strict=True))


@pytest.mark.parametrize("name", ["auxiliary head", "split norms"])
def test_what_only_training_reads_is_cut_with_the_rest(name: str) -> None:
    network, graph = traced(name)
    only = {"auxiliary head": ("aux.weight", 1), "split norms": ("altered.running_mean", 0)}[name]
    assert any(only in site.parameters for site in graph.sites.values())
    read = {"auxiliary head": "first", "split norms": "conv"}[name]
    cut = prune(copied_whole(network), graph, {read: [1, 4, 5]}).model
    held = {**dict(cut.named_parameters()), **dict(cut.named_buffers())}[only[0]]
    assert held.shape[only[1]] == 3


def test_inputs_are_given_by_position_by_name_or_both() -> None:
    image, row = ORDINARY["two inputs"].args
    network, by_position = traced("two inputs")
    by_name = trace(network, {"row": row, "image": image})
    both = trace(network, Inputs((image,), {"row": row}))
    assert by_name.macs() == both.macs() == by_position.macs() > 0
    assert list(by_name.sites) == list(both.sites) == list(by_position.sites)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda network: torch.compile(network, backend="eager")], ids=["parallel", "compiled"]
)
def test_a_wrapper_is_looked_through_and_the_network_inside_is_cut(wrap: Any) -> None:
    network = ORDINARY["tabular"].make()
    wrapped = wrap(network)
    graph = trace(wrapped, EXAMPLES["tabular"])
    assert list(graph.sites) == list(traced("tabular")[1].sites)
    result = prune(wrapped, graph, "3", [0, 2, 5])
    assert result.model is network and result.where == "class" and network[3].out_features == 3
    assert sweep(wrapped, trace(wrapped, EXAMPLES["tabular"])).where == "nothing"
