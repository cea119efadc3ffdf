"""Several residual branches that go at once, and which of them the network's own class can lose or gate."""

from __future__ import annotations

import pytest
import torch
from residual import DOUBLE, Block, Residual, held, residual
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.structure import branches, drop, droppable, trace


def test_blocks_that_go_leave_the_network_built_without_them() -> None:
    network = residual(12, 24, 10, 6).double()
    by_hand = Residual(12, 10).double().eval()
    state = network.state_dict()
    renamed = {"blocks.0": "blocks.0", "blocks.2": "blocks.1"}
    taken = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    for old, new in renamed.items():
        taken |= {name.replace(old, new): value for name, value in state.items() if name.startswith(old)}
    by_hand.load_state_dict(taken)
    result = drop(network, trace(network, DOUBLE), ["blocks.1", "blocks.3"])
    x = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    assert result.where == "class" and result.edit is not None and result.edit.identities == ("blocks.1", "blocks.3")
    with torch.no_grad():
        assert torch.allclose(network.eval()(x), by_hand(x), rtol=0, atol=1e-12)
    assert held(network) == held(by_hand)


class Projected(Block):
    """relu(P(x) + F(x)): nothing of it is the identity, whatever F is."""

    def __init__(self) -> None:
        super().__init__(2, 3)
        self.shortcut = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Signed(nn.Module):
    """Its first block adds to the input, which may have any sign, so that its ReLU does something without F."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Block(2, 3), Block(2, 3), Projected()

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x))).sum((2, 3))


def test_a_block_whose_relu_does_something_stays_though_the_example_is_positive() -> None:
    network = Signed().eval()
    graph = trace(network, (torch.rand(1, 2, 4, 4),))
    assert set(graph.blocks) == {"first", "second"}
    assert droppable(network, graph) == {"second": "second"}
    with pytest.raises(FeatherweightError, match="class cannot go on without first"):
        drop(network, graph, ["first", "second"], where="class")
    result = drop(network, graph, ["first", "second"])
    x = torch.randn(3, 2, 4, 4)
    assert result.where == "graph"
    assert torch.allclose(result.model(x), network.third(torch.relu(x)).sum((2, 3)), atol=1e-6)


def test_a_branch_is_gated_only_where_a_module_gives_it_whole() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.inner, self.scale = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)), scale

        def forward(self, x: Tensor) -> Tensor:
            branch = self.inner(x)
            return x + (branch if self.scale == 1 else torch.tanh(branch))

    network = nn.Sequential(Scaled(1.0), Scaled(0.5))
    graph = trace(network, (torch.rand(1, 4),))
    assert set(droppable(network, graph).values()) == {"0", "1"}
    assert list(branches(network, graph, graph.blocks).values()) == ["0.inner.2"]


def test_a_trunk_that_is_a_branchs_sum_goes_with_it() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.one(x)
            return self.last(x + self.two(x))

    network = Chain()
    graph = trace(network, (torch.rand(1, 4),))
    result = drop(network, graph, list(graph.blocks))
    x = torch.randn(3, 4)
    assert result.where == "graph" and held(result.model) == 10
    assert torch.allclose(result.model(x), network.last(x), atol=1e-6)
