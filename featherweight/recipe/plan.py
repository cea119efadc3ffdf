"""Plans: a stage of a recipe resolved against one network, exact names and sizes, printable before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from featherweight.errors import InputError, RecipeError, did_you_mean, short
from featherweight.lowrank import ranks
from featherweight.network.calls import Example, Inputs
from featherweight.recipe import selection
from featherweight.recipe.patterns import matches as matches  # also for those who import it from here
from featherweight.recipe.schema import WEIGHTS, Constrain, Rule
from featherweight.recipe.selection import Chosen, listed, view_of
from featherweight.weights.counts import ALLOCATORS
from featherweight.weights.parameters import Parameters, parameters_of
from featherweight.weights.sets import LowRank, TopRows
from featherweight.weights.sizes import Menu
from featherweight.weights.targets import Spread, Target


@dataclass(frozen=True)
class Plan:
    """The targets of one stage.

    sizes    target -> (size asked of its set, largest size in the original network)
    spread   the total to spread anew at every projection, where the stage asks for that
    rules    target -> the rule that it comes from
    left_out parameter -> why it is no target though it might seem one
    """

    targets: dict[str, Target]
    sizes: dict[str, tuple[int, int]]
    spread: Spread | None = None
    rules: dict[str, Rule] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def rows(self) -> list[tuple[str, str, str, int, int]]:
        """(parameter, set, view, size, of) of each target."""
        return [
            (name, type(target.set).__name__, target.view.pattern, *self.sizes.get(name, (0, 0)))
            for name, target in self.targets.items()
        ]


def resolve(
    stage: Constrain,
    model: nn.Module,
    original: Mapping[str, Tensor] | None = None,
    squares: Mapping[str, Tensor] | None = None,
    example: Example | Inputs | None = None,
) -> Plan:
    """Match the stage's rules to the parameters of `model` and give every target its size.

    `original`: the decoded weights of the network as it was given, of which ratios are shares (default: `model` itself).
    `squares`: E[g^2] of each parameter, for a stage with `fisher`. `example`: the network's inputs, for a stage with `macs`.
    Raises RecipeError with every mistake.
    """
    held = parameters_of(model)
    weights = held.values
    original = weights if original is None else original
    mistakes: list[str] = []
    found: dict[str, Target] = {}
    rules: dict[str, Rule] = {}
    left_out: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    menus: dict[str, Menu] = {}
    unsized: list[str] = []  # whose ranks a budget of MACs decides
    whole = 0
    for number, rule in enumerate(stage.rules):
        where = f"stage {stage.name!r}, rule {number} ({short(rule.targets)})"
        try:
            meant = chosen(rule, held, example)
            if stage.layerwise is not None and stage.layerwise.method != "svd":  # which has another way where none can be watched
                meant = selection.of_watched_layers(held, meant, example)
        except InputError as error:
            mistakes.append(f"{where}: {error}")
            continue
        left_out |= meant.left_out
        for name in meant.names:
            if name in found:
                mistakes.append(f"{where}: parameter {name!r} is already the target of an earlier rule")
                continue
            try:
                view = view_of(rule.view, held, name)
                matrix = view.to_matrix(weights[name])
                found[name], rules[name] = Target(rule.set, view, stage.masked, stage.fisher), rule
                if rule.set.complete():
                    rule.set.check(matrix)
                    if rule.keep is not None:
                        mistakes.append(f"{where}: give the set's own size or `keep`, not both")
                    continue
                if stage.macs is not None:
                    unsized.append(name)
                    sizes[name] = (0, min(matrix.shape))
                    continue
                largest = rule.set.menu(view.to_matrix(original[name])).most
                weighed = found[name].weighed(weights[name], squares[name] if squares else None)
                menu = rule.set.menu(view.to_matrix(weighed))
                if rule.keep is not None:
                    size = min(max(1, round(rule.keep * largest)), menu.most)
                    found[name] = replace(found[name], set=rule.set.sized(size))
                    sizes[name] = (size, largest)
                else:
                    menus[name] = menu
                    sizes[name] = (0, largest)
                    whole += largest
            except InputError as error:
                if rule.targets == WEIGHTS:  # nobody asked for this one by name
                    found.pop(name, None)
                    left_out[name] = str(error)
                else:
                    mistakes.append(f"{where}: parameter {name!r}: {error}")
        if not set(meant.names) & found.keys() and not any(where in mistake for mistake in mistakes):
            mistakes.append(f"{where}: no parameter can be a target: {listed(left_out)}")
    mistakes += _no_low_rank(stage, found, unsized)
    if menus and stage.keep is None:
        mistakes.append(f"stage {stage.name!r} has no `keep`, and no size or `keep` is given for {', '.join(menus)}")
    if mistakes:
        raise RecipeError(mistakes, "plan")
    if unsized and stage.macs is not None and example is not None:
        _give_ranks(stage.macs, model, example, found, sizes, unsized)
        left_out |= {name: "no rank of it saves multiplications under this budget" for name in unsized if name not in found}
    spread = None
    if menus and stage.keep is not None:
        total = min(max(round(stage.keep * whole), len(menus)), sum(menu.most for menu in menus.values()))
        for name, size in ALLOCATORS[stage.allocate](menus, total).items():
            found[name] = replace(found[name], set=found[name].set.sized(size))
            sizes[name] = (size, sizes[name][1])
        if stage.respread:
            spread = Spread(tuple(menus), total, ALLOCATORS[stage.allocate])
    return Plan(found, sizes, spread, {name: rules[name] for name in found}, left_out)


def _no_low_rank(stage: Constrain, targets: Mapping[str, Target], names: Iterable[str]) -> list[str]:
    others = sorted({type(targets[name].set).__name__ for name in names if not isinstance(targets[name].set, LowRank)})
    return [f"stage {stage.name!r}: a budget of macs is spent on LowRank; give {', '.join(others)} a size"] if others else []


def _give_ranks(
    share: float,
    model: nn.Module,
    example: Example | Inputs,
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


def _in(pattern: str, name: str) -> bool:
    """Does the pattern name the parameter, or a module that holds it?"""
    parts = name.split(".")
    return any(matches(pattern, ".".join(parts[:count])) for count in range(1, len(parts) + 1))


def chosen(rule: Rule, held: Parameters, example: Example | Inputs | None = None) -> Chosen:
    """The parameters that `rule` means. `example`: for a rule of rows, which by default takes only rows that can go.

    Raises InputError where there is none, with the reasons.
    """
    if rule.ignore:
        found = chosen(replace(rule, ignore=()), held, example)
        ignored = {name for name in found.names for pattern in rule.ignore if _in(pattern, name)}
        for pattern in rule.ignore:
            if not any(_in(pattern, name) for name in held.values):
                raise InputError(f"ignore: {pattern!r} matches no parameter and no module that holds one")
        if ignored >= set(found.names):
            raise InputError("ignore leaves no target")
        left_out = found.left_out | dict.fromkeys(ignored, "it is to be ignored")
        return Chosen([name for name in found.names if name not in ignored], left_out)
    weights = held.values
    if rule.targets == WEIGHTS:
        found = selection.weights_of(held)
        if hidden := {name: why for name, why in found.left_out.items() if name in found.computed}:
            raise InputError(f"these weights would stay as they are: {listed(hidden)}. Or name the targets that you mean")
        if isinstance(rule.set, LowRank):
            found = selection.of_two_layers(rule.view, held, found, example)
        elif isinstance(rule.set, TopRows) and example is not None:
            found = selection.of_rows_that_go(held, found, example)
        elif rule.set.prunes and example is not None:
            found = selection.without_head(held, found, example)
        if not found.names:
            reasons = listed(found.left_out) or f"there are {', '.join(weights) or 'no parameters'}"
            raise InputError(f"no weight of a linear, convolution, recurrent or attention layer can be a target: {reasons}")
        return found
    names = [name for name in weights if matches(rule.targets, name)]
    untouchable = selection.untouchable(held)
    if not names:
        hidden = {name: why for name, why in untouchable.items() if matches(rule.targets, name)}
        why = f" It is {listed(hidden)}." if hidden else did_you_mean(rule.targets[:80], weights)
        raise InputError(f"it matches no parameter.{why} There are: {', '.join(weights)}")
    left_out = {name: untouchable[name] for name in names if name in untouchable}
    if len(left_out) == len(names):
        raise InputError(f"it matches only what cannot be a target: {listed(left_out)}")
    return Chosen([name for name in names if name not in left_out], left_out)
