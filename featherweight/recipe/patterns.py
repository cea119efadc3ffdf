"""Name patterns: globs, and regular expressions matched in a time that is linear in the name.

Recipes come from strangers, and Python's `re` backtracks: `(a+)+$` takes years on a name of 60 letters. Here an expression is run
as a nondeterministic automaton (Thompson, CACM 1968): all of its states step through the name together, so that each character
costs at most the number of states. The syntax is Python's, read by Python's own parser; what has no automaton of a bounded size
is refused: references to groups, looking behind, flags, and counts that would take more than `MOST_STATES` states.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from featherweight.errors import InputError, short

LONGEST = 256  # characters of a pattern
MOST_STATES = 2000

Test = Callable[[str], bool]


class PatternError(InputError):
    """A name pattern that is no glob or regular expression, or one that could take without end."""


def matches(pattern: str, name: str) -> bool:
    """`pattern`: a glob, or `re:` and a regular expression that must match the whole name. Raises PatternError."""
    if len(pattern) > LONGEST:
        raise PatternError(f"the name pattern {short(pattern)} has {len(pattern)} characters; at most {LONGEST} are allowed")
    if pattern.startswith("re:"):
        return _automaton(pattern[3:]).matches(name)
    return fnmatch.fnmatchcase(name, pattern)


@lru_cache(maxsize=256)
def _automaton(expression: str) -> _Automaton:
    try:
        tree = _parser.parse(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"{short(expression)} is not a regular expression: {error}") from None
    if tree.state.flags & ~re.UNICODE:
        raise PatternError(f"{short(expression)}: flags such as (?i) are not supported in a name pattern")
    return _Automaton(tree, expression)


class _Automaton:
    """States numbered from 0. Each is a character to take, a choice without taking any, or a condition on the place.

    taking      state -> (test of one character, next state)
    choices     state -> states that it may become
    conditions  state -> (does it hold in this text at this place?, next state)
    """

    def __init__(self, tree: Any, shown: str) -> None:
        self.shown, self.count = shown, 0
        self.taking: dict[int, tuple[Test, int]] = {}
        self.choices: dict[int, list[int]] = {}
        self.conditions: dict[int, tuple[Callable[[str, int], bool], int]] = {}
        self.seen: dict[tuple[int, int], bool] = {}  # what looking ahead from a state at a place found, in the text at hand
        self.end = self._state()
        self.start = self._sequence(tree, self.end)

    def matches(self, text: str) -> bool:
        """The whole of it."""
        self.seen = {}
        return self._run(text, 0, self.start, self.end, whole=True)

    def _run(self, text: str, place: int, start: int, end: int, whole: bool) -> bool:
        states = self._reached([start], text, place)
        while True:
            if end in states and (not whole or place == len(text)):
                return True
            if place == len(text) or not states:
                return False
            letter = text[place]
            place += 1
            pairs = (self.taking[state] for state in states if state in self.taking)
            states = self._reached((after for test, after in pairs if test(letter)), text, place)

    def _reached(self, begin: Iterable[int], text: str, place: int) -> set[int]:
        """All states that some states may become at a place without taking a character."""
        waiting, reached = list(begin), set()
        while waiting:
            state = waiting.pop()
            if state in reached:
                continue
            reached.add(state)
            waiting += self.choices.get(state, ())
            if state in self.conditions:
                holds, after = self.conditions[state]
                if holds(text, place):
                    waiting.append(after)
        return reached

    # --- building: each method gives the state before something, from the state after it

    def _state(self) -> int:
        if self.count == MOST_STATES:
            raise self._refused(f"its counts take more than {MOST_STATES} states")
        self.count += 1
        return self.count - 1

    def _refused(self, why: str) -> PatternError:
        return PatternError(f"the regular expression {short(self.shown)} is refused: {why}")

    def _sequence(self, tree: Any, after: int) -> int:
        for kind, argument in reversed(list(tree)):
            after = self._one(kind, argument, after)
        return after

    def _choice(self, states: list[int]) -> int:
        state = self._state()
        self.choices[state] = states
        return state

    def _condition(self, holds: Callable[[str, int], bool], after: int) -> int:
        state = self._state()
        self.conditions[state] = (holds, after)
        return state

    def _one(self, kind: Any, argument: Any, after: int) -> int:
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            state = self._state()
            self.taking[state] = (_test(kind, argument), after)
            return state
        if kind is op.BRANCH:
            return self._choice([self._sequence(part, after) for part in argument[1]])
        if kind is op.SUBPATTERN:
            _, added, removed, part = argument
            if added or removed:
                raise self._refused("flags such as (?i:...) are not supported")
            return self._sequence(part, after)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, part = argument
            return self._repeat(least, most, part, after)
        if kind is op.AT and argument in _PLACES:
            return self._condition(_PLACES[argument], after)
        if kind in (op.ASSERT, op.ASSERT_NOT) and argument[0] > 0:
            return self._condition(self._ahead(argument[1], kind is op.ASSERT), after)
        raise self._refused(f"{str(kind).lower().replace('_', ' ')} is not supported")

    def _repeat(self, least: int, most: int, part: Any, after: int) -> int:
        if most is op.MAXREPEAT:
            loop = self._choice([after])
            self.choices[loop].append(self._sequence(part, loop))
            after = loop
        else:
            last = after
            for _ in range(most - least):
                after = self._choice([last, self._sequence(part, after)])
        for _ in range(least):
            before = self.count
            after = self._sequence(part, after)
            if self.count == before:  # nothing, however often
                break
        return after

    def _ahead(self, part: Any, wanted: bool) -> Callable[[str, int], bool]:
        end = self._state()
        start = self._sequence(part, end)

        def holds(text: str, place: int) -> bool:
            if (start, place) not in self.seen:
                self.seen[start, place] = self._run(text, place, start, end, whole=False)
            return self.seen[start, place] == wanted

        return holds


def _word(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")


_PLACES: dict[Any, Callable[[str, int], bool]] = {
    op.AT_BEGINNING: lambda text, place: place == 0,
    op.AT_BEGINNING_STRING: lambda text, place: place == 0,
    op.AT_END: lambda text, place: text[place:] in ("", "\n"),
    op.AT_END_STRING: lambda text, place: place == len(text),
    op.AT_BOUNDARY: lambda text, place: _word(text, place - 1) != _word(text, place),
    op.AT_NON_BOUNDARY: lambda text, place: bool(text) and _word(text, place - 1) == _word(text, place),
}
_CATEGORIES: dict[Any, Test] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_NOT_DIGIT: lambda letter: not letter.isdecimal(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda letter: not letter.isspace(),
    op.CATEGORY_WORD: lambda letter: _word(letter, 0),
    op.CATEGORY_NOT_WORD: lambda letter: not _word(letter, 0),
}


def _test(kind: Any, argument: Any) -> Test:
    """Whether one character fits."""
    if kind is op.ANY:
        return lambda letter: letter != "\n"
    if kind in (op.LITERAL, op.NOT_LITERAL):
        return lambda letter: (ord(letter) == argument) == (kind is op.LITERAL)
    tests = [_item(*item) for item in argument if item[0] is not op.NEGATE]
    return lambda letter: any(test(letter) for test in tests) != (argument[0][0] is op.NEGATE)


def _item(kind: Any, argument: Any) -> Test:
    """One part of a set such as `[a-z_\\d]`."""
    if kind is op.RANGE:
        return lambda letter: argument[0] <= ord(letter) <= argument[1]
    return _CATEGORIES[argument] if kind is op.CATEGORY else lambda letter: ord(letter) == argument
