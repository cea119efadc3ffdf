"""Choosing a way to a goal: how far each has to go, measured on networks that are not trained; then a short probe of those that
get there, on training batches of which some are held out from it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from featherweight.budget.choices import Infeasible
from featherweight.errors import FeatherweightError, InputError, shortened
from featherweight.lowrank.layers import FactorError
from featherweight.network.evaluating import evaluating
from featherweight.recipe.schema import Recipe
from featherweight.recipe.way import AS_IT_IS, Way
from featherweight.run.compressed import Compressed
from featherweight.run.goals import MARGIN, Costs, Goal, OutOfReach
from featherweight.run.shrunk import Choice, Tried, score_in_integers
from featherweight.ship.bench import RUNTIMES, Runtime
from featherweight.task import Batch, Task, loss_in_eval, steps_of

PROBE_EPOCHS = 2
PROBE_BATCHES, HELD_BATCHES = 40, 10  # of the first epoch: what a probe trains on, and what it is judged by
MOST_PROBES = 6
SEARCHED = 7  # networks that are built and measured to find how far a way has to go
NEAR = {
    "weights": 0.98,
    "macs": 0.98,
    "parameters": 0.98,
    "bytes": 0.95,
    "latency_ms": 0.9,
}  # of the goal: as large as that is enough
NARROW = 1.02  # two amounts that are so near are not told apart
LEAST = 0.005  # share: no way is tried further
Run = Callable[[Recipe, Task], Compressed]
Ways = Callable[[Collection[Runtime], Runtime], Sequence[Way]]
Told = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """How far a way has to go, and what the untrained network then costs. `amount` None: it does not get there, and why; `cost`
    is the least that was seen on the way."""

    amount: float | None
    cost: float
    why: str = ""


@dataclass(frozen=True)
class Found:
    """A way that gets there."""

    way: Way
    amount: float
    tried: Tried


def choose(
    model: nn.Module,
    task: Task,
    goal: Goal,
    run: Run,
    ways: Ways,
    *,
    epochs: int = 20,
    runtimes: Sequence[Runtime] = (),
    told: Told = lambda line: None,
) -> Choice:
    """The recipe that reaches `goal` at the least loss in a short probe. `run`: compresses `model`; `ways`: that there are,
    of the runtimes and the fastest of them; `told` hears of each step.

    Raises OutOfReach, with the least that can be reached, and InputError where the goal is met already.
    """
    if unknown := [name for name in runtimes if name not in RUNTIMES]:
        raise InputError(f"no runtime is named {unknown[0]!r}; there are {', '.join(RUNTIMES)}")
    if runtimes and goal.what != "latency_ms":
        raise InputError("runtimes are for a goal of time, such as 2ms: what is counted is the same in all of them")
    probing = held_out(task)
    unscored = replace(probing, evaluate=lambda network: 0.0)
    told("measuring the network as given")
    with Costs(goal, model, task, runtimes) as costs:
        now = costs.ms[costs.fastest] if goal.what == "latency_ms" else costs.of(run(AS_IT_IS, unscored), None)
        limit = goal.limit(now)
        told(f"as given {goal.shown(now)}; the goal is at most {goal.shown(limit)}")
        if (costs.ms.get("eager", math.inf) if goal.what == "latency_ms" else now) <= limit:
            raise InputError(f"there is nothing to do: the network as it is has {goal.shown(now)}. Ask for less")
        found: list[Found] = []
        failed: list[tuple[Tried, float]] = []
        for way in ways(costs.runtimes, costs.fastest):
            begun = time.perf_counter()
            fit = fitted(
                way, goal, limit, now, lambda recipe, way=way: costs.of(run(recipe, unscored), runtime_of(way)), told  # type: ignore[misc]
            )  # fmt: skip
            seconds = time.perf_counter() - begun
            if fit.amount is None:
                told(f"{way.shown(None)}: does not get there ({fit.why})")
                failed.append((Tried(way.shown(None), None, None, seconds, fit.why), fit.cost))
                continue
            if fit.amount == 1 and way.beside and found:
                told(f"{way.shown(fit.amount)}: takes nothing away, and without that it is another way")
                continue
            shown = way.shown(fit.amount)
            told(f"{shown}: {goal.shown(fit.cost)}, not trained")
            found.append(Found(way, fit.amount, Tried(shown, fit.cost, None, seconds)))
            if not way.loses:
                break  # no other can be better
        if not found:
            raise OutOfReach(_out_of_reach(goal, limit, failed))
        judged, dense, pace = _probed(found, probing, lambda recipe: run(recipe, probing), told)
        best = min(judged, key=lambda one: math.inf if one.tried.loss is None else one.tried.loss)
        recipe = best.way.recipe(best.amount, epochs)
        minutes = pace * recipe.epochs() * steps_of(task, 0) / 60 if pace is not None else None
        table = (*(one.tried for one in judged), *(tried for tried, _ in failed))
        assert best.tried.cost is not None
        return Choice(
            goal, recipe, best.tried.way, runtime_of(best.way), now, limit, best.tried.cost, table, costs.fastest, dict(costs.ms),
            costs.refused, dense, minutes, best.amount, epochs,
        )  # fmt: skip


def runtime_of(way: Way) -> Runtime | None:
    """Which of those there are runs what comes of it."""
    return next((name for name in RUNTIMES if name == way.runtime), None)


def held_out(task: Task) -> Task:
    """A task of some training batches of the first epoch, the same in every epoch, whose score is minus the loss on others of
    them. What the user's task is scored on is never looked at. Raises InputError where the epoch is one batch."""
    batches = list(itertools.islice(iter(task.batches(0)), PROBE_BATCHES + HELD_BATCHES))
    held = max(1, len(batches) * HELD_BATCHES // (PROBE_BATCHES + HELD_BATCHES))
    if len(batches) < 2:
        raise InputError(
            "an epoch of the task is one batch, and ways are judged by training batches that they were not trained on: give "
            "smaller batches"
        )
    judges = batches[-held:]
    return replace(task, train=batches[:-held], evaluate=lambda network: -_loss(task, network, judges))


def _loss(task: Task, network: nn.Module, batches: Sequence[Batch]) -> float:
    with evaluating(network), torch.no_grad():
        return sum(float(loss_in_eval(task, network, batch)) for batch in batches) / len(batches)


# --- how far -------------------------------------------------------------------------------------------------------------


def fitted(
    way: Way, goal: Goal, limit: float, now: float, cost: Callable[[Recipe], float], told: Told = lambda line: None
) -> Fit:
    """The mildest amount of `way` whose untrained network costs at most `limit`, nearly: a little less where training or the
    clock moves the cost. `cost`: builds and measures one; an error that no amount mends ends the search. `told` hears of each."""
    aim = limit * (1 - MARGIN.get(goal.what, 0.0))
    least, why = math.inf, ""

    def measured(amount: float) -> float | None:
        """None where the way cannot go so far."""
        nonlocal least, why
        begun = time.perf_counter()
        try:
            found = cost(_bare(way.recipe(amount, 0)))
        except (Infeasible, FactorError) as error:
            why = shortened(str(error))
            told(f"  {way.shown(amount)}: it cannot go so far ({time.perf_counter() - begun:.1f} s)")
            return None
        told(f"  {way.shown(amount)}: {goal.shown(found)} ({time.perf_counter() - begun:.1f} s)")
        least = min(least, found)
        return found

    try:
        if way.amounts is not None:
            best_of = _among(way.amounts or (1.0,), aim if way.loses else limit, measured)
            return best_of or Fit(None, least, _short_of(goal, least, why))
        low, high, amount = LEAST, math.inf, min(1.0, max(LEAST, aim / now))  # low: it can go there; high: that is too much
        points: dict[float, float] = {}
        for _ in range(SEARCHED - 2 * (goal.what == "latency_ms")):  # a file to write and a clock to wait for
            found = measured(amount)
            if found is None or found <= aim:
                low = amount
            else:
                high = amount
            if found is not None:
                points[amount] = found
                if found <= aim and (way.exact or amount == 1 or found >= NEAR[goal.what] * aim):
                    break
            if high / low < NARROW:
                break
            amount = _between(low, high, points, aim)
        if best := [point for point in points.items() if point[1] <= aim]:
            return Fit(*max(best))
    except FeatherweightError as error:
        return Fit(None, math.inf, shortened(str(error)))
    return Fit(None, least, _short_of(goal, least, why))


def _bare(recipe: Recipe) -> Recipe:
    """Without the stages that only measure."""
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.imposes) or recipe.stages[:1])


def _among(amounts: Sequence[float], aim: float, measured: Callable[[float], float | None]) -> Fit | None:
    """The first of falling amounts that is small enough; None if none is."""
    first, last, best = 0, len(amounts) - 1, None
    while first <= last:
        middle = (first + last) // 2
        found = measured(amounts[middle])
        if found is not None and found <= aim:
            best, last = Fit(amounts[middle], found), middle - 1
        else:
            first = middle + 1
    return best


def _between(low: float, high: float, points: Mapping[float, float], aim: float) -> float:
    """The next amount to be measured, between two: along the line through what the two next to the goal cost, or in proportion to
    what the only one does."""
    goal = 0.99 * aim
    if len(points) > 1:
        near = sorted(points, key=lambda amount: abs(math.log(points[amount] / goal)))[:2]
        one, other = sorted(near)
        slope = (points[other] - points[one]) / (other - one)
        guess = one + (goal - points[one]) / slope if slope > 0 else 0.0
    else:
        guess = next((amount * goal / cost for amount, cost in points.items()), 0.0)
    top = min(high, 1.0)
    if guess >= 1 and high > 1:
        return 1.0
    return guess if low * NARROW**0.5 < guess < top / NARROW**0.5 else math.sqrt(low * top)


def _short_of(goal: Goal, least: float, why: str) -> str:
    return "; ".join(part for part in (f"the least seen is {goal.shown(least)}" if math.isfinite(least) else "", why) if part)


def _out_of_reach(goal: Goal, limit: float, failed: Sequence[tuple[Tried, float]]) -> str:
    told = "".join(f"\n  - {tried.way}: {tried.why}" for tried, _ in failed)
    least = min((cost for _, cost in failed), default=math.inf)
    ask = f". The least that was reached is {goal.shown(least)}: ask for that or more" if math.isfinite(least) else ""
    return f"at most {goal.shown(limit)} cannot be reached{ask}{told}"


# --- probes --------------------------------------------------------------------------------------------------------------


def _probed(
    found: Sequence[Found], probing: Task, run: Callable[[Recipe], Compressed], told: Told
) -> tuple[list[Found], float | None, float | None]:
    """The ways with their losses on the batches held out; the loss of the network as it was given; seconds of a training step."""
    if len(found) == 1:
        return list(found), None, None
    judged, dense, pace = [], None, 0.0
    batches = steps_of(probing, 0)
    told(
        f"probing {min(len(found), MOST_PROBES)} ways: {PROBE_EPOCHS} epochs of {batches} training batches each, judged by others"
    )
    for number, one in enumerate(found):
        if number >= MOST_PROBES:
            judged.append(replace(one, tried=replace(one.tried, why=f"not probed: {MOST_PROBES} others were")))
            continue
        begun = time.perf_counter()
        try:
            done = run(one.way.recipe(one.amount, PROBE_EPOCHS))
            score = done.rows[-1].measured.score
            if one.way.runtime == "integers":
                score = score_in_integers(done.model, probing)
        except FeatherweightError as error:
            told(f"{one.tried.way}: cannot be probed ({shortened(str(error))})")
            judged.append(replace(one, tried=replace(one.tried, why=shortened(str(error)))))
            continue
        assert score is not None
        dense = dense if done.rows[0].measured.score is None else -done.rows[0].measured.score
        trained = sum(row.seconds for row in done.rows if row.epochs)
        pace = max(pace, trained / (PROBE_EPOCHS * batches))
        seconds = time.perf_counter() - begun
        told(f"{one.tried.way}: loss {-score:.4g} on held-out batches after a probe ({seconds:.1f} s)")
        judged.append(replace(one, tried=replace(one.tried, loss=-score, seconds=one.tried.seconds + seconds)))
    if all(one.tried.loss is None for one in judged):
        raise InputError(f"no way to the goal could be trained: {'; '.join(one.tried.why for one in judged)}")
    return judged, dense, pace
