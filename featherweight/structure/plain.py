"""Data from a file, before anything is made of it: what JSON has and nothing else, and no more than an honest file holds.

An edit or a graph comes from the JSON of an artifact, from a checkpoint, or from a program. Whoever reads one asks here first:
the first loop over a tensor in the place of a list takes it apart into millions of tensors, and a list that is held in a thousand
places costs nothing to store and everything to walk.
"""

from __future__ import annotations

import math
from typing import Any

from featherweight.errors import shortened

# A graph of 5,000 operations takes 100,000 lists and objects; 30 layers of 11,000 units that are cut take 400,000 values.
MOST_CONTAINERS, MOST_VALUES = 400_000, 2_000_000  # lists and objects; commas and colons between values, as JSON has them
DEEPEST, LONGEST_TEXT = 64, 10_000
LARGEST_INTEGER = 2**63
TOO_MANY = f"more than {MOST_CONTAINERS} lists and objects, or more than {MOST_VALUES} values"


class NotPlain(ValueError):
    """Data that no file of ours holds; the message says what is wrong with it."""


def check_plain(data: Any, bounded: bool = True) -> None:
    """Raises NotPlain for what JSON has not, for texts, numbers and depths that no file needs, and for more lists, objects and
    values than one holds; what is held in several places counts at each.

    bounded   False: of kinds and depths alone; the caller bounds the rest, by what the network has
    """
    level: list[Any] = [[data]]
    containers, values = -1, 0
    for _ in range(DEEPEST + 1):
        inside: list[Any] = []
        for part in level:
            containers += 1
            values += max(0, (2 if type(part) is dict else 1) * len(part) - 1)
            if bounded and (containers > MOST_CONTAINERS or values > MOST_VALUES):
                raise NotPlain(f"it has {TOO_MANY}")
            if type(part) is dict:
                for key in part:
                    if type(key) is not str:
                        raise NotPlain(f"a key is a {type(key).__name__} and no text")
                    if bounded and (len(key) > LONGEST_TEXT or not key.isascii()):
                        _check_text(key)
            for value in part.values() if type(part) is dict else part:
                kind = type(value)  # of the exact types that JSON gives: a million of them take a tenth of a second
                if kind is int:
                    if bounded and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
                        raise NotPlain("a whole number has more than 64 bits")
                elif kind is str:
                    if bounded and (len(value) > LONGEST_TEXT or not value.isascii()):
                        _check_text(value)
                elif kind is list or kind is dict:
                    inside.append(value)
                elif kind is float:
                    if not math.isfinite(value):
                        raise NotPlain("a number is none, or too large for a float")
                elif kind is not bool and value is not None:
                    raise NotPlain(f"a value is a {kind.__name__}, which JSON has not")
        if not inside:
            return
        level = inside
    raise NotPlain(f"it is nested more than {DEEPEST} deep")


def _check_text(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise NotPlain(f"a text has {len(text)} characters, more than {LONGEST_TEXT}: {shortened(text)!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise NotPlain(f"a text holds half of a character: {shortened(ascii(text))}") from None
