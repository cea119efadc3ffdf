"""Residual branches that go whole."""

from __future__ import annotations

import copy

import torch
from probes import build
from torch import nn
from zeroing import inputs, output, relative

from featherweight.structure import drop, replay, trace


def test_a_residual_block_becomes_the_identity_in_the_users_network() -> None:
    model, example = build("residual", dtype=torch.float64)
    graph = trace(model, example)
    assert set(graph.blocks) == {"blocks.0", "blocks.1"}
    assert graph.blocks["blocks.0"].macs == 2 * 16 * 16 * 8 * 8 * 9
    twin = copy.deepcopy(model)
    with torch.no_grad():  # the branch gives 0
        twin.blocks[1].norm2.weight.zero_()
        twin.blocks[1].norm2.bias.zero_()
    x = inputs(example)
    expected = output(twin, x)
    assert relative(output(model, x), expected) > 1e-3
    result = drop(model, graph, "blocks.1")
    assert result.where == "class" and isinstance(model.blocks[1], nn.Identity)
    assert relative(expected, output(model, x)) < 1e-12
    fresh, _ = build("residual", dtype=torch.float64)
    assert result.edit is not None
    replay(fresh, [result.edit.to_dict()])
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(fresh, x), output(model, x))


def test_half_a_transformer_block_goes_as_a_graph() -> None:
    model, example = build("fused attention", dtype=torch.float64)
    graph = trace(model, example)
    assert len(graph.blocks) == 4
    attention = next(b for b in graph.blocks.values() if "blocks.1.qkv.weight" in b.parameters)
    assert "blocks.1.norm1.weight" in attention.parameters and "blocks.1.fc1.weight" not in attention.parameters
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.blocks[1].proj.weight.zero_()
        twin.blocks[1].proj.bias.zero_()
    x = inputs(example)
    result = drop(model, graph, attention.name)
    assert result.where == "graph" and result.edit is None
    assert relative(output(twin, x), output(result.model, x)) < 1e-12
    assert not any("blocks.1.qkv" in name for name, _ in result.model.named_parameters())


def test_a_projected_shortcut_is_no_block() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(torch.relu(self.a(x) + self.b(x)))

    assert trace(Projected(), (torch.randn(1, 4),)).blocks == {}
