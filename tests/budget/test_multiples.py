"""Sizes that run: channels of convolutions in eights by default, whatever the network; single units where the budget asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featherweight as fw
from featherweight.budget.multiples import multiples, slow_sizes
from featherweight.structure import trace

X = (torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)),)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 28, 3), nn.Flatten(), nn.Linear(28 * 64, 50), nn.Linear(50, 4)
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.wide, self.deep, self.back = nn.Conv2d(24, 60, 1), nn.Conv2d(60, 60, 3, padding=1, groups=60), nn.Conv2d(60, 24, 1)
        self.fc = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.fc((x + self.back(F.relu(self.deep(F.relu(self.wide(x)))))).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups, self.fc = nn.Conv2d(3, 48, 3), nn.Conv2d(48, 48, 3, groups=4), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.groups(F.relu(self.first(x))).mean((2, 3)))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Conv2d(3, 24, 3), nn.Conv2d(3, 40, 3), nn.Conv2d(64, 32, 1)
        self.fc = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(F.relu(torch.cat([self.one(x), self.other(x)], 1))).mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.fc = nn.Conv2d(3, 36, 3), nn.ConvTranspose2d(36, 24, 3), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.up(F.relu(self.down(x))).mean((2, 3)))


NETWORKS: tuple[Callable[[], nn.Module], ...] = (plain, Residual, Grouped, Joined, Transposed)


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("share", [0.7, 0.4])
def test_every_convolution_that_is_cut_has_a_multiple_of_eight_channels(make: Callable[[], nn.Module], share: float) -> None:
    torch.manual_seed(0)
    network = make().eval()
    small = fw.prune(network, X, macs=share).model
    before = dict(network.named_modules())
    cut = 0
    for name, module in small.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert module.out_channels % 8 == 0 or module.out_channels == before[name].out_channels, name
            cut += module.out_channels < before[name].out_channels
    assert cut > 0
    graph = trace(network, X)
    assert slow_sizes(network, graph, {name: site.size for name, site in graph.sites.items()}) == "", (
        "whole sites are as they were"
    )


def test_one_and_other_multiples_are_a_choice_and_matrices_are_free() -> None:
    network = plain().eval()
    graph = trace(network, X)
    assert set(multiples("auto", network, graph).values()) == {1, 8} and multiples("auto", network, graph)["4"] == 1
    assert set(multiples(16, network, graph).values()) == {16}
    free = fw.prune(network, X, macs=0.7, multiple=1)
    assert free.model[0].out_channels % 8 and "no multiple of 8 channels" in slow_sizes(network, graph, {"0": 33})


def test_where_eights_are_too_much_single_units_go_and_it_is_said() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )
    small = fw.prune(network, X, macs=0.1)
    assert small.rows[-1].spent is not None and "no multiples of 8 channels" in " ".join(small.rows[-1].spent.caveats)
    assert "no multiples of 8 channels" in str(small.report)
