"""Few bits: freezing step by step, bits spread over layers, and the recipes of the ADMM family end in their sets."""

from __future__ import annotations

import itertools
import math

import pytest
import table
import torch
from torch import Tensor, nn

from featherweight import compress
from featherweight.budget import bits
from featherweight.errors import InputError
from featherweight.recipe.schema import Recipe
from featherweight.recipes import admm_binarization, admm_clustering, admm_joint, admm_quantization
from featherweight.task import Task
from featherweight.weights.constrained import Constrained
from featherweight.weights.freezing import Freezing
from featherweight.weights.parametrized import coded, decoded
from featherweight.weights.sets import Codebook, Levels
from featherweight.weights.targets import Target
from featherweight.weights.views import View

# --- freezing ------------------------------------------------------------------------------------------------------------


def pulled(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step against a loss that no level minimises."""
    optimizer.zero_grad()
    sum((p - 0.37).square().sum() for p in model.parameters()).backward()
    optimizer.step()


@pytest.mark.parametrize("target", [Target(Codebook(3)), Target(Levels("uniform", 2)), Target(Codebook(3), masked=True)], ids=str)
def test_each_round_freezes_of_each_level_the_share_that_is_nearest(target: Target) -> None:
    weight = table.matrix()
    if target.masked:
        weight[:, ::3] = 0
    driver = Freezing(every=2, share=0.3)
    state = driver.start(weight, target, None)
    for number in range(4):
        before, given = state["frozen"].clone(), weight.clone()
        driver.project(state, weight, target, None)
        value, frozen = target.project(given), state["frozen"]
        assert bool((frozen | ~before).all())  # never thawed
        assert torch.equal(weight, torch.where(frozen, value, given))
        for level in value.unique():
            free = (value == level) & ~before
            new = (given - level).abs()[free & frozen]
            assert new.numel() == math.ceil(0.3 * int(free.sum()))
            rest = (given - level).abs()[free & ~frozen]
            assert new.numel() == 0 or rest.numel() == 0 or float(new.max()) <= float(rest.min())
        moved = weight + 0.1 * table.matrix(seed=80 + number) * (weight != 0)
        weight = torch.where(state["frozen"], weight, moved)
    assert 0 < int((~state["frozen"]).sum()) < 48


def test_frozen_weights_do_not_move_between_rounds_and_free_ones_do() -> None:
    layer = nn.Linear(8, 6, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    with Constrained(Freezing(every=3, share=0.5), layer, optimizer, {"weight": Target(Levels("uniform", 2))}) as imposed:
        for _ in range(3):
            pulled(layer, optimizer)
        frozen, held = imposed.states["weight"]["frozen"].clone(), layer.weight.detach().clone()
        assert 0 < int(frozen.sum()) < 48
        pulled(layer, optimizer)
        assert torch.equal(layer.weight[frozen], held[frozen])
        assert bool((layer.weight != held)[~frozen].all())


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 1, "share": 0.0}, {"every": 1, "share": 1.5}])
def test_freezing_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Freezing"):
        Freezing(**wrong)


# --- bits per layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [1.0, 2.0, 2.6, 4.0])
def test_bits_are_spread_within_the_budget_and_near_the_best_choice(mean: float) -> None:
    weights = {"a": table.matrix(4, 9, seed=1), "b": table.matrix(3, 30, seed=2).exp(), "c": table.matrix(5, 8, seed=3) ** 3}
    weights["a"][0] = 0
    chosen = bits.allocate(weights, mean, most=4)
    counts = {name: int(weight.count_nonzero()) for name, weight in weights.items()}
    room = mean * sum(counts.values())

    def error(choice: dict[str, int]) -> float:
        return sum(Levels("uniform", n, sparse=True).violation(weights[k].reshape(1, -1)) ** 2 for k, n in choice.items())

    choices = [dict(zip(weights, numbers, strict=True)) for numbers in itertools.product(range(1, 5), repeat=3)]
    allowed = [choice for choice in choices if sum(counts[k] * n for k, n in choice.items()) <= room]
    assert chosen in allowed
    assert error(chosen) <= 1.35 * min(map(error, allowed))  # greedy: the last step may not fit


def test_gradients_draw_bits_to_where_they_matter() -> None:
    weights = {"a": table.matrix(6, 8, seed=1), "b": table.matrix(6, 8, seed=2)}
    squares = {"a": torch.full((6, 8), 100.0), "b": torch.full((6, 8), 0.01)}
    chosen = bits.allocate(weights, 3, squares=squares)
    assert chosen["a"] > chosen["b"]
    assert sum(chosen.values()) == 6


def test_a_budget_of_bits_that_no_choice_meets_is_refused() -> None:
    for mean, levels in ((0.5, "uniform"), (9, "uniform"), (6, "power_of_two")):
        with pytest.raises(InputError, match="bits a weight"):
            bits.allocate({"a": table.matrix()}, mean, levels)
    with pytest.raises(InputError, match="no layer"):
        bits.allocate({}, 2)


# --- recipes -------------------------------------------------------------------------------------------------------------


def toy_task() -> Task:
    inputs = table.images(24)
    answers = (inputs.mean((1, 2, 3)) > 0).long() + 2 * (inputs[:, 0, 2, 2] > 0).long()
    batches = [(inputs[i : i + 8], answers[i : i + 8]) for i in (0, 8, 16)]
    return Task(
        (inputs[:1],),
        lambda epoch: batches,
        lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1]),
        lambda network: float((network(inputs).argmax(1) == answers).float().mean()),
        lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    )


SHORT = {"dense_epochs": 2, "epochs": 2, "retrain_epochs": 2, "every": 3}


def weights_after(recipe: Recipe) -> dict[str, Tensor]:
    network = compress(table.toy(), recipe, toy_task()).model
    assert sorted(coded(network)) == ["conv.weight", "hidden.weight", "out.weight"]
    return {name: weight.detach() for name, weight in decoded(network).items() if name.endswith("weight")}


@pytest.mark.parametrize("targets", [("*.weight",), ("hidden.weight", "re:(conv|out).weight")])
@pytest.mark.parametrize("per", ["layer", "row"])
def test_binarisation_leaves_one_bit_a_weight_in_every_layer(per: str, targets: tuple[str, ...]) -> None:
    for weight in weights_after(admm_binarization(targets, per=per, **SHORT)).values():
        for row in weight.flatten(1) if per == "row" else [weight]:
            assert row.abs().unique().numel() == 1
            assert float(row.abs().max()) > 0


def test_ternary_weights_are_at_three_values() -> None:
    for weight in weights_after(admm_binarization(levels="ternary", per="layer", **SHORT)).values():
        assert weight.abs().unique().numel() <= 2


@pytest.mark.parametrize("levels", ["uniform", "power_of_two"])
def test_quantised_weights_are_whole_multiples_at_their_bits(levels: str) -> None:
    given = {"conv.weight": 3, "hidden.weight": 2, "out.weight": 4}
    after = weights_after(admm_quantization((4, 3), levels, "layer", bits_of=given, **SHORT))
    for name, weight in after.items():
        assert Levels(levels, given[name]).violation(weight.reshape(1, -1)) < 1e-5
    rows = weights_after(admm_quantization((2,), levels, "row", **SHORT))
    assert all(Levels(levels, 2).violation(weight.flatten(1)) < 1e-5 for weight in rows.values())


def test_clustered_weights_share_their_values_and_the_values_were_trained() -> None:
    after = weights_after(admm_clustering((6, 3), **SHORT))
    assert all(weight.unique().numel() <= 3 for weight in after.values())
    untrained = weights_after(admm_clustering((6, 3), **SHORT | {"retrain_epochs": 0}))
    assert any(not torch.equal(after[name].unique(), untrained[name].unique()) for name in after)


@pytest.mark.third
@pytest.mark.parametrize(
    ("then", "sizes", "distinct"), [("clustering", (4, 3), 3), ("uniform", (2,), 4), ("power_of_two", (2,), 4)]
)
@pytest.mark.parametrize("freezing", [None, 0.3])
def test_joint_recipes_level_what_pruning_left(then: str, sizes: tuple[int, ...], distinct: int, freezing: float | None) -> None:
    short = SHORT | {"level_epochs": 2, "level_retrain_epochs": 1, "freezing_epochs": 2}
    recipe = admm_joint(("2x", "4x"), then, sizes, freezing=freezing, **short)
    result = compress(table.toy(), recipe, toy_task())
    kinds = {viewed.code.kind for viewed in coded(result.model).values()}
    assert kinds == {"sparse_shared" if then == "clustering" else "sparse_scaled"}
    left = 0
    for name, weight in decoded(result.model).items():
        if name.endswith("weight"):
            assert weight[weight != 0].unique().numel() <= distinct
            left += int(weight.count_nonzero())
    whole = sum(w.numel() for n, w in table.toy().named_parameters() if n.endswith("weight"))
    assert 0 < left <= whole / 4 + 3
    assert any(isinstance(getattr(stage, "driver", None), Freezing) for stage in recipe.stages) == (freezing is not None)


def test_recipes_name_their_mistakes() -> None:
    for attempt in (
        lambda: admm_quantization(()),
        lambda: admm_quantization(per="column"),
        lambda: admm_quantization(bits_of={}),
        lambda: admm_binarization(()),
        lambda: admm_binarization(per="column"),
        lambda: admm_clustering(()),
        lambda: admm_clustering(counts_of={}),
        lambda: admm_joint(then="hashing"),
    ):
        with pytest.raises(InputError, match=r"must be one of|names no"):
            attempt()


def test_a_scale_a_row_is_a_view() -> None:
    recipe = admm_quantization((3,), per="row")
    assert recipe.stages[1].rules[0].view == View("o ... -> o (...)")
