"""Experts stacked in one parameter, rows written and counted by number, caches, and networks that cannot be followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.structure import prune, trace
from featherweight.structure.errors import NotExportable


class Stacked(nn.Module):
    """Mixtral's kind: each row goes to two of four experts, sorted by expert; `grouped`: one product for all experts."""

    def __init__(self, grouped: bool, dim: int = 16, hidden: int = 24, experts: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grouped, self.experts = grouped, experts
        self.before, self.gate = nn.Linear(5, dim), nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.randn(experts, 2 * hidden, dim) / 4)
        self.down = nn.Parameter(torch.randn(experts, dim, hidden) / 4)
        self.head = nn.Linear(dim, 3)

    def product(self, rows: Tensor, stack: Tensor, numbers: Tensor, ends: Tensor) -> Tensor:
        if self.grouped:
            short = F.grouped_mm(rows.bfloat16(), stack.transpose(1, 2).bfloat16(), offs=ends)
            return short.to(rows.dtype)
        every = torch.einsum("rk,emk->erm", rows, stack)
        return (every * F.one_hot(numbers, self.experts).T[..., None]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.before(x)
        weights, chosen = self.gate(h).softmax(-1).topk(2)
        numbers, order = chosen.reshape(-1).sort()
        rows = h[order // 2]
        ends = torch.histc(numbers.float(), bins=self.experts, min=0, max=self.experts - 1).cumsum(0).to(torch.int32)
        a, b = self.product(rows, self.up, numbers, ends).chunk(2, -1)
        y = self.product(F.silu(a) * b, self.down, numbers, ends) * weights.reshape(-1)[order][:, None]
        return self.head(h + torch.zeros_like(h).index_add(0, order // 2, y))


@pytest.mark.parametrize("grouped", [True, False])
def test_the_inner_units_of_stacked_experts_go(grouped: bool) -> None:
    network = Stacked(grouped).eval()
    x = torch.randn(6, 5)
    graph = trace(network, (x,))
    sizes = {name: site.size for name, site in graph.sites.items()}
    assert 24 in sizes.values() and not graph.uncounted, (sizes, graph.uncounted)
    inner = next(name for name, size in sizes.items() if size == 24)
    result = prune(network, graph, inner, list(range(0, 24, 3)), where="class")
    assert result.check.passed and result.check.tolerance <= (2e-2 if grouped else 1e-9)
    assert network.up.shape == (4, 16, 16) and network.down.shape == (4, 16, 8) and network(x).shape == (6, 3)


class Written(nn.Module):
    """Rows of a hidden layer put in another order by writing them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        moved = torch.zeros(x.shape[0], self.a.out_features)
        moved[order] = self.a(x).relu()
        return self.b(moved)


def test_units_of_rows_that_are_written_by_number_go() -> None:
    network = Written().eval()
    graph = trace(network, (torch.randn(4, 5),))
    assert {name: site.size for name, site in graph.sites.items()} == {"a": 12}
    assert prune(network, graph, "a", [0, 5, 7]).check.passed


class Remembers(nn.Module):
    """A language model's kind: gives its keys for later calls, unless its configuration or its caller says no."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.k, self.b = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, use_cache: bool | None = None) -> Any:
        keys = self.k(x).relu()
        kept = self.config.use_cache if use_cache is None else use_cache
        return {"logits": self.b(keys), **({"cache": keys} if kept else {})}


def test_a_cache_is_no_output_unless_it_is_asked_for() -> None:
    network = Remembers().eval()
    x = torch.randn(1, 5)
    assert not trace(network, {"x": x, "use_cache": True}).sites
    graph = trace(network, {"x": x})
    assert {name: site.size for name, site in graph.sites.items()} == {"k": 12}
    assert prune(network, graph, "k", [0, 1, 2], where="class").check.passed
    assert network.config.use_cache is True and set(network(x)) == {"logits", "cache"}


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [self.b(self.a(image[None]).relu()).mean((2, 3)) for image in images]


def test_images_of_several_sizes_in_a_list() -> None:
    network = Images().eval()
    graph = trace(network, ([torch.randn(3, 8, 8), torch.randn(3, 10, 8)],))
    assert prune(network, graph, "a", [0, 3], where="class").check.passed


@pytest.mark.parametrize("how", ["traced", "scripted", "inside"])
def test_torchscript_is_refused_in_one_sentence(how: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).eval()
    scripted = torch.jit.trace(plain, torch.ones(1, 4)) if how == "traced" else torch.jit.script(plain)
    network = nn.Sequential(scripted, nn.ReLU()) if how == "inside" else scripted
    with pytest.raises(NotExportable, match=r"TorchScript.*give the network in Python"):
        trace(network, (torch.ones(1, 4),))
