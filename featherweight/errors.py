"""Every error a user can cause. Each message says what was given, what is allowed and how to fix it."""

from __future__ import annotations

import difflib
import heapq
import itertools
from collections.abc import Iterable


class FeatherweightError(Exception):
    """Base of all named errors; the command line turns it into one message and `exit_code`."""

    exit_code = 1


class InputError(FeatherweightError, ValueError):
    """A value, name or pattern that does not fit (exit code 2). A ValueError too, so that recipe validation collects it."""

    exit_code = 2


class RecipeError(InputError):
    """One or more mistakes in a recipe or its plan; `mistakes` lists all of them."""

    def __init__(self, mistakes: Iterable[str], where: str = "recipe"):
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = f"{count} mistake{'s' if count != 1 else ''} in the {where}:"
        super().__init__("\n".join([head, *(f"  - {mistake}" for mistake in self.mistakes)]))


class DataError(FeatherweightError):
    """Data that is missing or damaged (exit code 3)."""

    exit_code = 3


class ArtifactError(FeatherweightError):
    """An artifact or checkpoint that is damaged, foreign, or meant for another network (exit code 4)."""

    exit_code = 4


class TrainingError(FeatherweightError):
    """Training that cannot go on, such as a loss that is not finite (exit code 5)."""

    exit_code = 5


class StorageError(FeatherweightError):
    """Files that cannot be written, such as on a full disk (exit code 6)."""

    exit_code = 6


class DataWarning(UserWarning):
    """Of data that can be worked with, what a user has to know; the command line prints it as a note."""


LIKE = 0.5  # from 0 to 1: a name less like the given one is no suggestion
LONGEST_NAME, MOST_NAMES, MOST_COMPARED = 200, 20_000, 20  # what a suggestion may cost, whatever the names come from


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the nearest allowed name, else the empty string. Long names are left out, and all after 20,000."""
    if len(given) > LONGEST_NAME:
        return ""
    matcher = difflib.SequenceMatcher()
    matcher.set_seq2(given)
    rough = []  # (upper bound of the likeness, name)
    for name in itertools.islice(allowed, MOST_NAMES):
        if len(name) <= LONGEST_NAME:
            matcher.set_seq1(name)
            if matcher.real_quick_ratio() >= LIKE and (bound := matcher.quick_ratio()) >= LIKE:
                rough.append((bound, name))
    best, near = LIKE, None
    for _, name in heapq.nlargest(MOST_COMPARED, rough):
        matcher.set_seq1(name)
        if (likeness := matcher.ratio()) > best or (near is None and likeness == best):
            best, near = likeness, name
    return f" Did you mean '{near}'?" if near else ""


def shortened(text: str, most: int = 200) -> str:
    """The text, or its beginning and its length: what a file says may be megabytes, a message may not."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def short(value: object, most: int = 80) -> str:
    """`repr(value)` for a message, at most about `most` characters of it however large the value is."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        whole = len(value) <= most
        text = repr(value if whole else value[: most - 20])
        if len(text) > most + 3:  # what cannot be printed takes up to ten characters
            whole, text = False, text[: most - 20]
        return text if whole else f"{text}... ({len(value)} in all)"
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}" if value else repr(value)
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def require(*checks: tuple[bool, str]) -> None:
    """Raises one InputError that holds the message of every check that failed."""
    failed = [message for holds, message in checks if not holds]
    if failed:
        raise InputError("; ".join(failed))
