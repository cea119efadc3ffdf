"""Readers fitted in order: what a constant unit gave is in the bias, any number of samples serves, and what is lost is less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featherweight import Task
from featherweight.criteria.readers import find_readers, gated, masks
from featherweight.criteria.refitting import refit_in_order
from featherweight.structure import Graph, prune, trace


def network(bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, bias=bias), nn.BatchNorm2d(12)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)),
    )
    for norm in (made[1], made[4]):
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2)
    return made.double().eval()


def inputs(count: int, seed: int = 0) -> Tensor:
    mixed = torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mixed[:, :3] + mixed[:, 1:].roll(1, 2)


def set_to(model: nn.Module, state: dict[str, Tensor]) -> None:
    held = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, values in state.items():
            held[name].copy_(values)


def apart(model: nn.Module, graph: Graph, keep: dict[str, list[int]], wanted: Tensor, x: Tensor) -> float:
    """Mean squared difference of the outputs where units are masked as `keep` says."""
    gates = masks(graph, keep, torch.empty(0).double())
    with torch.no_grad(), gated(model, find_readers(model, graph).readers, gates):
        return float((model(x) - wanted).square().mean())


@pytest.mark.parametrize("bias", [True, False])
def test_what_a_constant_unit_gave_is_taken_over_whole(bias: bool) -> None:
    model, x = network(bias), inputs(4)
    with torch.no_grad():
        for unit in (1, 5):  # always 0.75: no data can say more of it
            model[1].weight[unit], model[1].bias[unit] = 0, 0.75
        model[3].padding = 0
    graph, wanted = trace(model, (x[:1],)), model(x).detach()
    keep = {"0": [0, 2, 3, 4, 6, 7]}
    set_to(model, refit_in_order(model, graph, Task.unlabelled(model, [x]), keep).state)
    prune(model, graph, keep, where="class")
    torch.testing.assert_close(model(x), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [2, 12, 300])
def test_it_lessens_what_a_cut_costs_with_any_number_of_samples(count: int) -> None:
    model, new = network(bias=True), inputs(200, seed=1)
    graph, wanted = trace(model, (new[:1],)), model(new).detach()
    keep = {"0": [0, 2, 3, 6], "3": [1, 2, 4, 7, 8, 10]}
    before = apart(model, graph, keep, wanted, new)
    fitted = refit_in_order(model, graph, Task.unlabelled(model, list(inputs(count).split(100))), keep)
    assert not fitted.left
    set_to(model, fitted.state)
    assert apart(model, graph, keep, wanted, new) < {2: 1.05, 12: 0.7, 300: 0.4}[count] * before


def test_a_layer_that_no_patches_are_taken_of_keeps_its_weights_with_a_word() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 2)).eval()
    x = torch.randn(20, 3, 4, 4)
    graph = trace(model, (x[:1],))
    fitted = refit_in_order(model, graph, Task.unlabelled(model, [x]), {"0": [0, 2]})
    assert fitted.state == {} and fitted.said == [
        "2 is not fitted anew: it is a convolution in 2 groups, whose patches are not sampled"
    ]
