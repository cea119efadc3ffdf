"""The round that all recipes of the ADMM family are made of: pull towards the sets, project, train on inside them."""

from __future__ import annotations

import functools
import inspect
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from featherweight.errors import InputError
from featherweight.recipe.schema import Constrain, Recipe, Rule, Stage, Train, share
from featherweight.training.schedule import Taught, Training, taught
from featherweight.weights.drivers import ADMM
from featherweight.weights.sets import TopEach, TopK
from featherweight.weights.views import View

Kept = Annotated[float | str, BeforeValidator(share)]  # a share to keep, or "5x" fewer; where entries go, also "2:4"
Step = tuple[str, tuple[Rule, ...]]  # the name of a stage, and what it imposes


@dataclass(frozen=True)
class Round:
    """What the rounds of one recipe have in common. Every recipe of the family takes these as arguments of its own.

    epochs, retrain_epochs   of each stage; rate, retrain_rate: multiples of the task's base rate
    every          optimizer steps between projections. None: an epoch, or a twentieth of the stage's ADMM where that is less, but
                   20 steps, or a twelfth, where that is less: see `drivers.ADMM.paced`
    growth         of rho at each projection. None: rho is rho_max after four fifths of them, however many steps the data make;
                   "cosine": the same along half a cosine
    rho, rho_max, coupling   see `drivers.ADMM`
    distill        weight of the distillation from the dense network, added to the loss; 0 for none, auto for 1 where the task
                   says which output is logits and the dense network is trained
    temperature    of the distillation
    """

    epochs: int = 4
    retrain_epochs: int = 4
    rate: float = 1.0
    retrain_rate: float = 1.0
    every: int | None = None
    rho: float = 0.03
    growth: float | Literal["cosine"] | None = None
    rho_max: float = 1.65
    coupling: Literal["gradient", "proximal"] = "proximal"
    distill: Taught = "auto"
    temperature: float = 4.0

    def stage(self, name: str, rules: tuple[Rule, ...], *, masked: bool = True) -> Constrain:
        """One round. Sizes that the rules leave open are the caller's to add."""
        return Constrain(
            name,
            rules=rules,
            driver=ADMM(self.rho, self.every, self.growth, self.rho_max, self.coupling),
            train=Training(self.epochs, self.rate, floor=0.3, warmup=0.5 / max(self.epochs, 1)),
            retrain=Training(self.retrain_epochs, self.retrain_rate, warmup=0.3 / max(self.retrain_epochs, 1)),
            masked=masked,
            distill=taught(self.distill, self.temperature),
        )

    def after_dense(self, dense_epochs: int, steps: Iterable[Step], *, masked: bool = True) -> tuple[Stage, ...]:
        """The stage of the dense network, and a round for each step."""
        return Train("dense", train=Training(dense_epochs)), *(self.stage(name, rules, masked=masked) for name, rules in steps)


def of_rounds(**defaults: Any) -> Callable[[Callable[..., Recipe]], Callable[..., Recipe]]:
    """A recipe function that takes `rounds`, a Round, as one that takes its fields by name. `defaults`: other ones than Round's.

    `ratios` of version 0.0 are taken as `keep` until 0.2.
    """

    def decorate(make: Callable[..., Recipe]) -> Callable[..., Recipe]:
        hints = typing.get_type_hints(Round)
        own = inspect.signature(make)
        taken = [one for name, one in own.parameters.items() if name != "rounds"]
        named = {name: getattr(Round, name) for name in hints} | defaults
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value) for name, value in named.items()]

        @functools.wraps(make)
        def recipe(*args: Any, rounds: Round | None = None, **given: Any) -> Recipe:
            if "ratios" in given and "keep" in own.parameters:
                warnings.warn("ratios=(5, 10) is keep=('5x', '10x') now", DeprecationWarning, stacklevel=2)
                given["keep"] = tuple(f"{f'{r:g}' if float(f'{r:g}') == r else repr(r)}x" for r in given.pop("ratios"))
            fields = {name: given.pop(name) for name in hints if name in given}
            return make(*args, rounds=rounds or Round(**(defaults | fields)), **given)

        recipe.__signature__ = own.replace(parameters=[*taken, *added])  # type: ignore[attr-defined]
        recipe.__annotations__ = {name: kind for name, kind in make.__annotations__.items() if name != "rounds"} | hints
        recipe.__doc__ = f"{inspect.cleandoc(make.__doc__ or '')}\n{inspect.cleandoc(Round.__doc__ or '').partition(chr(10))[2]}"
        return recipe

    return decorate


def shares(keep: Sequence[float | str]) -> list[tuple[str, float]]:
    """(name, share) of each stage of falling size: "5x" or "20%" or 0.2. Raises InputError."""
    found = [(f"{100 * one:g} %" if isinstance(one, int | float) else str(one), share(one)) for one in keep]
    wrong = [name for name, kept in found if not isinstance(kept, int | float) or not 0 < kept <= 1]
    if wrong or not found:
        raise InputError(
            f"keep holds what each stage keeps: so many times fewer weights ('5x') or a share in (0, 1], given {list(keep)}"
        )
    return found


def entries(targets: str, kept: float | str) -> tuple[str, Rule, float | None]:
    """A name, the rule by which entries of the targets go, and the share of all that stays: TopK with a share; for "N:M" N of
    each M neighbouring inputs of an output, a size of its own. Raises InputError.
    """
    told = re.fullmatch(r"\s*(\d{1,3})\s*:\s*(\d{1,3})\s*", kept) if isinstance(kept, str) else None
    if told is None:
        ((name, share),) = shares((kept,))
        return name, Rule(targets, TopK()), share
    some, group = int(told[1]), int(told[2])
    if not 1 <= some <= group:
        raise InputError(f"{kept!r} keeps {some} of each {group}: give at least 1, and no more than there are, such as '2:4'")
    return f"{some}:{group}", Rule(targets, TopEach(some), View("o (g m) ... -> (o g ...) m", (("m", group),))), None
