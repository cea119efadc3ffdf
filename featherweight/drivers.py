"""Drivers: how a set is imposed on training, as two optimizer hooks around a loop that stays the user's own."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.allocate import Allocator
from featherweight.codes import Code
from featherweight.coding import attach, owner
from featherweight.errors import InputError, did_you_mean
from featherweight.sets import Set
from featherweight.views import WHOLE, View


@dataclass(frozen=True)
class Target:
    """What must hold of one parameter.

    masked    its present zeros stay zero: pruning goes on from them, levels and shared values are for the other entries
    fisher    the power p by which a set that selects weighs entries: |w| E[g^2]^p. 0: magnitude; 1/2: the diagonal second-order
              loss of removing w (optimal brain damage, LeCun et al. 1990); between: less of the gradients' noise
    """

    set: Set
    view: View = WHOLE
    masked: bool = False
    fisher: float = 0.0

    def __post_init__(self) -> None:
        _require(self.fisher >= 0, f"fisher is a power of the mean squared gradient, at least 0, given {self.fisher}")
        _require(
            self.fisher == 0 or self.set.selects, f"fisher weighs a selection; {type(self.set).__name__} does not select entries"
        )

    def encode(self, weight: Tensor, squares: Tensor | None = None) -> Code:
        """The code of the nearest weight in the set; `squares`: E[g^2] of each entry, for `fisher`."""
        return self.within().encode(self.view.to_matrix(self.weighed(weight, squares)))

    def project(self, weight: Tensor, squares: Tensor | None = None) -> Tensor:
        """The nearest weight (same shape) whose matrix lies in the set."""
        matrix = self.view.to_matrix(weight)
        code = self.encode(weight, squares)
        free = code.right_inverse(matrix)
        return self.view.to_weight(code(*free) if isinstance(free, tuple) else code(free), tuple(weight.shape))

    def within(self) -> Set:
        """The set as it binds this target."""
        return self.set.masked() if self.masked else self.set

    def violation(self, weight: Tensor) -> float:
        """Distance of the weight from the set over its norm."""
        return self.within().violation(self.view.to_matrix(weight))

    def weighed(self, weight: Tensor, squares: Tensor | None) -> Tensor:
        """w E[g^2]^fisher, the entries by which the set selects."""
        return weight if squares is None or self.fisher == 0 else weight * squares.clamp_min(1e-30) ** self.fisher

    def pull(self, weight: Tensor) -> Tensor:
        """The set's subgradient in the shape of the weight."""
        return self.view.to_weight(self.within().pull(self.view.to_matrix(weight)), tuple(weight.shape))


@dataclass(frozen=True)
class Spread:
    """A total size that is spread anew over some targets at every projection, by what their weights have become."""

    names: tuple[str, ...]
    total: int
    allocate: Allocator


SQUARES_RATE = 1e-3  # of the running mean of squared gradients, as in Adam

State = dict[str, Any]  # tensors and floats of one target; plain data, so that a checkpoint can hold it


class Driver(abc.ABC):
    """Pulls weights towards their sets during training. Stateless: what changes lives in the `State` of each target."""

    every: int  # optimizer steps between projections

    @abc.abstractmethod
    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def before_step(self, state: State, weight: Tensor, gradient: Tensor) -> None:
        """Adds the pull to `gradient` in place, after unscaling, clipping and all-reduce."""

    @abc.abstractmethod
    def after_step(self, state: State, weight: Tensor) -> None:
        """Moves the weight in place after every optimizer step."""

    @abc.abstractmethod
    def candidate(self, state: State, weight: Tensor) -> Tensor:
        """The point that the next projection starts from."""

    @abc.abstractmethod
    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        """The projection, every `every` steps: updates the state, or the weight in place."""

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
        _require(0 <= self.shrink < math.inf, f"Periodic shrink must be at least 0, and finite, given {self.shrink}")

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        return {"pull": target.pull(weight) if self.shrink else None}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor) -> None:
        if state["pull"] is not None:
            gradient.add_(state["pull"], alpha=self.shrink)

    def after_step(self, state: State, weight: Tensor) -> None:
        """Nothing moves between projections."""

    def candidate(self, state: State, weight: Tensor) -> Tensor:
        return weight

    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        weight.copy_(target.project(weight, squares))
        if self.shrink:
            state["pull"] = target.pull(weight)

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        return target.violation(weight)


@dataclass(frozen=True)
class ADMM(Driver):
    """Alternating direction method of multipliers: min f(W) + rho/2 |W - Z + U|^2, Z in the set (arXiv 1804.03294, eq. 4-7).

    Every `every` steps: Z = project(W + U); U += W - Z; then rho *= growth, at most rho_max, and U is rescaled by old rho / new
    rho, since U is the scaled dual. Starts from Z = project(W), U = 0. The pull of the penalty, by `coupling`:

    gradient   gradient += rho (W - Z + U) before the optimizer's step, as in the papers; for SGD
    proximal   after it W moves towards Z - U, by the share rho/(1 + rho) of the way over the `every` steps between projections:
               the proximal step of the penalty. For Adam, which divides the gradient pull by the loss gradient's own size, so
               that W and Z do not close. A uniform pull after a step of Adam is a penalty of weight rho sqrt(E[g^2]) on each
               entry, and |w| E[g^2]^(1/4) is the magnitude in its metric: see `Target.fisher`

    The published PyTorch code grows rho k-fold by accident (an undetached U); here the growth is what `growth` says.
    """

    rho: float
    every: int
    growth: float = 1.0
    rho_max: float | None = None
    coupling: Literal["gradient", "proximal"] = "gradient"
    kind: Literal["admm"] = "admm"
    health: ClassVar[float] = 0.1  # a primal residual above this means W and Z have not closed

    def __post_init__(self) -> None:
        _require(0 < self.rho < math.inf, f"ADMM rho must be positive and finite, given {self.rho}")
        _require(self.every >= 1, f"ADMM every must be at least 1 step, given {self.every}")
        _require(
            1 <= self.growth < math.inf, f"ADMM growth must be at least 1 (a falling rho does not close), given {self.growth}"
        )
        _require(
            self.rho_max is None or self.rho_max >= self.rho,
            f"ADMM rho_max must be at least rho = {self.rho}, given {self.rho_max}",
        )

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        projected = target.project(weight, squares)
        return {"Z": projected, "U": torch.zeros_like(weight), "pulled_to": projected.clone(), "rho": self.rho}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor) -> None:
        if self.coupling == "gradient":
            gradient.add_(weight, alpha=state["rho"]).sub_(state["pulled_to"], alpha=state["rho"])  # no temporary: it is large

    def after_step(self, state: State, weight: Tensor) -> None:
        if self.coupling == "proximal":
            weight.lerp_(state["pulled_to"], 1 - (1 + state["rho"]) ** (-1 / self.every))

    def candidate(self, state: State, weight: Tensor) -> Tensor:
        return weight + state["U"]

    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        U = state["U"].add_(weight)
        Z = state["Z"] = target.project(U, squares)
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
    targets   parameter name -> Target
    driver    without one only masks are held, until the projection at the end
    squares   E[g^2] at the start, for targets with `fisher`; a running mean of what the steps bring follows
    spread    a total to be spread anew at every projection

    Raises InputError where a name matches nothing or the optimizer lacks it.
    """

    def __init__(
        self,
        driver: Driver | None,
        model: nn.Module,
        optimizer: Optimizer,
        targets: Mapping[str, Target],
        *,
        squares: Mapping[str, Tensor] | None = None,
        spread: Spread | None = None,
    ):
        parameters = dict(model.named_parameters())
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name in targets:
            if name not in parameters:
                raise InputError(f"no parameter is named {name!r}.{did_you_mean(name, parameters)}")
            if id(parameters[name]) not in held:
                raise InputError(f"the optimizer does not hold parameter {name!r}: build it from the model as it is now")
            if len(names[id(parameters[name])]) > 1:
                tied = " and ".join(repr(one) for one in names[id(parameters[name])])
                raise InputError(
                    f"{tied} are one tied parameter: a code on one owner would untie them; leave it out of the targets"
                )
        self.driver, self.model, self.optimizer, self.targets = driver, model, optimizer, dict(targets)
        self._weights = {name: parameters[name] for name in targets}
        self.spread = spread
        self._squares = {name: squares[name].clone() for name in targets if targets[name].fisher} if squares else {}
        self._support: dict[str, Tensor | None] = {}  # None: nothing is dead, and there is nothing to hold
        self.states: dict[str, State] = {}
        self.step = 0
        self._handles: list[Any] = []
        self._last: dict[str, float] = {}

    def __enter__(self) -> Self:
        with torch.no_grad():
            for name, target in self.targets.items():
                weight = self._weights[name]
                if self.driver is not None and name not in self.states:  # else a checkpoint has been loaded
                    self.states[name] = self.driver.start(weight, target, self._squares.get(name))
                if target.masked and name not in self._support:
                    support = (weight != 0).to(weight.dtype)
                    self._support[name] = None if support.all() else support
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        if kind is not None:
            return
        self._last = self.residuals()
        for name, target in self.targets.items():
            support = self._support.get(name)
            if support is not None and target.set.prunes:  # dead entries must not be chosen to fill a size that is too large
                live = self.targets[name].set.shrunk(target.view.to_matrix(support)).size()
                target = replace(target, set=target.set.sized(min(live, target.set.size())))
            freeze(self.model, name, target, self._squares.get(name))

    def residuals(self) -> dict[str, float]:
        """Target name -> the driver's residual now; after the block, what it was at its end."""
        if self._last:
            return self._last
        with torch.no_grad():
            return {n: self._residual(n, target) for n, target in self.targets.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: duals, penalties, supports and the step count."""
        sizes = {name: self.targets[name].set.size() for name in self.spread.names} if self.spread else {}
        return {
            "step": self.step, "states": self.states, "support": self._support, "squares": self._squares, "sizes": sizes
        }  # fmt: skip

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; call it before entering. Tensors go to their weight's device, wherever they were saved."""

        def placed(held: Mapping[str, Any]) -> dict[str, Any]:
            return {name: _to(self._weights[name].device, value) for name, value in held.items()}

        self.step, self.states = saved["step"], placed(saved["states"])
        self._support, self._squares = placed(saved["support"]), placed(saved["squares"])
        self._resize(saved["sizes"])

    def _residual(self, name: str, target: Target) -> float:
        weight = self._weights[name]
        if self.driver is None:
            return target.violation(weight)
        return self.driver.residual(self.states[name], weight, target)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if (len(args) > 1 and args[1] is not None) or kwargs.get("closure") is not None:
            raise InputError(
                "optimizer.step(closure) fills the gradients behind the driver's pull: call backward first, then step()"
            )
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            if name in self._squares:
                self._squares[name].lerp_(weight.grad.square(), SQUARES_RATE)
            if self.driver is not None:
                self.driver.before_step(self.states[name], weight, weight.grad)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        driver = self.driver
        if driver is not None:
            for name, weight in self._weights.items():
                driver.after_step(self.states[name], weight)
        for name, support in self._support.items():
            if support is not None:
                self._weights[name].mul_(support)  # momentum and weight decay cannot regrow what was pruned
        if driver is not None and self.step % driver.every == 0:
            self._respread(driver)
            for name, weight in self._weights.items():
                driver.project(self.states[name], weight, self.targets[name], self._squares.get(name))

    def _respread(self, driver: Driver) -> None:
        """New sizes for the targets that share a total."""
        if self.spread is None:
            return
        menus = {}
        for name in self.spread.names:
            target, candidate = self.targets[name], driver.candidate(self.states[name], self._weights[name])
            menus[name] = target.set.menu(target.view.to_matrix(target.weighed(candidate, self._squares.get(name))))
        self._resize(self.spread.allocate(menus, self.spread.total))

    def _resize(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            self.targets[name] = replace(self.targets[name], set=self.targets[name].set.sized(size))


@torch.no_grad()
def freeze(model: nn.Module, name: str, target: Target, squares: Tensor | None = None) -> None:
    """Project parameter `name` onto its set and put the code on it."""
    module, attribute = owner(model, name)
    attach(model, name, target.view, target.encode(getattr(module, attribute), squares))


def _to(device: torch.device, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to(device, part) for key, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
