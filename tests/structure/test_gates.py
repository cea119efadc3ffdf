"""Gates on where units are read: at 0 they compute what the cut network does, at 1 nothing changes, and a gap is said."""

from __future__ import annotations

import pytest
import torch
from probes import MORE, PROBES, build
from torch import Tensor, nn
from zeroing import half, inputs, output, relative, zeroed

from featherweight.criteria.readers import Reader, Unobservable, find_readers, gated, masks
from featherweight.structure import trace

NOT_WATCHED = {  # probe -> sites that no module reads
    "lstm": {"rnn.weight_ih_l0"},
    "bidirectional gru": {"conv", "rnn.weight_ih_l0"},
    "transformer encoder": {
        f"encoder.layers.{i}.self_attn.in_proj_weight{part}" for i in (0, 1) for part in ("", "#2")
    },  # nn.MultiheadAttention calls no module
    "fused attention": {"blocks.0.qkv#2", "blocks.1.qkv#2"},  # places in the heads of queries and keys
    "grouped queries": {"q"},
    "einsum": {"w2"},
    "strided slice": {"conv1#2"},
    "plain parameters": {"conv1_w", "conv2_w", "fc1_w"},
    "selective scan": {"decay", "split"},
    "projected lstm": {"rnn.weight_hr_l0", "rnn.weight_ih_l0"},
}


@pytest.mark.third
@pytest.mark.parametrize("name", [*PROBES, *MORE])
def test_gates_at_zero_compute_what_zeroed_weights_do(name: str) -> None:
    model, example = build(name, dtype=torch.float64)
    graph = trace(model, example)
    found = find_readers(model, graph)
    assert set(found.unobservable) == NOT_WATCHED.get(name, set())
    assert all(reason for reason in found.unobservable.values())
    watched = [site for site in graph.sites if site not in found.unobservable]
    x = inputs(example)
    keep = {site: units for site, units in half(graph).items() if site in watched}
    whole = output(model, x)
    with gated(model, found.readers, {site: torch.ones(graph.sites[site].size, dtype=torch.float64) for site in watched}):
        assert torch.equal(output(model, x), whole)
    with gated(model, found.readers, masks(graph, keep, torch.empty(0, dtype=torch.float64))):
        cut = output(model, x)
    assert relative(output(zeroed(model, graph, keep), x), cut) < 1e-12
    assert (relative(whole, cut) > 1e-3) == bool(watched)
    assert torch.equal(output(model, x), whole)  # the hooks are gone


def test_gates_of_each_sample_are_those_samples_own() -> None:
    model, example = build("residual", dtype=torch.float64)
    graph = trace(model, example)
    found, x = find_readers(model, graph), inputs(example, 3)
    gate = torch.ones(3, 8, dtype=torch.float64)
    gate[1, 2] = 0
    with gated(model, found.readers, {"stem": gate}):
        mixed = output(model, x)
    with gated(model, found.readers, {"stem": gate[1]}):
        second = output(model, x)
    whole = output(model, x)
    assert torch.allclose(mixed[1], second[1], atol=1e-12)
    assert torch.allclose(mixed[[0, 2]], whole[[0, 2]], atol=1e-12)
    assert not torch.allclose(whole[1], second[1], atol=1e-3)


def test_a_residual_site_has_every_layer_that_reads_the_stream() -> None:
    model, example = build("residual")
    found = find_readers(model, trace(model, example))
    assert [reader.module for reader in found.of("stem")] == ["blocks.0.conv1", "blocks.1.conv1", "head"]


def test_the_hooks_are_gone_after_an_error() -> None:
    model, example = build("lenet")
    found = find_readers(model, trace(model, example))
    with pytest.raises(RuntimeError), gated(model, found.readers, {}):
        raise RuntimeError("stop")
    assert all(not module._forward_pre_hooks for module in model.modules())


class SequenceFirst(nn.Module):
    """The batch is the second dimension of what the second layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.transpose(0, 1)))).mean(0)


def test_a_reader_whose_first_dimension_is_not_the_batch_is_not_watched() -> None:
    model = SequenceFirst()
    found = find_readers(model, trace(model, (torch.randn(1, 5, 6),)))
    assert "not the batch" in found.unobservable["a"]


def test_a_first_dimension_that_only_looks_like_the_batch_is_an_error() -> None:
    layer = nn.Sequential(nn.Linear(4, 2))
    reader = Reader("0", "0.weight", 1, -1, {"site": (torch.arange(4),)})
    with gated(layer, [reader], {"site": torch.ones(3, 4)}), pytest.raises(Unobservable, match="not the batch"):
        layer(torch.randn(5, 4))
