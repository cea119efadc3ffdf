"""Loops: under every loop and optimizer a driver does what the same driver does by hand in a plain loop, and counts its steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import table
import torch
from several import NEEDS_GLOO, in_two
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer

from featherweight.errors import InputError, TrainingError
from featherweight.weights.constrained import Constrained
from featherweight.weights.drivers import ADMM, Driver, Periodic, StraightThrough
from featherweight.weights.freezing import Freezing
from featherweight.weights.parametrized import coded
from featherweight.weights.sets import TopK
from featherweight.weights.targets import Target

INPUTS, ANSWERS = table.matrix(10, 8, seed=70, dtype=torch.float32), table.matrix(10, 2, seed=71, dtype=torch.float32)
NAME, STEPS = "0.weight", 7
EVERY_DRIVER = pytest.mark.parametrize("driver", table.ALL_DRIVERS, ids=str)


class SAM(Optimizer):
    """Sharpness-aware minimisation: up the gradient, then the inner optimizer's step by the gradient found there."""

    def __init__(self, parameters: list[nn.Parameter], base: Callable[..., Optimizer], reach: float = 0.05):
        super().__init__(parameters, {"reach": reach})
        self.base_optimizer = base(self.param_groups)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        held = [p for group in self.param_groups for p in group["params"]]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in held]))
        for p in held:
            self.state[p]["before"] = p.detach().clone()
            p.add_(p.grad * (self.param_groups[0]["reach"] / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["before"])
        self.base_optimizer.step()
        self.zero_grad()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        assert closure is not None
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
        return loss


def base_of_sam(groups: Any) -> Optimizer:
    return SGD(groups, 0.05, momentum=0.9)


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Any]] = {
    "sgd": lambda ps: SGD(ps, 0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda ps: Adam(ps, 0.01),
    "adamw fused": lambda ps: AdamW(ps, 0.01, fused=True),
    "adafactor": lambda ps: Adafactor(ps, 0.01),
    "sam": lambda ps: SAM(ps, base_of_sam),
    "lbfgs": lambda ps: LBFGS(ps, 0.1, max_iter=3, line_search_fn="strong_wolfe"),
}
BY_HAND = OPTIMIZERS | {"adamw fused": lambda ps: AdamW(ps, 0.01)}
LOOPS = {
    "plain": ("sgd", "adam", "adamw fused", "adafactor", "sam"),
    "scaled": ("sgd", "adam", "adamw fused", "adafactor"),
    "accumulated": ("sgd", "adam", "adamw fused", "adafactor"),
    "closure": tuple(OPTIMIZERS),
}
PAIRS = [(loop, optimizer) for loop, optimizers in LOOPS.items() for optimizer in optimizers]


def network() -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    with torch.no_grad():
        for number, parameter in enumerate(layers.parameters()):
            parameter.copy_(table.matrix(1, parameter.numel(), seed=80 + number).reshape(parameter.shape))
    return layers


def loss_of(model: nn.Module, part: slice = slice(None)) -> Tensor:
    return (model(INPUTS[part]) - ANSWERS[part]).square().mean()


def closure_of(model: nn.Module, optimizer: Any) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return closure


def train(loop: str, model: nn.Module, optimizer: Any, steps: int = STEPS) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in range(steps):
        optimizer.zero_grad()
        if loop == "closure":
            optimizer.step(closure_of(model, optimizer))
        elif loop == "scaled":
            scaler.scale(loss_of(model)).backward()
            scaler.step(optimizer)
            scaler.update()
        elif loop == "accumulated":
            for half in (slice(0, 5), slice(5, 10)):
                (loss_of(model, half) / 2).backward()
            optimizer.step()
        elif isinstance(optimizer, SAM):
            loss_of(model).backward()
            optimizer.first_step()
            loss_of(model).backward()
            optimizer.second_step()
        else:
            loss_of(model).backward()
            optimizer.step()


def by_hand(name: str, driver: Driver | None, target: Target) -> Tensor:
    """The weight after STEPS steps of a plain loop that calls the driver itself; no Constrained, no hooks, no fused kernel."""
    model = network()
    optimizer = BY_HAND[name](list(model.parameters()))
    weight = model[0].weight
    state = driver.start(weight.detach(), target, None) if driver else {}

    def pulled(loss: Tensor) -> Tensor:
        with torch.no_grad():
            if driver:
                driver.before_step(state, weight, weight.grad)
                added = driver.penalty(state, weight)
                return loss if added is None else loss + added
        return loss

    for step in range(1, STEPS + 1):
        closure = closure_of(model, optimizer)
        if name == "lbfgs":
            optimizer.step(lambda closure=closure: pulled(closure()))
        else:
            loss = closure()
            if name == "sam":
                optimizer.first_step()
                loss = loss_of(model)
                loss.backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p.copy_(optimizer.state[p]["before"])
                pulled(loss)
                optimizer.base_optimizer.step()
            else:
                pulled(loss)
                optimizer.step()
        with torch.no_grad():
            if driver:
                driver.after_step(state, weight, target, None)
                if step % driver.every == 0:
                    driver.project(state, weight, target, None)
    return weight.detach()


@pytest.mark.third
@pytest.mark.parametrize(("loop", "name"), PAIRS)
@EVERY_DRIVER
def test_a_driver_in_any_loop_is_the_driver_by_hand_in_a_plain_one(loop: str, name: str, driver: Driver | None) -> None:
    target, model = Target(TopK(13)), network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    with Constrained(driver, model, optimizer, {NAME: target}) as imposed:
        train(loop, model, optimizer)
        last = model[0].weight.detach().clone()
    assert imposed.step == STEPS
    torch.testing.assert_close(last, by_hand(name, driver, target), rtol=2e-4, atol=2e-5)
    assert int(model[0].weight.count_nonzero()) <= 13
    train(loop, model, OPTIMIZERS[name](list(model.parameters())), 2)
    assert int(model[0].weight.count_nonzero()) <= 13


@pytest.mark.parametrize("driver", [ADMM(0.1, 3), Periodic(3, shrink=0.01), StraightThrough(3)], ids=str)
def test_the_pull_goes_down_its_penalty_where_the_loss_is_maximised(driver: Driver) -> None:
    """maximize=True steps up the gradient: of -loss, that is the step down that of the loss."""
    weights = []
    for maximize in (False, True):
        model = network()
        optimizer = SGD(model.parameters(), 0.05, maximize=maximize)
        with Constrained(driver, model, optimizer, {NAME: Target(TopK(13))}):
            for _ in range(STEPS):
                optimizer.zero_grad()
                (-loss_of(model) if maximize else loss_of(model)).backward()
                optimizer.step()
            weights.append(model[0].weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)


class Probe(SGD):
    """Asks the closure for the loss at the weight and a little beyond, and keeps the rise and what the slope says of it."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        weight = self.param_groups[0]["params"][0]
        with torch.enable_grad():
            before = closure().item()
        slope, way = weight.grad.sum().item(), 1e-6
        with torch.no_grad():
            weight += way
        with torch.enable_grad():
            self.rise, self.told = closure().item() - before, way * slope


@pytest.mark.parametrize("driver", [ADMM(0.7, 100), Periodic(100, shrink=0.3), Freezing(100), None], ids=str)
def test_what_a_closure_returns_is_the_function_whose_gradient_it_leaves(driver: Driver | None) -> None:
    """A line search compares the loss along a line with the slope it was told."""
    layer = nn.Linear(8, 6, bias=False).double()
    optimizer = Probe(layer.parameters(), 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (layer.weight - 1).square().mean()
        loss.backward()
        return loss

    with Constrained(driver, layer, optimizer, {"weight": Target(TopK(13))}):
        optimizer.step(closure)
    assert optimizer.rise == pytest.approx(optimizer.told, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "driver", [ADMM(0.1, 2), ADMM(0.1, 2, coupling="proximal"), Freezing(2), Periodic(2, 0.01), StraightThrough(2)], ids=str
)
def test_a_step_that_the_scaler_skips_moves_nothing_and_is_not_counted(driver: Driver, fused: bool) -> None:
    model = network()
    optimizer, scaler = AdamW(model.parameters(), 0.01, fused=fused), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with Constrained(driver, model, optimizer, {NAME: Target(TopK(13), fisher=0.5)}, squares={NAME: torch.ones(6, 8)}) as imposed:
        train("scaled", model, optimizer, 1)
        before = {key: value.clone() for key, value in imposed.states[NAME].items() if isinstance(value, Tensor)}
        weight, squares = model[0].weight.detach().clone(), imposed.state_dict()["squares"][NAME].clone()
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        assert imposed.step == 1
        assert torch.equal(model[0].weight, weight)
        assert torch.equal(imposed.state_dict()["squares"][NAME], squares)
        for key, value in before.items():
            assert torch.equal(imposed.states[NAME][key], value), key
        train("scaled", model, optimizer, 2)
        assert imposed.step == 3


def test_squared_gradients_are_those_of_the_loss_whatever_the_scale() -> None:
    found = []
    for loop, name in (("plain", "adam"), ("scaled", "adamw fused"), ("closure", "adam")):
        model = network()
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        squares = {NAME: torch.zeros(6, 8)}
        with Constrained(None, model, optimizer, {NAME: Target(TopK(13), fisher=0.5)}, squares=squares) as imposed:
            train(loop, model, optimizer, 1)
            found.append(imposed.state_dict()["squares"][NAME].clone())
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


# --- whose step it is ----------------------------------------------------------------------------------------------------


class Wrapper:
    """As accelerate, Lightning and Lookahead do: no hooks, no torch class, the optimizer under some name."""

    def __init__(self, inside: Any):
        self.inside = inside

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inside.param_groups

    def zero_grad(self) -> None:
        self.inside.zero_grad()

    def step(self, closure: Any = None) -> Any:
        return self.inside.step() if closure is None else self.inside.step(closure)


@pytest.mark.parametrize("loop", ["plain", "closure"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_wrapper_stands_for_the_optimizer_inside(loop: str, depth: int) -> None:
    model = network()
    optimizer: Any = OPTIMIZERS["sgd"](list(model.parameters()))
    for _ in range(depth):
        optimizer = Wrapper(optimizer)
    with Constrained(ADMM(0.1, 3), model, optimizer, {NAME: Target(TopK(13))}) as imposed:
        train(loop, model, optimizer)
        last = model[0].weight.detach().clone()
    assert imposed.step == STEPS
    torch.testing.assert_close(last, by_hand("sgd", ADMM(0.1, 3), Target(TopK(13))))


class Alone(Optimizer):
    """A two-step method that does its own update and never calls `step`; one that skips Optimizer.__init__ has no hooks."""

    def __init__(self, parameters: list[nn.Parameter], hooks: bool):
        if hooks:
            super().__init__(parameters, {})
        else:
            self.param_groups = [{"params": parameters}]

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.1)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_where_no_step_is_seen_nothing_is_cut() -> None:
    model = network()
    optimizer = Alone(list(model.parameters()), hooks=True)
    with (
        pytest.raises(TrainingError, match="no step of Alone was seen"),
        Constrained(ADMM(0.1, 2), model, optimizer, {NAME: Target(TopK(13))}),
    ):
        for _ in range(4):
            loss_of(model).backward()
            optimizer.second_step()
    assert coded(model) == {}
    assert int(model[0].weight.count_nonzero()) == 48


def test_an_optimizer_without_hooks_is_refused_before_training() -> None:
    model = network()
    with pytest.raises(InputError, match="Alone has no step hooks"):
        Constrained(None, model, Alone(list(model.parameters()), hooks=False), {NAME: Target(TopK(13))})
    with pytest.raises(InputError, match="object has no step"):
        Constrained(None, model, object(), {NAME: Target(TopK(13))})  # type: ignore[arg-type]


def test_another_optimizer_that_moves_a_target_is_named_and_one_that_does_not_is_let_be() -> None:
    model = network()
    given, other, elsewhere = SGD(model.parameters(), 0.1), Adam(model.parameters(), 0.1), SGD([torch.zeros(3)], 0.1)
    with (
        pytest.raises(InputError, match=r"Adam moves '0.weight'"),
        Constrained(ADMM(0.1, 2), model, given, {NAME: Target(TopK(13))}) as imposed,
    ):
        train("plain", model, given, 2)
        elsewhere.step()
        assert imposed.step == 2
        train("plain", model, other, 1)
    assert coded(model) == {}


def test_a_parameter_that_is_replaced_inside_is_named() -> None:
    model = network()
    optimizer = SGD(model.parameters(), 0.1)
    with (
        pytest.raises(TrainingError, match=r"'0.weight' was replaced inside"),
        Constrained(ADMM(0.1, 2), model, optimizer, {NAME: Target(TopK(13))}),
    ):
        train("plain", model, optimizer, 1)
        model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def test_the_gradient_of_the_last_step_does_not_stay_on_a_parameter_of_another_shape() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 2))
    optimizer = SGD(model.parameters(), 0.1)
    with Constrained(ADMM(0.1, 2), model, optimizer, {NAME: Target(TopK(13))}):
        loss = model(INPUTS).square().mean()
        loss.backward()
        optimizer.step()
    model(INPUTS).square().mean().backward()  # at once, without zero_grad of a new optimizer
    assert all(parameter.grad is None or parameter.grad.shape == parameter.shape for parameter in model.parameters())


# --- DistributedDataParallel ---------------------------------------------------------------------------------------------

DDP_PAIRS = [
    ("sgd", ADMM(0.1, 3)),
    ("adamw fused", ADMM(0.1, 3, coupling="proximal")),
    ("adafactor", Periodic(3, 0.01)),
    ("sgd", StraightThrough(3)),
]


def one_rank(rank: int) -> list[tuple[torch.Tensor, str, torch.Tensor]]:
    """Trains on its half of the batch: what it ended with, what the old wrapper said, and what the new one ended with."""
    half, found = slice(5 * rank, 5 * rank + 5), []
    for number, (name, driver) in enumerate(DDP_PAIRS):
        model = network()
        ddp = DistributedDataParallel(model)
        inner = number == 1  # given without its wrapper
        optimizer = OPTIMIZERS[name](list(model.parameters()))
        target = {NAME if inner else f"module.{NAME}": Target(TopK(13))}

        def train_on(ddp: nn.Module, optimizer: Any, steps: int) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                loss_of(ddp, half).backward()
                optimizer.step()

        with Constrained(driver, model if inner else ddp, optimizer, target):
            train_on(ddp, optimizer, STEPS)
            last = model[0].weight.detach().clone()
        with torch.no_grad():
            ddp(INPUTS)  # to evaluate, the old one will do
        try:
            train_on(ddp, SGD(model.parameters(), 0.1), 1)
            said = "nothing"
        except TrainingError as error:
            said = str(error)
        anew = DistributedDataParallel(model)  # sends the code's buffers, too
        train_on(anew, SGD(model.parameters(), 0.1), 2)
        found.append((last, said, model[0].weight.detach().clone()))
    return found


@NEEDS_GLOO
def test_two_processes_agree_inside_and_are_told_to_wrap_anew(tmp_path: Path) -> None:
    first, second = in_two(tmp_path / "two", one_rank)
    for (name, driver), one, other in zip(DDP_PAIRS, first, second, strict=True):
        assert torch.equal(one[0], other[0])
        torch.testing.assert_close(one[0], by_hand(name, driver, Target(TopK(13))), rtol=2e-4, atol=2e-5)
        assert "wrap the network (ddp.module) anew" in one[1]
        assert one[1] == other[1]
        assert torch.equal(one[2], other[2])
