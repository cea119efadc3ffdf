"""Plans: a stage of a recipe resolved against one network, exact names and sizes, printable before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from featherweight import ranks
from featherweight.allocate import ALLOCATORS
from featherweight.drivers import Spread, Target
from featherweight.errors import InputError, RecipeError, did_you_mean, short
from featherweight.measure import decoded
from featherweight.menus import Menu
from featherweight.patterns import matches as matches  # also for those who import it from here
from featherweight.recipe import Stage
from featherweight.sets import LowRank


@dataclass(frozen=True)
class Plan:
    """The targets of one stage.

    sizes    target -> (size asked of its set, largest size in the original network)
    spread   the total to spread anew at every projection, where the stage asks for that
    """

    targets: dict[str, Target]
    sizes: dict[str, tuple[int, int]]
    spread: Spread | None = None

    def rows(self) -> list[tuple[str, str, str, int, int]]:
        """(parameter, set, view, size, of) of each target."""
        return [
            (name, type(target.set).__name__, target.view.pattern, *self.sizes.get(name, (0, 0)))
            for name, target in self.targets.items()
        ]


def resolve(
    stage: Stage,
    model: nn.Module,
    original: Mapping[str, Tensor] | None = None,
    squares: Mapping[str, Tensor] | None = None,
    example: tuple[Tensor, ...] | None = None,
) -> Plan:
    """Match the stage's rules to the parameters of `model` and give every target its size.

    `original`: the decoded weights of the network as it was given, of which ratios are shares (default: `model` itself).
    `squares`: E[g^2] of each parameter, for a stage with `fisher`. `example`: the network's inputs, for a stage with `macs`.
    Raises RecipeError with every mistake.
    """
    weights = decoded(model)
    original = weights if original is None else original
    mistakes: list[str] = []
    targets: dict[str, Target] = {}
    sizes: dict[str, tuple[int, int]] = {}
    menus: dict[str, Menu] = {}
    unsized: list[str] = []  # whose ranks a budget of MACs decides
    whole = 0
    for number, rule in enumerate(stage.rules):
        where = f"stage {stage.name!r}, rule {number} ({short(rule.targets)})"
        try:
            names = [name for name in weights if matches(rule.targets, name)]
        except InputError as error:
            mistakes.append(f"{where}: {error}")
            continue
        if not names:
            mistakes.append(
                f"{where} matches no parameter.{did_you_mean(rule.targets[:80], weights)} There are: {', '.join(weights)}"
            )
        for name in names:
            if name in targets:
                mistakes.append(f"{where}: parameter {name!r} is already the target of an earlier rule")
                continue
            try:
                matrix = rule.view.to_matrix(weights[name])
                targets[name] = Target(rule.set, rule.view, stage.masked, stage.fisher)
                if rule.set.complete():
                    rule.set.check(matrix)
                    if rule.keep is not None:
                        mistakes.append(f"{where}: give the set's own size or `keep`, not both")
                    continue
                if stage.macs is not None:
                    unsized.append(name)
                    sizes[name] = (0, min(matrix.shape))
                    continue
                largest = rule.set.menu(rule.view.to_matrix(original[name])).most
                weighed = targets[name].weighed(weights[name], squares[name] if squares else None)
                menu = rule.set.menu(rule.view.to_matrix(weighed))
                if rule.keep is not None:
                    size = min(max(1, round(rule.keep * largest)), menu.most)
                    targets[name] = replace(targets[name], set=rule.set.sized(size))
                    sizes[name] = (size, largest)
                else:
                    menus[name] = menu
                    sizes[name] = (0, largest)
                    whole += largest
            except InputError as error:
                mistakes.append(f"{where}: parameter {name!r}: {error}")
    mistakes += _no_low_rank(stage, targets, unsized)
    if menus and stage.keep is None:
        mistakes.append(f"stage {stage.name!r} has no `keep`, and no size or `keep` is given for {', '.join(menus)}")
    if mistakes:
        raise RecipeError(mistakes, "plan")
    if unsized and stage.macs is not None and example is not None:
        _give_ranks(stage.macs, model, example, targets, sizes, unsized)
    spread = None
    if menus and stage.keep is not None:
        total = min(max(round(stage.keep * whole), len(menus)), sum(menu.most for menu in menus.values()))
        for name, size in ALLOCATORS[stage.allocate](menus, total).items():
            targets[name] = replace(targets[name], set=targets[name].set.sized(size))
            sizes[name] = (size, sizes[name][1])
        if stage.respread:
            spread = Spread(tuple(menus), total, ALLOCATORS[stage.allocate])
    return Plan(targets, sizes, spread)


def _no_low_rank(stage: Stage, targets: Mapping[str, Target], names: Iterable[str]) -> list[str]:
    others = sorted({type(targets[name].set).__name__ for name in names if not isinstance(targets[name].set, LowRank)})
    return [f"stage {stage.name!r}: a budget of macs is spent on LowRank; give {', '.join(others)} a size"] if others else []


def _give_ranks(
    share: float,
    model: nn.Module,
    example: tuple[Tensor, ...],
    targets: dict[str, Target],
    sizes: dict[str, tuple[int, int]],
    names: Sequence[str],
) -> None:
    """Ranks that keep `share` of the network's MACs; layers for which no rank pays are targets no more."""
    found = ranks.allocate(model, example, {name: targets[name].view for name in names}, share)
    for name in names:
        if name in found.ranks:
            targets[name] = replace(targets[name], set=LowRank(rank=found.ranks[name]))
            sizes[name] = (found.ranks[name], sizes[name][1])
        else:
            del targets[name], sizes[name]
