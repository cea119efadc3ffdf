"""A reader of interleaved asymmetric numeral systems from their definition, one symbol at a time; imports nothing of ours."""

from __future__ import annotations

from itertools import accumulate


def read_stream(data: bytes, frequencies: list[int], size: int, lanes: int) -> list[int]:
    """`size` symbols: a state of 32 bits for each lane, then words of 16; symbol i has the share frequencies[i] of 2^16.

    First the lower halves of the states; then, of the upper ones, the number of bits below the first that is set, four bits
    each, and those bits; then, if that is an odd number of bytes, another. The last symbols, as many as go into a number below
    2^16 for each lane, are what its state is in the end.
    """
    radix = len(frequencies)
    digits = max(power for power in range(17) if radix**power <= 1 << 16)
    count = max(0, size - lanes * digits)
    owners = [symbol for symbol, share in enumerate(frequencies) for _ in range(share)]
    assert len(owners) == 1 << 16
    starts = [0, *accumulate(frequencies)]

    bits = [byte >> bit & 1 for byte in data[2 * lanes :] for bit in range(8)]
    nibbles = 4 * (lanes + lanes % 2)
    lengths = [number(bits[4 * lane : 4 * lane + 4]) for lane in range(lanes)]
    ends = [nibbles + end for end in accumulate(lengths)]
    uppers = [1 << length | number(bits[end - length : end]) for length, end in zip(lengths, ends, strict=True)]
    lowers = [int.from_bytes(data[2 * lane : 2 * lane + 2], "little") for lane in range(lanes)]
    states = [upper << 16 | lower for upper, lower in zip(uppers, lowers, strict=True)]
    place = 2 * (lanes + -(-ends[-1] // 16))

    found = []
    for step in range(count):
        quotient, point = divmod(states[step % lanes], 1 << 16)
        symbol = owners[point]
        state = quotient * frequencies[symbol] + point - starts[symbol]
        if state < 1 << 16:
            state = state << 16 | int.from_bytes(data[place : place + 2], "little")
            place += 2
        states[step % lanes] = state
        found.append(symbol)
    assert place == len(data)
    assert all(state >> 16 == 1 for state in states)
    tails = [state - (1 << 16) for state in states]
    for step in range(size - count):
        tails[step % lanes], symbol = divmod(tails[step % lanes], radix)
        found.append(symbol)
    assert not any(tails)
    return found


def number(bits: list[int]) -> int:
    """Of its binary digits, the lowest first."""
    return sum(bit << place for place, bit in enumerate(bits))
