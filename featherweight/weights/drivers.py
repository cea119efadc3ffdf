"""Drivers: how a set is imposed on training, as two optimizer hooks around a loop that stays the user's own."""

from __future__ import annotations

import abc
import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.errors import InputError, TrainingError
from featherweight.weights.distributed import Wrappers
from featherweight.weights.optimizers import Scales, Steps, require_held
from featherweight.weights.parametrized import attach, owner
from featherweight.weights.sets import Set
from featherweight.weights.targets import Spread, Target, require, weights_of

SQUARES_RATE = 1e-3  # of the running mean of squared gradients, as in Adam
LEAST_ROUNDS = 20  # projections of a training whose driver leaves their number open
CLOSING = 20  # optimizer steps between projections of ADMM whose pace is left open
FEWEST = 12  # projections, where there are not steps enough for that
GROWING = 0.8  # share of the projections after which an open growth has brought rho to its most

State = dict[str, Any]  # tensors and floats of one target; plain data, so that a checkpoint can hold it


class Driver(abc.ABC):
    """Pulls weights towards their sets during training. Stateless: what changes lives in the `State` of each target."""

    every: int | None  # optimizer steps between projections; None: open until `paced`

    def paced(self, steps: int, epochs: int) -> Self:
        """This driver with what it leaves open decided for a training of `steps` optimizer steps in `epochs` epochs.

        `every` None becomes an epoch, but at most a twentieth of the training: a count of steps that suits one data set may be
        more than a small one trains at all.
        """
        if self.every is not None:
            return self
        return replace(self, every=max(1, min(steps // max(epochs, 1), steps // LEAST_ROUNDS)))  # type: ignore[type-var]

    @abc.abstractmethod
    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def before_step(self, state: State, weight: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        """Adds `scale` times the pull to `gradient` in place, after clipping and all-reduce. `scale`: see `optimizers.Steps`."""

    def penalty(self, state: State, weight: Tensor) -> Tensor | None:
        """The function of the weight whose gradient is the pull, for optimizers that look at the loss; None where it is 0."""
        return None

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

    every: int | None
    shrink: float = 0.0
    kind: Literal["periodic"] = "periodic"

    def __post_init__(self) -> None:
        require(self.every is None or self.every >= 1, f"Periodic every must be at least 1 step, given {self.every}")
        require(0 <= self.shrink < math.inf, f"Periodic shrink must be at least 0, and finite, given {self.shrink}")

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        return {"pull": target.pull(weight) if self.shrink else None}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        if state["pull"] is not None:
            gradient.add_(state["pull"], alpha=self.shrink * scale)

    def penalty(self, state: State, weight: Tensor) -> Tensor | None:
        return self.shrink * (state["pull"] * weight).sum() if self.shrink else None

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

    The published PyTorch code grows rho k-fold by accident (an undetached U); here the growth is what `growth` says. None: such
    that rho is rho_max after four fifths of the training's projections, see `paced`. W and Z close only if rho gets there.
    """

    rho: float
    every: int | None
    growth: float | None = 1.0
    rho_max: float | None = None
    coupling: Literal["gradient", "proximal"] = "gradient"
    kind: Literal["admm"] = "admm"
    health: ClassVar[float] = 0.1  # a primal residual above this means W and Z have not closed

    def __post_init__(self) -> None:
        require(0 < self.rho < math.inf, f"ADMM rho must be positive and finite, given {self.rho}")
        require(self.every is None or self.every >= 1, f"ADMM every must be at least 1 step, given {self.every}")
        require(
            self.growth is None or 1 <= self.growth < math.inf,
            f"ADMM growth must be at least 1 (a falling rho does not close), given {self.growth}",
        )
        require(
            self.growth is not None or self.rho_max is not None, "ADMM growth None leads up to rho_max: give rho_max, or growth"
        )
        require(
            self.rho_max is None or self.rho_max >= self.rho,
            f"ADMM rho_max must be at least rho = {self.rho}, given {self.rho_max}",
        )

    def paced(self, steps: int, epochs: int) -> Self:
        """`Driver.paced`, with no projection before W had CLOSING steps to follow the one before, unless that makes fewer than
        FEWEST of them: each adds W - Z to U, so one that comes too soon adds the same distance again.
        """
        paced = super().paced(steps, epochs)
        if self.every is None:
            assert paced.every is not None
            paced = replace(paced, every=max(paced.every, min(CLOSING, steps // FEWEST)))
        if paced.growth is not None:
            return paced
        assert paced.every is not None and paced.rho_max is not None
        return replace(paced, growth=(paced.rho_max / paced.rho) ** (1 / max(1, int(GROWING * (steps // paced.every)))))

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        projected = target.project(weight, squares)
        return {"Z": projected, "U": torch.zeros_like(weight), "pulled_to": projected.clone(), "rho": self.rho}

    def before_step(self, state: State, weight: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        if self.coupling == "gradient":
            rho = state["rho"] * scale
            gradient.add_(weight, alpha=rho).sub_(state["pulled_to"], alpha=rho)  # no temporary: it is large

    def penalty(self, state: State, weight: Tensor) -> Tensor | None:
        return state["rho"] / 2 * (weight - state["pulled_to"]).square().sum() if self.coupling == "gradient" else None

    def after_step(self, state: State, weight: Tensor) -> None:
        if self.coupling == "proximal":
            assert self.every is not None
            weight.lerp_(state["pulled_to"], 1 - (1 + state["rho"]) ** (-1 / self.every))

    def candidate(self, state: State, weight: Tensor) -> Tensor:
        return weight + state["U"]

    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        del state["Z"], state["pulled_to"]  # before the projection, which needs room
        U = state["U"].add_(weight)
        Z = state["Z"] = target.project(U, squares)
        U.sub_(Z)
        assert self.growth is not None
        rho = state["rho"] * self.growth
        if self.rho_max is not None:
            rho = min(rho, self.rho_max)
        if rho != state["rho"]:
            U.mul_(state["rho"] / rho)
            state["rho"] = rho
        state["pulled_to"] = Z - U

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        """|W - Z| / |W|, the primal residual."""
        norm = torch.linalg.vector_norm(weight)
        return float(torch.linalg.vector_norm(weight - state["Z"]) / norm) if float(norm) > 0 else 0.0


_INSIDE: weakref.WeakSet[Imposed] = weakref.WeakSet()  # those that are open


class Imposed:
    """`with Imposed(driver, model, optimizer, targets): ...` around any training loop.

    Inside, every step of the optimizer is preceded by the driver's pull on the gradients and followed by its update. AMP (fused
    optimizers too), clipping, accumulation and DDP keep working. With `optimizer.step(closure)` the pull follows each call of the
    closure, and what it returns is the loss and the driver's penalty, so that a line search sees the function whose gradient it
    is given. A wrapper around an optimizer (accelerate, Lightning, Lookahead, SAM) stands for the optimizer inside. A step that
    a GradScaler skips is not counted and moves nothing.

    On leaving, every target is projected and frozen to its code, so the parameters of `model` change identity. To train on
    through the codes, build a new optimizer (`optimizers.build` keeps groups by `p.ndim` what they were), and wrap the network in
    DistributedDataParallel anew: the old wrapper raises TrainingError. On an exception the hooks go and nothing is frozen.
    targets   parameter name -> Target
    driver    without one only masks are held, until the projection at the end
    squares   E[g^2] at the start, for targets with `fisher`; a running mean of what the steps bring follows
    spread    a total to be spread anew at every projection

    Raises InputError, before anything is trained, where a name matches nothing, the optimizer lacks it, or it cannot be trained
    under a set; TrainingError on leaving, with nothing frozen, where a driver was given and no step was seen.
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
        if driver is not None and driver.paced(1, 1) != driver:
            raise InputError(f"{driver} leaves its pace open: give every and growth, or driver.paced(steps, epochs)")
        self.driver, self.model, self.optimizer, self.targets = driver, model, optimizer, dict(targets)
        self._weights = weights_of(model, targets)
        self._steps = Steps(optimizer, self._weights, self._before, self._after, self._objective)
        require_held(optimizer, self._weights)
        if driver is not None:
            for name, weight in self._weights.items():
                if not weight.requires_grad:
                    raise InputError(
                        f"parameter {name!r} is frozen (requires_grad is False), and a driver cannot pull what does not train: "
                        "let it train, give no driver, or leave it out of the targets"
                    )
        self.spread = spread
        self._squares = {name: squares[name].clone() for name in targets if targets[name].fisher} if squares else {}
        for name, mean in self._squares.items():
            if mean.shape != self._weights[name].shape or not bool(torch.isfinite(mean).all()):
                raise InputError(
                    f"squares[{name!r}] must be finite and of shape {tuple(self._weights[name].shape)}: it is the mean square of "
                    f"each gradient entry. Given: shape {tuple(mean.shape)}"
                )
        self._support: dict[str, Tensor | None] = {}  # None: nothing is dead, and there is nothing to hold
        self.states: dict[str, State] = {}
        self.step = 0
        self._wrappers = Wrappers(model)
        self._last: dict[str, float] = {}

    def __enter__(self) -> Self:
        for other in _INSIDE:
            for name, weight in self._weights.items():
                if any(weight is one for one in other._weights.values()):
                    raise InputError(
                        f"parameter {name!r} is the target of another Imposed that is still open: one weight takes one set. Give "
                        "a set that holds both (SparseCodebook, or a Target with masked=True for levels under a mask), or leave "
                        "the first before the second"
                    )
        with torch.no_grad():
            for name, target in self.targets.items():
                weight = self._weights[name]
                if self.driver is not None and name not in self.states:  # else a checkpoint has been loaded
                    self.states[name] = self.driver.start(weight, target, self._squares.get(name))
                if target.masked and name not in self._support:
                    support = (weight != 0).to(weight.dtype)
                    self._support[name] = None if support.all() else support
        self._steps.open()
        self._wrappers.open()
        _INSIDE.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._steps.close()
        self._wrappers.close()
        _INSIDE.discard(self)
        if kind is not None:
            return
        self._require_trained()
        with torch.no_grad():
            self._hold_masks()  # a wrapper may have moved the weights after the step that was seen
        self._last = self.residuals()
        for name, target in self.targets.items():
            support = self._support.get(name)
            if support is not None and target.set.prunes:  # dead entries must not be chosen to fill a size that is too large
                live = self.targets[name].set.shrunk(target.view.to_matrix(support)).size()
                target = replace(target, set=target.set.sized(min(live, target.set.size())))
            freeze(self.model, name, target, self._squares.get(name))
        if self.targets:
            self._wrappers.parameters_replaced()

    def _require_trained(self) -> None:
        """What would be projected has been trained under the driver, and is what the model holds."""
        now = dict(self.model.named_parameters())
        for name, weight in self._weights.items():
            if now.get(name) is not weight:
                raise TrainingError(
                    f"parameter {name!r} was replaced inside the block, so that what was trained is not what was given. Move or "
                    "convert the network, and load weights, before Imposed is entered; nothing was frozen"
                )
        if self.driver is not None and self.step == 0 and self._steps.seen == 0:
            raise TrainingError(
                f"no step of {type(self._steps.optimizer).__name__} was seen, so that nothing was imposed: projecting now "
                "would cut an untrained network. Give Imposed the optimizer whose step() the loop calls (of one that steps in "
                "two halves, the optimizer inside), or no driver for a projection without training; nothing was frozen"
            )

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

    def _before(self, scales: Scales, first: bool) -> None:
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            if first and name in self._squares:
                squared = weight.grad.square()
                self._squares[name].lerp_(squared if abs(scales[name]) == 1 else squared / scales[name] ** 2, SQUARES_RATE)
            if self.driver is not None:
                self.driver.before_step(self.states[name], weight, weight.grad, scales[name])

    def _objective(self, scales: Scales) -> Tensor | None:
        """The penalties of all targets, as they are in the loss whose gradient the optimizer is given."""
        if self.driver is None:
            return None
        found = [(self.driver.penalty(self.states[name], weight), scales[name]) for name, weight in self._weights.items()]
        parts = [penalty * scale for penalty, scale in found if penalty is not None]
        return torch.stack([part.to(parts[0]) for part in parts]).sum() if parts else None

    def _after(self) -> None:
        self.step += 1
        driver = self.driver
        if driver is not None:
            for name, weight in self._weights.items():
                driver.after_step(self.states[name], weight)
        self._hold_masks()
        if driver is not None and driver.every is not None and self.step % driver.every == 0:
            self._respread(driver)
            for name, weight in self._weights.items():
                driver.project(self.states[name], weight, self.targets[name], self._squares.get(name))

    def _hold_masks(self) -> None:
        for name, support in self._support.items():
            if support is not None:
                self._weights[name].mul_(support)  # momentum and weight decay cannot regrow what was pruned

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
def constrain(
    model: nn.Module,
    optimizer: Optimizer,
    targets: Mapping[str, Target | Set],
    driver: Driver | None = None,
    *,
    squares: Mapping[str, Tensor] | None = None,
    spread: Spread | None = None,
) -> Imposed:
    """A context around your own training loop, at whose end every target lies in its set.

    targets  parameter name -> a set, or a Target for a set with a view
    driver   how the sets pull on the training, such as ADMM; without one, masks are held and the weights are projected at the end
    See `Imposed` for what holds inside and afterwards, for the errors, and for `squares` and `spread`.

    >>> import torch, featherweight as fw
    >>> net = torch.nn.Linear(10, 4)
    >>> optimizer = torch.optim.Adam(net.parameters(), 0.01)
    >>> with fw.constrain(net, optimizer, {"weight": fw.TopK(8)}, fw.ADMM(rho=0.1, every=2, growth=1.2)):
    ...     for step in range(10):
    ...         optimizer.zero_grad()
    ...         net(torch.ones(3, 10)).square().mean().backward()
    ...         optimizer.step()
    >>> int(net.weight.count_nonzero())
    8
    """
    wanted = {name: target if isinstance(target, Target) else Target(target) for name, target in targets.items()}
    return Imposed(driver, model, optimizer, wanted, squares=squares, spread=spread)


def freeze(model: nn.Module, name: str, target: Target, squares: Tensor | None = None) -> None:
    """Project parameter `name` onto its set and put the code on it."""
    module, attribute = owner(model, name)
    attach(model, name, target.view, target.encode(getattr(module, attribute), squares))


def _to(device: torch.device, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to(device, part) for key, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
