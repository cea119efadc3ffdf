"""Multiply-accumulates against hand counts and published figures; `macs(sizes)` against the network that was cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from probes import build
from torch import Tensor, nn
from zeroing import half

from featherweight.structure import prune, trace
from featherweight.structure.count import as_it_runs, count_macs
from featherweight.zoo.networks import resnet20, resnet56


def test_lenet_by_hand() -> None:
    model, example = build("lenet")
    # 24x24 positions of 20 filters of 25, 8x8 positions of 50 filters of 20*25, then 800 x 500 and 500 x 10
    assert trace(model, example).macs() == 24 * 24 * 20 * 25 + 8 * 8 * 50 * 20 * 25 + 800 * 500 + 500 * 10 == 2_293_000


def test_lstm_by_hand() -> None:
    # 5 steps; 4 gates of 20 units read 10 inputs and 20 states
    assert trace(nn.LSTM(10, 20, batch_first=True), (torch.randn(1, 5, 10),)).macs() == 5 * 4 * 20 * (10 + 20) == 12_000


def test_projected_bidirectional_lstm_by_hand() -> None:
    model = nn.LSTM(6, 12, num_layers=2, bidirectional=True, proj_size=5, batch_first=True)
    first = 4 * 12 * (6 + 5) + 12 * 5
    second = 4 * 12 * (10 + 5) + 12 * 5
    assert trace(model, (torch.randn(1, 7, 6),)).macs() == 7 * 2 * (first + second)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_attention_by_hand() -> None:
    # 10 tokens of 32: q, k, v and the output projection are 32 x 32 each; scores and mixing are 10 x 10 x 32 each
    assert trace(SelfAttention(), (torch.randn(1, 10, 32),)).macs() == 10 * 4 * 32 * 32 + 2 * 10 * 10 * 32 == 47_360


def test_grouped_and_transposed_convolutions_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.ConvTranspose2d(12, 6, 2, 2, groups=3))
    assert trace(model, (torch.randn(1, 8, 5, 5),)).macs() == 25 * 12 * 2 * 9 + 25 * 12 * 2 * 4


@pytest.mark.parametrize(("network", "macs"), [(resnet20, 40.55e6), (resnet56, 125.49e6)])
def test_published_residual_networks(network, macs: float) -> None:
    """Option-A shortcuts; the figures of the filter-pruning papers."""
    example = (torch.randn(1, 3, 32, 32),)
    counted = trace(network().eval(), example).macs()
    assert counted == pytest.approx(macs, abs=5e3) and count_macs(network(), example) == (counted, ())


def test_the_batch_of_the_example_counts() -> None:
    model, _ = build("lenet")
    assert trace(model, (torch.randn(3, 1, 28, 28),)).macs() == 3 * 2_293_000


@pytest.mark.third
@pytest.mark.parametrize(
    "name",
    [
        "lstm",
        "bidirectional gru",
        "fused attention",
        "grouped queries",
        "group shuffle depthwise",
        "squeeze excite",
        "tied",
        "uneven groups",
    ],
)
def test_sizes_predict_the_cut_network(name: str) -> None:
    model, example = build(name)
    graph = trace(model, example)
    keep = half(graph, seed=2)
    sizes = {site: len(units) for site, units in keep.items()}
    smaller = prune(model, graph, keep, where="graph", any_batch=False).model
    again = trace(smaller, graph.captured.inputs)
    assert again.macs() == 2 * graph.macs(sizes) < 2 * graph.macs()
    assert again.parameters() == graph.parameters(sizes) == sum(p.numel() for p in smaller.parameters())


def test_operations_without_a_rule_are_listed() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.linalg.matrix_exp(self.a(x).unsqueeze(1).expand(-1, 6, -1)).sum(1))

    graph = trace(Odd(), (torch.randn(1, 4),))
    assert as_it_runs(Odd(), (torch.randn(1, 4),)) is None and count_macs(Odd(), (torch.randn(1, 4),))[0] == graph.macs()
    assert graph.uncounted == {"linalg_matrix_exp": 1} or graph.uncounted == {"matrix_exp": 1}
    assert "no rule" in graph.frozen["a.weight"]


class AlwaysDrops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 does not say that a value was asked of the meta device")
def test_counting_leaves_no_mark_and_asks_no_value() -> None:
    class Remembers(nn.Module):
        """Keeps what it saw, and decides by a value where asked to."""

        def __init__(self, decides: bool) -> None:
            super().__init__()
            self.layer, self.decides, self.seen = nn.Linear(4, 6), decides, torch.zeros(1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen = x
            return self.layer(x) if not self.decides or bool(x.sum() > 0) else self.layer(-x)

    network, example, state = Remembers(False), (torch.randn(3, 4),), torch.random.get_rng_state()
    assert count_macs(network, example) == (4 * 6, ())
    assert network.calls == 0 and network.seen.shape == (1,) and torch.equal(torch.random.get_rng_state(), state)
    drops = nn.Sequential(nn.Linear(4, 6), AlwaysDrops())
    state = torch.random.get_rng_state()
    assert count_macs(drops, example)[0] == 4 * 6
    assert torch.equal(torch.random.get_rng_state(), state)
    counted, reasons = count_macs(Remembers(True), example)
    assert counted is None and "value" in reasons[0]
