"""What the gate compares: every kind of output, on values that show something, in both modes, and what it says else."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.structure import Result, prune, trace
from featherweight.structure.errors import NotExportable
from featherweight.structure.gate import difference
from featherweight.structure.observe import Observed

ROWS = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))


class Layers(nn.Module):
    """Two layers; `pooled` divides by a size read from the shape, so that no cut in the class is exact."""

    def __init__(self, *more: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.scale = nn.Linear(12, 16), nn.Linear(16, 4), nn.Parameter(torch.randn(4))
        self.more = nn.ModuleList(more)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x))

    def pooled(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)
        return self.b(hidden) + hidden.sum(1, keepdim=True) / hidden.shape[1] * self.scale


def halved(network: nn.Module, example: Any = ROWS) -> Result:
    graph = trace(network, example)
    return prune(network, graph, {name: list(range(0, site.size, 2)) for name, site in graph.sites.items()})


class NeverAbove(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x) > 1000  # on these rows nothing is


class Rounded(Layers):
    def forward(self, x: Tensor) -> Any:
        return {"numbers": [(self.pooled(x) * 3).round().long()]}


class Spectrum(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(self.pooled(x))


class ZeroHead(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.more[0](self.pooled(x))


class Looked(Layers):
    def hidden(self, x: Tensor) -> Tensor:
        return torch.relu(F.linear(x, self.a.weight))  # 0 for the tokens of the example

    def forward(self, tokens: Tensor) -> Tensor:
        return self.pooled(self.more[0](tokens).sum(1))


class Positive(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(torch.log(x))  # no number for other signs


def zero_head() -> nn.Module:
    head = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(head.weight)
    return ZeroHead(head)


@pytest.mark.parametrize(
    ("network", "example"),
    [
        (NeverAbove(), ROWS),
        (Rounded(), ROWS),
        (Spectrum(), ROWS),
        (zero_head(), ROWS),
        (Looked(nn.Embedding(10, 12, padding_idx=0)), torch.zeros(2, 5, dtype=torch.long)),
        (Positive(), ROWS.abs() + 0.1),
    ],
    ids=["truth values", "whole numbers", "complex", "zero head", "tokens of one kind", "logarithm"],
)
def test_a_cut_that_the_class_gets_wrong_is_seen(network: nn.Module, example: Tensor) -> None:
    result = halved(network, example)
    assert result.where == "graph" and result.check.passed and "differ" in result.reason


class NoNumber(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x)) * float("nan")


class Nothing(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.b(self.hidden(x))


class DropsInEval(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.hidden(x), training=True))


class OtherRandom(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x) * random.random()  # torch.export takes it for a constant


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (NoNumber, "NaN throughout"),
        (Nothing, "every output is 0"),
        (DropsInEval, r"draws random numbers in eval mode \(bernoulli_\)"),
        (OtherRandom, "the exported graph does not compute what the network does"),
    ],
)
def test_what_cannot_be_compared_has_not_passed(kind: type[nn.Module], says: str) -> None:
    network = kind()
    graph = trace(network, ROWS)
    result = prune(network, graph, {"a": [0, 3]})
    assert result.where == "nothing" and not result.check.passed
    (reason,) = result.refused.values()
    assert re.search(says, reason), reason


class Quantised(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return torch.quantize_per_tensor(self.b(self.hidden(x)), 0.01, 0, torch.qint8).dequantize()


@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 cannot export quantized numbers")
def test_what_has_no_float64_is_compared_in_float32() -> None:
    check = halved(Quantised()).check
    assert check.passed and (check.precision, check.tolerance) == ("float32", 1e-4)


class MeanInTraining(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x) if self.training else self.b(self.hidden(x)) * self.scale


class FixedInTraining(Layers):
    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        return (self.b(hidden), hidden.view(2, 4, 4).sum(2)) if self.training else self.b(hidden)


def test_what_training_would_get_wrong_is_found_before() -> None:
    """One mode computes something else after a cut in the class; the exported module, which has one mode only, may stand in where
    training gives outputs of the same shapes, and not where it gives others."""
    silent, other = halved(MeanInTraining()), halved(FixedInTraining())
    assert silent.where == "graph" and "in training mode its output differs" in silent.reason
    assert other.where == "nothing" and "in training mode" in next(iter(other.refused.values()))


class Both(Layers):
    def forward(self, x: Tensor) -> Any:
        hidden, side = self.hidden(x), torch.relu(self.more[0](x))
        first = self.b(hidden) + self.more[1](side)
        return (first, side.view(2, 4, 4)) if self.training else first


def test_only_the_site_that_breaks_training_is_refused() -> None:
    network = Both(nn.Linear(12, 16), nn.Linear(16, 4))
    result = halved(network)
    assert result.where == "class" and list(result.refused) == ["more.0"] and network.a.out_features == 8


def test_no_number_is_no_agreement() -> None:
    def gap(one: list[float], other: list[float]) -> float | None:
        return difference(Observed([torch.tensor(one)]), Observed([torch.tensor(other)])).error

    nan, inf = float("nan"), float("inf")
    assert gap([nan, nan], [nan, nan]) is None and gap([nan, 1.0], [nan, 1.0]) == 0
    assert gap([nan, 1.0], [1.0, 1.0]) == gap([inf, 1.0], [-inf, 1.0]) == inf and gap([-inf, 1.0], [-inf, 1.0]) == 0
    assert difference(Observed(), Observed()).error is None


class Lengths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.cell(packed)[1][-1]


def test_packed_sequences_are_refused_in_one_sentence_with_the_way_out() -> None:
    with pytest.raises(NotExportable, match=r"pack_padded_sequence.*run the recurrent layer on the padded") as caught:
        trace(Lengths(), (torch.randn(2, 5, 4), torch.tensor([5, 3])))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


class Branches(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_torch_keeps_its_pages_of_code_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotExportable) as caught:
        trace(Branches(4, 4), torch.randn(2, 4))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "") and len(str(caught.value).splitlines()) == 1
