"""What training keeps is carried over: the next step of every surviving entry is the step it would have taken."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from probes import build
from torch import nn
from zeroing import half

from featherweight.structure import carry, carry_average, drop, prune, replay, trace

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, weight_decay=0.1),
    "adamw amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, amsgrad=True),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True),
}


def gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_the_same_on_surviving_entries(name: str) -> None:
    model, example = build("residual")
    optimizer = OPTIMIZERS[name](model)
    for step in range(3):
        gradients(model, step)
        optimizer.step()
    whole = copy.deepcopy(model)
    other = OPTIMIZERS[name](whole)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gradients(whole, 9)
    grads = {n: p.grad.clone() for n, p in whole.named_parameters()}
    other.step()

    graph = trace(model, example)
    keep = half(graph)
    result = prune(model, graph, keep)
    carry(optimizer, result)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}

    def survivors(tensor: torch.Tensor, parameter: str) -> torch.Tensor:
        for (held, dim), mask in result.masks.items():
            if held == parameter:
                tensor = tensor.index_select(dim, torch.from_numpy(mask).nonzero().flatten())
        return tensor

    for parameter, tensor in model.named_parameters():
        tensor.grad = survivors(grads[parameter], parameter)
    optimizer.step()
    for parameter, tensor in whole.named_parameters():
        assert torch.equal(survivors(tensor, parameter), dict(model.named_parameters())[parameter]), parameter


def test_a_scheduler_goes_on() -> None:
    model, example = build("lenet")
    optimizer = torch.optim.SGD(
        [{"params": model.conv1.parameters(), "lr": 0.5}, {"params": model.fc1.parameters()}], lr=0.1, momentum=0.9
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    gradients(model, 0)
    optimizer.step()
    scheduler.step()
    carry(optimizer, prune(model, trace(model, example), "conv1", [0, 1]))
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.125, 0.025]
    assert optimizer.param_groups[0]["params"][0] is model.conv1.weight


def test_averages_are_cut_like_the_network() -> None:
    model, example = build("lenet")
    average = torch.optim.swa_utils.AveragedModel(model)
    by_name = {n: p.detach().clone() for n, p in model.named_parameters()}
    edit = prune(model, trace(model, example), "conv2", [1, 4]).edit
    assert edit is not None
    replay(average.module, [edit])
    average.update_parameters(model)
    assert torch.equal(average.module.fc1.weight, model.fc1.weight)
    assert torch.equal(carry_average(by_name, [edit])["fc1.weight"], model.fc1.weight)


def test_parameters_that_went_whole_leave_the_optimizer() -> None:
    model, example = build("residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients(model, 0)
    optimizer.step()
    carry(optimizer, drop(model, trace(model, example), "blocks.0"))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    assert len(optimizer.state) == len(list(model.parameters()))
