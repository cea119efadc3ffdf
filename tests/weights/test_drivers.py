"""Drivers: every set under every driver and optimizer ends inside and stays inside; ADMM is the recursion of its paper."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import oracles
import pytest
import table
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim import SGD, Optimizer

from featherweight import Recipe, Task, compress
from featherweight.errors import InputError
from featherweight.recipe.reading import from_dict
from featherweight.recipe.schema import Constrain
from featherweight.recipes import RECIPES, admm_clustering, admm_quantization, progressive_admm, soft_filters
from featherweight.weights.constrained import Constrained, freeze
from featherweight.weights.drivers import ADMM, Driver, Periodic, StraightThrough
from featherweight.weights.freezing import Freezing
from featherweight.weights.parametrized import coded
from featherweight.weights.sets import Codebook, Levels, LowRank, Set, SparseCodebook, TopK, TopRows
from featherweight.weights.targets import Spread, Target
from featherweight.weights.views import View

MATRIX = View("o i -> o i")
EVERY_SET = pytest.mark.parametrize("one", table.TRAINED, ids=str)
EVERY_DRIVER = pytest.mark.parametrize("driver", table.ALL_DRIVERS, ids=str)
EVERY_OPTIMIZER = pytest.mark.parametrize("optimizer", table.OPTIMIZERS)
INPUTS, ANSWERS = table.matrix(10, 8, seed=70, dtype=torch.float32), table.matrix(10, 2, seed=71, dtype=torch.float32)


def network() -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        for number, parameter in enumerate(layers.parameters()):
            parameter.copy_(table.matrix(1, parameter.numel(), seed=80 + number).reshape(parameter.shape))
    return layers


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(INPUTS) - ANSWERS).square().mean().backward()
        optimizer.step()


def plain(tree: Any) -> Any:
    """What a checkpoint gives back of it."""
    file = io.BytesIO()
    torch.save(tree, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- inside the set, and staying there -----------------------------------------------------------------------------------


@pytest.mark.third
@EVERY_SET
@EVERY_DRIVER
@EVERY_OPTIMIZER
def test_training_ends_inside_and_stays_inside(one: Set, driver: Driver | None, optimizer: str) -> None:
    model = network()
    build = table.OPTIMIZERS[optimizer]
    stepper = build(list(model.parameters()))
    with Constrained(driver, model, stepper, {"0.weight": Target(one, MATRIX)}) as imposed:
        train(model, stepper, 7)
    code = coded(model)["0.weight"].code
    inside = LowRank(code.rank) if isinstance(one, LowRank) else one
    assert inside.violation(model[0].weight.detach()) < 1e-5
    assert imposed.residuals().keys() == {"0.weight"}
    before = model[0].weight.detach().clone()
    train(model, build(list(model.parameters())), 5)
    assert inside.violation(model[0].weight.detach()) < 1e-5
    assert not torch.equal(model[0].weight, before)


@EVERY_DRIVER
def test_what_is_frozen_is_the_projection_of_the_last_weight(driver: Driver | None) -> None:
    model = network()
    stepper = table.OPTIMIZERS["sgd"](list(model.parameters()))
    with Constrained(driver, model, stepper, {"0.weight": Target(TopK(9))}):
        train(model, stepper, 4)
        last = model[0].weight.detach().clone()
    expected = oracles.keep_largest(last.flatten().double().numpy(), 9).reshape(6, 8)
    np.testing.assert_array_equal(model[0].weight.detach().numpy(), expected)


def test_freezing_without_training_is_the_projection() -> None:
    model = network()
    before = model[0].weight.detach().clone()
    freeze(model, "0.weight", Target(TopRows(2), MATRIX))
    assert torch.equal(model[0].weight, TopRows(2).project(before))


def test_the_parameters_that_are_not_targets_train_as_ever() -> None:
    model, reference = network(), network()
    stepper, other = (SGD(m.parameters(), lr=0.1) for m in (model, reference))
    with Constrained(ADMM(1.0, 3), model, stepper, {"0.weight": Target(TopK(9))}):
        train(model, stepper, 1)
        train(reference, other, 1)
        for name in ("0.bias", "2.weight", "2.bias"):
            assert torch.equal(model.get_parameter(name), reference.get_parameter(name))
        assert not torch.equal(model[0].weight, reference[0].weight)


# --- Periodic ------------------------------------------------------------------------------------------------------------


def test_periodic_projects_at_every_third_step_and_not_between() -> None:
    model = network()
    stepper = SGD(model.parameters(), lr=0.01)
    inside = []
    with Constrained(Periodic(3), model, stepper, {"0.weight": Target(TopK(9))}):
        for _ in range(7):
            train(model, stepper, 1)
            inside.append(int(model[0].weight.count_nonzero()) <= 9)
    assert inside == [False, False, True, False, False, True, False]


def test_periodic_adds_the_pull_of_the_last_projection() -> None:
    model = nn.Linear(8, 6, bias=False)
    start = model.weight.detach().clone()
    stepper = SGD(model.parameters(), lr=0.5)
    with Constrained(Periodic(2, shrink=0.1), model, stepper, {"weight": Target(TopK(9))}):
        model.weight.grad = torch.zeros_like(model.weight)
        stepper.step()
        torch.testing.assert_close(model.weight.detach(), start - 0.5 * 0.1 * start.sign())
        model.weight.grad = torch.zeros_like(model.weight)
        stepper.step()
        projected = model.weight.detach().clone()
        assert int(projected.count_nonzero()) == 9
        model.weight.grad = torch.zeros_like(model.weight)
        stepper.step()
        torch.testing.assert_close(model.weight.detach(), projected - 0.5 * 0.1 * projected.sign())


# --- ADMM ----------------------------------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """1/2 |W - A|^2 and nothing else."""

    def __init__(self, start: torch.Tensor, wanted: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())
        self.wanted = wanted

    def forward(self) -> torch.Tensor:
        return (self.weight - self.wanted).square().sum() / 2


@pytest.mark.parametrize(
    ("rate", "rho", "every", "growth", "rho_max"),
    [(0.1, 0.3, 1, 1.0, None), (0.05, 0.5, 4, 1.3, 2.0), (0.2, 0.1, 3, 1.7, None), (1 / 1.4, 0.4, 1, 1.0, None)],
)
def test_admm_is_the_recursion_of_the_paper(rate: float, rho: float, every: int, growth: float, rho_max: float | None) -> None:
    start, wanted = table.matrix(seed=90), table.matrix(seed=91)
    model = Bowl(start, wanted)
    stepper = SGD(model.parameters(), lr=rate)
    most = float("inf") if rho_max is None else rho_max
    recursion = oracles.admm(start.flatten().numpy(), wanted.flatten().numpy(), 11, rate, rho, every, growth, most, 40)
    with Constrained(ADMM(rho, every, growth, rho_max), model, stepper, {"weight": Target(TopK(11))}) as imposed:
        for W, Z, U, penalty in recursion:
            stepper.zero_grad()
            model().backward()
            stepper.step()
            state = imposed.states["weight"]
            for name, given, expected in zip("WZU", (model.weight.detach(), *ADMM.split(state)), (W, Z, U), strict=True):
                np.testing.assert_allclose(given.flatten().numpy(), expected, rtol=0, atol=1e-6, err_msg=name)
            assert state["rho"] == pytest.approx(penalty, rel=1e-12)
            residual = np.linalg.norm(W - Z) / np.linalg.norm(W)
            assert imposed.residuals()["weight"] == pytest.approx(residual, abs=1e-6)


def test_a_step_of_one_over_one_plus_rho_is_the_closed_form_of_the_first_subproblem() -> None:
    """argmin 1/2 |W - A|^2 + rho/2 |W - Z + U|^2 = (A + rho (Z - U)) / (1 + rho), whatever W was."""
    start, wanted, rho = table.matrix(seed=92), table.matrix(seed=93), 0.7
    model = Bowl(start, wanted)
    stepper = SGD(model.parameters(), lr=1 / (1 + rho))
    with Constrained(ADMM(rho, 1), model, stepper, {"weight": Target(TopK(11))}) as imposed:
        for _ in range(10):
            Z, U = ADMM.split(imposed.states["weight"])
            stepper.zero_grad()
            model().backward()
            stepper.step()
            torch.testing.assert_close(model.weight.detach(), (wanted + rho * (Z - U)) / (1 + rho), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coupling", ["gradient", "proximal"])
def test_admm_finds_the_known_optimum_and_closes(coupling: str) -> None:
    """min 1/2 |W - A|^2 with at most k non-zeros is the k largest of A."""
    wanted = torch.linspace(-3, 3.1, 48, dtype=torch.float64).reshape(6, 8)
    model = Bowl(table.matrix(seed=94) / 10, wanted)
    stepper = SGD(model.parameters(), lr=0.2)
    with Constrained(ADMM(0.05, 5, 1.3, 50.0, coupling=coupling), model, stepper, {"weight": Target(TopK(11))}) as imposed:
        for step in range(400):
            stepper.param_groups[0]["lr"] = min(0.2, 1 / (1 + imposed.states["weight"]["rho"]))
            stepper.zero_grad()
            model().backward()
            stepper.step()
            if step == 0:
                assert imposed.residuals()["weight"] > ADMM.health
        assert imposed.residuals()["weight"] < 1e-2
    support = model.weight.detach().flatten() != 0
    np.testing.assert_array_equal(support.numpy(), oracles.keep_largest(wanted.flatten().numpy(), 11) != 0)


def test_the_proximal_pull_goes_its_share_of_the_way_between_two_projections() -> None:
    rho, every = 0.6, 4
    model = Bowl(table.matrix(seed=95), table.matrix(seed=96))
    start = model.weight.detach().clone()
    stepper = SGD(model.parameters(), lr=0.1)
    goal = TopK(11).project(start)
    with Constrained(ADMM(rho, every, coupling="proximal"), model, stepper, {"weight": Target(TopK(11))}) as imposed:
        for _ in range(every):
            model.weight.grad = torch.zeros_like(model.weight)
            stepper.step()
        torch.testing.assert_close(model.weight.detach(), start + rho / (1 + rho) * (goal - start), rtol=1e-12, atol=1e-12)
        expected = TopK(11).project(model.weight.detach())
        torch.testing.assert_close(ADMM.split(imposed.states["weight"])[0], expected, rtol=1e-12, atol=1e-12)


def test_the_unscaled_dual_is_the_same_before_and_after_rho_changes() -> None:
    start, wanted = table.matrix(seed=97), table.matrix(seed=98)
    duals = []
    for growth in (1.0, 2.0):
        model = Bowl(start, wanted)
        stepper = SGD(model.parameters(), lr=0.1)
        with Constrained(ADMM(0.3, 5, growth), model, stepper, {"weight": Target(TopK(11))}) as imposed:
            for _ in range(5):
                stepper.zero_grad()
                model().backward()
                stepper.step()
            state = imposed.states["weight"]
            assert state["rho"] == 0.3 * growth
            duals.append(state["rho"] * ADMM.split(state)[1])
    torch.testing.assert_close(duals[0], duals[1], rtol=1e-12, atol=1e-12)


@EVERY_DRIVER
@EVERY_SET
def test_states_are_plain_tensors_without_a_graph(driver: Driver | None, one: Set) -> None:
    model = network()
    stepper = table.OPTIMIZERS["sgd"](list(model.parameters()))
    with Constrained(driver, model, stepper, {"0.weight": Target(one, MATRIX)}) as imposed:
        train(model, stepper, 4)
        tensors = [value for state in imposed.states.values() for value in state.values() if isinstance(value, torch.Tensor)]
        assert all(not tensor.requires_grad and tensor.grad_fn is None for tensor in tensors)
        pulls = isinstance(driver, Periodic) and driver.shrink > 0
        expected = {ADMM: 2 if one.selects else 3, Freezing: 2, Periodic: int(pulls), StraightThrough: 1}
        assert len(tensors) == expected.get(type(driver), 0)


# --- StraightThrough -----------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_projection_moves_the_latent_weights() -> None:
    start, wanted = table.matrix(seed=91), table.matrix(seed=92)
    model = Bowl(start, wanted)
    stepper = SGD(model.parameters(), lr=0.3, momentum=0.5)
    latent, velocity = start.clone(), torch.zeros_like(start)

    def binary(matrix: torch.Tensor) -> torch.Tensor:
        """BinaryConnect with the scale of XNOR-Net (arXiv 1603.05279, eq. 6)."""
        return matrix.abs().mean() * torch.where(matrix < 0, -1.0, 1.0).to(matrix)

    flipped = 0
    with Constrained(StraightThrough(4), model, stepper, {"weight": Target(Levels())}):
        for step in range(12):
            torch.testing.assert_close(model.weight.detach(), binary(latent))
            stepper.zero_grad()
            model().backward()
            if step == 5:  # a step that has no gradient of this weight moves nothing
                model.weight.grad = None
                stepper.step()
                continue
            stepper.step()
            velocity = 0.5 * velocity + binary(latent) - wanted
            moved = latent - 0.3 * velocity
            flipped += int((moved.sign() != latent.sign()).sum())
            latent = moved
    assert flipped > 0
    torch.testing.assert_close(model.weight.detach(), binary(latent))


def test_what_is_pruned_may_come_back_and_what_was_dead_may_not() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:2] = 0
    stepper = SGD(model.parameters(), lr=0.5)
    began = model[0].weight.detach().clone()
    with Constrained(StraightThrough(4), model, stepper, {"0.weight": Target(TopK(9), masked=True)}):
        first = model[0].weight != 0
        train(model, stepper, 30)
    assert bool((model[0].weight != 0)[~first].any())
    assert not bool(model[0].weight[began == 0].any())


# --- around any loop -----------------------------------------------------------------------------------------------------


def one_admm_step(clip: float | None, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight after a step of rate 1, and what the formula says: W - (clipped gradient + rho (W - Z + U))."""
    model = network()
    start = model[0].weight.detach().clone()
    stepper = SGD(model.parameters(), lr=1.0)
    with Constrained(ADMM(0.5, 10), model, stepper, {"0.weight": Target(TopK(9))}) as imposed:
        (scale * (model(INPUTS) - ANSWERS).square().mean()).backward()
        for parameter in model.parameters():
            parameter.grad.div_(scale)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        gradient = model[0].weight.grad.clone()
        stepper.step()
        expected = start - (gradient + 0.5 * (start - ADMM.split(imposed.states["0.weight"])[0]))
        return model[0].weight.detach().clone(), expected


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_the_pull_is_added_after_clipping(clip: float | None) -> None:
    stepped, expected = one_admm_step(clip)
    torch.testing.assert_close(stepped, expected)


def test_the_pull_is_added_after_unscaling() -> None:
    torch.testing.assert_close(one_admm_step(None, scale=1024.0)[0], one_admm_step(None)[0])


def test_a_gradient_scaler_changes_nothing() -> None:
    weights = []
    for scaler in (torch.amp.GradScaler("cpu", init_scale=256.0), None):
        model = network()
        stepper = SGD(model.parameters(), lr=0.1)
        with Constrained(ADMM(0.5, 2), model, stepper, {"0.weight": Target(TopK(9))}):
            for _ in range(4):
                stepper.zero_grad()
                loss = (model(INPUTS) - ANSWERS).square().mean()
                if scaler is None:
                    loss.backward()
                    stepper.step()
                else:
                    scaler.scale(loss).backward()
                    scaler.step(stepper)
                    scaler.update()
            weights.append(model[0].weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])


def test_a_target_without_a_gradient_is_left_alone_before_the_step() -> None:
    model = network()
    start = model[0].weight.detach().clone()
    stepper = SGD(model.parameters(), lr=0.1)
    with Constrained(ADMM(0.5, 10), model, stepper, {"0.weight": Target(TopK(9))}):
        stepper.step()
        assert torch.equal(model[0].weight, start)


class Boom(Exception):
    """What a user's loop might raise."""


@EVERY_DRIVER
def test_after_an_error_the_hooks_are_gone_and_nothing_is_frozen(driver: Driver | None) -> None:
    model, reference = network(), network()
    stepper = SGD(model.parameters(), lr=0.1)
    with pytest.raises(Boom), Constrained(driver, model, stepper, {"0.weight": Target(TopK(9), masked=True)}):
        train(model, stepper, 4)
        raise Boom
    assert coded(model) == {}
    assert not parametrize.is_parametrized(model[0])
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        model[0].weight[0, 0] = reference[0].weight[0, 0] = 0
    train(model, stepper, 3)
    train(reference, SGD(reference.parameters(), lr=0.1), 3)
    assert torch.equal(model[0].weight, reference[0].weight)


@EVERY_DRIVER
def test_after_the_block_the_hooks_are_gone(driver: Driver | None) -> None:
    model = network()
    stepper = SGD(model.parameters(), lr=0.1)
    with Constrained(driver, model, stepper, {"0.weight": Target(TopK(9))}) as imposed:
        train(model, stepper, 2)
    steps = imposed.step
    train(model, stepper, 3)
    assert imposed.step == steps == 2


@EVERY_DRIVER
def test_an_error_with_weights_that_are_not_finite_stays_that_error(driver: Driver | None) -> None:
    """A diverged run must end with the error that says so, not with one from looking at the residuals."""
    model = network()
    stepper = SGD(model.parameters(), lr=0.1)
    with pytest.raises(Boom), Constrained(driver, model, stepper, {"0.weight": Target(TopK(9))}):
        with torch.no_grad():
            model[0].weight.fill_(torch.nan)
        raise Boom


def test_what_cannot_be_imposed_is_refused() -> None:
    model = network()
    stepper = SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(InputError, match=r"no parameter is named '0.weigth'. Did you mean '0.weight'\?"):
        Constrained(None, model, stepper, {"0.weigth": Target(TopK(1))})
    with pytest.raises(InputError, match=r"optimizer does not hold parameter '2.weight'"):
        Constrained(None, model, stepper, {"2.weight": Target(TopK(1))})
    for attempt in (
        lambda: ADMM(0.0, 1), lambda: ADMM(-1.0, 1), lambda: ADMM(1.0, 0), lambda: ADMM(1.0, 1, 0.9),
        lambda: ADMM(1.0, 1, 1.0, 0.5), lambda: ADMM(float("nan"), 1), lambda: Periodic(0), lambda: Periodic(1, -0.1),
    ):  # fmt: skip
        with pytest.raises(InputError):
            attempt()


# --- masks ---------------------------------------------------------------------------------------------------------------


@EVERY_OPTIMIZER
@EVERY_DRIVER
def test_masked_zeros_stay_zero_under_momentum_and_decay(driver: Driver | None, optimizer: str) -> None:
    model = network()
    build = table.OPTIMIZERS[optimizer]
    stepper = build(list(model.parameters()))
    train(model, stepper, 3)  # momentum is on before anything is masked
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    with Constrained(driver, model, stepper, {"0.weight": Target(TopK(9), masked=True)}):
        for _ in range(7):
            train(model, stepper, 1)
            assert int(model[0].weight[:, ::2].count_nonzero()) == 0
        assert int(model[0].weight[:, 1::2].count_nonzero()) > 0
    train(model, build(list(model.parameters())), 5)
    assert int(model[0].weight[:, ::2].count_nonzero()) == 0


@pytest.mark.parametrize("one", [TopK(9), SparseCodebook(9, 2)], ids=str)
def test_masked_zeros_stay_zero_in_the_code_even_where_the_set_has_room_for_them(one: Set) -> None:
    """Three entries are alive and the set would take nine: the six dead ones must not be freed to train again."""
    model = network()
    with torch.no_grad():
        model[0].weight.flatten()[3:] = 0
    stepper = SGD(model.parameters(), lr=0.1)
    with Constrained(None, model, stepper, {"0.weight": Target(one, masked=True)}):
        train(model, stepper, 1)
    assert int(model[0].weight.flatten()[:3].count_nonzero()) == 3
    train(model, SGD(model.parameters(), lr=0.1), 2)
    assert int(model[0].weight.flatten()[3:].count_nonzero()) == 0


@pytest.mark.parametrize("one", [Levels("uniform", 2), Levels("binary"), Codebook(3)], ids=str)
@EVERY_DRIVER
def test_under_a_mask_only_what_is_left_is_quantised(driver: Driver | None, one: Set) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    left = int(model[0].weight.count_nonzero())
    stepper = SGD(model.parameters(), lr=0.1, momentum=0.9)
    imposed = Constrained(driver, model, stepper, {"0.weight": Target(one, masked=True)})
    with imposed:
        train(model, stepper, 7)
    train(model, SGD(model.parameters(), lr=0.1), 2)
    weight = model[0].weight.detach()
    assert int(weight[:, ::2].count_nonzero()) == 0
    assert int(weight.count_nonzero()) == left
    assert weight[weight != 0].unique().numel() <= 4
    assert one.masked().violation(weight.reshape(1, -1)) < 1e-6
    assert all(0 <= residual <= 1 for residual in imposed.residuals().values())


def test_zeros_that_are_not_masked_may_grow() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    stepper = SGD(model.parameters(), lr=0.1)
    with Constrained(ADMM(0.1, 3), model, stepper, {"0.weight": Target(TopK(9))}):
        train(model, stepper, 2)
        assert int(model[0].weight[:, ::2].count_nonzero()) > 0


# --- selection weighed by gradients, and sizes spread anew ---------------------------------------------------------------


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_a_weighed_selection_keeps_the_largest_weighed_magnitudes_at_their_own_values(power: float) -> None:
    weight, squares = table.matrix(seed=120), table.matrix(seed=121).square()
    projected = Target(TopK(11), fisher=power).project(weight, squares)
    weighed = (weight.abs() * squares**power).flatten().numpy()
    kept = oracles.keep_largest(weighed, 11) != 0
    np.testing.assert_allclose(projected.flatten().numpy(), np.where(kept, weight.flatten().numpy(), 0.0), rtol=0, atol=0)


def test_a_set_that_does_not_select_cannot_be_weighed() -> None:
    for one in table.TRAINED:
        if one.selects:
            assert Target(one, fisher=0.5).fisher == 0.5
        else:
            with pytest.raises(InputError, match="does not select"):
                Target(one, fisher=0.5)
    with pytest.raises(InputError, match="at least 0"):
        Target(TopK(3), fisher=-0.5)


def test_a_total_that_is_spread_anew_stays_the_total() -> None:
    model = network()
    stepper = SGD(model.parameters(), lr=0.5)
    targets = {"0.weight": Target(TopK(19)), "2.weight": Target(TopK(1))}
    spread = Spread(("0.weight", "2.weight"), 20, table.ALLOCATORS["magnitude"])
    sizes = set()
    with Constrained(ADMM(0.1, 2), model, stepper, targets, spread=spread) as imposed:
        for _ in range(6):
            train(model, stepper, 2)
            now = tuple(imposed.targets[name].set.count for name in spread.names)
            candidates = {n: (model.get_parameter(n).detach()).numpy() for n in spread.names}
            assert sum(now) == 20
            assert set(oracles.global_largest(candidates, 20)) == set(spread.names)
            sizes.add(now)
            for name in spread.names:
                assert int(ADMM.split(imposed.states[name])[0].count_nonzero()) <= imposed.targets[name].set.count
    assert (19, 1) not in sizes
    counts = [int(model[0].weight.count_nonzero()), int(model[2].weight.count_nonzero())]
    assert sum(counts) == 20


# --- resuming ------------------------------------------------------------------------------------------------------------


@EVERY_OPTIMIZER
@EVERY_DRIVER
@pytest.mark.parametrize("one", [TopK(13), TopRows(4), LowRank(2)], ids=str)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(one: Set, driver: Driver | None, optimizer: str) -> None:
    build = table.OPTIMIZERS[optimizer]
    targets = {"0.weight": Target(one, MATRIX, masked=True, fisher=0.25 if one.selects else 0.0)}
    squares = {"0.weight": table.matrix(seed=130, dtype=torch.float32).square()}

    def start() -> tuple[nn.Sequential, Optimizer, Constrained]:
        model = network()
        model[0].weight.data[0] = 0
        stepper = build(list(model.parameters()))
        return model, stepper, Constrained(driver, model, stepper, targets, squares=squares)

    whole, stepper, imposed = start()
    with imposed:
        train(whole, stepper, 10)

    first, stepper, imposed = start()
    with pytest.raises(Boom), imposed:
        train(first, stepper, 5)
        saved = plain([first.state_dict(), stepper.state_dict(), imposed.state_dict()])
        train(first, stepper, 1)  # what happens after the checkpoint is lost
        raise Boom

    second, stepper, imposed = start()
    second.load_state_dict(saved[0])
    stepper.load_state_dict(saved[1])
    imposed.load_state_dict(saved[2])
    with imposed:
        assert imposed.step == 5
        train(second, stepper, 5)
    assert second.state_dict().keys() == whole.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_sizes_that_were_spread_anew_come_back() -> None:
    spread = Spread(("0.weight", "2.weight"), 20, table.ALLOCATORS["magnitude"])

    def imposed() -> tuple[nn.Sequential, Optimizer, Constrained]:
        model = network()
        stepper = SGD(model.parameters(), lr=0.5)
        targets = {"0.weight": Target(TopK(19)), "2.weight": Target(TopK(1))}
        return model, stepper, Constrained(ADMM(0.1, 2), model, stepper, targets, spread=spread)

    model, stepper, first = imposed()
    with first:
        train(model, stepper, 4)
        saved = plain(first.state_dict())
        sizes = {name: first.targets[name].set.count for name in spread.names}
    _, _, second = imposed()
    second.load_state_dict(saved)
    assert {name: second.targets[name].set.count for name in spread.names} == sizes


# --- found before any training -------------------------------------------------------------------------------------------


def check_refused(model: nn.Module, targets: dict[str, Target], match: str, **given: Any) -> None:
    stepper = SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match=match):
        Constrained(given.pop("driver", ADMM(0.1, 3)), model, stepper, targets, **given)


def test_a_weight_that_no_set_can_be_imposed_on_is_named() -> None:
    one = {"0.weight": Target(TopK(9))}
    model = network()
    freeze(model, "0.weight", Target(LowRank(2), MATRIX))
    check_refused(model, one, r"'0.weight' already carries a code \(factors\)")
    check_refused(model, {"0.parametrizations.weight.original0": Target(TopK(3))}, "the free part of a parametrization")
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    check_refused(model, one, r"'0.weight' is computed by a parametrization \(_WeightNorm\)")
    model = network()
    model[0].weight.requires_grad_(False)
    check_refused(model, one, r"'0.weight' is frozen")
    Constrained(None, model, SGD(model.parameters(), 0.1), one)  # a projection without training needs no gradient
    model = network()
    with torch.no_grad():
        model[0].weight[1, 2] = torch.nan
    check_refused(model, one, r"parameter '0.weight': .*NaN")
    check_refused(network(), {"0.weight": Target(TopK(49))}, r"parameter '0.weight': TopK count must be from 0 to 48")
    check_refused(network().to(torch.complex64), one, r"'0.weight' holds torch.complex64")


@pytest.mark.parametrize("bad", [torch.full((6, 8), torch.nan), torch.ones(8, 6), torch.full((6, 8), torch.inf)], ids=str)
def test_squared_gradients_that_are_none_are_named(bad: torch.Tensor) -> None:
    check_refused(
        network(), {"0.weight": Target(TopK(9), fisher=0.5)}, r"squares\['0.weight'\] must be finite", squares={"0.weight": bad}
    )


@EVERY_DRIVER
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_are_refused_by_name(driver: Driver | None, kind: type[nn.Module]) -> None:
    check_refused(
        nn.Sequential(kind(9, 4, sparse=True)), {"0.weight": Target(TopK(9))}, "'0.weight' gets sparse gradients", driver=driver
    )
    model = nn.Sequential(kind(9, 4))
    stepper = SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(InputError, match=r"'0.weight' gets sparse gradients"),
        Constrained(driver, model, stepper, {"0.weight": Target(TopK(9))}),
    ):
        nn.functional.embedding(torch.tensor([1, 2]), model[0].weight, sparse=True).sum().backward()
        stepper.step()


def test_two_constraints_on_one_weight_are_refused_and_on_two_they_stand() -> None:
    model = network()
    stepper = SGD(model.parameters(), lr=0.1)
    with Constrained(ADMM(0.1, 3), model, stepper, {"0.weight": Target(TopK(9))}):
        with pytest.raises(InputError, match=r"'0.weight' is the target of another constrain"):
            Constrained(None, model, stepper, {"0.weight": Target(LowRank(2), MATRIX)}).__enter__()
        with Constrained(Periodic(2), model, stepper, {"2.weight": Target(TopK(5))}):
            train(model, stepper, 4)
    assert int(model[0].weight.count_nonzero()) == 9
    assert int(model[2].weight.count_nonzero()) == 5
    other = network()  # what has been left is in nobody's way
    with Constrained(None, other, SGD(other.parameters(), lr=0.1), {"0.weight": Target(TopK(9))}):
        pass
    assert coded(other).keys() == {"0.weight"}


# --- a default suits any amount of data ----------------------------------------------------------------------------------

LEFT_TO_THE_DATA = ["progressive_admm", "admm_quantization", "admm_binarization", "admm_clustering", "admm_joint", "soft_filters"]


@pytest.mark.parametrize("name", LEFT_TO_THE_DATA)
@pytest.mark.parametrize("per_epoch", [1, 5, 19, 400, 30_000])
def test_a_default_driver_does_its_work_in_the_steps_there_are(name: str, per_epoch: int) -> None:
    options = {"freezing": 0.3} if name == "admm_joint" else {}
    for stage in RECIPES[name](**options).stages:
        if not isinstance(stage, Constrain) or stage.driver is None:
            continue
        steps = stage.train.epochs * per_epoch
        driver = stage.driver.paced(steps, stage.train.epochs)
        assert driver.every is not None
        projections = steps // driver.every
        assert driver.paced(1, 1) == driver  # nothing is open any more
        if not isinstance(driver, ADMM):
            assert projections >= min(steps, 20)
            assert driver.every <= per_epoch  # an epoch at most
        else:
            assert projections >= min(steps, 20 if steps >= 400 else 12)
            assert driver.every >= min(20, steps // 12)  # W follows Z before Z moves again
            assert driver.every <= max(per_epoch, 20)
            assert driver.growth is not None
            assert driver.rho_max is not None
            assert driver.rho * driver.growth ** (projections - 1) >= driver.rho_max * 0.999


def test_what_is_given_is_not_paced_away() -> None:
    for driver in (ADMM(0.1, 7, 1.2, 2.0), Periodic(7), Freezing(7)):
        assert driver.paced(3, 1) == driver
    assert ADMM(0.1, 7, None, 2.0).paced(70, 2) == ADMM(0.1, 7, 20 ** (1 / 8), 2.0)
    with pytest.raises(InputError, match="give rho_max, or growth"):
        ADMM(0.1, 7, None)


def test_rho_rises_along_half_a_cosine_where_that_is_asked() -> None:
    model, rho = Bowl(table.matrix(seed=97), table.matrix(seed=98)), []
    stepper = SGD(model.parameters(), lr=0.1)
    driver = ADMM(0.2, 1, "cosine", 1.0).paced(5, 1)
    assert driver.rise == 4
    with Constrained(driver, model, stepper, {"weight": Target(TopK(11))}) as imposed:
        for _ in range(6):
            rho.append(imposed.states["weight"]["rho"])
            stepper.zero_grad()
            model().backward()
            stepper.step()
    half = 0.5**0.5
    assert rho == pytest.approx([0.2, 0.6 - 0.4 * half, 0.6, 0.6 + 0.4 * half, 1.0, 1.0])
    for wrong in ({"rho_max": None}, {"rise": 0}, {"growth": 1.1, "rise": 3}, {"growth": "sine"}):
        with pytest.raises(InputError):
            ADMM(**({"rho": 0.1, "every": 7, "growth": "cosine", "rho_max": 2.0} | wrong))
    recipe = progressive_admm(growth="cosine")
    assert from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("driver", [ADMM(0.1, None), ADMM(0.1, 5, None, 1.0), Periodic(None), Freezing(None)], ids=str)
def test_what_is_open_is_refused_where_the_length_is_not_known(driver: Driver) -> None:
    check_refused(network(), {"0.weight": Target(TopK(9))}, r"driver\.paced\(steps, epochs\)", driver=driver)


ONE_STAGE = [progressive_admm(("4x",)), admm_quantization((3,)), admm_clustering((4,))]


@pytest.mark.parametrize("recipe", ONE_STAGE, ids=lambda r: r.name)
def test_admm_closes_by_default_on_small_data(recipe: Recipe) -> None:
    row = compress(network(), recipe, small_task()).rows[-1]
    assert row.residuals.keys() == {"0.weight", "2.weight"}
    assert max(row.residuals.values()) < ADMM.health


def test_a_driver_that_cannot_project_once_is_said() -> None:
    late = soft_filters(0.5, targets="0.weight", epochs=1, every=7)
    assert "nothing was projected before the end: every is 7 and the stage trains 6 steps" in " ".join(
        compress(network(), late, small_task()).rows[-1].said
    )
    for stage in compress(network(), soft_filters(0.5, targets="0.weight", epochs=1), small_task()).rows:
        assert not any("projected" in sentence for sentence in stage.said)


def small_task() -> Task:
    """Six batches an epoch."""

    def loss(model: nn.Module, batch: int) -> torch.Tensor:
        return (model(INPUTS) - ANSWERS).square().mean() * (1 + batch / 6)

    return Task((INPUTS[:1],), lambda epoch: range(6), loss, lambda model: 0.0, lambda p: torch.optim.Adam(p, 1e-2))
