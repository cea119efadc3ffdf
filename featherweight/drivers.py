"""Drivers: how a set is imposed on training, as two optimizer hooks around a loop that stays the user's own."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.codes import attach, owner
from featherweight.errors import InputError, did_you_mean
from featherweight.sets import Set
from featherweight.views import WHOLE, View


@dataclass(frozen=True)
class Target:
    """What must hold of one parameter. `masked`: its present zeros stay zero (progressive pruning)."""

    set: Set
    view: View = WHOLE
    masked: bool = False

    def project(self, weight: Tensor) -> Tensor:
        """The nearest weight (same shape) whose matrix lies in the set."""
        return self.view.to_weight(self.set.project(self.view.to_matrix(weight)), tuple(weight.shape))

    def pull(self, weight: Tensor) -> Tensor:
        """The set's subgradient in the shape of the weight."""
        return self.view.to_weight(self.set.pull(self.view.to_matrix(weight)), tuple(weight.shape))


State = dict[str, Any]  # tensors and floats of one target; plain data, so that a checkpoint can hold it


class Driver(abc.ABC):
    """Pulls weights towards their sets during training. Stateless: what changes lives in the `State` of each target."""

    @abc.abstractmethod
    def start(self, weight: Tensor, target: Target) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def before_step(self, state: State, weight: Tensor, gradient: Tensor) -> None:
        """Adds the pull to `gradient` in place, after unscaling, clipping and all-reduce."""

    @abc.abstractmethod
    def after_step(self, state: State, weight: Tensor, target: Target, step: int) -> None:
        """Updates the state, or the weight in place, after optimizer step number `step` (1, 2, ..)."""

    @abc.abstractmethod
    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        """How far the weight is from its set, over its norm: the driver's health."""


@dataclass(frozen=True)
class Periodic(Driver):
    """Every `every` steps W <- project(W); between, gradient += shrink * pull, the pull taken at the last projection.

    With LowRank this is Trained Rank Pruning (arXiv 1910.04576, eq. 5-7), with TopRows soft filter pruning (He et al. 2018).
    """

    every: int
    shrink: float = 0.0
    kind: Literal["periodic"] = "periodic"

    def __post_init__(self) -> None:
        _require(self.every >= 1, f"Periodic every must be at least 1 step, given {self.every}")
        _require(self.shrink >= 0, f"Periodic shrink must be at least 0, given {self.shrink}")

    def start(self, weight: Tensor, target: Target) -> State:
        return {"pull": target.pull(weight) if self.shrink else None}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor) -> None:
        if state["pull"] is not None:
            gradient.add_(state["pull"], alpha=self.shrink)

    def after_step(self, state: State, weight: Tensor, target: Target, step: int) -> None:
        if step % self.every == 0:
            weight.copy_(target.project(weight))
            if self.shrink:
                state["pull"] = target.pull(weight)

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        return target.set.violation(target.view.to_matrix(weight))


@dataclass(frozen=True)
class ADMM(Driver):
    """Alternating direction method of multipliers: min f(W) + rho/2 |W - Z + U|^2, Z in the set (arXiv 1804.03294, eq. 4-7).

    Every step: gradient += rho (W - Z + U). Every `every` steps: Z = project(W + U); U += W - Z; then rho *= growth, at most
    rho_max, and U is rescaled by old rho / new rho, since U is the scaled dual. Starts from Z = project(W), U = 0.
    The published PyTorch code grows rho k-fold by accident (an undetached U); here the growth is what `growth` says.
    """

    rho: float
    every: int
    growth: float = 1.0
    rho_max: float | None = None
    kind: Literal["admm"] = "admm"
    health: ClassVar[float] = 0.1  # a primal residual above this means W and Z have not closed

    def __post_init__(self) -> None:
        _require(self.rho > 0, f"ADMM rho must be positive, given {self.rho}")
        _require(self.every >= 1, f"ADMM every must be at least 1 step, given {self.every}")
        _require(self.growth >= 1, f"ADMM growth must be at least 1 (a falling rho does not close), given {self.growth}")
        _require(
            self.rho_max is None or self.rho_max >= self.rho,
            f"ADMM rho_max must be at least rho = {self.rho}, given {self.rho_max}",
        )

    def start(self, weight: Tensor, target: Target) -> State:
        projected = target.project(weight)
        return {"Z": projected, "U": torch.zeros_like(weight), "pulled_to": projected.clone(), "rho": self.rho}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor) -> None:
        gradient.add_(weight - state["pulled_to"], alpha=state["rho"])

    def after_step(self, state: State, weight: Tensor, target: Target, step: int) -> None:
        if step % self.every:
            return
        Z, U = state["Z"], state["U"]
        U.add_(weight)
        Z.copy_(target.project(U))
        U.sub_(Z)
        rho = state["rho"] * self.growth
        if self.rho_max is not None:
            rho = min(rho, self.rho_max)
        if rho != state["rho"]:
            U.mul_(state["rho"] / rho)
            state["rho"] = rho
        torch.sub(Z, U, out=state["pulled_to"])

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        """|W - Z| / |W|, the primal residual."""
        norm = torch.linalg.vector_norm(weight)
        return float(torch.linalg.vector_norm(weight - state["Z"]) / norm) if float(norm) > 0 else 0.0


class Imposed:
    """`with Imposed(driver, model, optimizer, targets): ...` around any training loop.

    Inside, every `optimizer.step()` is preceded by the driver's pull on the gradients and followed by its update; AMP, clipping
    and DDP keep working. On leaving, every target is projected and frozen to its code, so `model`'s parameters change
    identity: build a new optimizer to train on through the codes. On an exception the hooks go and nothing is frozen.
    `targets`: parameter name -> Target. Without a driver only masks are held, until the projection at the end. Raises
    InputError where a name matches nothing or the optimizer lacks it.
    """

    def __init__(self, driver: Driver | None, model: nn.Module, optimizer: Optimizer, targets: Mapping[str, Target]):
        parameters = dict(model.named_parameters())
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name in targets:
            if name not in parameters:
                raise InputError(f"no parameter is named {name!r}.{did_you_mean(name, parameters)}")
            if id(parameters[name]) not in held:
                raise InputError(f"the optimizer does not hold parameter {name!r}: build it from the model as it is now")
        self.driver, self.model, self.optimizer, self.targets = driver, model, optimizer, dict(targets)
        self._weights = {name: parameters[name] for name in targets}
        self._support: dict[str, Tensor] = {}
        self.states: dict[str, State] = {}
        self.step = 0
        self._handles: list[Any] = []
        self._last: dict[str, float] = {}

    def __enter__(self) -> Self:
        with torch.no_grad():
            for name, target in self.targets.items():
                weight = self._weights[name]
                if self.driver is not None and name not in self.states:  # else a checkpoint has been loaded
                    self.states[name] = self.driver.start(weight, target)
                if target.masked and name not in self._support:
                    self._support[name] = (weight != 0).to(weight.dtype)
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._last = self.residuals()
        if kind is None:
            for name, target in self.targets.items():
                freeze(self.model, name, target)

    def residuals(self) -> dict[str, float]:
        """Target name -> the driver's residual now; after the block, what it was at its end."""
        if self._last:
            return self._last
        with torch.no_grad():
            return {n: self._residual(n, target) for n, target in self.targets.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: duals, penalties, supports and the step count."""
        return {"step": self.step, "states": self.states, "support": self._support}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; call it before entering."""
        self.step, self.states, self._support = saved["step"], saved["states"], saved["support"]

    def _residual(self, name: str, target: Target) -> float:
        weight = self._weights[name]
        if self.driver is None:
            return target.set.violation(target.view.to_matrix(weight))
        return self.driver.residual(self.states[name], weight, target)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.driver is None:
            return
        for name, weight in self._weights.items():
            if weight.grad is not None:
                self.driver.before_step(self.states[name], weight, weight.grad)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        for name, support in self._support.items():
            self._weights[name].mul_(support)  # momentum and weight decay cannot regrow what was pruned
        if self.driver is None:
            return
        for name, weight in self._weights.items():
            self.driver.after_step(self.states[name], weight, self.targets[name], self.step)


@torch.no_grad()
def freeze(model: nn.Module, name: str, target: Target) -> None:
    """Project parameter `name` onto its set and put the code on it."""
    module, attribute = owner(model, name)
    weight = getattr(module, attribute)
    code = target.set.encode(target.view.to_matrix(weight))
    attach(model, name, target.view, code)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
