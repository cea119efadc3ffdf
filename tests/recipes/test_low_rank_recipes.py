"""Trained rank pruning and its baselines, end to end on LeNet-5 and the digits; recipes as data."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from counting import counted
from torch import Tensor, nn

from featherweight import load, zoo
from featherweight.compression import compress
from featherweight.errors import FeatherweightError
from featherweight.lowrank.layers import SPATIAL
from featherweight.lowrank.ranks import allocate, convolutions
from featherweight.recipe.plan import matches, resolve
from featherweight.recipe.reading import from_dict
from featherweight.recipe.schema import Constrain, Recipe, Rule, Train
from featherweight.recipes.low_rank import decompose, low_rank_from_scratch
from featherweight.recipes.trained_ranks import TARGETS, trained_rank_pruning
from featherweight.task import Task
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.sets import LowRank, TopK
from featherweight.zoo import tasks

DENSE_MACS = 20 * 25 * 576 + 50 * 500 * 64 + 800 * 500 + 500 * 10


@pytest.fixture(scope="module")
def task() -> Task:
    return tasks.digits()


@pytest.fixture(scope="module")
def short(task: Task) -> Task:
    """Of eight batches an epoch, where what is learned is not the point."""
    return dataclasses.replace(task, train=lambda epoch: list(itertools.islice(task.batches(epoch), 8)))


@pytest.fixture(scope="module")
def trained(task: Task) -> nn.Module:
    torch.manual_seed(0)
    return compress(zoo.lenet5(), Recipe("dense", (Train("dense", train=Training(3)),)), task).model


def rank_by_numpy(weight: Tensor, view: str) -> int:
    turned = weight.reshape(50, -1) if view == "channel" else weight.permute(1, 2, 0, 3).reshape(100, 250)
    values = np.linalg.svd(turned.double().numpy(), compute_uv=False)
    return int((values > 1e-5 * values[0]).sum())


@pytest.mark.third
@pytest.mark.parametrize(("start", "view"), [("scratch", "channel"), ("trained", "spatial")])
def test_trained_rank_pruning_end_to_end(task: Task, trained: nn.Module, view: str, start: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.lenet5() if start == "scratch" else copy.deepcopy(trained)
    rate = 1.0 if start == "scratch" else 0.3
    recipe = trained_rank_pruning(view, energy=0.05, every=5, epochs=3, rate=rate, targets=TARGETS)  # type: ignore[arg-type]
    result = compress(model, recipe, task)
    network = result.model
    factors = [edit for edit in result.snapshot.edits if edit["edit"] == "factor"]
    assert [edit["parameter"] for edit in factors] == ["conv2.weight"]
    first, second = (part.weight.detach() for part in network.conv2)  # type: ignore[union-attr]
    rank = first.shape[0]
    assert 0 < rank < (45 if view == "channel" else 62)
    if view == "channel":
        product = torch.einsum("or,rihw->oihw", second[:, :, 0, 0], first)
    else:
        product = torch.einsum("orw,rih->oihw", second[:, :, 0], first[..., 0])
    assert rank_by_numpy(product, view) == rank  # it ended on a projection
    assert task.evaluate(network) > 90.0
    assert task.evaluate(network) == result.rows[-1].measured.score
    macs = counted(network, task.example_inputs)
    per_rank = 500 * 64 + 50 * 64 if view == "channel" else 100 * 96 + 250 * 64
    assert macs == DENSE_MACS - 50 * 500 * 64 + rank * per_rank == result.rows[-1].measured.macs < DENSE_MACS
    result.save(tmp_path / "art")
    fresh = load(tmp_path / "art", zoo.lenet5())
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(fresh.eval()(images), network.eval()(images))


@pytest.mark.long
def test_the_budget_is_asked_once_and_both_baselines_meet_it(short: Task, trained: nn.Module) -> None:
    task = short
    found = allocate(trained, task.example_inputs, {"conv2.weight": SPATIAL}, 0.6)
    assert 0 <= 0.6 * found.macs_before - found.macs < 25_600  # MACs of one rank: of a single layer there is nothing finer
    scores = {}
    for name, recipe in {
        "decomposed": decompose(ranks=found.ranks),
        "fine-tuned": decompose(ranks=found.ranks, fine_tune_epochs=1),
        "pruned": trained_rank_pruning(ranks=found.ranks, every=2, epochs=1, rate=0.3),
        "pruned by macs": trained_rank_pruning(macs=0.6, every=2, epochs=1, rate=0.3, targets=TARGETS),
        "decomposed by macs": decompose(macs=0.6, targets=TARGETS),
    }.items():
        result = compress(trained, recipe, task)
        assert result.rows[0].measured.score == task.evaluate(trained)  # the report holds its own baseline
        factors = [edit for edit in result.snapshot.edits if edit["edit"] == "factor"]
        assert [(edit["parameter"], edit["rank"]) for edit in factors] == list(found.ranks.items())
        assert counted(result.model, task.example_inputs) == found.macs
        scores[name] = task.evaluate(result.model)
    assert scores["pruned"] == scores["pruned by macs"] and scores["decomposed"] == scores["decomposed by macs"]
    torch.manual_seed(0)
    scratch = compress(zoo.lenet5(), low_rank_from_scratch(found.ranks, epochs=1), task)
    assert scratch.model.conv2[0].out_channels == found.ranks["conv2.weight"]  # type: ignore[index,union-attr]
    assert min(scores["fine-tuned"], scores["pruned"]) > 90


@pytest.mark.parametrize(
    "recipe",
    [
        trained_rank_pruning(),
        trained_rank_pruning("channel", ranks={"conv2.weight": 9}, dense_epochs=2, shrink=0.0, retrain_epochs=1),
        decompose(),
        decompose("channel", ranks={"a.weight": 1, "b.weight": 2}),
        trained_rank_pruning(macs=0.4, distill=0.7, temperature=2.0),
        decompose(macs=0.4, fine_tune_epochs=2, distill=0.7, temperature=2.0),
        low_rank_from_scratch({"conv2.weight": 3}),
    ],
)
def test_recipes_are_data(recipe: Recipe) -> None:
    assert from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_paper_s_targets_are_these_layers_of_every_network() -> None:
    for name, build in zoo.NETWORKS.items():
        model = build()
        matched = {parameter for parameter, _ in model.named_parameters() if matches(TARGETS, parameter)}
        assert matched == set(convolutions(model)), name


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: trained_rank_pruning("depth"), "view must be one of channel, spatial"),  # type: ignore[arg-type]
        (lambda: trained_rank_pruning(energy=1.0), "energy"),
        (lambda: trained_rank_pruning(energy=-0.1), "energy"),
        (lambda: trained_rank_pruning(every=0), "every"),
        (lambda: trained_rank_pruning(shrink=-1.0), "shrink"),
        (lambda: decompose(energy=2.0), "energy"),
        (lambda: low_rank_from_scratch({}), "no parameter"),
        (lambda: trained_rank_pruning(macs=1.5), "macs is a share"),
        (lambda: decompose(macs=0.5, ranks={"conv2.weight": 3}), "not both"),
        (lambda: Constrain("s", (Rule("*.weight", LowRank()),), keep=0.5, macs=0.5), "not both"),
        (lambda: Constrain("s", (), macs=0.5), "no rules"),
        (lambda: trained_rank_pruning(distill=2.0), "distillation weight"),
    ],
)
def test_options_out_of_range_are_refused(make: object, says: str) -> None:
    with pytest.raises(FeatherweightError, match=says):
        make()  # type: ignore[operator]


def test_ranks_out_of_range_are_refused_before_anything_runs(task: Task) -> None:
    with pytest.raises(FeatherweightError, match="rank"):
        compress(zoo.lenet5(), decompose(ranks={"conv2.weight": 101}), task)


def test_a_budget_of_macs_is_refused_where_it_cannot_be_spent(task: Task) -> None:
    with pytest.raises(FeatherweightError, match="out of reach"):
        compress(zoo.lenet5(), decompose(macs=0.01), task)
    stage = Constrain("s", (Rule("conv2.weight", TopK()),), macs=0.5)
    with pytest.raises(FeatherweightError, match="spent on LowRank; give TopK a size"):
        compress(zoo.lenet5(), Recipe("r", (stage,)), task)


def test_a_layer_for_which_no_rank_pays_is_left_whole(task: Task, trained: nn.Module) -> None:
    plan = resolve(decompose(macs=1.0).stages[-1], trained, example=task.example_inputs)
    assert plan.targets == {} == plan.sizes


def test_distillation_is_from_the_network_as_given_where_no_stage_trains_it(short: Task, trained: nn.Module) -> None:
    low = trained_rank_pruning(macs=0.6, every=5, epochs=1, rate=0.3, distill=1.0)
    alone = Recipe("alone", low.stages[1:])
    one, other = compress(trained, low, short).model, compress(trained, alone, short).model
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.third
@pytest.mark.parametrize("loss", [0.0, 1.0])
def test_fine_tuning_by_distillation_alone_does_not_ask_the_labels(short: Task, trained: nn.Module, loss: float) -> None:
    recipe = decompose(macs=0.4, fine_tune_epochs=1, distill=Distillation(1.0, loss=loss))
    other = dataclasses.replace(short, loss=lambda network, batch: 3 * short.loss(network, batch))
    one, two = (compress(trained, recipe, one_task).model.state_dict() for one_task in (short, other))
    assert all(torch.equal(one[name], two[name]) for name in one) == (loss == 0.0)


class Shifted(nn.Module):
    """A wide linear layer whose inputs have a large mean, one without a bias, and a GRU, which cannot be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24, bias=False)
        self.gru, self.out = nn.GRU(24, 24, batch_first=True), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.gru(self.second(torch.tanh(self.first(x))))[0][:, -1])


def test_outputs_are_kept_and_the_bias_makes_up_for_the_mean() -> None:
    torch.manual_seed(0)
    network = Shifted().eval()
    x = (torch.randn(64, 5, 6) @ torch.randn(6, 24) + 3) / 3
    task = Task.unlabelled(network, [(x[:32],), (x[32:],)])
    thin = ("first.weight", "second.weight", "gru.weight_ih_l0")
    stages = {samples: decompose(ranks=dict.fromkeys(thin, 4), samples=samples) for samples in (0, 64)}
    results = {samples: compress(network, recipe, task) for samples, recipe in stages.items()}
    lost = {}
    for samples, result in results.items():
        first = result.model.first
        assert isinstance(first, nn.Sequential) and len(first) == 2
        with torch.no_grad():
            change = first(x) - network.first(x)
        lost[samples] = float(change.square().mean())
        if samples:
            torch.testing.assert_close(change.mean((0, 1)), torch.zeros(24), rtol=0, atol=1e-4)
    assert lost[64] < 0.5 * lost[0]
    assert any("by the weights alone" in line and "gru.weight_ih_l0" in line for line in results[64].rows[-1].said)
    assert not any("of the outputs of" in line for line in results[0].rows[-1].said)
