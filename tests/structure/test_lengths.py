"""What follows the size of the input is no unit, and a cut is compared at another size where the network takes one."""

from __future__ import annotations

import copy

import pytest
import torch
from attentions import TOKENS, Encoder, OfTheInput, OneNumber, Rotary
from torch import Tensor, nn

from featherweight.structure import express, prune, trace
from featherweight.structure.graph import Graph


class Table(nn.Module):
    """Rows of a table as many as the input has; `how` says what is done with them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.table = how, nn.Parameter(torch.randn(16, 6))
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 3)
        self.register_buffer("mask", torch.ones(16, 16).tril())

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1]
        if self.how == "added":
            return self.b(self.a(x + self.table[:size]).relu()).mean(1)
        if self.how == "masked":
            return self.b(self.a((self.mask[:size, :size] / size) @ x).relu()).mean(1)
        if self.how == "summed":
            return self.b(self.a(self.table[:size].sum(0)) + self.a(x).relu().mean(1))
        made = torch.ones(1, size, 6) if self.how == "made" else torch.ones(1, 1, 6).expand(-1, size, -1)
        return self.b(self.a((made * self.table[:size]).sum(1) + x.mean(1)).relu())


def sites(graph: Graph) -> dict[str, int]:
    return {name: site.size for name, site in graph.sites.items()}


@pytest.mark.third
@pytest.mark.parametrize("how", ["added", "masked", "summed", "made", "expanded"])
def test_the_units_of_a_network_do_not_depend_on_the_size_of_the_example(how: str) -> None:
    network = Table(how).eval()
    found = [sites(trace(network, (torch.randn(1, size, 6),))) for size in (4, 8, 16)]
    assert found == [{"a": 10}] * 3, found


@pytest.mark.parametrize("attention", [OneNumber, Rotary])
def test_what_an_example_does_not_read_stays(attention: type[nn.Module]) -> None:
    network = Encoder(attention, layers=1, dim=48, positions=40).eval()
    short, long = (trace(network, (TOKENS.repeat(1, times),)) for times in (1, 3))
    assert sites(short) == sites(long) and not any("ids" in name for name in short.sites)
    assert [given.shapes() for given in short.others] == [[(1, 12)]]
    prune(network, short, {name: range((site.size + 1) // 2) for name, site in short.sites.items()}, where="class")
    assert network(torch.randint(0, 50, (2, 30))).shape == (2, 5)


class Wrong(nn.Module):
    """After a cut the code is right for six positions only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        return self.b(hidden * (1 + 0 * hidden[..., :1] + (x.shape[1] > 6) * (12 - hidden.shape[-1])))


def test_a_cut_that_is_right_at_the_size_of_the_example_only_is_refused() -> None:
    network = Wrong().eval()
    graph = trace(network, (torch.randn(1, 6, 4),))
    result = prune(network, graph, "a", [0, 1, 2])
    assert result.where == "graph" and "on inputs of another size ((1, 12, 4)" in result.reason
    graph.others = ()
    assert prune(network, graph, "a", [0, 1, 2]).where == "class", "nobody would have seen it"


def test_an_exported_module_takes_other_sizes_where_the_network_does() -> None:
    network = Encoder(OfTheInput, positions=40).eval()
    graph = trace(network, (TOKENS,))
    whole = copy.deepcopy(network).double()
    result = prune(network, graph, {name: range((site.size + 1) // 2) for name, site in graph.sites.items()}, where="graph")
    assert result.where == "graph" and result.check.passed and not result.check.note
    assert result.model(torch.randint(0, 50, (3, 11))).shape == whole(torch.randint(0, 50, (3, 11))).shape


class Initialised(nn.Module):
    """Biases are 0 throughout, as in a network that is not trained; or it does not run in float64, which its export does."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        self.a, self.b, self.single = nn.Linear(4, 12), nn.Linear(12, 3), single
        if not single:
            nn.init.zeros_(self.a.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.single and x.dtype == torch.float64:
            raise RuntimeError("not implemented for 'Double'")
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("single", [False, True])
def test_zeros_and_single_precision_do_not_hold_an_exported_module_to_one_size(single: bool) -> None:
    network = Initialised(single).eval()
    result = prune(network, trace(network, (torch.randn(1, 6, 4),)), "a", [2, 5, 7], where="graph")
    assert result.check.passed and not result.check.note
    assert result.model(torch.randn(3, 9, 4)).shape == (3, 9, 3)


class Looped(nn.Module):
    """torch.export unrolls the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.b(self.a(x[:, i]).relu()) for i in range(x.shape[1])]).mean(0)


def test_an_exported_module_that_takes_one_size_only_says_so() -> None:
    network = Looped().eval()
    result = prune(network, trace(network, (torch.randn(1, 6, 4),)), "a", [0, 1, 2], where="graph")
    assert result.check.passed and "takes inputs of the example's sizes only" in result.check.note
    assert result.model(torch.randn(3, 6, 4)).shape == (3, 3)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().flatten(1))


def test_a_network_of_one_size_is_compared_on_that() -> None:
    graph = trace(Fixed().eval(), (torch.randn(1, 6, 4),))
    assert graph.others == () and sites(graph) == {"a": 12}
    assert express.expressible(Fixed().eval(), graph) == ("a",)
