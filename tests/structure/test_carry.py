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
from featherweight.structure.state import NotCarried

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


# --- state of other shapes -----------------------------------------------------------------------------------------------


def marked_cut(optimizer_state: Callable[[torch.Tensor], dict[str, object]], shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The state of a (out, in) weight after the second half of its rows went: entry i of a row holds i, of a column 100 + i."""
    rows, cols = shape
    model = nn.Sequential(nn.Linear(cols, rows), nn.ReLU(), nn.Linear(rows, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight] = optimizer_state(model[0].weight)
    result = prune(model, trace(model, (torch.randn(2, cols),)), {"0": range(rows // 2)})
    carry(optimizer, result)
    return optimizer.state[model[0].weight]


ROW, COLUMN = torch.arange(16.0), 100 + torch.arange(8.0)
FACTORED: dict[str, Callable[[torch.Tensor], dict[str, object]]] = {
    "row and column": lambda w: {"row_var": ROW[:, None], "col_var": (100 + torch.arange(float(w.shape[1])))[None]},
    "without the other dimension": lambda w: {"exp_avg_sq_row": ROW, "exp_avg_sq_col": 100 + torch.arange(float(w.shape[1]))},
}


@pytest.mark.parametrize("kind", FACTORED)
@pytest.mark.parametrize("cols", [8, 16])
def test_factored_state_is_cut_along_the_dimension_that_it_has(kind: str, cols: int) -> None:
    """Of a square weight, too, where rows and columns are equally many."""
    rows, columns = (value.flatten().tolist() for value in marked_cut(FACTORED[kind], (16, cols)).values())
    assert rows == list(range(8))
    assert columns == [100 + i for i in range(cols)]


def test_copies_in_another_precision_are_cut_and_numbers_are_kept() -> None:
    state = marked_cut(
        lambda w: {"master": w.detach().double(), "step": torch.tensor(3.0), "k": 7, "one": torch.ones(1), "none": None}, (16, 8)
    )
    assert state["master"].shape == (8, 8)
    assert state["master"].dtype == torch.float64
    assert (state["step"], state["k"], state["one"], state["none"]) == (3.0, 7, 1.0, None)


@pytest.mark.parametrize("name", ["adafactor", "adamw fused", "asgd", "rprop", "nadam"])
def test_every_optimizer_of_torch_goes_on_after_a_cut(name: str) -> None:
    build_one: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
        "adafactor": lambda m: torch.optim.Adafactor(m.parameters()),
        "adamw fused": lambda m: torch.optim.AdamW(m.parameters(), fused=True),
        "asgd": lambda m: torch.optim.ASGD(m.parameters()),
        "rprop": lambda m: torch.optim.Rprop(m.parameters()),
        "nadam": lambda m: torch.optim.NAdam(m.parameters()),
    }
    model, example = build("lenet")
    optimizer = build_one[name](model)
    gradients(model, 0)
    optimizer.step()
    graph = trace(model, example)
    carry(optimizer, prune(model, graph, half(graph)))
    gradients(model, 1)
    before = model.fc1.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.fc1.weight, before)


UNKNOWN: dict[str, Callable[[torch.Tensor], dict[str, object]]] = {
    "a square of the rows": lambda w: {"L": torch.eye(16)},
    "a square of a square": lambda w: {"precond_0": torch.eye(16)},
    "a list": lambda w: {"GG": [torch.eye(16), torch.eye(16)]},
    "a history": lambda w: {"history": torch.zeros(5, *w.shape)},
    "blocks": lambda w: {"state1": torch.zeros(w.shape, dtype=torch.uint8), "absmax": torch.ones(3)},
    "rows or columns": lambda w: {"factor": torch.arange(16.0)},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_state_that_cannot_be_matched_is_refused_before_anything_changes(kind: str) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gradients(model, 0)
    optimizer.step()
    weight = model[0].weight
    optimizer.state[weight] = UNKNOWN[kind](weight)
    if kind == "a square of the rows":  # and of a square weight: its like of another weight tells that it is no momentum
        optimizer.state[model[2].weight] = {"L": torch.eye(2)}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    result = prune(model, trace(model, (torch.randn(2, 16),)), {"0": range(8)})
    with pytest.raises(NotCarried, match=r"SGD's '\w+' .*build a new optimizer"):
        carry(optimizer, result)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == held
    assert weight in optimizer.state


def test_an_optimizer_with_lists_of_its_own_or_of_other_parameters_is_refused() -> None:
    model, example = build("lenet")
    copies = [p.detach().clone() for p in model.parameters()]
    lists, masters = torch.optim.LBFGS(model.parameters()), torch.optim.SGD(copies, lr=0.1)
    result = prune(model, trace(model, example), "conv1", [0, 1])
    with pytest.raises(NotCarried, match="LBFGS keeps parameters outside its groups"):
        carry(lists, result)
    with pytest.raises(NotCarried, match="SGD holds none of the parameters that were cut"):
        carry(masters, result)


def test_an_optimizer_inside_another_is_carried_with_it() -> None:
    class Wrapper:
        def __init__(self, inside: torch.optim.Optimizer):
            self.optimizer, self.param_groups = inside, inside.param_groups

        def step(self) -> None:
            self.optimizer.step()

    model, example = build("lenet")
    inside = torch.optim.Adam(model.parameters())
    gradients(model, 0)
    inside.step()
    carry(Wrapper(inside), prune(model, trace(model, example), "conv1", [0, 1]))
    assert inside.state[model.conv1.weight]["exp_avg"].shape == model.conv1.weight.shape
    gradients(model, 1)
    inside.step()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_an_average_is_cut_by_its_own_names(prefix: str) -> None:
    model, example = build("lenet")
    average = {prefix + name: value.clone() for name, value in model.state_dict().items()} | {"n_averaged": torch.tensor(3)}
    edit = prune(model, trace(model, example), "conv2", [1, 4]).edit
    assert edit is not None
    cut = carry_average(average, [edit])
    for name, value in model.state_dict().items():
        assert torch.equal(cut[prefix + name], value), name
    assert cut["n_averaged"] == 3


def test_an_averaged_model_is_cut_in_place() -> None:
    model, example = build("lenet")
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    edit = prune(model, trace(model, example), "conv2", [1, 4]).edit
    assert edit is not None
    carry_average(average, [edit])
    average.update_parameters(model)
    assert torch.equal(average.module.fc1.weight, model.fc1.weight)


def test_an_average_of_something_else_is_refused() -> None:
    model, example = build("lenet")
    edit = prune(model, trace(model, example), "conv2", [1, 4]).edit
    assert edit is not None
    for other in ({"shadow.conv2.weight": torch.zeros(3)}, nn.Linear(3, 3)):
        with pytest.raises(NotCarried, match="holds none of the tensors that were cut"):
            carry_average(other, [edit])
    with pytest.raises(NotCarried, match=r"of shape .* and the cut was made for"):
        carry_average(dict(model.state_dict()), [edit])
