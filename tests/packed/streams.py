"""An integer-only reader of what constriction's range encoder writes, from its definition; imports nothing of ours."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

WORD, PRECISION = 32, 24  # bits of a word, and of a probability
STATE = (1 << 2 * WORD) - 1


def read_stream(words: list[int], frequencies: list[int], count: int) -> list[int]:
    """`count` symbols from a stream of 32-bit words; symbol i has the share frequencies[i] of 2^24."""
    starts = [0, *accumulate(frequencies)]
    assert starts[-1] == 1 << PRECISION
    ahead = iter(words)
    lower, size = 0, STATE
    point = next(ahead, 0) << WORD | next(ahead, 0)
    found = []
    for _ in range(count):
        unit = size >> PRECISION
        share = (point - lower & STATE) // unit
        assert share < 1 << PRECISION
        symbol = bisect_right(starts, share) - 1
        lower, size = lower + unit * starts[symbol] & STATE, unit * frequencies[symbol]
        if size < 1 << WORD:
            lower, size = lower << WORD & STATE, size << WORD
            point = (point << WORD & STATE) | next(ahead, 0)
        found.append(symbol)
    return found
