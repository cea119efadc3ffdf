"""Laws of structure: nothing is left out, cuts compose, soft sites say so, kept units are what is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from probes import MORE, PROBES, build
from torch import nn
from zeroing import half, inputs, output, relative, zeroed

from featherweight.structure import Graph, prune, trace


def owned(graph: Graph) -> set[str]:
    return {name for site in graph.sites.values() for name, _ in site.parameters}


@pytest.mark.parametrize(
    "name", ["transformer encoder", "fused attention", "tied", "squeeze excite", "plain parameters", "group shuffle depthwise"]
)
def test_every_parameter_is_in_a_site_or_frozen_with_a_reason(name: str) -> None:
    model, example = build(name)
    graph = trace(model, example)
    for parameter, tensor in model.named_parameters():
        assert (parameter in owned(graph)) != (parameter in graph.frozen), (parameter, tensor.shape)
    assert all(len(reason) > 10 for reason in graph.frozen.values())


def test_a_parameter_that_is_never_read_is_frozen() -> None:
    model, example = build("lenet")
    model.spare = nn.Parameter(torch.randn(3))
    assert trace(model, example).frozen["spare"] == "the network never reads it"


def test_units_do_not_overlap_and_own_what_prune_removes() -> None:
    model, example = build("conv1d flatten")
    graph = trace(model, example)
    site = graph.sites["conv2"]
    parts = {(s.parameter, s.dim, i) for unit in site.units for s in unit for i in s.index}
    assert len(parts) == sum(len(s.index) for unit in site.units for s in unit)
    flattened = [s for s in site.unit(5) if s.parameter == "fc1.weight"]
    assert flattened[0].dim == 1 and flattened[0].index == tuple(range(5 * 8, 6 * 8))


def test_prune_then_prune_is_prune_once() -> None:
    twice, example = build("residual", dtype=torch.float64)
    once = copy.deepcopy(twice)
    prune(twice, trace(twice, example), {"stem": [0, 2, 3, 5, 7], "blocks.0.conv1": [1, 2, 3, 4]})
    prune(twice, trace(twice, example), {"stem": [0, 2, 4], "blocks.0.conv1": [0, 3]})
    prune(once, trace(once, example), {"stem": [0, 3, 7], "blocks.0.conv1": [1, 4]})
    assert all(torch.equal(a, b) for a, b in zip(twice.state_dict().values(), once.state_dict().values(), strict=True))


def test_keeping_everything_changes_nothing() -> None:
    model, example = build("lenet")
    before = copy.deepcopy(model.state_dict())
    result = prune(model, trace(model, example), "conv1", list(range(20)))
    assert result.where == "nothing" and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_users_modules_keep_their_classes_and_modes() -> None:
    model, example = build("residual")
    model.train()
    model.blocks[0].eval()
    kinds = {n: type(m) for n, m in model.named_modules()}
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    graph = trace(model, example)
    prune(model, graph, half(graph))
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes, "nothing may be planted on the user's modules"
    assert model.training and not model.blocks[0].training and model.blocks[1].training
    assert model.blocks[1].conv1.out_channels == model.blocks[1].conv1.weight.shape[0] == 4


def test_sites_through_norms_only_when_asked_and_then_they_say_so() -> None:
    model, example = build("fused attention")
    hard, soft = trace(model, example), trace(model, example, soft=True)
    assert not any(site.soft for site in hard.sites.values())
    width = [site for site in soft.sites.values() if site.size == 24]
    assert width and all("norm" in site.soft for site in width)
    assert "norm" in hard.frozen["blocks.0.norm1.weight"] and "norm" in hard.frozen["blocks.1.proj.bias"]


def test_the_graph_knows_nothing_of_gradients_or_devices() -> None:
    model, example = build("conv1d flatten")
    with torch.device("meta"):
        twin = copy.deepcopy(model).to("meta")
    graph = trace(twin, tuple(t.to("meta") for t in example))
    assert {n: s.size for n, s in graph.sites.items()} == {n: s.size for n, s in trace(model, example).sites.items()}


def test_whole_groups_of_a_group_norm_may_go_places_may_not() -> None:
    model, example = build("group norm, transposed, cat", dtype=torch.float64)
    graph = trace(model, example)
    assert graph.sites["down"].size == 4, "four groups of four channels"
    assert [s.name for s in graph.sites.values() if ("norm.weight", 0) in s.parameters] == ["down"]
    x = inputs(example)
    expected = output(zeroed(model, graph, {"down": [0, 3]}), x)
    prune(model, graph, "down", [0, 3])
    assert model.norm.num_groups == 2 and relative(expected, output(model, x)) < 1e-12


def test_all_probes_are_listed_by_their_construct() -> None:
    assert len(PROBES) == 15 and not set(PROBES) & set(MORE)


@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 notes them whatever it is told")
def test_an_export_notes_no_lines_of_code() -> None:
    """They are an eighth of its time, and are asked for again once it is made."""
    model, example = build("lenet")
    nodes = trace(model, example).captured.module.graph.nodes
    assert len(nodes) > 10 and not any(node.stack_trace for node in nodes)
    assert not torch.fx.config.do_not_emit_stack_traces
