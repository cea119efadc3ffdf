"""Recurrent stacks: each layer is seen, keeps units of its own, and is fitted to what it reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import featherweight as fw
from featherweight.criteria import CRITERIA
from featherweight.criteria.statistics import collect, memory
from featherweight.network.stacked import by_layer, is_stacked
from featherweight.structure import trace

STACKS = {
    "LSTM": lambda: nn.LSTM(5, 7, 3, batch_first=True),
    "GRU, steps first, no biases": lambda: nn.GRU(5, 7, 2, bias=False),
    "RNN of ReLU": lambda: nn.RNN(5, 7, 2, nonlinearity="relu", batch_first=True),
}


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize("given", [False, True])
def test_a_stack_run_by_layer_gives_what_its_module_gives(kind: str, given: bool) -> None:
    torch.manual_seed(0)
    stack, x = STACKS[kind](), torch.randn(4, 4, 5)
    state = torch.randn(stack.num_layers, 4, 7)
    start = ((state, state) if kind == "LSTM" else state) if given else None
    output, end = stack(x, start)
    again, ends, layers = by_layer(stack, x, start)
    torch.testing.assert_close(again, output)
    torch.testing.assert_close(ends, end)
    assert len(layers) == stack.num_layers
    first = type(stack)(5, 7, 1, bias=stack.bias, batch_first=stack.batch_first, **_mode(stack))
    first.load_state_dict({name: value for name, value in stack.state_dict().items() if name.endswith("_l0")})
    torch.testing.assert_close(layers[0], first(x, _first(start))[0])


def _mode(stack: nn.RNNBase) -> dict[str, str]:
    return {"nonlinearity": "relu"} if stack.mode == "RNN_RELU" else {}


def _first(start: object) -> object:
    if isinstance(start, tuple):
        return tuple(one[:1] for one in start)
    return start[:1] if isinstance(start, Tensor) else None


def test_two_directions_and_projections_are_not_told_apart() -> None:
    assert not is_stacked(nn.LSTM(3, 4, bidirectional=True)) and not is_stacked(nn.LSTM(3, 4, proj_size=2))


class Speech(nn.Module):
    """(batch, steps, 5) -> (batch, 3), by the last state of a stack, or of one of its layers."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int, layers: int = 3, read: int = -1) -> None:
        super().__init__()
        self.stack = kind(5, hidden, layers, batch_first=True)  # type: ignore[call-arg]
        self.head, self.read = nn.Linear(hidden, 3), read

    def forward(self, x: Tensor) -> Tensor:
        state = self.stack(x)[1]
        found: Tensor = self.head((state[0] if isinstance(state, tuple) else state)[self.read])
        return found


def doubled(small: Speech, kind: type[nn.RNNBase]) -> Speech:
    """The same function with every unit twice, each layer's in an order of its own; readers share their weights between twins."""
    wide = Speech(kind, 2 * small.stack.hidden_size)
    orders = [torch.randperm(2 * small.stack.hidden_size) for _ in range(3)]
    held = dict(small.stack.named_parameters())
    gates = {"LSTM": 4, "GRU": 3}.get(small.stack.mode, 1)

    def rows(tensor: Tensor, layer: int) -> Tensor:
        parts = [torch.cat([part, part])[orders[layer]] for part in tensor.chunk(gates)]
        return torch.cat(parts)

    def columns(tensor: Tensor, layer: int) -> Tensor:
        share = torch.rand_like(tensor)
        return torch.cat([tensor * share, tensor * (1 - share)], 1)[:, orders[layer]]

    with torch.no_grad():
        for name, tensor in wide.stack.named_parameters():
            layer = int(name[-1])
            new = rows(held[name], layer)
            if name.startswith("weight_hh"):
                new = columns(new, layer)
            elif name.startswith("weight_ih") and layer:
                new = columns(new, layer - 1)
            tensor.copy_(new)
        wide.head.weight.copy_(columns(small.head.weight, 2))
        wide.head.bias.copy_(small.head.bias)
    return wide


def batches(count: int = 8) -> list[Tensor]:
    dice = torch.Generator().manual_seed(3)
    return [torch.randn(16, 12, 5, generator=dice) for _ in range(count)]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_units_that_say_the_same_go_from_each_layer_without_a_loss(kind: type[nn.RNNBase], tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = Speech(kind, 6)
    for parameter in small.stack.parameters():
        parameter.data *= 2  # units that are far from linear
    wide, x = doubled(small, kind), torch.randn(32, 12, 5)
    with torch.no_grad():
        torch.testing.assert_close(wide(x), small(x), rtol=1e-4, atol=1e-5)
    done = fw.prune(wide, (x[:2],), parameters=0.36, criterion="obs", data=batches())
    assert done.model.stack.hidden_size == 6
    with torch.no_grad():
        apart = float((done.model(x) - small(x)).abs().max() / small(x).abs().max())
    assert apart < 0.02
    done.save(tmp_path / "saved")
    with torch.no_grad():
        torch.testing.assert_close(fw.load(tmp_path / "saved", Speech(kind, 12))(x), done.model(x))


def test_layers_keep_units_of_their_own() -> None:
    torch.manual_seed(0)
    done = fw.prune(Speech(nn.LSTM, 16), (torch.randn(2, 12, 5),), macs=0.5, data=batches())
    change = done.snapshot.edits[0]["change"]
    kept = {name: change["keeps"][number] for name, dim, _, number in change["cuts"] if dim == 1}
    layers = [kept[f"stack.weight_hh_l{layer}"] for layer in range(3)]
    assert all(one != other for one, other in itertools.combinations(layers, 2))
    assert kept["stack.weight_ih_l1"] == layers[0] and kept["stack.weight_ih_l2"] == layers[1]


def test_a_network_that_looks_at_an_inner_state_keeps_the_same_units_in_each_layer() -> None:
    torch.manual_seed(0)
    network = Speech(nn.GRU, 16, read=0)
    done = fw.prune(network, (torch.randn(2, 12, 5),), macs=0.5, data=batches())
    change = done.snapshot.edits[0]["change"]
    kept = {name: change["keeps"][number] for name, dim, _, number in change["cuts"] if dim == 1}
    assert kept["stack.weight_hh_l0"] == kept["stack.weight_hh_l1"] == kept["head.weight"]


class Plain(nn.Module):
    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, kernel)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.two(torch.relu(self.one(x))).flatten(1)
        return found


def unexplained(read: Tensor, wanted: Tensor) -> Callable[[Iterable[int]], float]:
    """Units kept -> the share of `wanted` that a least squares fit to what is read of them, (samples, units, k), leaves."""

    def left(kept: Iterable[int]) -> float:
        x = (read - read.mean(0))[:, list(kept)].flatten(1)
        solution = torch.linalg.lstsq(x, wanted).solution
        return float((wanted - x @ solution).square().sum() / wanted.square().sum())

    return left


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_obs_says_a_unit_costs_is_what_a_least_squares_fit_leaves(kernel: int) -> None:
    """The oracle: least squares on the very patches."""
    torch.manual_seed(0)
    network, batch = Plain(kernel), torch.randn(256, 3, 2 + kernel)  # one place a sample: all patches are seen
    task = fw.Task.unlabelled(network, [batch], example_inputs=(batch[:2],))
    graph = trace(network, (batch[:2],))
    (site,) = graph.sites
    stats = collect(network, graph, task, ("gram", "recurrent"), samples=256)
    ranking = CRITERIA["obs"](network, graph, stats)[site]
    with torch.no_grad():
        read = torch.relu(network.one(batch)).double()  # (256, 6, kernel)
        weight = network.two.weight.double()
    left = unexplained(read, torch.einsum("nck,ock->no", read - read.mean(0), weight))
    for k in (5, 4, 3):
        assert ranking.loss(k) == pytest.approx(left(ranking.keep(k)), rel=0.1, abs=1e-3)
    best = min(itertools.combinations(range(6), 5), key=left)
    assert left(ranking.keep(5)) <= 1.05 * left(best) + 1e-3


def test_of_a_stack_obs_looks_at_what_the_last_layer_reads_of_itself() -> None:
    torch.manual_seed(0)
    network, batch = Speech(nn.GRU, 6, layers=2), torch.randn(256, 12, 5)
    with torch.no_grad():
        network.head.weight.zero_()  # nothing else reads its units
        read = network.stack(batch)[0].flatten(0, 1).double()[..., None]
        wanted = (read - read.mean(0))[..., 0] @ network.stack.weight_hh_l1.double().T
    graph = trace(network, (batch[:2],))
    (site,) = graph.sites
    task = fw.Task.unlabelled(network, [batch], example_inputs=(batch[:2],))
    stats = collect(network, graph, task, ("gram", "recurrent"), samples=256)
    ranking, left = CRITERIA["obs"](network, graph, stats)[site], unexplained(read, wanted)
    for k in (5, 4, 3):
        assert ranking.loss(k) == pytest.approx(left(ranking.keep(k)), rel=0.1, abs=1e-3)


class Heard(nn.Module):
    """(batch, 3, 12) -> (batch, 2): a convolution that a recurrent layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.stack, self.head = nn.Conv1d(3, 8, 3), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.stack(hx=None, input=torch.relu(self.conv(x)).transpose(1, 2))[0][:, -1])
        return found


def test_a_recurrent_layer_makes_up_for_channels_that_go_before_it() -> None:
    torch.manual_seed(0)
    network, x = Heard(), torch.randn(64, 3, 12)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(network.conv, name)[4:] = getattr(network.conv, name)[:4]  # twins
        expected = network(x)
    data = [torch.randn(16, 3, 12) for _ in range(8)]
    for criterion in ("obs", "l1"):
        done = fw.prune(network, (x[:2],), parameters=0.8, criterion=criterion, data=data, ignore=["stack"], multiple=1)
        assert done.model.conv.out_channels < 8 and done.model.stack.hidden_size == 6
        if criterion == "obs":
            with torch.no_grad():
                torch.testing.assert_close(done.model(x), expected, rtol=1e-3, atol=1e-3)


def test_what_moments_take_is_known_before() -> None:
    network, batch = Speech(nn.LSTM, 6, layers=2), torch.randn(8, 12, 5)
    task, graph = fw.Task.unlabelled(network, [batch], example_inputs=(batch[:2],)), trace(network, (batch[:2],))
    seen = collect(network, graph, task, ("recurrent",)).recurrent["stack"]
    assert memory(network, graph, ("recurrent",)) == 8 * sum(one.numel() for held in (seen.inputs, *seen.hidden) for one in held)
