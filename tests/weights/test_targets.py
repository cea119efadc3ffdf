"""Targets: what a rule means in any network, and that what is left out is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ordinary import ORDINARY, seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from featherweight import Codebook, Constrain, LowRank, Rule, TopK, TopRows
from featherweight.errors import InputError, RecipeError
from featherweight.lowrank.layers import CHANNEL, SPATIAL
from featherweight.recipe.plan import Plan, chosen, resolve
from featherweight.recipes import RECIPES
from featherweight.weights.parameters import parameters_of
from featherweight.weights.parametrized import decoded
from featherweight.weights.views import View

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Everything(nn.Module):
    """A layer of every kind, and what is none: never run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bilinear = nn.Linear(4, 6), nn.Bilinear(2, 3, 4)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv3d(2, 4, 3)
        self.up = nn.ConvTranspose2d(3, 5, 2)
        self.lstm, self.gru = nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2), nn.GRU(3, 4)
        self.cell = nn.GRUCell(3, 4)
        self.joint, self.apart = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
        self.batch, self.layer = nn.BatchNorm2d(4), nn.LayerNorm([3, 4])
        self.embed, self.table = nn.Embedding(5, 4), nn.Parameter(torch.ones(3, 4))
        self.prelu = nn.PReLU(4)


WANTED = {
    "linear.weight", "bilinear.weight", "conv1.weight", "conv2.weight", "conv3.weight", "up.weight",
    *(f"lstm.weight_{kind}_l{layer}{way}" for kind in ("ih", "hh", "hr") for layer in (0, 1) for way in ("", "_reverse")),
    "gru.weight_ih_l0", "gru.weight_hh_l0", "cell.weight_ih", "cell.weight_hh",
    "joint.in_proj_weight", "joint.out_proj.weight", "apart.q_proj_weight", "apart.k_proj_weight", "apart.v_proj_weight",
    "apart.out_proj.weight",
}  # fmt: skip


def test_weights_are_those_of_layers_by_kind_and_the_rest_is_said() -> None:
    found = chosen(Rule("weights", TopK()), parameters_of(Everything()))
    assert set(found.names) == WANTED and found.names == sorted(found.names)
    assert found.left_out.keys() == {"layer.weight", "layer.bias", "embed.weight", "table"}
    assert all("name it to take it" in why for why in found.left_out.values())


@pytest.mark.parametrize("name", ORDINARY)
def test_by_default_no_norm_no_bias_no_frozen_and_no_tied_parameter_is_a_target(name: str) -> None:
    """Of every recipe with rules: each weight with two dimensions or more is a target, or said to be none."""
    network = ORDINARY[name].make()
    for make in RECIPES.values():
        for stage in make().stages:
            if isinstance(stage, Constrain):
                assert_only_weights_of_layers_are_targets(network, stage)


def assert_only_weights_of_layers_are_targets(network: nn.Module, stage: Constrain) -> None:
    try:
        plan = resolve(stage, network)
    except RecipeError as error:
        assert "foreign" in str(error) or "computes it" in str(error) or "saves bytes and no time" in str(error), error
        return
    parameters = dict(network.named_parameters())
    for target in plan.targets:
        layer = network.get_submodule(target.rpartition(".")[0])
        assert parameters[target].requires_grad and parameters[target].ndim > 1
        assert not isinstance(layer, (*NORMS, nn.Embedding))
    seen = plan.targets.keys() | plan.left_out.keys()
    assert {key for key, weight in decoded(network).items() if weight.ndim > 1} <= seen


def test_a_frozen_and_a_tied_parameter_are_left_out_of_every_pattern() -> None:
    network = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6))
    network[3].weight = network[0].weight
    network[1].requires_grad_(False)
    for pattern in ("weights", "*.weight", "re:.*weight", "*"):
        found = chosen(Rule(pattern, TopK()), parameters_of(network))
        assert "2.weight" in found.names and not {"0.weight", "1.weight", "3.weight"} & set(found.names)
        assert "frozen" in found.left_out["1.weight"] and "tied: one tensor with 3.weight" in found.left_out["0.weight"]
    for pattern, why in (("0.weight", "tied"), ("3.weight", "tied"), ("1.*", "frozen")):
        with pytest.raises(RecipeError, match=why):
            resolve(Constrain("s", (Rule(pattern, TopK(3)),)), network)


def test_a_weight_that_is_too_small_for_a_set_is_left_out_unless_it_is_named() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    plan = resolve(Constrain("s", (Rule("weights", Codebook(16)),)), network)
    assert plan.targets.keys() == {"0.weight"} and "from 1 to 8" in plan.left_out["1.weight"]
    for rule in (Rule("1.weight", Codebook(16)), Rule("weights", Codebook(100))):
        with pytest.raises(RecipeError, match="from 1 to 8"):
            resolve(Constrain("s", (rule,)), network)


def test_a_pattern_means_what_it_matches_norms_too() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert resolve(Constrain("s", (Rule("*.weight", TopK()),), keep=0.5), network).targets.keys() == {"0.weight", "1.weight"}


def test_a_weight_that_something_else_computes_is_named() -> None:
    network = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 4)), torch.nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)
    )
    with pytest.raises(InputError, match=r"0\.weight: .*WeightNorm computes it; .*remove_parametrizations.*1\.weight: "):
        chosen(Rule("weights", TopK()), parameters_of(network))
    found = chosen(Rule("2.weight", TopK()), parameters_of(network))
    assert found.names == ["2.weight"]
    with pytest.raises(RecipeError, match="WeightNorm computes it"):
        resolve(Constrain("s", (Rule("weights", TopK(3)),)), nn.Sequential(network[0]))


def planned(module: nn.Module, name: str, word: Any) -> View:
    network = nn.Sequential(module)
    return (
        resolve(Constrain("s", (Rule(f"0.{name}", TopRows(1) if word == "rows" else LowRank(1), word),)), network)
        .targets[f"0.{name}"]
        .view
    )


@pytest.mark.parametrize(
    ("module", "name", "word", "rows"),
    [
        (nn.Linear(3, 5), "weight", "rows", 5),
        (nn.Conv1d(3, 5, 2), "weight", "rows", 5),
        (nn.Conv2d(3, 5, 2), "weight", "rows", 5),
        (nn.ConvTranspose2d(3, 5, 2), "weight", "rows", 5),
        (nn.LSTM(3, 4), "weight_ih_l0", "rows", 4),
        (nn.GRU(3, 4), "weight_hh_l0", "rows", 4),
        (nn.RNN(3, 4), "weight_hh_l0", "rows", 4),
        (nn.LSTM(3, 4, proj_size=2), "weight_hr_l0", "rows", 2),
        (nn.Linear(3, 5), "weight", "spatial", 5),
        (nn.Conv1d(3, 5, 2), "weight", "spatial", 5),
        (nn.GRU(3, 4), "weight_ih_l0", "channel", 12),
    ],
)
def test_the_kind_of_a_layer_says_what_a_row_is(module: nn.Module, name: str, word: str, rows: int) -> None:
    view = planned(module, name, word)
    assert view.to_matrix(getattr(module, name)).shape[0] == rows
    if word == "rows":  # a row is what makes one output, or one hidden unit
        weight = torch.zeros_like(getattr(module, name))
        matrix = view.to_matrix(weight).clone()
        matrix[0] = 1
        touched = view.to_weight(matrix, tuple(weight.shape)).nonzero()
        dim = int(isinstance(module, nn.ConvTranspose2d))
        assert {int(index) % rows for index in touched[:, dim]} == {0}


def test_convolutions_keep_the_views_of_the_papers() -> None:
    assert planned(nn.Conv2d(3, 5, 2), "weight", "channel") == CHANNEL
    assert planned(nn.Conv2d(3, 5, 2), "weight", "spatial") == SPATIAL


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.out = nn.Conv2d(3, 6, 3), nn.ConvTranspose2d(6, 5, 2), nn.Linear(5, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(torch.relu(self.conv(image)))).mean((2, 3)))


def test_rows_that_make_the_outputs_stay() -> None:
    network = seeded(Classifier)()
    plan = resolve(RECIPES["soft_filters"]().stages[-1], network, example=(torch.zeros(1, 3, 8, 8),))
    assert plan.targets.keys() == {"conv.weight", "up.weight"}
    assert plan.sizes == {"conv.weight": (4, 6), "up.weight": (3, 5)}
    assert "outputs of the network" in plan.left_out["out.weight"]


def low_rank(network: nn.Module, **arguments: Any) -> Plan:
    return resolve(RECIPES["decompose"](**arguments).stages[-1], network, example=ORDINARY["conv1d and gru"].args)


def test_low_rank_takes_what_can_be_two_layers_and_spends_a_budget_on_it() -> None:
    network = ORDINARY["conv1d and gru"].make()
    plan = low_rank(network)
    assert plan.targets.keys() == {"conv.weight", "gru.weight_ih_l0", "out.weight"}
    assert "one dense weight_hh_l0" in plan.left_out["gru.weight_hh_l0"]
    spent = low_rank(network, macs=0.8)
    assert spent.targets.keys() <= plan.targets.keys() and "gru.weight_ih_l0" in spent.targets
