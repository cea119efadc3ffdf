"""Sweep: dead units go, nothing else does, and what the network computes stays."""

from __future__ import annotations

import copy

import pytest
import torch
from probes import build
from torch import Tensor, nn
from zeroing import inputs, output, relative

from featherweight.structure import replay, silence, sweep, trace


def sparsify(model: nn.Module, density: float) -> None:
    """Keep only the largest weights of each matrix or kernel; biases stay, as in pruning weight by weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                number = max(1, int(parameter.numel() * density))
                limit = parameter.abs().flatten().topk(number).values[-1]
                parameter.mul_(parameter.abs() >= limit)


@pytest.mark.parametrize("name", ["lenet", "plain parameters"])
def test_what_pruning_weight_by_weight_leaves_dead_is_cut_in_place(name: str) -> None:
    model, example = build(name, dtype=torch.float64)
    sparsify(model, 0.02)
    x = inputs(example, 4)
    before = output(model, x)
    kind, parameters = type(model), sum(p.numel() for p in model.parameters())
    result = sweep(model, trace(model, example))
    assert result.where == "class" and result.model is model and type(model) is kind
    assert relative(before, output(model, x)) < 1e-12
    assert sum(p.numel() for p in model.parameters()) < 0.8 * parameters
    fresh, _ = build(name, dtype=torch.float64)
    assert result.edit is not None
    replay(fresh, [result.edit])
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(fresh, x), output(model, x))
    # the smaller network trains
    output_before = model(*x)
    output_before.square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    # and nothing dead is left
    assert sweep(model, trace(model, example)).where == "nothing"


def test_exactly_the_dead_units_go() -> None:
    model, example = build("lenet", dtype=torch.float64)
    with torch.no_grad():
        model.conv1.weight[3] = 0  # a constant: its bias
        model.conv1.weight[5] = 0
        model.conv1.bias[5] = 0  # nothing at all
        model.conv2.weight[:, 7] = 0  # nobody reads it
        model.fc1.weight[11] = 0
        model.fc1.bias[11] = -1.0  # negative, and a relu follows
        model.fc2.weight[:, 13] = 0
    before = output(model, inputs(example))
    result = sweep(model, trace(model, example))
    assert result.edit is not None and dict(result.edit.sites) == {"conv1": 17, "fc1": 498}
    kept = {(c.tensor, c.dim): c.keep for c in result.edit.cuts}
    assert kept["conv1.weight", 0] == tuple(i for i in range(20) if i not in (3, 5, 7))
    assert kept["fc1.weight", 0] == tuple(i for i in range(500) if i not in (11, 13))
    assert relative(before, output(model, inputs(example))) < 1e-12


def test_without_folding_constants_stay() -> None:
    model, example = build("lenet", dtype=torch.float64)
    with torch.no_grad():
        model.conv1.weight[3] = 0
    assert sweep(model, trace(model, example), fold=False).where == "nothing"


def test_a_constant_before_a_padded_convolution_stays() -> None:
    """At the border the padding is 0 and not the constant."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)).double()
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 1.0
    assert sweep(model, trace(model, (torch.randn(1, 1, 8, 8, dtype=torch.float64),))).where == "nothing"


def test_death_spreads() -> None:
    """A neuron that reads only dead neurons is a constant once they are gone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[4] = 0
        model[2].weight[4, 1] = 2.0
    x = (torch.randn(9, 5, dtype=torch.float64),)
    before = output(model, x)
    result = sweep(model, trace(model, (torch.randn(1, 5, dtype=torch.float64),)))
    assert result.edit is not None and dict(result.edit.sites) == {"0": 5, "2": 6}
    assert relative(before, output(model, x)) < 1e-12


def test_dead_through_batch_norm_and_residual() -> None:
    model, example = build("residual", dtype=torch.float64)
    with torch.no_grad():
        for norm in (model.blocks[0].norm1,):
            norm.weight[2] = 0
            norm.bias[2] = 0
        model.blocks[1].norm2.weight[0] = 0  # the trunk still carries this channel
        model.blocks[1].norm2.bias[0] = 0
    before = output(model, inputs(example))
    result = sweep(model, trace(model, example))
    assert result.edit is not None and dict(result.edit.sites) == {"blocks.0.conv1": 7}
    assert relative(before, output(model, inputs(example))) < 1e-12


def test_dead_recurrent_units() -> None:
    model, example = build("lstm", dtype=torch.float64)
    with torch.no_grad():
        rows = torch.tensor([4, 24, 44, 64])
        for tensor in (model.rnn.weight_ih_l0, model.rnn.weight_hh_l0, model.rnn.bias_ih_l0, model.rnn.bias_hh_l0):
            tensor[rows] = 0  # unit 4 gives 0 for ever
        model.rnn.weight_hh_l0[:, 9] = 0
        model.head.weight[:, 9] = 0  # nobody reads unit 9
        model.head.weight[:, 12] = 0  # unit 12 is still read by the recurrence
    before = output(model, inputs(example))
    result = sweep(model, trace(model, example))
    assert result.edit is not None and dict(result.edit.sites) == {"rnn.weight_ih_l0": 18}
    assert model.rnn.hidden_size == 18 and relative(before, output(model, inputs(example))) < 1e-12


def test_a_layer_that_is_dead_whole_keeps_one_unit() -> None:
    model, example = build("lenet", dtype=torch.float64)
    with torch.no_grad():
        model.fc1.weight.zero_()
    before = output(model, inputs(example))
    sweep(model, trace(model, example))
    assert model.fc1.weight.shape[0] == 1 and relative(before, output(model, inputs(example))) < 1e-12


def test_live_networks_are_left_alone() -> None:
    for name in ("squeeze excite", "grouped queries", "bidirectional gru"):
        model, example = build(name)
        state = copy.deepcopy(model.state_dict())
        assert sweep(model, trace(model, example)).where == "nothing"
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Twice(nn.Module):
    """One layer's output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h) * self.c(h)


def test_a_unit_is_dead_only_if_no_reader_reads_it() -> None:
    torch.manual_seed(0)
    model = Twice().double()
    with torch.no_grad():
        model.b.weight[:, 2] = 0
        model.b.weight[:, 3] = 0
        model.c.weight[:, 3] = 0
    result = sweep(model, trace(model, (torch.randn(1, 4, dtype=torch.float64),)))
    assert result.edit is not None and dict(result.edit.sites) == {"a": 5}


class Hidden(nn.Module):
    """The order of the channels is a tensor made in the code, so only the exported module can be smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))[:, torch.tensor([4, 2, 0, 1, 3])])


def test_constants_are_folded_in_the_exported_module_too() -> None:
    torch.manual_seed(0)
    model = Hidden()
    with torch.no_grad():
        model.a.weight[2] = 0
        model.a.bias[2] = 1.5
        model.a.bias[0] += 0.25
    graph = trace(model, (torch.randn(1, 4),))
    with torch.no_grad():
        model.b.weight.mul_(2.0)  # training went on after the trace: the cut takes the weights as they are now
        model.b.weight = nn.Parameter(model.b.weight.detach() + 0.1)
    x = (torch.randn(6, 4),)
    before = output(model, x)
    result = sweep(model, graph)
    assert result.where == "graph" and result.model.a.weight.shape == (4, 4)
    assert relative(before, output(result.model, x)) < 1e-6


class Block(nn.Module):
    """A residual block on a stem, batch norms with shifts, and padding: no reader can take a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.norm2 = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)
        for norm in (self.stem_norm, self.norm1, self.norm2):
            for tensor in (norm.bias, norm.running_mean, norm.weight):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem_norm(self.stem(x)))
        inner = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(x + self.norm2(self.conv2(inner))).mean((2, 3)))  # type: ignore[no-any-return]


def test_filters_given_up_go_with_the_constant_of_their_batch_norm() -> None:
    torch.manual_seed(0)
    model, example = Block().double().eval(), (torch.randn(2, 3, 8, 8).double(),)
    with torch.no_grad():
        model.conv1.weight[[1, 3]] = 0
        model.conv2.weight[2] = 0  # one of two that add to this unit of the stream
        model.stem.weight[4] = model.conv2.weight[4] = 0  # both
    assert sweep(model, trace(model, example)).where == "nothing"
    without = copy.deepcopy(model)
    with torch.no_grad():
        for norm, units in ((without.norm1, [1, 3]), (without.stem_norm, [4]), (without.norm2, [4])):
            norm.weight[units] = norm.bias[units] = 0
    weights = [f"{name}.weight" for name in ("stem", "conv1", "conv2")]
    assert silence(model, trace(model, example), weights)
    assert not silence(model, trace(model, example), weights)
    result = sweep(model, trace(model, example))
    assert result.where == "class"
    assert (model.conv1.out_channels, model.stem.out_channels, model.head.in_features) == (3, 5, 5)
    assert relative(output(without, example), output(model, example)) < 1e-12


def test_only_filters_that_were_asked_for_are_silenced() -> None:
    model, example = Block().eval(), (torch.randn(2, 3, 8, 8),)
    with torch.no_grad():
        model.conv1.weight[[1, 3]] = 0
    before = copy.deepcopy(model.state_dict())
    assert not silence(model, trace(model, example), ["stem.weight"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
