"""An entropy coder for large things: many asymmetric numeral systems side by side, a step of all of them one array operation.

Range asymmetric numeral systems after Duda (arXiv 1311.2540), interleaved in one stream of words after Giesen (arXiv 1402.3392).
Integers only, so that a file is read alike on any machine. Symbol i of a stream belongs to lane i modulo the number of lanes; a
lane is a state in 2^16 .. 2^32 - 1, from which a symbol takes its information, and which is filled up by the next word of 16 bits
when it falls below. Lanes fill up in their order, so that one list of words serves all. What is left of each lane at the end
holds the last symbols of the stream, as digits of a number below 2^16. A writer goes from the last symbol to the first.

A step takes as long for a hundred lanes as for one, so a stream of 100 kB needs hundreds of them to be read in a millisecond, and
what a lane costs decides how many it can have. Therefore the upper halves of the states, small numbers more often than large
ones, are stored as their lengths and as many bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError

PRECISION = 16
TOTAL = 1 << PRECISION  # what the frequencies of a table sum to
LANE_BITS = 21  # what a lane costs, but for the symbols at its end: 5 of the 28 bits of its state, and its least, 2^16
LEAST_BITS = 3  # that a lane costs at least, after those symbols
SHARE_OF_LANES = 170  # all lanes together cost one part in this of the stream, ..
FREE_BITS, SHARE_OF_FREE = 64, 64  # .. and so many bits more, or one part in that
MOST_LANES = 1 << 14
LEAST_STEPS, MOST_STEPS = 8, 1 << 14  # no table, however skewed, makes a stream slow: a step takes some 20 microseconds

POWER = 5  # logarithms are taken to one part in 2^POWER
BIT = TOTAL << POWER + 1  # of what `entropy` gives

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
    lanes, plain = _layout(table, symbols.size)
    count = symbols.size - plain
    states = np.full(lanes, TOTAL, np.uint32)
    for number, begin in enumerate(range(count, symbols.size, lanes)):
        last = symbols[begin : begin + lanes].astype(np.uint32)
        states[: last.size] += last * np.uint32(table.size**number)
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
    uppers = write_numbers(states >> PRECISION)
    return states.astype("<u2").tobytes() + uppers + bytes(len(uppers) % 2) + words[place:].astype("<u2").tobytes()


def decode(data: memoryview, table: Frequencies, size: int) -> NDArray[np.uint16]:
    """`size` symbols. Raises ArtifactError if `data` is not a stream of so many."""
    lanes, plain = _layout(table, size)
    states, rest = _read_states(data, lanes)
    words = np.frombuffer(rest, "<u2")
    share, start = table.astype(np.uint32), _starts(table).astype(np.uint32)
    owner = np.repeat(np.arange(table.size, dtype=np.uint16), table)  # the symbol of each of the TOTAL points
    symbols, count, place = np.empty(size, np.uint16), size - plain, 0
    for begin in range(0, count, lanes):
        step = symbols[begin : min(begin + lanes, count)]
        state = states[: step.size]
        points = state & (TOTAL - 1)
        owner.take(points, out=step, mode="clip")  # "clip" only because it spares numpy a copy: every point is in the table
        symbol = step.astype(np.intp)
        state >>= PRECISION
        state *= share.take(symbol, mode="clip")
        state += points - start.take(symbol, mode="clip")
        low = (state < TOTAL).nonzero()[0]
        fresh = words[place : place + low.size]
        if fresh.size < low.size:
            raise ArtifactError("its words end too early")
        state[low] = state.take(low) << PRECISION | fresh
        place += low.size
    states -= TOTAL
    for begin in range(count, size, lanes):
        last = symbols[begin : begin + lanes]
        state = states[: last.size]
        last[:] = state % table.size
        state //= np.uint32(table.size)
    if place < words.size or bool(states.any()):
        raise ArtifactError("its lanes do not end as they should")
    return symbols


def _layout(table: Frequencies, size: int) -> tuple[int, int]:
    """Lanes, and how many symbols at the end are digits in their states: found alike by writer and reader."""
    in_a_lane, radix = 0, table.size
    while radix <= TOTAL:
        in_a_lane, radix = in_a_lane + 1, radix * table.size
    bits = entropy(table)
    price = max(LANE_BITS * BIT - in_a_lane * bits, LEAST_BITS * BIT)
    paid = size * bits // SHARE_OF_LANES + min(FREE_BITS * BIT, size * bits // SHARE_OF_FREE)
    lanes = max(1, paid // price, size // MOST_STEPS)
    lanes = min(lanes, MOST_LANES, max(1, size // LEAST_STEPS))
    return lanes, min(size, in_a_lane * lanes)


def entropy(table: Frequencies) -> int:
    """Of a symbol in parts of BIT. Each logarithm is the exponent of a power, by multiplications that all machines do alike."""
    power = table / TOTAL
    for _ in range(POWER):
        power *= power
    return int((table * (1 - 2 * np.frexp(power)[1].astype(np.int64))).sum())


def write_numbers(numbers: NDArray[np.integer[Any]]) -> bytes:
    """Numbers from 1 to 2^16 - 1: how many bits each has below its first one, two numbers a byte; then those bits."""
    length = np.frexp(numbers.astype(np.float64))[1] - 1  # 0 .. 15, exactly
    below = numbers[:, None] >> np.arange(PRECISION) & 1
    pairs = np.zeros(numbers.size + numbers.size % 2, np.uint8)
    pairs[: numbers.size] = length
    bits = below[np.arange(PRECISION) < length[:, None]].astype(np.uint8)
    return (pairs[::2] | pairs[1::2] << 4).tobytes() + np.packbits(bits, bitorder="little").tobytes()


def read_numbers(data: memoryview, count: int) -> tuple[NDArray[np.int64], int]:
    """`count` numbers, and the bytes that they took. Raises ArtifactError where `data` is too short for them."""
    pairs = np.frombuffer(data[: (count + 1) // 2], np.uint8)
    length = np.stack([pairs & 15, pairs >> 4], 1).reshape(-1)[:count].astype(np.int64)
    ends = np.cumsum(length)
    size = pairs.size + (int(length.sum()) + 7) // 8
    if len(data) < size or length.size < count:
        raise ArtifactError(f"{len(data)} bytes do not hold {count} numbers")
    bits = np.zeros(size - pairs.size + 3, np.int64)
    bits[:-3] = np.frombuffer(data[pairs.size : size], np.uint8)
    first = ends - length
    at = first >> 3
    window = bits[at] | bits[at + 1] << 8 | bits[at + 2] << 16
    return window >> (first & 7) & (1 << length) - 1 | 1 << length, size


def _read_states(data: memoryview, lanes: int) -> tuple[NDArray[np.uint32], memoryview]:
    """The states of all lanes, and the words after them."""
    if len(data) % 2 or len(data) < 2 * lanes:
        raise ArtifactError(f"{len(data)} bytes cannot be a stream of {lanes} lanes")
    upper, size = read_numbers(data[2 * lanes :], lanes)
    lower = np.frombuffer(data[: 2 * lanes], "<u2")
    return (upper << PRECISION | lower).astype(np.uint32), data[2 * lanes + size + size % 2 :]


def _starts(table: Frequencies) -> Frequencies:
    return np.cumsum(table) - table
