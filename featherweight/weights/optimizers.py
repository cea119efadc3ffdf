"""Optimizers: whose step moves the weights, what a step sees and whether it was taken, and groups that outlive coding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from featherweight.errors import InputError
from featherweight.weights.parametrized import coded

Scales = Mapping[str, float]


def chain(optimizer: Any) -> list[Any]:
    """`optimizer` and what it wraps, outermost first: accelerate's and Lightning's wrappers, Lookahead, SAM.

    A wrapped optimizer is an attribute with `step` and `param_groups` that holds every parameter of its wrapper.
    """
    found = [optimizer]
    while True:
        held = {id(p) for p in held_by(found[-1])}
        inside = [
            one
            for one in getattr(found[-1], "__dict__", {}).values()
            if _is_optimizer(one) and all(one is not seen for seen in found) and held <= {id(p) for p in held_by(one)}
        ]
        if not inside:
            return found
        found.append(inside[0])


def held_by(optimizer: Any) -> list[Parameter]:
    """The parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def stepping(optimizer: Any) -> Optimizer:
    """The optimizer whose `step` moves the weights, with hooks: the innermost of `chain`. Raises InputError if it has none."""
    if not _is_optimizer(optimizer):
        raise InputError(f"{type(optimizer).__name__} has no step or param_groups: give the torch.optim.Optimizer that trains")
    innermost = chain(optimizer)[-1]
    if not isinstance(getattr(innermost, "_optimizer_step_pre_hooks", None), dict):
        raise InputError(
            f"{type(innermost).__name__} has no step hooks, and no optimizer inside that holds the same parameters: give the "
            "torch.optim.Optimizer whose step() moves the weights, or call Optimizer.__init__ in its class"
        )
    return innermost


def require_held(optimizer: Any, weights: Mapping[str, Tensor]) -> None:
    """Raises InputError for a weight that the optimizer would not train."""
    held = {id(parameter) for parameter in held_by(optimizer)}
    for name, weight in weights.items():
        if id(weight) not in held:
            raise InputError(
                f"the optimizer does not hold parameter {name!r}: build it from the model as it is now, with all parameters "
                "that are targets, or leave this one out of the targets"
            )


class Steps:
    """The steps of the optimizer that moves some named weights, watched between `open` and `close`.

    before(scales, first)  the gradients are there: after unscaling, clipping and all-reduce, and with `step(closure)` after each
                           call of the closure (`first`: of this step). `scales`: weight -> what to multiply by what is added to
                           its gradient: the loss scale, where a fused optimizer unscales inside its step, and the sign of
                           `maximize`
    after()                a step has moved the weights. A step that the scaler skipped is none
    objective(scales)      what is added to the loss that the closure returns, so that a line search sees the function whose
                           gradient it is given; None for nothing

    seen     steps begun, skipped ones too
    Raises InputError where another optimizer moves one of the weights, which nobody would watch.
    """

    def __init__(
        self,
        optimizer: Any,
        weights: Mapping[str, Tensor],
        before: Callable[[Scales, bool], None],
        after: Callable[[], None],
        objective: Callable[[Scales], Tensor | None] = lambda scales: None,
    ):
        self.optimizer = stepping(optimizer)
        self.weights = dict(weights)
        self.before, self.after, self.objective = before, after, objective
        self.seen = 0
        self._skipped = False
        self._others: list[tuple[Optimizer, int, list[int]]] = []  # begun by others: their step, and the weights' versions then
        self._handles: list[Any] = []

    def open(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
            register_optimizer_step_pre_hook(self._other_begins),
            register_optimizer_step_post_hook(self._other_ends),
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        self.seen += 1
        found = getattr(optimizer, "found_inf", None)  # a scaler's word to a fused optimizer, which then moves nothing
        self._skipped = found is not None and float(found) > 0
        if self._skipped:
            return None
        if kwargs.get("grad_scaler") is not None:
            raise InputError(
                f"{type(optimizer).__name__}.step takes the GradScaler itself, so that nobody else knows the scale: call "
                "scaler.unscale_(optimizer) and optimizer.step(), or use an optimizer of torch"
            )
        scales = self._scales(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._ready(scales, True)
            return None
        wrapped = self._wrapped(closure, scales)
        return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})

    def _wrapped(self, closure: Callable[[], Any], scales: Scales) -> Callable[[], Any]:
        calls = 0

        def evaluated() -> Any:
            nonlocal calls
            loss = closure()
            self._ready(scales, calls == 0)
            calls += 1
            with torch.no_grad():
                added = self.objective(scales) if loss is not None else None
            return loss if added is None else loss + added

        return evaluated

    def _ready(self, scales: Scales, first: bool) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None and weight.grad.is_sparse:
                raise sparse_gradient(name)
        with torch.no_grad():
            self.before(scales, first)

    def _scales(self, optimizer: Optimizer) -> Scales:
        scale = getattr(optimizer, "grad_scale", None)
        factor = 1.0 if scale is None else float(scale)
        signs = {id(p): -factor if group.get("maximize") else factor for group in optimizer.param_groups for p in group["params"]}
        return {name: signs.get(id(weight), factor) for name, weight in self.weights.items()}

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._skipped:
            with torch.no_grad():
                self.after()

    def _other_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is not self.optimizer:
            self._others.append((optimizer, self.seen, self._versions()))

    def _other_ends(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self.optimizer:
            return
        while self._others:
            begun, seen, versions = self._others.pop()
            if begun is optimizer:
                moved = [n for n, a, b in zip(self.weights, versions, self._versions(), strict=True) if a != b]
                if moved and seen == self.seen:  # else it has called the step that is watched
                    raise InputError(
                        f"{type(optimizer).__name__} moves {moved[0]!r}, but the optimizer given is another, "
                        f"{type(self.optimizer).__name__}, so that nothing is imposed on its step: give the one that trains"
                    )
                return

    def _versions(self) -> list[int]:
        return [weight._version for weight in self.weights.values()]


def sparse_gradient(name: str) -> InputError:
    return InputError(
        f"parameter {name!r} gets sparse gradients, which a pull on every entry cannot be added to: build its module with "
        "sparse=False, or leave it out of the targets"
    )


def build(factory: Callable[[list[Parameter]], Any], network: nn.Module, extra: Iterable[Parameter] = ()) -> Any:
    """`factory` on the parameters of `network` in the order of their names, then `extra`.

    A code holds its free values as vectors, so that a factory that decays `p.ndim >= 2` would decay none of them. The groups
    are therefore those that the factory makes of the weights in their dense shapes, which it is called with a second time.
    """
    parameters = [parameter for _, parameter in sorted(network.named_parameters())] + list(extra)
    dense = _stand_ins(network)
    if not dense:
        return factory(parameters)
    optimizer = _made(factory, parameters)
    shown = [dense.get(id(parameter), parameter) for parameter in parameters]
    held = {id(one): parameter for one, parameter in zip(shown, parameters, strict=True)}
    likes = chain(factory(shown))
    if [type(like) for like in likes] != [type(one) for one in chain(optimizer)]:
        return optimizer  # it trains vectors by another optimizer, as beside Muon: the options of matrices are not theirs
    for one, like in zip(chain(optimizer), likes, strict=True):
        groups = [{**group, "params": [held[id(p)] for p in group["params"]]} for group in like.param_groups]
        if not _same(one.param_groups, groups):
            one.param_groups[:] = groups  # in place: a wrapper may share the list with what it wraps
    return optimizer


def check_codes(factory: Callable[[list[Parameter]], Any], network: nn.Module, targets: Collection[str]) -> None:
    """Raises InputError where `factory` cannot train the free values of codes on the parameters `targets`: they are vectors."""
    named = sorted(network.named_parameters())
    _made(factory, [Parameter(p.detach().flatten()[:1].clone()) if name in targets else p for name, p in named])


def _made(factory: Callable[[list[Parameter]], Any], parameters: list[Parameter]) -> Any:
    try:
        return factory(parameters)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"the task's `optimizer` cannot train compressed weights, which are vectors ({type(error).__name__}: {error}). "
            "Let it give other optimizers what is no matrix, by p.ndim, or train with one that takes any shape, such as AdamW"
        ) from error


def _stand_ins(network: nn.Module) -> dict[int, Parameter]:
    """id of a code's free parameter -> a parameter of the decoded weight's shape that takes no memory; marks are copied."""
    modules, found = dict(network.named_modules()), {}
    for name, viewed in coded(network).items():
        path, _, attribute = name.rpartition(".")
        for free in modules[f"{path}.parametrizations.{attribute}".lstrip(".")].parameters(recurse=False):
            zero = torch.zeros((), dtype=free.dtype, device=free.device)  # `free` may lie in shards
            stand_in = Parameter(zero.expand(viewed.shape), requires_grad=free.requires_grad)
            vars(stand_in).update(vars(free))
            found[id(free)] = stand_in
    return found


def _same(groups: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """The same parameters with the same options?"""
    if len(groups) != len(others):
        return False
    for one, other in zip(groups, others, strict=True):
        if [id(p) for p in one["params"]] != [id(p) for p in other["params"]] or one.keys() != other.keys():
            return False
        if any(bool(value != other[key]) for key, value in one.items() if key != "params"):
            return False
    return True


def _is_optimizer(one: object) -> bool:
    return callable(getattr(one, "step", None)) and isinstance(getattr(one, "param_groups", None), list)
