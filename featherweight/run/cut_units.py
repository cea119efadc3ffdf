"""A stage's units cut: a criterion ranks them, an allocation says how many, the network's own class loses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from featherweight.budget import amc
from featherweight.budget.amc import Search
from featherweight.budget.choices import Infeasible
from featherweight.budget.costs import Spent, cost_of, counted
from featherweight.budget.multiples import CHANNELS, multiples
from featherweight.budget.units import Sizes, Stopping, allocate, offered
from featherweight.criteria import CRITERIA, NEEDS, Ranking
from featherweight.criteria.auxiliary import new_heads, with_auxiliary
from featherweight.criteria.readers import producers
from featherweight.criteria.refitting import Fitted, refit_in_order
from featherweight.criteria.statistics import collect, unobservable
from featherweight.errors import InputError, did_you_mean
from featherweight.recipe.plan import matches
from featherweight.recipe.schema import CutUnits
from featherweight.recipe.units import Units
from featherweight.run.agent import more, place_of, reward_of
from featherweight.run.ground import Ground
from featherweight.run.latency_budget import within
from featherweight.run.on_graph import TRAINED_SO
from featherweight.run.ranked import Damage, Groups, Ranked
from featherweight.run.stage import begin, without_codes
from featherweight.run.state import Result
from featherweight.run.watch import Monitor
from featherweight.structure import Edit, Graph, expressible, free_sizes, trace
from featherweight.structure import Result as Cut
from featherweight.structure.errors import NotExact
from featherweight.task import Task

NOT_EXPRESSIBLE = (
    "the network's own class cannot express a cut of it (prune or a recipe with where='graph' cuts it, in an exported module)"
)
FREE = f"sizes are no multiples of {CHANNELS} channels, which run faster: the budget is below what those cost"
NOT_TIED = "a number of the network's class ties it to {other}, which keeps all its units"
ELSE = "make the weights smaller instead: progressive_admm (zeros), admm_quantization (bits) or decompose (ranks)"


@dataclass(frozen=True)
class Cutting:
    """What `cut` did: the edit, or None where the budget held already; and what was made of the budget."""

    edit: Edit | None
    spent: Spent
    exported: nn.Module | None = None  # the smaller network, where it is no longer of its class


def cut_units(stage: CutUnits, start: Result, ground: Ground, monitor: Monitor) -> Result:
    """Run a stage that cuts units and trains what is left."""
    running = begin(stage, start, ground, monitor)
    if running.unfinished is None:
        done = ground.engine.decided(lambda: cut(running.network, ground.task, stage.units, running.epoch, stage.auxiliary))
        running.spent = done.spent
        running.cut([done.edit] if done.edit is not None else [])
        if done.exported is not None:
            running.spent = replace(done.spent, caveats=[*done.spent.caveats, TRAINED_SO])
            running.become(done.exported)
        running.agree()
    return running.trained(stage.units.share, stage.auxiliary)


def cut(network: nn.Module, task: Task, asked: Units, epoch: int, auxiliary: bool = False) -> Cutting:
    """Cut `network` in place, by what it does on the first batches of `epoch`. `auxiliary`: the loss that the criterion looks at
    adds those of heads inside the network, trained here. What is `asked` on the graph becomes an exported module,
    `Cutting.exported`.

    Sites that the class cannot express a cut of, or that the criterion cannot watch or rank, keep all their units:
    `Spent.left_out` says why. Raises InputError where none is left or codes are in the way, Infeasible for a budget below what
    the smallest sizes cost, and what the criterion raises about the network as a whole.
    """
    without_codes(network, "units are cut", "the stage that cuts")
    graph = trace(network, task.example_inputs, soft=asked.soft)
    statistics = _statistics(asked)
    groups, left_out = may_go(network, graph, asked)
    sites = [name for group in groups for name in group]
    if not sites:
        if not graph.sites:
            why = "; ".join(f"{name}: {reason}" for name, reason in list(graph.frozen.items())[:3]) or "it has no layers"
            raise InputError(
                f"no units can go: none of the network's layers has units that its class can be without ({why}). "
                f"{_sentence([*_softly(network, task, asked), ELSE])}"
            )
        told = "".join(f"; {name}: {why}" for name, why in left_out.items())
        by_weights = statistics and may_go(network, graph, replace(asked, criterion="l1", refit=False))[0]
        ways = ["match other sites"] if asked.sites != "*" else []
        ways += ["take l1_filters, which looks at weights alone"] if by_weights else [ELSE]
        raise InputError(
            f"no units can go: of the sites {', '.join(graph.sites)} those that match {asked.sites!r} cannot be cut in the "
            f"network's own class, or this criterion cannot look at what reads them{told}. {_sentence(ways)}"
        )
    watched = with_auxiliary(task, new_heads(network, task, epoch), most=1.0) if auxiliary else task
    stats = collect(
        network, graph, watched, statistics, sites=sites, samples=asked.samples, epoch=epoch, curvature=asked.curvature
    )
    halved = isinstance(asked.allocate, Search) and stats.count > 1 and not more(task, epoch, stats.count)
    caveats = [stats.caveat()] if stats.caveat() else []
    if halved:  # the search is judged by samples that the criterion did not look at
        caveats.append(f"the criterion looked at half of the {stats.samples:,} samples, and the search was judged by the others")
        stats = collect(
            network, graph, watched, statistics, sites=sites, samples=stats.samples // 2, epoch=epoch, curvature=asked.curvature
        )
    stats = replace(stats, task=task)
    rankings = CRITERIA[asked.criterion](network, graph, stats)
    left_out = {**left_out, **rankings.left_out}
    ranked = Ranked(network, graph, stats, *_whole_groups(groups, rankings, left_out), asked.refit, asked.where)
    own = asked.where == "class"
    while True:
        sizes, spent = _sizes(ranked, asked)
        keep, fitted = ranked.keep(sizes), Fitted()
        if asked.refit:
            fitted = refit_in_order(network, graph, task, keep, samples=asked.samples, epoch=epoch, own=own)
        try:
            done = ranked.cut(network, sizes, fitted.state, fitted.own)
            break
        except NotExact:
            if fitted.own:  # the network looks at states of inner layers
                own = False
                continue
            if asked.where == "graph":  # a name that an exported module cannot have
                raise
            refused = _refused(ranked, sizes)
            left_out |= dict.fromkeys(refused, "the network's own class cannot express the sizes that the budget asks of it")
            rest = {name: r for name, r in ranked.rankings.items() if name not in refused}
            groups, rest = _whole_groups(ranked.groups, rest, left_out)
            if not refused or not rest:
                raise
            ranked = replace(ranked, groups=groups, rankings=rest)
    if asked.certify:
        spent = replace(spent, gaps=ranked.gaps(sizes))
    caveats += [*spent.caveats, *rankings.caveats, *fitted.said, *_changed(graph, done)]
    spent = replace(spent, left_out=left_out | (done.refused if done is not None else {}), caveats=caveats)
    if done is None:
        return Cutting(None, spent)
    return Cutting(done.edit, spent, done.model if done.where == "graph" else None)


def _changed(graph: Graph, done: Cut | None) -> list[str]:
    """What is to be known of a cut that changes what the network computes, and of the check of any."""
    if done is None:
        return []
    soft = [name for name, _ in (done.edit.sites if done.edit is not None else ()) if graph.site(name).soft]
    said = [done.check.note] if done.check.note else []
    if soft and done.check.error is not None:
        said.append(
            f"a statistic is taken over units of {', '.join(soft)}: without them the outputs differ by {done.check.error:.1%} of "
            "the largest from those of the network in which they give 0, which fine-tuning has to repair"
        )
    return said


def _whole_groups(groups: Groups, rankings: Mapping[str, Ranking], left_out: dict[str, str]) -> tuple[Groups, dict[str, Ranking]]:
    """The groups of which every site is ranked, and their rankings; the sites of others are left out."""
    whole = tuple(group for group in groups if all(name in rankings for name in group))
    for group in groups:
        other = next((name for name in group if name not in rankings), "")
        if other:
            left_out |= {name: NOT_TIED.format(other=other) for name in group if name in rankings}
    return whole, {name: rankings[name] for group in whole for name in group}


def _refused(ranked: Ranked, sizes: Sizes) -> list[str]:
    """The sites whose planned units the network's class cannot keep; `may_go` asked about a random half of them."""
    keep = ranked.keep(sizes)
    fine = expressible(ranked.network, ranked.graph, keep)
    return [site for site in keep if site not in fine]


def _softly(network: nn.Module, task: Task, asked: Units) -> list[str]:
    """The way out where units could go if a norm's statistics may change."""
    possible = not asked.soft and trace(network, task.example_inputs, soft=True).sites
    return ["let units go over which a norm takes a statistic (soft=True), and fine-tune"] if possible else []


def _sentence(ways: Sequence[str]) -> str:
    """Ways out as the end of a message."""
    told = ", or ".join(ways)
    return told[0].upper() + told[1:]


def may_go(network: nn.Module, graph: Graph, asked: Units) -> tuple[Groups, dict[str, str]]:
    """The sites of which units may go, in groups that keep the same share (see `free_sizes`), and those that match but keep all
    of theirs, with why. No data is looked at: the criterion may leave out more once it has seen some."""
    possible = [name for name in graph.sites if matches(asked.sites, name)]
    ignored = _ignored(graph, asked.ignore)
    possible = [name for name in possible if name not in ignored]
    left_out = ignored | unobservable(network, graph, _statistics(asked), possible)
    if asked.where == "graph":
        return tuple((name,) for name in possible if name not in left_out), left_out
    groups = free_sizes(network, graph, [name for name in possible if name not in left_out])
    free = {name for group in groups for name in group}
    return groups, left_out | {name: NOT_EXPRESSIBLE for name in possible if name not in left_out and name not in free}


def _ignored(graph: Graph, patterns: Sequence[str]) -> dict[str, str]:
    """Site -> why it stays whole. Raises InputError at a pattern that names no site and no layer."""
    makers = {site: [name for name, _ in producers(graph, site)] for site in graph.sites}
    layers = {name: name.rpartition(".")[0] for name in graph.tensors}
    found: dict[str, str] = {}
    for pattern in patterns:
        if not any(matches(pattern, name) for name in (*graph.sites, *layers, *layers.values())):
            raise InputError(f"ignore: {pattern!r} matches no site and no layer.{did_you_mean(pattern[:80], layers.values())}")
        for site, names in makers.items():
            if matches(pattern, site) or any(matches(pattern, name) or matches(pattern, layers[name]) for name in names):
                found[site] = "it is to be ignored"
    return found


def _statistics(asked: Units) -> set[str]:
    tried = asked.refit and isinstance(asked.allocate, Search)  # many choices are fitted, from one look
    return {*NEEDS[asked.criterion], *(("gram",) if tried else ())}


def _sizes(ranked: Ranked, asked: Units) -> tuple[Sizes, Spent]:
    """The sizes that meet the budget, and what they cost."""
    of = multiples(asked.multiple, ranked.network, ranked.graph)
    try:
        return _sizes_of(ranked, asked, of)
    except Infeasible:
        if asked.multiple != "auto":
            raise
        sizes, spent = _sizes_of(ranked, asked, dict.fromkeys(of, 1))
        return sizes, replace(spent, caveats=[*spent.caveats, FREE])


def _sizes_of(ranked: Ranked, asked: Units, multiples_of: Mapping[str, int]) -> tuple[Sizes, Spent]:
    """`multiples_of`: site -> what its size is a multiple of."""
    tied = ranked.tied
    of = tied.multiples(multiples_of)
    losses = tied.losses({site: Damage(ranking) for site, ranking in ranked.rankings.items()})
    what, amount = asked.budget
    cost = cost_of(what, ranked.network, ranked.graph)

    how = asked.allocate

    def allocated(limit: float) -> Sizes:
        if isinstance(how, Search):
            places = [place_of(ranked, site, offered(most, of[site])) for site, most in tied.levels.items()]
            seed = int(torch.randint(2**31, ()))  # of the run's own generator, which a checkpoint holds
            reward = reward_of(ranked, asked.samples)
            return tied.sizes(amc.allocate(places, tied.cost(cost), limit, lambda taken: reward(tied.sizes(taken)), how, seed))
        return tied.sizes(allocate(how, losses, tied.cost(cost), limit, of))

    if what == "latency_ms":
        whole = {site: ranking.size for site, ranking in ranked.rankings.items()}
        least = tied.sizes({site: offered(most, of[site])[0] for site, most in tied.levels.items()})
        return within(amount, ranked.stats.task.example_inputs, allocated, cost, ranked.copy, least, whole, asked.runtime)
    limit = amount * cost({}) if amount <= 1 else amount
    sizes = allocated(limit)
    why = f"the stopping rule at {how.tolerance:g} keeps no more" if isinstance(how, Stopping) else ""
    why = "of all that the search tried this did best" if isinstance(how, Search) else why
    return sizes, counted(what, cost, sizes, limit, why)
