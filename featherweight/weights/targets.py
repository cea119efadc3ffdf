"""Targets: what must hold of one parameter, by a set and a view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize

from featherweight.errors import InputError, did_you_mean
from featherweight.weights.codes import Code
from featherweight.weights.counts import Allocator
from featherweight.weights.optimizers import sparse_gradient
from featherweight.weights.parametrized import coded
from featherweight.weights.sets import Set
from featherweight.weights.views import WHOLE, View


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
        require(self.fisher >= 0, f"fisher is a power of the mean squared gradient, at least 0, given {self.fisher}")
        require(
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

    def near(self, weight: Tensor, member: Tensor, squares: Tensor | None = None) -> Tensor:
        """A weight whose matrix lies in the set, found from `member`, which was near it a step ago: see `Set.near`."""
        if self.fisher:
            return self.project(weight, squares)
        matrix = self.within().near(self.view.to_matrix(weight), self.view.to_matrix(member))
        return self.view.to_weight(matrix, tuple(weight.shape))

    def kept(self, weight: Tensor, squares: Tensor | None = None) -> Tensor:
        """Of a set that selects entries: which those of `weight` are (same shape, bool)."""
        matrix = self.view.to_matrix(self.weighed(weight, squares))
        return self.view.to_weight(self.within().kept(matrix), tuple(weight.shape))

    def within(self) -> Set:
        """The set as it binds this target."""
        return self.set.masked() if self.masked else self.set

    def violation(self, weight: Tensor) -> float:
        """Distance of the weight from the set over its norm."""
        return self.within().violation(self.view.to_matrix(weight))

    def weighed(self, weight: Tensor, squares: Tensor | None) -> Tensor:
        """w E[g^2]^fisher, the entries by which the set selects."""
        return weight if squares is None or self.fisher == 0 else weight * squares.clamp_min(1e-30).pow_(self.fisher)

    def pull(self, weight: Tensor) -> Tensor:
        """The set's subgradient in the shape of the weight."""
        return self.view.to_weight(self.within().pull(self.view.to_matrix(weight)), tuple(weight.shape))


@dataclass(frozen=True)
class Spread:
    """A total size that is spread anew over some targets at every projection, by what their weights have become."""

    names: tuple[str, ...]
    total: int
    allocate: Allocator


def weights_of(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, nn.Parameter]:
    """The parameters of these names. Raises InputError, by name, for what no set can be imposed on."""
    parameters, codes, modules = dict(model.named_parameters()), coded(model), dict(model.named_modules())
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name, target in targets.items():
        path, _, attribute = name.rpartition(".")
        if name in codes:
            raise InputError(
                f"parameter {name!r} already carries a code ({codes[name].code.kind}), and one weight takes one: take it off "
                "with coding.detach(model, name) and give one set for both, or leave it out of the targets"
            )
        if name not in parameters and parametrize.is_parametrized(modules.get(path, model), attribute):
            raise InputError(
                f"{name!r} is computed by a parametrization ({', '.join(_kinds(modules.get(path, model), attribute))}): remove "
                "it with torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if name not in parameters:
            raise InputError(f"no parameter is named {name!r}.{did_you_mean(name, parameters)}")
        weight = parameters[name]
        if len(names[id(weight)]) > 1:
            tied = " and ".join(repr(one) for one in names[id(weight)])
            raise InputError(f"{tied} are one tied parameter: a code on one owner would untie them; leave it out of the targets")
        if ".parametrizations." in f".{name}":
            raise InputError(f"{name!r} is the free part of a parametrization and not a weight: name the weight itself")
        if not weight.is_floating_point():
            raise InputError(f"parameter {name!r} holds {weight.dtype}, and sets hold real numbers: leave it out of the targets")
        if getattr(modules[path], "sparse", False) is True and isinstance(modules[path], nn.Embedding | nn.EmbeddingBag):
            raise sparse_gradient(name)
        if hasattr(weight, "device_mesh"):  # checked by `Sharded`
            continue
        try:
            target.within().check(target.view.to_matrix(weight.detach()))
        except InputError as error:
            raise InputError(f"parameter {name!r}: {error}") from error
    return {name: parameters[name] for name in targets}


def _kinds(module: nn.Module, attribute: str) -> list[str]:
    lists = getattr(module, "parametrizations", None)
    assert isinstance(lists, nn.ModuleDict)
    return [type(one).__name__ for one in lists[attribute].children()]


def require(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
