"""Weights that the network makes of its parameters: standardised, normalised, scaled. Their outputs can go, exactly; inputs that
a statistic is taken over cannot, and it is said why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from featherweight.structure import prune, trace


class ByBatchNorm(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        return F.conv2d(x, F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight), self.bias)


class ByMean(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        away = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, away / (away.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt(), self.bias)


class ByVariance(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * torch.rsqrt(spread + 1e-6), self.bias)


class Gain(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


def normalised(*sizes: int) -> nn.Module:
    return parametrizations.weight_norm(nn.Conv2d(*sizes))


def normalised_by_a_hook(*sizes: int) -> nn.Module:
    return torch.nn.utils.weight_norm(nn.Conv2d(*sizes))


def scaled(*sizes: int) -> nn.Module:
    layer = nn.Conv2d(*sizes)
    parametrize.register_parametrization(layer, "weight", Gain())
    return layer


def network(make: Callable[..., nn.Module], norm: nn.Module | None = None) -> nn.Module:
    """made - plain - made - plain: 0, 3, 5 and the head."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return nn.Sequential(
        make(3, 8, 3), norm or nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.ReLU(), make(10, 6, 3), nn.ReLU(), head
    ).eval()


X = torch.randn(1, 3, 9, 9)
STANDARDISED = [ByBatchNorm, ByMean, ByVariance]


@pytest.mark.parametrize("make", STANDARDISED)
def test_outputs_of_a_standardised_weight_go_and_inputs_do_not(make: type[nn.Module]) -> None:
    made = network(make)
    graph = trace(made, (X,))
    assert {name: site.size for name, site in graph.sites.items()} == {"0": 8, "5": 6}
    assert "which would change" in graph.frozen["3.bias"] and " in 5)" in graph.frozen["3.bias"]
    result = prune(made, graph, {"0": [0, 3, 5], "5": [1, 2]}, where="class")
    assert result.check.passed and made(X).shape == (1, 3)


@pytest.mark.parametrize("make", STANDARDISED)
def test_inputs_of_a_standardised_weight_go_where_a_change_is_asked_for(make: type[nn.Module]) -> None:
    made = network(make)
    graph = trace(made, (X,), soft=True)
    assert graph.sites["3"].soft and not graph.sites["0"].soft
    result = prune(made, graph, "3", [0, 1, 2, 3, 4], where="class")
    assert result.check.passed and result.check.error is not None and result.check.error > 1e-3, "what it changes is said"


@pytest.mark.parametrize("make", [normalised, normalised_by_a_hook, scaled])
def test_weights_that_are_normalised_or_scaled_are_followed(make: Callable[..., nn.Module]) -> None:
    made = network(make)
    graph = trace(made, (X,))
    assert {name: site.size for name, site in graph.sites.items()} == {"0": 8, "3": 10, "5": 6}
    result = prune(made, graph, {"0": [0, 3, 5], "3": [1, 8], "5": [1, 2]}, where="class")
    assert result.check.passed and made(X).shape == (1, 3)
    assert made[5].weight.shape == (2, 2, 3, 3) and made[0].out_channels == 3


@pytest.mark.parametrize("make", STANDARDISED)
def test_before_a_group_norm_what_is_offered_can_be_cut(make: type[nn.Module]) -> None:
    """Whole groups where a plain layer reads them; nothing where a standardised one does."""
    made = network(make, nn.GroupNorm(4, 8))
    graph = trace(made, (X,))
    assert graph.sites["0"].size == 4 and prune(made, graph, "0", [0, 2], where="class").check.passed
    torch.manual_seed(0)
    twice = nn.Sequential(make(3, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), make(8, 5, 3)).eval()
    assert not trace(twice, (X,)).sites


class Cosine(nn.Module):
    """A length over what goes: entries of 0 add nothing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.normalize(self.a(x).relu(), dim=-1))


def test_a_length_is_taken_over_what_is_left() -> None:
    made = Cosine().eval()
    graph = trace(made, (torch.randn(1, 4),))
    assert {name: site.size for name, site in graph.sites.items()} == {"a": 8}
    assert prune(made, graph, "a", [0, 1, 5], where="class").check.passed
