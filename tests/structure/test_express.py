"""What a class can express: asked in families, with the multiples and the ties of its numbers, and never refused afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attentions import TOKENS, Encoder, Fused, OfTheInput, OneNumber, Rotary
from torch import Tensor, nn

from featherweight.structure import express, expressible, free_sizes, prune, trace
from featherweight.structure.errors import NotExact


def random_sizes(groups: tuple[tuple[str, ...], ...], sizes: dict[str, int], seed: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        levels = int(np.gcd.reduce([sizes[name] for name in group]))
        level = int(rng.integers(1, levels + 1))
        for name in group:
            keep[name] = sorted(rng.permutation(sizes[name])[: sizes[name] // levels * level].tolist())
    return keep


@pytest.mark.third
@pytest.mark.parametrize(
    ("attention", "tied"),
    [
        (OneNumber, [("attentions.0.q#2", "attentions.0.v"), ("attentions.1.q#2", "attentions.1.v")]),
        (Rotary, [("attentions.0.q", "attentions.0.v"), ("attentions.1.q", "attentions.1.v")]),
        (Fused, []),
    ],
)
def test_sizes_of_groups_are_free(attention: type[nn.Module], tied: list[tuple[str, ...]]) -> None:
    """Whatever shares the groups keep, the class can express it; what one number stands for keeps the same share."""
    network = Encoder(attention).eval()
    graph = trace(network, (TOKENS,))
    groups = free_sizes(network, graph, list(graph.sites))
    assert [group for group in groups if len(group) > 1] == tied
    sizes = {name: graph.sites[name].size for group in groups for name in group}
    for seed in range(3):
        cut = copy.deepcopy(network)
        prune(cut, graph, random_sizes(groups, sizes, seed), where="class")
        assert cut(TOKENS).shape == (1, 5)


def test_a_tie_that_is_broken_is_refused() -> None:
    network = Encoder(OneNumber).eval()
    with pytest.raises(NotExact):
        prune(network, trace(network, (TOKENS,)), {"attentions.0.q#2": [0, 1], "attentions.0.v": [0]}, where="class")


@pytest.mark.third
@pytest.mark.parametrize("attention", [Fused, OneNumber])
def test_more_blocks_of_a_kind_are_no_more_questions(attention: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    trial = express.trial

    def counted(*given: object, **more: object) -> object:
        asked[-1] += 1
        return trial(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(express, "trial", counted)
    found = []
    for layers in (2, 6):
        network = Encoder(attention, layers=layers, hidden=8).eval()
        graph = trace(network, (TOKENS,))
        asked.append(0)
        found.append(len(expressible(network, graph)) / layers)
    assert asked[0] == asked[1] <= 12 and found[0] == found[1] == {Fused: 2, OneNumber: 4}[attention]


class Half(nn.Module):
    """The class holds twice the number that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 12
        self.c = nn.Conv2d(3, 12, 3)
        self.a, self.b = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = torch.split(self.c(x).relu(), self.channels // 2, 1)
        return self.a(u) + self.b(v)


def test_a_multiple_of_a_number_is_tried_and_ties() -> None:
    network, x = Half().eval(), torch.randn(1, 3, 9, 9)
    graph = trace(network, (x,))
    assert free_sizes(network, graph, expressible(network, graph)) == (("c", "c#2"),)
    prune(network, graph, {"c": [0, 2], "c#2": [3, 4]}, where="class")
    assert network.channels == 4 and network.c.out_channels == 4


@pytest.mark.parametrize("build", [lambda: Encoder(OfTheInput)])
def test_what_the_class_cannot_express_the_exported_module_can(build: Callable[[], nn.Module]) -> None:
    network = build().eval()
    graph = trace(network, (TOKENS,))
    able = expressible(network, graph)
    assert set(able) == {"mlps.0.0", "mlps.1.0"} and len(graph.sites) == 6
    heads = {name: [0] for name in graph.sites if name not in able}
    assert prune(network, graph, heads, where="graph").check.passed
