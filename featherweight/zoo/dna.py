"""DNA in letters, numbers and one-hot, and shuffles that keep how often each pair of bases stands side by side."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from featherweight.errors import InputError

LETTERS = "ACGT"
UNKNOWN = 4
AMBIGUOUS = "NRYSWKMBDHV"  # IUPAC's letters for more than one base

_CODES = np.full(256, 255, dtype=np.uint8)
for _number, _letter in enumerate(LETTERS):
    _CODES[ord(_letter)] = _CODES[ord(_letter.lower())] = _number
for _letter in AMBIGUOUS:
    _CODES[ord(_letter)] = _CODES[ord(_letter.lower())] = UNKNOWN


def encoded(sequences: Sequence[str], where: str = "the sequences") -> Tensor:
    """Letters -> numbers, uint8 (count, length). Raises InputError for other letters and for unequal lengths."""
    lengths = {len(letters) for letters in sequences}
    if len(lengths) != 1 or 0 in lengths:
        shortest, longest = (min(lengths), max(lengths)) if lengths else (0, 0)
        raise InputError(
            f"{where} are of {shortest} to {longest} bases: give one length, such as 200 bases around the summit of each peak"
            if lengths - {0}
            else f"{where} hold no base"
        )
    codes = _CODES[np.frombuffer("".join(sequences).encode("latin-1", "replace"), dtype=np.uint8)].reshape(len(sequences), -1)
    wrong = np.argwhere(codes == 255)
    if len(wrong):
        sequence, place = (int(number) for number in wrong[0])
        letter = sequences[sequence][place]
        hint = " RNA? Write T for U." if letter in "uU" else ""
        raise InputError(
            f"{where}: sequence {sequence + 1} has {letter!r} at base {place + 1}, which is no letter of DNA: allowed are A C G "
            f"T, and {' '.join(AMBIGUOUS)} for bases that are not known, in either case.{hint}"
        )
    return torch.from_numpy(codes)


def decoded(codes: Tensor) -> list[str]:
    """Numbers (count, length) -> letters, N for an unknown base."""
    return ["".join((LETTERS + "N")[number] for number in row) for row in codes.tolist()]


def one_hot(codes: Tensor) -> Tensor:
    """Numbers (..., length) -> float32 (..., 4, length); an unknown base is a column of zeros."""
    return F.one_hot(codes.long(), 5)[..., :4].transpose(-1, -2).float()


def reverse_complement(bases: Tensor) -> Tensor:
    """The other strand of one-hot bases (..., 4, length): A C G T is in the order in which complements mirror."""
    return bases.flip(-1, -2)


def centre(codes: Tensor, window: int) -> Tensor:
    """The middle `window` bases of (count, length)."""
    start = (codes.shape[1] - window) // 2
    return codes[:, start : start + window]


# --- shuffling -----------------------------------------------------------------------------------------------------------


def shuffled(letters: str, dice: random.Random) -> str:
    """A sequence with exactly the same counts of all pairs of neighbours, and the same ends (Altschul and Erickson 1985).

    A walk through all edges of the graph from each letter to the next: of each letter but the last of all, one edge is kept for
    the end, such that these edges lead to that last letter; the others are taken in any order.
    """
    if len(letters) < 3:
        return letters
    after: dict[str, list[str]] = {}
    for one, next_one in itertools.pairwise(letters):
        after.setdefault(one, []).append(next_one)
    goal = letters[-1]
    while True:  # until the edges for the end lead from everywhere to the goal; on DNA two tries do, on average
        last = {letter: dice.choice(nexts) for letter, nexts in after.items() if letter != goal}
        if all(_leads(letter, goal, last) for letter in last):
            break
    for letter, nexts in after.items():
        if letter in last:
            nexts.remove(last[letter])
        dice.shuffle(nexts)
        if letter in last:
            nexts.append(last[letter])
    ways = {letter: iter(nexts) for letter, nexts in after.items()}
    walked = [letters[0]]
    for _ in range(len(letters) - 1):
        walked.append(next(ways[walked[-1]]))
    return "".join(walked)


def _leads(letter: str, goal: str, last: dict[str, str]) -> bool:
    seen = set()
    while letter != goal:
        if letter in seen:
            return False
        seen.add(letter)
        letter = last[letter]
    return True
