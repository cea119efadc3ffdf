"""Rules bought with other people's bugs: one regression for each row of design section 7 that applies to what there is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracles
import pytest
import table
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim import SGD, Adam

import featherweight
from featherweight.compression import compress
from featherweight.errors import FeatherweightError, InputError, TrainingError
from featherweight.files.edits import Snapshot
from featherweight.measurement import measure
from featherweight.recipe.plan import resolve
from featherweight.recipe.schema import Constrain, Recipe, Rule, Train
from featherweight.run.report import notes
from featherweight.structure.count import count_macs
from featherweight.task import Task
from featherweight.training.schedule import Training
from featherweight.weights.constrained import Constrained, freeze
from featherweight.weights.drivers import ADMM
from featherweight.weights.parametrized import decoded
from featherweight.weights.sets import Codebook, Levels, LowRank, Set, TopK, TopRows
from featherweight.weights.targets import Target
from featherweight.weights.views import View

MATRIX = View("o i -> o i")


# --- "keep the k largest" keeps everything at k = 0 ----------------------------------------------------------------------


@pytest.mark.parametrize("one", [TopK(0), TopRows(0), LowRank(0)], ids=str)
def test_size_zero_keeps_nothing_in_training_too(one: Set) -> None:
    """A threshold at the k-th largest value, `x[|x| >= sorted(|x|)[-k]]`, is `>= sorted(|x|)[0]` at k = 0: all of it."""
    layer = nn.Linear(8, 6)
    stepper = SGD(layer.parameters(), lr=0.1)
    with Constrained(ADMM(0.1, 1), layer, stepper, {"weight": Target(one, MATRIX)}):
        layer(torch.ones(1, 8)).sum().backward()
        stepper.step()
    assert int(layer.weight.count_nonzero()) == 0


# --- a threshold keeps more than k where there are ties ------------------------------------------------------------------


def test_ties_at_the_threshold_are_not_all_kept() -> None:
    quantised = table.tied_matrix()
    for count in range(49):
        assert int(TopK(count).project(quantised).count_nonzero()) <= count


# --- U not detached: the penalty grows k-fold ----------------------------------------------------------------------------


def test_the_pull_does_not_grow_while_nothing_changes() -> None:
    """Constant W: the gradient added must be rho (W - Z + U) with rho as given, at the hundredth round as at the first."""
    weight = nn.Parameter(table.matrix())
    stepper = SGD([weight], lr=0.0)
    model = nn.ParameterDict({"weight": weight})
    with Constrained(ADMM(0.3, 1), model, stepper, {"weight": Target(TopK(48))}) as imposed:
        for _ in range(100):
            weight.grad = torch.zeros_like(weight)
            stepper.step()
            assert float(weight.grad.abs().max()) < 1e-12  # W lies in the set, so it is not pulled
            assert imposed.states["weight"]["rho"] == 0.3
            assert not imposed.states["weight"]["pulled_to"].requires_grad


def test_a_graph_does_not_grow_from_round_to_round() -> None:
    weight = nn.Parameter(table.matrix())
    stepper = SGD([weight], lr=0.1)
    model = nn.ParameterDict({"weight": weight})
    with Constrained(ADMM(0.3, 1), model, stepper, {"weight": Target(TopK(5))}) as imposed:
        for _ in range(3):
            stepper.zero_grad()
            (weight**2).sum().backward()
            stepper.step()
            assert weight.is_leaf and weight.grad.grad_fn is None
            assert all(part.grad_fn is None for part in ADMM.split(imposed.states["weight"]))


# --- pruned weights regrow through momentum and weight decay -------------------------------------------------------------


def regrown(model: nn.Module, stepper: torch.optim.Optimizer, dead: torch.Tensor) -> int:
    for step in range(5):
        stepper.zero_grad()
        model(table.matrix(4, 8, seed=step, dtype=torch.float32)).square().mean().backward()
        stepper.step()
    return int((model.weight.detach()[dead] != 0).sum())


def test_the_trap_is_real_a_mask_on_the_gradient_lets_momentum_through() -> None:
    layer = nn.Linear(8, 6)
    stepper = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    regrown(layer, stepper, torch.zeros(6, 8, dtype=torch.bool))
    dead = layer.weight.detach().abs() < 0.2
    with torch.no_grad():
        layer.weight[dead] = 0
    layer.weight.register_hook(lambda gradient: gradient.masked_fill(dead, 0))
    assert regrown(layer, stepper, dead) > 0


@pytest.mark.parametrize("optimizer", table.OPTIMIZERS)
def test_what_is_frozen_to_a_code_does_not_regrow(optimizer: str) -> None:
    layer = nn.Linear(8, 6)
    stepper = table.OPTIMIZERS[optimizer](list(layer.parameters()))
    with Constrained(None, layer, stepper, {"weight": Target(TopK(13))}):
        regrown(layer, stepper, torch.zeros(6, 8, dtype=torch.bool))
    dead = layer.weight.detach() == 0
    assert int(dead.sum()) == 35
    assert regrown(layer, table.OPTIMIZERS[optimizer](list(layer.parameters())), dead) == 0


def test_a_target_that_is_frozen_already_is_not_imposed_on_by_its_old_optimizer() -> None:
    """Pruned models that keep the old optimizer train tensors that the network has dropped, or none, without a word."""
    layer = nn.Linear(8, 6)
    stepper = SGD(layer.parameters(), lr=0.1)
    with Constrained(None, layer, stepper, {"weight": Target(LowRank(2), MATRIX)}):
        pass
    with pytest.raises(InputError, match=r"parameter 'weight' already carries a code .factors."):
        Constrained(None, layer, stepper, {"weight": Target(TopK(5))})


# --- step, then project back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [LowRank(2), Levels("ternary"), Codebook(3)], ids=str)
def test_training_through_the_code_beats_stepping_and_projecting_back(one: Set) -> None:
    wanted, inputs = table.matrix(seed=401, dtype=torch.float32), table.matrix(64, 8, seed=400, dtype=torch.float32)

    def loss(layer: nn.Linear) -> torch.Tensor:
        return (layer(inputs) - inputs @ wanted.T).square().mean()

    def layer() -> nn.Linear:
        made = nn.Linear(8, 6, bias=False)
        with torch.no_grad():
            made.weight.copy_(wanted + table.matrix(seed=402, dtype=torch.float32))
        return made

    coded = layer()
    freeze(coded, "weight", Target(one, MATRIX))
    begun = float(loss(coded).detach())
    through = Adam(coded.parameters(), lr=0.02)
    back = layer()
    with torch.no_grad():
        back.weight.copy_(one.project(back.weight))
    projected = Adam(back.parameters(), lr=0.02)
    for _ in range(60):
        through.zero_grad()
        loss(coded).backward()
        through.step()
        projected.zero_grad()
        loss(back).backward()
        projected.step()
        with torch.no_grad():
            back.weight.copy_(one.project(back.weight))
    assert float(loss(coded).detach()) < 0.95 * begun
    assert float(loss(coded).detach()) <= float(loss(back).detach())
    assert one.violation(coded.weight.detach()) < 1e-5


# --- a closure computes the gradient after the hooks have run ------------------------------------------------------------


def test_a_closure_is_pulled_too_or_refused() -> None:
    """`optimizer.step(closure)` clears the gradient and fills it again behind the pre-hook: the pull is lost without a word."""
    weights = []
    for with_closure in (False, True):
        weight = nn.Parameter(table.matrix())
        stepper = SGD([weight], lr=0.1)

        def closure(weight: nn.Parameter = weight, stepper: SGD = stepper) -> torch.Tensor:
            stepper.zero_grad()
            loss = (weight**2).sum()
            loss.backward()
            return loss

        try:
            with Constrained(ADMM(0.3, 10), nn.ParameterDict({"weight": weight}), stepper, {"weight": Target(TopK(5))}):
                closure()
                stepper.step(closure if with_closure else None)
                weights.append(weight.detach().clone())
        except InputError:
            return
    torch.testing.assert_close(weights[0], weights[1])


# --- tied weights --------------------------------------------------------------------------------------------------------


def test_tied_weights_stay_tied_or_are_refused() -> None:
    """A code on one owner of a shared parameter leaves the other with the dense weight, and every count is wrong."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    stepper = SGD(model.parameters(), lr=0.1)
    try:
        with Constrained(None, model, stepper, {"0.weight": Target(TopK(5))}):
            pass
    except InputError:
        return
    assert torch.equal(model[0].weight, model[1].weight)


# --- counters that lie ---------------------------------------------------------------------------------------------------


def test_an_operation_without_a_rule_is_listed_and_never_counted_as_nothing() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.out(self.lstm(inputs)[0])

    macs, uncounted = count_macs(Recurrent(), (torch.zeros(1, 3, 5),))
    assert uncounted == ("lstm",) or macs == 3 * (4 * 4 * (5 + 4) + 4 * 2)


def test_macs_are_of_one_example_and_do_not_depend_on_the_mode() -> None:
    network = table.toy()
    expected = 6 * 16 * 4 + 96 * 12 + 12 * 4
    for batch in (1, 5):
        for training in (False, True):
            network.train(training)
            assert count_macs(network, (table.images(batch),)) == (expected, ())
            assert all(module.training is training for module in network.modules())


# --- asked and achieved --------------------------------------------------------------------------------------------------


def tiny_task(batches: Any = None) -> Task:
    pairs = [(table.images(8, seed=s), torch.arange(8) % 4) for s in range(3)]
    return Task(
        (table.images(1),),
        batches or (lambda epoch: pairs),
        lambda network, batch: nn.functional.cross_entropy(network(batch[0]), batch[1]),
        lambda network: 1.0,
        lambda parameters: SGD(parameters, lr=0.05, momentum=0.9),
    )


@pytest.mark.parametrize("keep", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("allocate", table.ALLOCATORS)
def test_half_asked_is_half_kept(keep: float, allocate: str) -> None:
    stage = Constrain(
        "s",
        (Rule("*.weight", TopK()),),
        keep=keep,
        allocate=allocate,
        driver=ADMM(0.01, 2),
        train=Training(2),
        retrain=Training(1),
    )
    result = compress(table.toy(), Recipe("r", (stage,)), tiny_task())
    (row,) = result.rows
    assert row.asked == keep
    whole = 24 + 1152 + 48
    assert sum(left for left, _ in row.targets.values()) == round(keep * whole)
    assert row.kept == pytest.approx(round(keep * whole) / whole)
    nonzeros = {name: int(weight.count_nonzero()) for name, weight in decoded(result.model).items()}
    assert row.measured.nonzeros == sum(nonzeros.values())
    assert {name: left for name, (left, _) in row.targets.items()} == {n: c for n, c in nonzeros.items() if n.endswith("weight")}


def test_what_is_measured_is_what_is_returned() -> None:
    stage = Constrain(
        "s", (Rule("hidden.weight", TopK(100)), Rule("out.weight", Codebook(4))), train=Training(1), retrain=Training(1)
    )
    result = compress(table.toy(), Recipe("r", (stage,)), tiny_task())
    again = measure(result.model, (table.images(1),), lambda network: 1.0)
    assert again == result.rows[-1].measured
    bits = 32 * (24 + 6 + 12 + 4) + 100 * 32 + oracles.choose_bits(1152, 100) + 4 * 32 + oracles.index_bits(48, 4)
    assert again.bits == bits
    assert again.parameters == 24 + 6 + 1152 + 12 + 48 + 4


def test_a_primal_residual_that_has_not_closed_is_said() -> None:
    stage = Constrain("s", (Rule("*.weight", TopK()),), keep=0.01, driver=ADMM(1e-6, 2), train=Training(1))
    result = compress(table.toy(), Recipe("r", (stage,)), tiny_task())
    assert max(result.rows[0].residuals.values()) > ADMM.health
    assert any("primal residual above" in note for note in notes(result.rows))


# --- statistics of batch norm belong to the weights before the projection ------------------------------------------------


def test_batch_norm_is_recalibrated_before_scoring() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4))
    seen: list[torch.Tensor] = []
    base = tiny_task()

    def score(model: nn.Module) -> float:
        seen.append(model[1].running_mean.clone())
        return 1.0

    stage = Constrain("s", (Rule("0.weight", TopK(3)),), train=Training(1))
    result = compress(network, Recipe("r", (stage,)), Task(base.example_inputs, base.batches, base.loss, score, base.optimizer))
    frozen = result.model[0]
    means = torch.stack([frozen(images).mean((0, 2, 3)) for images, _ in base.batches(0)]).mean(0)
    torch.testing.assert_close(seen[-1], means.detach())
    assert result.model[1].momentum == 0.1


def test_a_stage_that_only_measures_leaves_the_network_as_it_was_given() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 4)).eval()
    given = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = compress(network, Recipe("r", (Train("dense"),)), tiny_task())
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, given[name]), name


# --- a loss that is not finite -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [None, *table.ALL_DRIVERS[1:]], ids=str)
def test_a_run_that_diverges_says_so_and_keeps_no_network(driver: Any) -> None:
    base = tiny_task()

    def loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return base.loss(network, batch) * math.nan

    stage = Constrain("s", (Rule("hidden.weight", TopK(100)),), driver=driver, train=Training(1))
    with pytest.raises(TrainingError, match="the loss is nan at step 1 of 3"):
        compress(table.toy(), Recipe("r", (stage,)), Task(base.example_inputs, base.batches, loss, base.evaluate, base.optimizer))


# --- later stages on what earlier ones left ------------------------------------------------------------------------------


def test_ratios_do_not_compound_from_stage_to_stage() -> None:
    """Half and then half again of what is left is a quarter in some tools: here each ratio is of the original network."""
    stages = tuple(Constrain(str(keep), (Rule("hidden.weight", TopK()),), keep=keep) for keep in (0.5, 0.25))
    result = compress(table.toy(), Recipe("r", stages), tiny_task())
    assert [row.targets["hidden.weight"][0] for row in result.rows] == [576, 288]


def test_a_compressed_network_can_be_compressed_again() -> None:
    first = compress(table.toy(), Recipe("r", (Constrain("a", (Rule("hidden.weight", TopK(100)),)),)), tiny_task())
    second = compress(first.model, Recipe("r", (Constrain("b", (Rule("hidden.weight", TopK(50)),)),)), tiny_task())
    assert int(decoded(second.model)["hidden.weight"].count_nonzero()) == 50


def test_a_network_parametrized_by_something_else_is_not_silently_taken_for_ours() -> None:
    network = table.toy()
    prune.l1_unstructured(network.hidden, "weight", amount=0.5)  # renames the parameter to weight_orig
    with pytest.raises(FeatherweightError, match="matches no parameter"):
        resolve(Constrain("s", (Rule("hidden.weight", TopK(5)),)), network)


# --- nothing of ours is left on the user's modules -----------------------------------------------------------------------


def test_the_users_network_and_globals_are_left_as_they_were() -> None:
    network = table.toy()
    keys, attributes = list(network.state_dict()), set(vars(network.hidden))
    generator = torch.get_rng_state()
    stage = Constrain("s", (Rule("*.weight", TopK()),), keep=0.1, driver=ADMM(0.1, 2), train=Training(1))
    compress(network, Recipe("r", (stage,)), tiny_task())
    assert list(network.state_dict()) == keys
    assert set(vars(network.hidden)) == attributes
    assert type(network.hidden) is nn.Linear
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_snapshot_of_an_untouched_network_has_no_edits() -> None:
    assert Snapshot.of(table.toy(), []).edits == []
    assert set(featherweight.__all__) <= set(dir(featherweight))


def test_a_task_has_the_names_of_before() -> None:
    task = featherweight.Task((torch.zeros(1),), [1], lambda n, b: b, lambda n: 1.0, lambda p: torch.optim.SGD(p, 1.0))
    assert task.example is task.example_inputs and task.score is task.evaluate  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning, match="is Task"):
        other = replace(task, score=lambda n: 2.0)  # type: ignore[call-arg]
    assert other.evaluate(torch.nn.Identity()) == 2.0 and other.example_inputs is task.example_inputs
