"""Huffman codes from their definition, one bit at a time; imports nothing of ours."""

from __future__ import annotations

import math
from functools import cache
from itertools import islice


def read_words(data: bytes, lengths: list[int]) -> list[int]:
    """Symbols up to the last one, which ends the stream: words as in RFC 1951, 3.2.2, their first bit lowest in its byte."""
    word, words = 0, {}
    for length in range(1, max(lengths) + 1):
        for symbol, own in enumerate(lengths):
            if own == length:
                words[length, word] = symbol
                word += 1
        word <<= 1
    bits = (byte >> place & 1 for byte in data for place in range(8))
    found: list[int] = []
    while not found or found[-1] != len(lengths) - 1:
        length, word = 0, 0
        while (length, word) not in words:
            (bit,) = islice(bits, 1)
            length, word = length + 1, word << 1 | bit
        found.append(words[length, word])
    assert not any(bits), "only zeros fill the last byte"
    return found[:-1]


def least_bits(frequencies: list[int], longest: int) -> int:
    """Of all trees of no more than `longest` levels, the least sum of frequency times depth: by trying every number of leaves at
    every level, the frequent ones first."""
    falling = sorted(frequencies, reverse=True)
    rest = [sum(falling[place:]) for place in range(len(falling) + 1)]

    @cache
    def below(level: int, placed: int, places: int) -> float:
        left = len(falling) - placed
        if left < places or (level == longest and left > places):
            return math.inf  # a place without a symbol, or symbols without a place
        if left == places:
            return 0
        return min(rest[placed + leaves] + below(level + 1, placed + leaves, 2 * (places - leaves)) for leaves in range(places))

    return int(rest[0] + below(1, 0, 2))
