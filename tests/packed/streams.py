"""A reader of interleaved asymmetric numeral systems from their definition, one symbol at a time; imports nothing of ours."""

from __future__ import annotations

from itertools import accumulate


def read_stream(data: bytes, frequencies: list[int], size: int, lanes: int) -> list[int]:
    """`size` symbols: a state of 32 bits for each lane, then words of 16; symbol i has the share frequencies[i] of 2^16.

    The last ones, as many as go into 16 bits of each lane, are what its state is in the end.
    """
    width = len(bin(len(frequencies) - 1)) - 2
    count = max(0, size - lanes * (16 // width))
    owners = [symbol for symbol, share in enumerate(frequencies) for _ in range(share)]
    assert len(owners) == 1 << 16
    starts = [0, *accumulate(frequencies)]
    states = [int.from_bytes(data[4 * lane : 4 * lane + 4], "little") for lane in range(lanes)]
    place = 4 * lanes
    found = []
    for number in range(count):
        quotient, point = divmod(states[number % lanes], 1 << 16)
        symbol = owners[point]
        state = quotient * frequencies[symbol] + point - starts[symbol]
        if state < 1 << 16:
            state = state << 16 | int.from_bytes(data[place : place + 2], "little")
            place += 2
        states[number % lanes] = state
        found.append(symbol)
    assert place == len(data)
    assert all(state >> 16 == 1 for state in states)
    tails = [state - (1 << 16) for state in states]
    for number in range(size - count):
        tails[number % lanes], symbol = divmod(tails[number % lanes], 1 << width)
        found.append(symbol)
    assert not any(tails)
    return found
