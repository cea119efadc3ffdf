"""Factoring: two layers equal the projected one; edits replay; nothing is factored that would not be cheaper."""

from __future__ import annotations

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from counting import counted
from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherweight import zoo
from featherweight.errors import ArtifactError
from featherweight.lowrank.factor import ReducedGRU, ReducedLSTM, factor, materialise, replay_factor, why_not
from featherweight.lowrank.layers import CHANNEL, SPATIAL, FactorError, break_even, macs
from featherweight.lowrank.ranks import convolutions
from featherweight.weights import codes, parametrized
from featherweight.weights.parametrized import decoded
from featherweight.weights.views import View

INPUTS_FIRST = View("o i h w -> i (o h w)")
MIRRORED = View("o i h w -> (o h) (i w)")  # first layer 1 x w, second h x 1, with the second's axes as rows
LINE_CHANNEL, LINE_INPUT = View("o i w -> o (i w)"), View("o i w -> i (o w)")
PLAIN, TRANSPOSED = View("o i -> o i"), View("o i -> i o")


def projected(weight: Tensor, axes: str, rank: int) -> Tensor:
    """The best approximation of `rank`, in plain indexing and numpy-style permutes, not through the package's views."""
    orders = {
        "o|ihw": ((0, 1, 2, 3), 1), "ih|ow": ((1, 2, 0, 3), 2), "i|ohw": ((1, 0, 2, 3), 1), "oh|iw": ((0, 2, 1, 3), 2),
        "o|iw": ((0, 1, 2), 1), "i|ow": ((1, 0, 2), 1), "o|i": ((0, 1), 1), "i|o": ((1, 0), 1),
    }  # fmt: skip
    order, rows = orders[axes]
    turned = weight.permute(order)
    u, s, v = torch.linalg.svd(turned.reshape(math.prod(turned.shape[:rows]), -1), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ v[:rank]
    return best.reshape(turned.shape).permute([order.index(i) for i in range(len(order))])


def check_two_layers_equal(layer: nn.Module, view: View, axes: str, rank: int, *inputs: Tensor) -> None:
    model = nn.Sequential(layer)
    expected = copy.deepcopy(layer)
    with torch.no_grad():
        expected.weight.copy_(projected(layer.weight.detach(), axes, rank))
    edit = factor(model, "0.weight", view, rank)
    assert edit == {"edit": "factor", "parameter": "0.weight", "view": view.pattern, "rank": rank}
    assert [type(part) for part in model[0]] == [type(layer), type(layer)]
    assert model[0][0].bias is None and (model[0][1].bias is None) == (layer.bias is None)
    for given in inputs:
        with torch.no_grad():
            want = expected(given)
            assert model(given).shape == want.shape
            assert float((model(given) - want).abs().max()) < 1e-10
            assert float((want - layer(given)).abs().max()) > 1e-3  # else the projection did nothing


PADDINGS: list[int | tuple[int, int] | str] = [0, 1, (2, 1), "same", "valid"]


@pytest.mark.third
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("view", "axes"), [(CHANNEL, "o|ihw"), (SPATIAL, "ih|ow"), (INPUTS_FIRST, "i|ohw"), (MIRRORED, "oh|iw")])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (2, 5), (4, 2)])
def test_conv2d_over_the_grid(view: View, axes: str, kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 5, 11, 12, dtype=torch.float64)
    done = 0
    for stride, padding, dilation, bias in itertools.product([1, 2, (2, 1)], PADDINGS, [1, 2, (1, 2)], [True, False]):
        if padding == "same" and stride != 1:
            continue
        layer = nn.Conv2d(5, 8, kernel, stride, padding, dilation, bias=bias, dtype=torch.float64)
        if break_even(layer, view) > 2:
            check_two_layers_equal(layer, view, axes, 2, images)
            done += 1
    assert done >= 26


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("view", "axes"), [(CHANNEL, "o|ihw"), (SPATIAL, "ih|ow")])
@pytest.mark.parametrize("padding", [(2, 1), "same"])
def test_conv2d_in_every_padding_mode(view: View, axes: str, mode: str, padding: tuple[int, int] | str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 4), padding=padding, padding_mode=mode, dtype=torch.float64)
    check_two_layers_equal(layer, view, axes, 3, torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(1, 4, 7, 10).double())


@pytest.mark.parametrize(("view", "axes"), [(LINE_CHANNEL, "o|iw"), (LINE_INPUT, "i|ow")])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_conv1d(view: View, axes: str, mode: str) -> None:
    torch.manual_seed(0)
    for stride, padding, dilation in itertools.product([1, 2], [0, 2], [1, 2]):
        layer = nn.Conv1d(6, 7, 3, stride, padding, dilation, padding_mode=mode, dtype=torch.float64)
        check_two_layers_equal(layer, view, axes, 2, torch.randn(3, 6, 15, dtype=torch.float64))


@pytest.mark.parametrize(("view", "axes"), [(PLAIN, "o|i"), (TRANSPOSED, "i|o")])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(view: View, axes: str, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(9, 12, bias=bias, dtype=torch.float64)
    check_two_layers_equal(
        layer, view, axes, 4, torch.randn(5, 9).double(), torch.randn(2, 3, 9).double(), torch.randn(9).double()
    )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_input_matrix_of_a_recurrent_layer(kind: type[nn.LSTM | nn.GRU]) -> None:
    torch.manual_seed(0)
    layer = kind(10, 6, num_layers=2, batch_first=True, dtype=torch.float64)
    model, expected = nn.ModuleDict({"cell": layer}), copy.deepcopy(layer)
    with torch.no_grad():
        expected.weight_ih_l0.copy_(projected(layer.weight_ih_l0.detach(), "o|i", 3))
    factor(model, "cell.weight_ih_l0", PLAIN, 3)
    thin = model["cell"]
    assert isinstance(thin, kind) and isinstance(thin, (ReducedLSTM, ReducedGRU))
    assert (thin.input_size, thin.hidden_size, thin.reduce.in_features) == (3, 6, 10)
    text = torch.randn(4, 5, 10, dtype=torch.float64)
    start = torch.randn(2, 4, 6, dtype=torch.float64)
    state = (start, start.flip(0)) if kind is nn.LSTM else start
    packed = nn.utils.rnn.pack_padded_sequence(text, torch.tensor([5, 4, 4, 1]), batch_first=True)
    with torch.no_grad():
        for inputs in [(text,), (text, state), (text[0],)]:
            assert float((thin(*inputs)[0] - expected(*inputs)[0]).abs().max()) < 1e-10
        assert float((thin(packed)[0].data - expected(packed)[0].data).abs().max()) < 1e-10
        assert float((layer(text)[0] - expected(text)[0]).abs().max()) > 1e-3
    thin(text)[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in thin.parameters())


def test_dtype_mode_layout_and_training_flags_are_the_old_layers() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1, dtype=torch.bfloat16).to(memory_format=torch.channels_last).eval()
    layer.weight.requires_grad_(False)
    model = nn.ModuleDict({"a": layer, "b": layer})  # one layer under two names
    factor(model, "a.weight", SPATIAL, 3)
    assert model["a"] is model["b"]
    first, second = model["a"]
    for part in (first, second):
        assert part.weight.dtype == torch.bfloat16 and not part.training and not part.weight.requires_grad
        assert part.weight.is_contiguous(memory_format=torch.channels_last)
    assert second.bias is layer.bias


def test_building_layers_takes_no_random_numbers() -> None:
    model = zoo.lenet5()
    before = torch.get_rng_state()
    factor(model, "conv2.weight", CHANNEL, 5)
    assert torch.equal(before, torch.get_rng_state())


# --- break-even ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "channel", "spatial"), [(16, 14.4, 24), (32, 28.8, 48), (64, 57.6, 96)])
def test_break_even_of_the_resnets(width: int, channel: float, spatial: float) -> None:
    layer = nn.Conv2d(width, width, 3, padding=1)  # NCHW / (CHW + N) and NCHW / (CH + NW)
    assert break_even(layer, CHANNEL) == math.ceil(channel)
    assert break_even(layer, SPATIAL) == math.ceil(spatial)
    assert break_even(layer, SPATIAL, [(1, width, 32, 32)]) == math.ceil(spatial)


@pytest.mark.parametrize("view", [CHANNEL, SPATIAL, INPUTS_FIRST])
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 10, 5), nn.Conv2d(6, 10, 3, 2, 1), nn.Conv2d(6, 10, (3, 5), (1, 2), "valid", 2)])
def test_macs_are_those_of_the_layers_that_are_built(layer: nn.Conv2d, view: View) -> None:
    example = (torch.zeros(1, 6, 14, 17),)
    whole = nn.Sequential(copy.deepcopy(layer))
    dense = counted(whole, example)
    assert macs(layer, view, None, (1, 6, 14, 17)) == dense
    limit = break_even(layer, view, [(1, 6, 14, 17)])
    factor(whole, "0.weight", view, 2, [(1, 6, 14, 17)])
    thin = counted(whole, example)
    assert macs(layer, view, 2, (1, 6, 14, 17)) == thin
    assert thin // 2 * (limit - 1) < dense <= thin // 2 * limit


def test_convolutions_are_those_of_the_paper() -> None:
    names = convolutions(zoo.resnet20_projection())
    assert len(names) == 18 and "conv1.weight" not in names and not any("shortcut" in name for name in names)
    assert convolutions(zoo.lenet5()) == ("conv2.weight",)


# --- refusals ------------------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight


class Special(nn.Linear):
    pass


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].register_forward_pre_hook(lambda module, inputs: None)
    return model


def squashed() -> nn.Module:
    return nn.Sequential(parametrize.register_parametrization(nn.Linear(8, 8), "bias", nn.Tanh()))


@pytest.mark.parametrize(
    ("model", "name", "view", "rank", "says"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), "0.weight", CHANNEL, 2, "2 groups"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weight", CHANNEL, 0, "from 1 to 7"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weight", CHANNEL, 8, "from 1 to 7"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weight", CHANNEL, True, "from 1 to 7"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.bias", CHANNEL, 2, "bias of a Conv2d"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weights", CHANNEL, 2, "Did you mean '0.weight'"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weight", View("o i h w -> (h w) (o i)"), 2, "is not two layers"),
        (nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weight", PLAIN, 2, "is not two layers"),
        (nn.Sequential(nn.ConvTranspose2d(8, 8, 3)), "0.weight", CHANNEL, 2, "belongs to a ConvTranspose2d"),
        (nn.Sequential(Special(8, 8)), "0.weight", PLAIN, 2, "belongs to a Special"),
        (nn.Linear(8, 8), "weight", PLAIN, 2, "nn.Sequential"),
        (Tied(), "a.weight", PLAIN, 2, "b shares it"),
        (hooked(), "0.weight", PLAIN, 2, "hooks"),
        (squashed(), "0.weight", PLAIN, 2, "besides the code"),
        (nn.ModuleDict({"cell": nn.LSTM(8, 8)}), "cell.weight_hh_l0", PLAIN, 2, "saves bytes and no time"),
        (nn.ModuleDict({"cell": nn.GRU(8, 8, bidirectional=True)}), "cell.weight_ih_l0", PLAIN, 2, "both directions"),
        (nn.TransformerEncoderLayer(8, 2, 16), "linear1.weight", PLAIN, 2, "reads the weight"),
        (nn.MultiheadAttention(8, 2), "out_proj.weight", PLAIN, 2, "NonDynamicallyQuantizableLinear"),
    ],
)
def test_what_cannot_be_factored_says_why(model: nn.Module, name: str, view: View, rank: int, says: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FactorError, match=says) as caught:
        factor(model, name, view, rank)
    assert name in str(caught.value)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)


# --- codes into layers ---------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.cell = nn.GRU(12, 10, batch_first=True)
        self.fc = nn.Linear(10, 9)

    def forward(self, images: Tensor) -> Tensor:
        text = F.relu(self.conv(images)).flatten(2).transpose(1, 2)
        return self.fc(self.cell(text)[0][:, -1])


TARGETS = {
    "conv.weight": (SPATIAL, 3), "cell.weight_ih_l0": (PLAIN, 4), "cell.weight_hh_l0": (PLAIN, 2), "fc.weight": (PLAIN, 5),
}  # fmt: skip


def coded_model() -> Mixed:
    torch.manual_seed(3)
    model = Mixed().double()
    for name, (view, rank) in TARGETS.items():
        weight = model.get_parameter(name)
        parametrized.attach(model, name, view, codes.Factors(*view.matrix_shape(tuple(weight.shape)), rank))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "original" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))  # trained on: no longer a decomposition
    return model


def test_materialise_keeps_the_function_and_says_what_it_left() -> None:
    model = coded_model()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = model(images)
    recurrent = decoded(model)["cell.weight_hh_l0"]
    left = model.conv.parametrizations.weight.original0.detach().clone()  # (i h, rank)
    dense = decoded(model)["fc.weight"].clone()
    done = materialise(model, example=(images,))
    assert float((model(images) - expected).detach().abs().max()) < 1e-12
    assert [edit["parameter"] for edit in done.edits] == ["cell.weight_ih_l0", "conv.weight"]
    assert done.whole.keys() == {"cell.weight_hh_l0", "fc.weight"}
    assert "saves bytes and no time" in done.whole["cell.weight_hh_l0"]
    assert "rank 5 is not below 5" in done.whole["fc.weight"]  # 10 * 9 / (10 + 9) = 4.7
    assert list(parametrized.coded(model)) == ["cell.weight_hh_l0"]  # it moved into the new layer, as it was
    assert torch.equal(decoded(model)["cell.weight_hh_l0"], recurrent)
    assert type(model.fc) is nn.Linear and torch.equal(model.fc.weight.detach(), dense)
    assert torch.equal(model.conv[0].weight.detach().reshape(3, 9), left.T)
    model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_materialised_networks_replay_from_json_by_shape_alone() -> None:
    model = coded_model()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    done = materialise(model, ["conv.weight", "cell.weight_ih_l0"], (images,))
    for name in ("cell.weight_hh_l0", "fc.weight"):
        parametrized.detach(model, name)
    fresh = Mixed().double()
    for edit in json.loads(json.dumps(done.edits)):
        replay_factor(fresh, edit)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images), model(images))


def test_materialise_refuses_names_without_a_low_rank_code() -> None:
    with pytest.raises(FactorError, match=r"Did you mean 'conv\.weight'"):
        materialise(coded_model(), ["conv.weights"])


def test_rank_zero_stays_a_code() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    parametrized.attach(model, "0.weight", PLAIN, codes.Factors(8, 8, 0))
    done = materialise(model)
    assert "rank is 0" in done.whole["0.weight"] and not done.edits


GOOD = {"edit": "factor", "parameter": "0.weight", "view": CHANNEL.pattern, "rank": 3}


@pytest.mark.parametrize(
    "broken",
    [
        {"edit": "code"}, {"parameter": "1.weight"}, {"parameter": 3}, {"parameter": "0.bias"}, {"view": "o i h w -> h"},
        {"view": 5}, {"view": "o i -> o i"}, {"rank": 0}, {"rank": 9}, {"rank": 2**40}, {"rank": True}, {"rank": 3.0},
        {"rank": "3"}, {"extra": 1},
    ],
)  # fmt: skip
def test_hostile_edits_are_refused(broken: dict[str, object]) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    with pytest.raises(ArtifactError):
        replay_factor(model, {**GOOD, **broken})
    assert type(model[0]) is nn.Conv2d
    replay_factor(model, GOOD)
    assert [tuple(part.weight.shape) for part in model[0]] == [(3, 8, 3, 3), (8, 3, 1, 1)]
    assert all(bool((part.weight == 0).all()) for part in model[0])


@pytest.mark.parametrize("missing", list(GOOD))
def test_edits_that_lack_a_key_are_refused(missing: str) -> None:
    with pytest.raises(ArtifactError, match="exactly"):
        replay_factor(nn.Sequential(nn.Conv2d(8, 8, 3)), {key: value for key, value in GOOD.items() if key != missing})


def test_a_layer_that_can_be_factored_has_no_reason_against() -> None:
    assert why_not(nn.Sequential(nn.Conv2d(8, 8, 3)), "0.weight", View("a b c d -> a (b c d)")) is None  # any spelling


def test_a_replayed_pair_is_smaller_than_its_layer_or_refused() -> None:
    for rank in range(1, 13):
        edit = {"edit": "factor", "parameter": "0.weight", "view": "o i -> o i", "rank": rank}
        network = nn.Sequential(nn.Linear(12, 24))
        before = sum(parameter.numel() for parameter in network.parameters())
        if rank < 8:  # 12 * 24 / (12 + 24)
            replay_factor(network, edit)
            assert sum(parameter.numel() for parameter in network.parameters()) < before
        else:
            with pytest.raises(ArtifactError, match="two smaller layers"):
                replay_factor(network, edit)
    again = edit | {"rank": 3}
    replay_factor(network, again)
    with pytest.raises(ArtifactError, match="two smaller layers"):
        replay_factor(network, again | {"parameter": "0.0.weight"})  # 3 x 12 at rank 3


def test_wide_padding_does_not_let_a_pair_grow() -> None:
    """With it the output is larger than the input: by multiplications alone the first layer could have a higher rank."""
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=4))
    view, shapes = View("o i h w -> (i h) (o w)"), [(1, 8, 3, 3)]
    with pytest.raises(FactorError, match="or parameters"):
        factor(network, "0.weight", view, 12, shapes)
    edit = factor(network, "0.weight", view, 11, shapes)
    replay_factor(nn.Sequential(nn.Conv2d(8, 8, 3, padding=4)), edit)
