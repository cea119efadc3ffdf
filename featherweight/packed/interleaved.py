"""An entropy coder for large things: many asymmetric numeral systems side by side, a step of all of them one array operation.

Range asymmetric numeral systems after Duda (arXiv 1311.2540), interleaved in one stream of words after Giesen (arXiv 1402.3392).
Integers only, so that a file is read alike on any machine. Symbol i of a stream belongs to lane i modulo the number of lanes; a
lane is a state in 2^16 .. 2^32 - 1, from which a symbol takes its information, and which is filled up by the next word of 16 bits
when it falls below. Lanes fill up in their order, so that one list of words serves all. What is left of each lane at the end
holds the last symbols of the stream, 16 bits a lane, as they are. A writer goes from the last symbol to the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError

PRECISION = 16
TOTAL = 1 << PRECISION  # what the frequencies of a table sum to
LANE_BITS = 24  # what a lane costs, but for the symbols at its end: a state of 32 bits holds 8 that are not used, on average
SHARE_OF_LANES = 200  # all lanes together cost one part in this of the stream
MOST_LANES = 1 << 14

Frequencies = NDArray[np.int64]


def frequencies(shares: Frequencies) -> Frequencies:
    """Shares >= 0 of their sum, which is below 2^47, as frequencies > 0 with the sum TOTAL."""
    whole = int(shares.sum())
    table = np.maximum(shares * TOTAL // whole, 1)
    if table.max() <= table.sum() - TOTAL:  # so many rare symbols that the most frequent one cannot pay for them
        table = shares * (TOTAL - shares.size) // whole + 1
    table[table.argmax()] += TOTAL - table.sum()
    return table


def encode(symbols: NDArray[np.integer[Any]], table: Frequencies) -> bytes:
    """The states of all lanes, then the words; symbol i has the share table[i] > 0 of TOTAL, and no share is all of it."""
    share, start = table.astype(np.uint32), _starts(table).astype(np.uint32)
    lanes, width, plain = _layout(table, symbols.size)
    count = symbols.size - plain
    states = np.full(lanes, TOTAL, np.uint32)
    for number, begin in enumerate(range(count, symbols.size, lanes)):
        last = symbols[begin : begin + lanes].astype(np.uint32)
        states[: last.size] += last << number * width
    words, place = np.empty(count, np.uint16), count
    for begin in range((count - 1) // lanes * lanes, -1, -lanes):
        step = symbols[begin : min(begin + lanes, count)]
        state, size = states[: step.size], share[step]
        full = np.flatnonzero(state >> PRECISION >= size)
        place -= full.size
        words[place : place + full.size] = state[full]
        state[full] >>= PRECISION
        quotient = state // size
        state += quotient * (TOTAL - size) + start[step]  # now quotient * TOTAL + start + remainder
    return states.astype("<u4").tobytes() + words[place:].astype("<u2").tobytes()


def decode(data: memoryview, table: Frequencies, size: int) -> NDArray[np.uint16]:
    """`size` symbols. Raises ArtifactError if `data` is not a stream of so many."""
    lanes, width, plain = _layout(table, size)
    if len(data) < 4 * lanes or len(data) % 2:
        raise ArtifactError(f"{len(data)} bytes cannot be a stream of {lanes} lanes")
    states = np.frombuffer(data[: 4 * lanes], "<u4").astype(np.uint32)
    words = np.frombuffer(data[4 * lanes :], "<u2").astype(np.uint32)
    owner = np.repeat(np.arange(table.size, dtype=np.uint16), table)  # of each of the TOTAL points, its symbol ..
    share = np.repeat(table, table).astype(np.uint32)  # .. that symbol's share ..
    offset = (np.arange(TOTAL) - np.repeat(_starts(table), table)).astype(np.uint32)  # .. and the point's place within it
    symbols, count, place = np.empty(size, np.uint16), size - plain, 0
    for begin in range(0, count, lanes):
        step = symbols[begin : min(begin + lanes, count)]
        state = states[: step.size]
        points = (state & (TOTAL - 1)).astype(np.intp)
        step[:] = owner[points]
        state >>= PRECISION
        state *= share[points]
        state += offset[points]
        low = np.flatnonzero(state < TOTAL)
        fresh = words[place : place + low.size]
        if fresh.size < low.size:
            raise ArtifactError("its words end too early")
        state[low] = state[low] << PRECISION | fresh
        place += low.size
    states -= TOTAL
    for begin in range(count, size, lanes):
        last = symbols[begin : begin + lanes]
        state = states[: last.size]
        last[:] = state & (1 << width) - 1
        state >>= width
    if place < words.size or bool(states.any()) or int(symbols[count:].max(initial=0)) >= table.size:
        raise ArtifactError("its lanes do not end as they should")
    return symbols


def _layout(table: Frequencies, size: int) -> tuple[int, int, int]:
    """Lanes, bits of a symbol as it is, and how many symbols at the end are stored so: found alike by writer and reader."""
    width = int(table.size - 1).bit_length()
    in_a_lane = PRECISION // width
    # bits of a symbol, to the nearest half, times 2 * TOTAL
    bits = sum(share * (2 * PRECISION + 1 - share.bit_length() - (share - 1).bit_length()) for share in table.tolist())
    lanes = size * bits // (SHARE_OF_LANES * (2 * TOTAL * LANE_BITS - in_a_lane * bits))
    lanes = min(max(1, lanes), MOST_LANES)
    return lanes, width, min(size, in_a_lane * lanes)


def _starts(table: Frequencies) -> Frequencies:
    return np.cumsum(table) - table
