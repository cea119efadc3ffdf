"""The fifteen constructs that tools for structured pruning get wrong, and some more: cut by half, exact to 1e-12."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from probes import MORE, PROBES, build
from zeroing import half, inputs, output, relative, zeroed

from featherweight.structure import expressible, prune, replay, trace
from featherweight.structure.count import as_it_runs

ALL = [*PROBES, *MORE]
# sites whose cut the network's own code cannot express: sizes are written into the code, or the class fixes them
NOT_IN_CLASS = {
    # nn.MultiheadAttention takes its sizes from the width it attends over
    "transformer encoder": {f"encoder.layers.{i}.self_attn.in_proj_weight{j}" for i in (0, 1) for j in ("", "#2")},
    # the default attention scale is made from the size of a query's head, which the code shares with the size of a value's head
    "grouped queries": {"q", "v"},
    "group shuffle depthwise": {"stem#2"},  # 4 groups are written into the forward
    "strided slice": {"conv1", "conv1#2"},  # a random half does not alternate
    "selective scan": {"split#2"},  # the two numbers a rate is made of are written into the forward
    "constant order": {"conv1"},  # the order is a tensor made in the code
}

WITH_EINSUM = ("einsum", "selective scan")  # its products are counted on the graph only


@pytest.mark.third
@pytest.mark.parametrize("name", ALL)
def test_half_of_every_site_goes_exactly(name: str) -> None:
    """As a graph always; in the user's own class where its code allows it; and the edit fits a fresh instance of the class."""
    model, example = build(name, dtype=torch.float64)
    graph = trace(model, example)
    keep = half(graph)
    x = inputs(example)
    assert as_it_runs(copy.deepcopy(model), example) == (None if name in WITH_EINSUM else graph.macs())
    expected = output(zeroed(model, graph, keep), x)
    assert relative(output(model, x), expected) > 1e-3, "zeroing changed nothing: the test would pass for any cut"
    before = sum(p.numel() for p in model.parameters())
    result = prune(model, graph, keep, where="graph", any_batch=False)
    assert result.where == "graph" and not result.refused
    assert relative(expected, output(result.model, x)) < 1e-12
    assert sum(p.numel() for p in result.model.parameters()) == graph.parameters({n: len(k) for n, k in keep.items()}) < before

    able = expressible(model, graph, keep)
    assert set(graph.sites) - set(able) == NOT_IN_CLASS.get(name, set())
    if not able:
        return
    kind = type(model)
    keep = {n: k for n, k in keep.items() if n in able}
    expected = output(zeroed(model, graph, keep), x)
    result = prune(model, graph, keep, where="class")
    assert result.model is model and type(model) is kind and result.edit is not None
    assert relative(expected, output(model, x)) < 1e-12
    assert graph.parameters({n: len(k) for n, k in keep.items()}) == sum(p.numel() for p in model.parameters())
    fresh, _ = build(name, seed=3, dtype=torch.float64)
    replay(fresh, [json.loads(json.dumps(result.edit.to_dict()))])
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(fresh, x), output(model, x))


def test_cuts_alone_one_site_at_a_time() -> None:
    for name in ("fused attention", "grouped queries", "bidirectional gru"):
        model, example = build(name, dtype=torch.float64)
        graph = trace(model, example)
        x = inputs(example)
        for site, kept in half(graph, seed=1).items():
            expected = output(zeroed(model, graph, {site: kept}), x)
            result = prune(model, graph, site, kept, where="graph", any_batch=False)
            assert relative(expected, output(result.model, x)) < 1e-12


def test_heads_places_and_repeats_are_sites_of_their_own() -> None:
    model, example = build("grouped queries")
    graph = trace(model, example)
    # 4 query heads share 2 key heads: head sizes of q/k (8) and of v (8), key heads (2), repeats (2), and the gated layer (40)
    assert sorted(site.size for site in graph.sites.values()) == [2, 2, 8, 8, 40]
    model, example = build("fused attention")
    graph = trace(model, example)
    assert sorted(site.size for site in graph.sites.values())[:2] == [4, 4]


def test_tied_weights_are_cut_once_and_stay_tied() -> None:
    model, example = build("tied")
    graph = trace(model, example)
    prune(model, graph, half(graph))
    assert model.out.weight is model.embed.weight and model.embed.weight.shape == (11, 6)


def test_a_scalar_recomputed_from_a_shape_is_caught() -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) / self.a.weight.shape[0])

    torch.manual_seed(0)
    model = Scaled().eval()
    graph = trace(model, (torch.randn(1, 6),))
    before = copy.deepcopy(model.state_dict())
    result = prune(model, graph, "a", [0, 1, 2])
    assert result.where == "graph" and "differs" in result.reason
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items()), "the user's network must be untouched"
    twin = zeroed(model, graph, {"a": [0, 1, 2]}).float()
    x = (torch.randn(2, 6),)
    assert relative(output(twin, x), output(result.model, x)) < 1e-5
