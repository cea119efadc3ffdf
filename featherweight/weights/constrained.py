"""A set imposed on any training loop: the context around it, and what stays when it is left."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.errors import InputError, TrainingError
from featherweight.weights.distributed import Wrappers
from featherweight.weights.drivers import SQUARES_RATE, Driver, State
from featherweight.weights.optimizers import Scales, Steps, require_held
from featherweight.weights.parametrized import attach, owner
from featherweight.weights.sets import Set
from featherweight.weights.sharded import Sharded, is_sharded, refuse_beside, shard
from featherweight.weights.targets import Spread, Target, weights_of

_INSIDE: weakref.WeakSet[Constrained] = weakref.WeakSet()  # those that are open


class Constrained:
    """What `constrain` gives: a context around any training loop.

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
    agree     makes tensors, in place, what they are in the process that decides, where several train one network: a projection
              may come out otherwise in another, by rounding
    gather    where weights lie in shards: `state_dict` is asked in every process, and is whole in the first

    A weight that lies in shards (FSDP2) is projected as a whole, and its duals are shards as it is: see `sharded`. Each process
    does the same, and on leaving the weight lies in its set and has no code, which no process could hold: gather the network, and
    freeze it on one device by a `constrain` without a driver.

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
        agree: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
        gather: bool = False,
    ):
        if driver is not None and driver.paced(1, 1) != driver:
            raise InputError(f"{driver} leaves its pace open: give every and growth, or driver.paced(steps, epochs)")
        self.driver, self.model, self.optimizer, self.targets = driver, model, optimizer, dict(targets)
        self._weights = weights_of(model, targets)
        self._sharded = {name for name, weight in self._weights.items() if is_sharded(weight)}
        refuse_beside(sorted(self._sharded), driver)
        for name in self._sharded:
            self.targets[name] = made = Sharded.of(targets[name], name, self._weights[name])
            made.check()
        self._steps = Steps(optimizer, self._weights, self._before, self._after, self._objective)
        require_held(optimizer, self._weights)
        if driver is not None:
            for name, weight in self._weights.items():
                if not weight.requires_grad:
                    raise InputError(
                        f"parameter {name!r} is frozen (requires_grad is False), and a driver cannot pull what does not train: "
                        "let it train, give no driver, or leave it out of the targets"
                    )
        self.spread, self._agree, self._gather = spread, agree, gather
        self._squares = (
            {name: self._part(name, squares[name]).clone() for name in targets if targets[name].fisher} if squares else {}
        )
        for name, mean in self._squares.items():
            if mean.shape != shard(self._weights[name]).shape or not bool(torch.isfinite(mean).all()):
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
            for name, held in self._weights.items():
                if any(held is one for one in other._weights.values()):
                    raise InputError(
                        f"parameter {name!r} is the target of another constrain that is still open: one weight takes one "
                        "set. Give a set that holds both (SparseCodebook, or a Target with masked=True for levels under a mask), "
                        "or leave the first before the second"
                    )
        with torch.no_grad():
            for name, target in self.targets.items():
                weight = shard(self._weights[name])
                if target.masked and name not in self._support:  # else a checkpoint has been loaded
                    support = (weight != 0).to(weight.dtype)
                    self._support[name] = None if support.all() else support
                if self.driver is not None and name not in self.states:
                    self.states[name] = self.driver.start(weight, target, self._squares.get(name))
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
            if name in self._sharded:  # no process has the whole weight that a code would hold
                weight = shard(self._weights[name])
                with torch.no_grad():
                    weight.copy_(target.project(weight, self._squares.get(name)))
                continue
            support = self._support.get(name)
            if support is not None and target.set.prunes:  # dead entries must not be chosen to fill a size that is too large
                live = self.targets[name].set.shrunk(target.view.to_matrix(support)).size()
                target = replace(target, set=target.set.sized(min(live, target.set.size())))
            freeze(self.model, name, target, self._squares.get(name))
        if self.targets.keys() - self._sharded:
            self._wrappers.parameters_replaced()

    def _require_trained(self) -> None:
        """What would be projected has been trained under the driver, and is what the model holds."""
        now = dict(self.model.named_parameters())
        for name, weight in self._weights.items():
            if now.get(name) is not weight:
                raise TrainingError(
                    f"parameter {name!r} was replaced inside the block, so that what was trained is not what was given. Move or "
                    "convert the network, and load weights, before constrain is entered; nothing was frozen"
                )
        if self.driver is not None and self.step == 0 and self._steps.seen == 0:
            raise TrainingError(
                f"no step of {type(self._steps.optimizer).__name__} was seen, so that nothing was imposed: projecting now "
                "would cut an untrained network. Give constrain the optimizer whose step() the loop calls (of one that steps in "
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
        states, support, squares = dict(self.states), dict(self._support), dict(self._squares)
        for name in sorted(self._sharded) if self._gather else ():
            target: Any = self.targets[name]
            if name in states:
                states[name] = target.whole_state(states[name])
            if name in support:
                support[name] = target.whole_support(support[name], shard(self._weights[name]))
            if name in squares:
                squares[name] = target.whole(squares[name])
        return {"step": self.step, "states": states, "support": support, "squares": squares, "sizes": sizes}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; call it before entering. Tensors go to their weight's device, wherever they were saved; of
        a weight in shards they may be whole, or this process's."""

        def placed(held: Mapping[str, Any]) -> dict[str, Any]:
            return {name: _to(self._weights[name].device, value) for name, value in held.items()}

        self.step, self.states = saved["step"], placed(saved["states"])
        self._support, self._squares = placed(saved["support"]), placed(saved["squares"])
        for name in self._sharded:
            target: Any = self.targets[name]
            if name in self.states:
                self.states[name] = target.cut_state(self.states[name])
            for held in (self._support, self._squares):
                if held.get(name) is not None:
                    held[name] = target.cut(held[name])
        self._resize(saved["sizes"])

    def _residual(self, name: str, target: Target) -> float:
        weight = shard(self._weights[name])
        if self.driver is None:
            return target.violation(weight)
        found = self.driver.residual(self.states[name], weight, target)
        if not isinstance(target, Sharded):
            return found
        own = float(torch.linalg.vector_norm(weight)) if weight.numel() else 0.0
        whole = target.norm(own)
        return target.norm(found * own) / whole if whole > 0 else 0.0

    def _before(self, scales: Scales, first: bool) -> None:
        for name, whole in self._weights.items():
            if whole.grad is None:
                continue
            weight, gradient = shard(whole), shard(whole.grad)
            if first and name in self._squares:
                squared = gradient.square()
                self._squares[name].lerp_(squared if abs(scales[name]) == 1 else squared / scales[name] ** 2, SQUARES_RATE)
            if self.driver is not None:
                self.driver.before_step(self.states[name], weight, gradient, scales[name])

    def _objective(self, scales: Scales) -> Tensor | None:
        """The penalties of all targets, as they are in the loss whose gradient the optimizer is given."""
        if self.driver is None:
            return None
        parts = []
        for name, weight in self._weights.items():
            penalty, target = self.driver.penalty(self.states[name], shard(weight)), self.targets[name]
            if penalty is not None:
                parts.append((target.total(penalty) if isinstance(target, Sharded) else penalty) * scales[name])
        return torch.stack([part.to(parts[0]) for part in parts]).sum() if parts else None

    def _after(self) -> None:
        self.step += 1
        self._hold_masks()  # before the driver reads them
        driver = self.driver
        if driver is not None:
            for name, weight in self._weights.items():
                driver.after_step(self.states[name], shard(weight), self.targets[name], self._squares.get(name))
        if driver is not None and driver.every is not None and self.step % driver.every == 0:
            self._respread(driver)
            for name, weight in self._weights.items():
                driver.project(self.states[name], shard(weight), self.targets[name], self._squares.get(name))
            whole = {name: weight for name, weight in self._weights.items() if name not in self._sharded}
            self._agree([part for name, weight in whole.items() for part in (weight, *_tensors(self.states[name]))])

    def _hold_masks(self) -> None:
        for name, support in self._support.items():
            if support is not None:
                shard(self._weights[name]).mul_(support)  # momentum and weight decay cannot regrow what was pruned

    def _respread(self, driver: Driver) -> None:
        """New sizes for the targets that share a total."""
        if self.spread is None:
            return
        spread, weighed = self.spread, {}
        for name in spread.names:
            target, candidate = self.targets[name], driver.candidate(self.states[name], shard(self._weights[name]))
            part = target.weighed(candidate, self._squares.get(name))
            weighed[name] = target.whole(part) if isinstance(target, Sharded) else part

        def sizes() -> Mapping[str, int]:
            menus = {n: self.targets[n].set.menu(self.targets[n].view.to_matrix(values)) for n, values in weighed.items()}
            return spread.allocate(menus, spread.total)

        sharded = [target for name in spread.names if isinstance(target := self.targets[name], Sharded)]
        self._resize(sharded[0].told(sizes, spread.names) if sharded else sizes())

    def _part(self, name: str, tensor: Any) -> Tensor:
        """What this process holds of it where the weight lies in shards."""
        target = self.targets[name]
        return target.cut(tensor) if isinstance(target, Sharded) else shard(tensor)

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
) -> Constrained:
    """A context around your own training loop, at whose end every target lies in its set.

    targets  parameter name -> a set, or a Target for a set with a view
    driver   how the sets pull on the training, such as ADMM; without one, masks are held and the weights are projected at the end
    See `Constrained` for what holds inside and afterwards, for the errors, and for `squares` and `spread`.

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
    return Constrained(driver, model, optimizer, wanted, squares=squares, spread=spread)


def freeze(model: nn.Module, name: str, target: Target, squares: Tensor | None = None) -> None:
    """Project parameter `name` onto its set and put the code on it."""
    module, attribute = owner(model, name)
    attach(model, name, target.view, target.encode(getattr(module, attribute), squares))


def _tensors(state: State) -> list[Tensor]:
    return [part for part in state.values() if isinstance(part, Tensor)]


def _to(device: torch.device, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to(device, part) for key, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
