"""A goal that a full run misses: the same way tightened, at most twice, while points are left; the nearest is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from featherweight.recipe.schema import Recipe, Train
from featherweight.recipe.way import Way
from featherweight.run.again import MOST_RUNS, until_met
from featherweight.run.goals import Goal
from featherweight.run.shrunk import Choice, Shrunk

NOW, LIMIT = 100.0, 50.0
COSTS: dict[str, Callable[[float], float]] = {  # share -> what the full run measures; 50 is asked
    "in proportion": lambda share: 117 * share,
    "a part stays": lambda share: 30 + 70 * share,
    "much stays": lambda share: 40 + 60 * share,
    "of the square": lambda share: 20 + 80 * share * share,
}


def way(**fields: Any) -> Way:
    return Way("channels", lambda amount, epochs: Recipe(repr(amount), (Train("dense"),)), **fields)


def first(amount: float, made: Way) -> Choice:
    goal = Goal("parameters", 0.5, True)
    return Choice(goal, made.recipe(amount, 3), made.shown(amount), None, NOW, LIMIT, 49.0, (), amount=amount, epochs=3)


def tried(
    cost: Callable[[float], float], lost: Callable[[float], float], lose: float | None, choice: Choice, made: Way
) -> tuple[Shrunk | None, list[Choice], list[str], list[Shrunk]]:
    """What is kept, the choices that were run, the lines told, and each that was the nearest when it was found."""
    run: list[Choice] = []
    lines: list[str] = []
    nearest: list[Shrunk] = []

    def in_full(chosen: Choice) -> Shrunk:
        run.append(chosen)
        assert chosen.amount is not None and chosen.recipe.name == repr(chosen.amount)
        score = 90 - lost(chosen.amount)
        return Shrunk(None, chosen, None, cost(chosen.amount), None, 90.0, score, lose)  # type: ignore[arg-type]

    kept = until_met(choice, in_full, [way(runtime="c"), made], lines.append, lose, nearest=nearest.append)
    return kept, run, lines, nearest


@pytest.mark.parametrize("shape", COSTS)
def test_a_goal_that_was_missed_is_met_by_going_a_little_further(shape: str) -> None:
    kept, run, lines, nearest = tried(COSTS[shape], lambda share: 0.1, 1.0, first(0.62, way()), way())
    assert kept is not None and kept.met and 1 < len(run) == len(kept.runs) <= MOST_RUNS and len(lines) == len(run) - 1
    largest = max(share / 1000 for share in range(1000) if COSTS[shape](share / 1000) <= LIMIT)
    assert 0.5 * largest <= run[-1].amount <= largest + 0.01 and nearest[-1].choice == kept.choice == run[-1]
    assert f"run {len(run)} of at most {MOST_RUNS}" in lines[-1] and f"kept      {kept.choice.way}" in str(kept)
    assert kept.to_dict()["runs"][0]["amount"] == 0.62


def test_the_ratio_that_was_missed_is_gone_where_a_line_would_fall_short() -> None:
    kept, run, _, _ = tried(lambda share: 100 * share * share, lambda share: 0.1, None, first(0.75, way()), way())
    assert kept is not None and kept.met and len(run) == 2 and run[1].amount == pytest.approx(0.75 * LIMIT / 56.25)


def test_a_goal_that_is_met_is_run_once_and_points_that_are_used_up_end_it() -> None:
    kept, run, lines, _ = tried(lambda share: 50.4, lambda share: 0.0, None, first(0.4, way()), way())
    assert kept is not None and kept.met and len(run) == 1 and not lines and "run 1" not in str(kept)
    kept, run, lines, nearest = tried(lambda share: 60.0, lambda share: 2.0, 2.0, first(0.4, way()), way())
    assert kept is not None and not kept.met and len(run) == len(nearest) == 1 and "are used up" in lines[0]


def test_what_loses_too_much_is_not_kept_and_the_nearest_is() -> None:
    kept, run, lines, nearest = tried(lambda share: 117 * share, lambda share: 1 - share, 0.55, first(0.5, way()), way())
    assert kept is not None and kept.choice == run[0] and not kept.met and kept.kept and len(run) == 2 and len(nearest) == 1
    kept, run, lines, nearest = tried(lambda share: 70 - share, lambda share: 0.0, None, first(0.5, way()), way())
    assert kept is not None and len(run) == MOST_RUNS and kept.choice == run[0], "each was further off than the first"
    assert "run 3 of at most 3" in lines[-1]


def test_of_bits_the_next_are_taken_and_what_has_no_amount_says_so() -> None:
    bits = way(amounts=(8.0, 4.0, 2.0))
    kept, run, lines, _ = tried(lambda amount: 15 * amount, lambda amount: 0.0, None, first(4.0, bits), bits)
    assert kept is not None and kept.met and [one.amount for one in run] == [4.0, 2.0] and "2 bits" in lines[0]
    for none in (way(amounts=()), bits):
        kept, run, lines, _ = tried(lambda amount: 60.0, lambda amount: 0.0, None, first(2.0, none), none)
        assert kept is not None and len(run) == 1 and "no more of this" in lines[0]


def test_a_run_that_goes_on_keeps_what_an_earlier_command_came_to() -> None:
    made = way()
    _, run, _, _ = tried(lambda share: 117 * share, lambda share: 0.0, None, first(0.5, made), made)
    kept, again, _, nearest = tried(lambda share: 90.0, lambda share: 0.0, None, run[1], made)
    assert kept is None and not nearest and len(again) == MOST_RUNS - 1
    kept, again, _, nearest = tried(lambda share: 40.0, lambda share: 0.0, None, replace(run[1], cost=1.0), made)
    assert kept is not None and kept.met and len(kept.runs) == 2 and len(again) == len(nearest) == 1
