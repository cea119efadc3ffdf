"""After a full run that missed its goal: the same way, tightened by what was missed, once or twice more; the nearest is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featherweight.errors import FeatherweightError
from featherweight.recipe.way import Way
from featherweight.run.choose import LEAST, NARROW, Told
from featherweight.run.goals import MARGIN
from featherweight.run.shrunk import Attempt, Choice, Shrunk, meets, told

MOST_RUNS = 3
FURTHEST = 0.5  # of an amount, that the next one is at least: one miss says little of what lies far below


def until_met(
    choice: Choice,
    run: Callable[[Choice], Shrunk],
    ways: Sequence[Way],
    tell: Told,
    lose: float | None,
    *,
    nearest: Callable[[Shrunk], None] = lambda reached: None,
    decided: Callable[[Callable[[], Any]], Any] = lambda make: make(),
) -> Shrunk | None:
    """Run a choice in full, and where it misses its goal while points of the score are left, the same way tightened.

    `run`: compresses and measures. `nearest` hears of each result that is nearer to the goal than those before. `decided`: as in
    Engine. None where an earlier command's run, in `choice.before`, came nearer than all of this one's.
    """
    best: Shrunk | None = None
    while True:
        reached = run(choice)
        runs = (*choice.before, reached.attempt)
        if decided(lambda: first_of(choice, runs, lose) is runs[-1]):  # noqa: B023
            best = reached
            nearest(reached)
        further = decided(lambda: tightened(choice, runs, ways, tell, lose))  # noqa: B023
        if further is None:
            return None if best is None else replace(best, runs=runs)
        choice = further


def workdir_of(place: Path, choice: Choice) -> Path:
    """Where a run has its checkpoint: a folder holds one run."""
    return place / str(len(choice.before) + 1) if choice.before else place


def workdirs(place: Path) -> list[Path]:
    """Those of further runs that are there."""
    return [folder for number in range(2, MOST_RUNS + 1) if (folder := place / str(number)).is_dir()]


def first_of(choice: Choice, runs: Sequence[Attempt], lose: float | None) -> Attempt:
    """The nearest to a goal: within what may be lost, then one that meets it at the least loss, else that which misses the least.
    Of equals the earlier."""

    def order(one: Attempt) -> tuple[bool, bool, float]:
        met = meets(choice, one.measured)
        return one.lost > (math.inf if lose is None else lose), not met, one.lost if met else one.measured

    return min(runs, key=order)


def tightened(choice: Choice, runs: Sequence[Attempt], ways: Sequence[Way], tell: Told, lose: float | None) -> Choice | None:
    """What to run next; None where the goal is met, the points are used up, or the way has no more to give, which is said."""
    last = runs[-1]
    if meets(choice, last.measured):
        return None
    missed = f"missed: {told(last, choice.goal)}; the goal is at most {choice.goal.shown(choice.limit)}"
    if lose is not None and last.lost >= lose:
        tell(f"{missed}. The {lose:g} points are used up: it is not tightened")
        return None
    if len(runs) >= MOST_RUNS:
        tell(f"{missed}. That was run {len(runs)} of at most {MOST_RUNS}")
        return None
    way = next((one for one in ways if one.shown(choice.amount) == choice.way), None)
    amount = None if way is None or choice.amount is None else further_amount(way, choice, runs)
    if way is None or amount is None:
        tell(f"{missed}. There is no more of this to do")
        return None
    try:
        recipe = way.recipe(amount, choice.epochs)
    except FeatherweightError as error:
        tell(f"{missed}. It cannot be tightened: {error}")
        return None
    tell(f"{missed}. Once more, tightened: {way.shown(amount)} (run {len(runs) + 1} of at most {MOST_RUNS})")
    aim = choice.limit * (1 - MARGIN.get(choice.goal.what, 0.0))
    return replace(choice, recipe=recipe, way=way.shown(amount), amount=amount, cost=aim, before=tuple(runs))


def further_amount(way: Way, choice: Choice, runs: Sequence[Attempt]) -> float | None:
    """The next amount below that of the last run: the next on offer, or by the ratio that was missed, and where two points are
    known along the line through them, whichever is less. None where there is none."""
    assert choice.amount is not None
    if way.amounts is not None:
        return next((one for one in way.amounts if one < choice.amount), None)
    last, aim = runs[-1].measured, choice.limit * (1 - MARGIN.get(choice.goal.what, 0.0))
    guesses = [choice.amount * aim / last]
    known = [(one.amount, one.measured) for one in runs[:-1] if one.amount is not None]
    for amount, measured in known or [(1.0, choice.now)]:  # with nothing taken away it costs what was given
        if measured > last and amount > choice.amount:
            guesses.append(choice.amount - (last - aim) * (amount - choice.amount) / (measured - last))
    least = max(LEAST, FURTHEST * choice.amount)
    found = min(max(min(guesses), least), choice.amount / NARROW)
    return found if found >= LEAST else None
