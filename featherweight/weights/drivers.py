"""Drivers: how a set is imposed on training, as two optimizer hooks around a loop that stays the user's own."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from featherweight.weights.targets import Target, require

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
    def after_step(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
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

    def after_step(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
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

    Of a set that only selects entries Z is what was selected of V = W + U, and U the rest of it: one tensor holds both, and a bit
    an entry says which is which (`split`). Duals of weights in 16 bits are float32.

    The published PyTorch code grows rho k-fold by accident (an undetached U); here the growth is what `growth` says. None: such
    that rho is rho_max after four fifths of the training's projections, see `paced`. W and Z close only if rho gets there.
    "cosine": rho rises to rho_max over `rise` projections (None: those four fifths) along half a cosine.
    """

    rho: float
    every: int | None
    growth: float | Literal["cosine"] | None = 1.0
    rho_max: float | None = None
    coupling: Literal["gradient", "proximal"] = "gradient"
    rise: int | None = None
    kind: Literal["admm"] = "admm"
    health: ClassVar[float] = 0.1  # a primal residual above this means W and Z have not closed

    def __post_init__(self) -> None:
        require(0 < self.rho < math.inf, f"ADMM rho must be positive and finite, given {self.rho}")
        require(self.every is None or self.every >= 1, f"ADMM every must be at least 1 step, given {self.every}")
        require(
            self.growth in (None, "cosine") or (not isinstance(self.growth, str) and 1 <= (self.growth or 0) < math.inf),
            f"ADMM growth must be at least 1 (a falling rho does not close), None or 'cosine', given {self.growth!r}",
        )
        require(
            isinstance(self.growth, float | int) or self.rho_max is not None,
            f"ADMM growth {self.growth} leads up to rho_max: give rho_max, or growth as a number",
        )
        require(self.rise is None or self.rise >= 1, f"ADMM rise is a number of projections, at least 1, given {self.rise}")
        require(self.rise is None or self.growth == "cosine", "ADMM rise is for growth='cosine' alone")
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
        assert paced.every is not None
        rise = max(1, int(GROWING * (steps // paced.every)))  # projections
        if paced.growth == "cosine":
            return paced if paced.rise is not None else replace(paced, rise=rise)
        if paced.growth is not None:
            return paced
        assert paced.rho_max is not None
        return replace(paced, growth=(paced.rho_max / paced.rho) ** (1 / rise))

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        exact = weight.float() if weight.element_size() < 4 else weight
        numbers: State = {"rho": self.rho} | ({"projections": 0} if self.growth == "cosine" else {})
        if target.set.selects:
            kept = target.kept(exact, squares)
            return {"pulled_to": torch.where(kept, exact, 0.0), "kept": packed(kept)} | numbers
        projected = target.project(exact, squares)
        return {"Z": projected, "U": torch.zeros_like(exact), "pulled_to": projected.clone()} | numbers

    @staticmethod
    def split(state: State) -> tuple[Tensor, Tensor]:
        """(Z, U), to be looked at."""
        if "Z" in state:
            return state["Z"], state["U"]
        pulled_to = state["pulled_to"]
        kept = unpacked(state["kept"], pulled_to.shape)
        return torch.where(kept, pulled_to, 0.0), torch.where(kept, 0.0, -pulled_to)

    def before_step(self, state: State, weight: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        if self.coupling == "gradient":
            rho = state["rho"] * scale
            gradient.add_(weight, alpha=rho).sub_(state["pulled_to"], alpha=rho)  # no temporary: it is large

    def penalty(self, state: State, weight: Tensor) -> Tensor | None:
        return state["rho"] / 2 * (weight - state["pulled_to"]).square().sum() if self.coupling == "gradient" else None

    def after_step(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        if self.coupling == "proximal":
            assert self.every is not None
            pulled_to, share = state["pulled_to"], 1 - (1 + state["rho"]) ** (-1 / self.every)
            if weight.dtype == pulled_to.dtype:
                weight.lerp_(pulled_to, share)
            else:
                weight.copy_(torch.lerp(weight.to(pulled_to.dtype), pulled_to, share))

    def candidate(self, state: State, weight: Tensor) -> Tensor:
        if "Z" in state:
            return weight + state["U"]
        pulled_to = state["pulled_to"]
        return weight - pulled_to * ~unpacked(state["kept"], pulled_to.shape)

    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        rho = self._grown(state)
        shrink, state["rho"] = state["rho"] / rho, rho  # U is the scaled dual
        if "Z" not in state:
            V = state["pulled_to"]
            V.neg_().mul_(~unpacked(state.pop("kept"), V.shape)).add_(weight)  # masked_fill takes twice as long
            kept = target.kept(V, squares)
            V.mul_(torch.full_like(V, -shrink).masked_fill_(kept, 1.0))
            state["kept"] = packed(kept)
            return
        del state["Z"], state["pulled_to"]  # before the projection, which needs room
        U = state["U"].add_(weight)
        Z = state["Z"] = target.project(U, squares)
        U.sub_(Z)
        if shrink != 1:
            U.mul_(shrink)
        state["pulled_to"] = Z - U

    def _grown(self, state: State) -> float:
        """rho after one more projection."""
        if self.growth == "cosine":
            assert self.rise is not None and self.rho_max is not None
            state["projections"] += 1
            share = (1 - math.cos(math.pi * min(state["projections"] / self.rise, 1.0))) / 2
            return self.rho + (self.rho_max - self.rho) * share
        assert self.growth is not None
        rho: float = state["rho"] * self.growth
        return rho if self.rho_max is None else min(rho, self.rho_max)

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        """|W - Z| / |W|, the primal residual."""
        norm = torch.linalg.vector_norm(weight)
        return float(torch.linalg.vector_norm(weight - self.split(state)[0]) / norm) if float(norm) > 0 else 0.0


@dataclass(frozen=True)
class StraightThrough(Driver):
    """The loss sees weights in the set at every step, and its gradient moves a copy of them that is not.

    L += step(grad f(W)), then W = project(L): BinaryConnect (Courbariaux et al. 2015, arXiv 1511.00363) with the signs of
    Levels("binary"), quantisation-aware training with levels of more bits. Every `every` steps W is the projection; between,
    a member of the set that is found from the one before (`Set.near`). So nothing is left to close. L, the latent weights, is
    one more tensor. With a closure that an optimizer calls several times a step only the first loss is that of W.
    """

    every: int | None
    kind: Literal["straight_through"] = "straight_through"

    def __post_init__(self) -> None:
        require(self.every is None or self.every >= 1, f"StraightThrough every must be at least 1 step, given {self.every}")

    def start(self, weight: Tensor, target: Target, squares: Tensor | None) -> State:
        latent = weight.clone()
        weight.copy_(target.project(weight, squares))
        return {"other": latent, "inside": True}  # W is in the set, and `other` is L; during a step it is the other way

    def before_step(self, state: State, weight: Tensor, gradient: Tensor, scale: float = 1.0) -> None:
        if state["inside"]:
            member = weight.clone()
            weight.copy_(state["other"])
            state["other"].copy_(member)
            state["inside"] = False

    def after_step(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        if not state["inside"]:  # else the step had no gradient of this weight
            member = target.near(weight, state["other"], squares)
            state["other"].copy_(weight)
            weight.copy_(member)
            state["inside"] = True

    def candidate(self, state: State, weight: Tensor) -> Tensor:
        return state["other"]

    def project(self, state: State, weight: Tensor, target: Target, squares: Tensor | None) -> None:
        weight.copy_(target.project(state["other"], squares))

    def residual(self, state: State, weight: Tensor, target: Target) -> float:
        return target.violation(weight)


BITS = 8  # entries of a mask in a byte


def packed(mask: Tensor) -> Tensor:
    """A mask as bytes, a bit an entry."""
    flat = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % BITS)).view(-1, BITS)
    found = torch.zeros(len(flat), dtype=torch.uint8, device=mask.device)
    for bit in range(BITS):
        found |= flat[:, bit] << bit
    return found


def unpacked(held: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `packed`."""
    flat = torch.stack([(held >> bit) & 1 for bit in range(BITS)], 1).reshape(-1)
    return flat[: shape.numel()].view(shape).bool()
