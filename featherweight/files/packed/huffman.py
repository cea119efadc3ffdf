"""A Huffman code that zlib reads, without the header that zlib would write.

zlib reads a Huffman code ten times faster than anything in numpy. A block of DEFLATE (RFC 1951) has the lengths of its code in
front; a file of ours holds only what comes after them, and the reader makes them anew: from frequencies that it knows, or from
lengths that are stored once. What zlib writes depends on its version, so that we write ourselves. Integers only, so that a file
is read alike on any machine.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError

LONGEST = 15  # bits of a code word, in DEFLATE
LITERALS = 256  # symbols that are bytes; the next one ends the block
AT_ONCE = 1 << 18  # symbols that the writer turns into bits together

Ints = NDArray[np.int64]  # counts and frequencies; and codes, as the lengths of their words: of all symbols, and of the end


def lengths(frequencies: Ints) -> Ints:
    """Of the code words of all symbols and, behind them, of the end of a stream, which is as rare as any symbol can be: no code
    with words up to LONGEST bits has a lower mean length. `frequencies` > 0.

    Package-merge, Larmore and Hirschberg 1990. Of equal frequencies the one that stands first gets the longer word.
    """
    frequencies = np.append(frequencies, 1)
    order = np.argsort(frequencies, kind="stable")
    rising = frequencies[order]
    packages = rising[:0]
    leaves = []  # for each length of list, from the shortest words on: how many of its first items are symbols
    for _ in range(LONGEST):
        items = np.concatenate([rising, packages])
        merged = np.argsort(items, kind="stable")
        leaves.append(np.cumsum(merged < rising.size))
        items = items[merged]
        packages = items[: items.size // 2 * 2].reshape(-1, 2).sum(1)
    found, wanted = np.zeros(rising.size, np.int64), 2 * rising.size - 2
    for among in reversed(leaves):
        if not wanted:
            break
        symbols = int(among[wanted - 1])
        found[order[:symbols]] += 1
        wanted = 2 * (wanted - symbols)
    return found


def bits(counts: Ints, code: Ints) -> int:
    """What symbols that occur `counts` times take, and the end, under code words of these lengths."""
    return int((counts * code[:-1]).sum() + code[-1])


def encode(symbols: NDArray[np.integer[Any]], code: Ints) -> bytes:
    """Up to LITERALS different symbols, under code words of these lengths, and the end."""
    words = _words(code)
    parts, rest, spare = [], np.uint64(0), 0  # bits that do not fill a word of 64 yet, and how many
    ending = np.array([code.size - 1], np.int64)
    for begin in range(0, symbols.size + 1, AT_ONCE):
        chunk = symbols[begin : begin + AT_ONCE]
        if begin + AT_ONCE > symbols.size:
            chunk = np.concatenate([chunk, ending])
        made, end = _one_after_the_other(words[chunk], code[chunk].astype(np.uint64), spare)
        made[0] |= rest
        whole, spare = divmod(end, 64)
        parts.append(made[:whole].astype("<u8").tobytes())
        rest = made[whole]
    return b"".join(parts) + int(rest).to_bytes(8, "little")[: -(-spare // 8)]


def decode(data: memoryview, code: Ints, count: int) -> NDArray[np.uint8]:
    """`count` symbols; never more are made, whatever `data` says. Raises ArtifactError if it is not a code of so many, or no
    code has words of such lengths.
    """
    reader = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        reader.decompress(_header(code))
        symbols = np.frombuffer(reader.decompress(data, count + 1), np.uint8)
    except zlib.error as error:
        raise ArtifactError(str(error)) from None
    if symbols.size != count or not reader.eof or reader.unused_data:
        raise ArtifactError(f"its Huffman code is not of {count} symbols")
    return symbols


def write_lengths(code: Ints) -> bytes:
    """The least, four bits; in how many bits each is stored, four bits; what each is above the least."""
    least = int(code.min())
    width = int(code.max() - least).bit_length()
    above = (code[:, None] - least) >> np.arange(width) & 1
    return bytes([least | width << 4]) + np.packbits(above.astype(np.uint8), bitorder="little").tobytes()


def read_lengths(data: memoryview, count: int) -> tuple[Ints, int]:
    """`count` lengths, and the bytes that they took. Raises ArtifactError where `data` is too short for them."""
    width = data[0] >> 4 if len(data) else 0
    taken = 1 + -(-count * width // 8)
    if len(data) < taken:
        raise ArtifactError(f"{len(data)} bytes do not hold {count} lengths")
    above = np.unpackbits(np.frombuffer(data[1:taken], np.uint8), bitorder="little")[: count * width].reshape(count, width)
    return (data[0] & 15) + (above.astype(np.int64) << np.arange(width)).sum(1), taken


def _words(code: Ints) -> NDArray[np.uint64]:
    """The canonical code of RFC 1951, 3.2.2, the first bit of each word lowest, as it is written."""
    order = np.argsort(code, kind="stable")
    share = 1 << LONGEST - code[order]  # of the words of LONGEST bits, those that begin with this one
    starts = np.cumsum(share) - share
    words = np.zeros(code.size, np.int64)
    for bit in range(LONGEST):
        words[order] |= (starts >> bit & 1) << LONGEST - 1 - bit
    return words.astype(np.uint64)


def _header(code: Ints) -> bytes:
    """What DEFLATE has in front of such a code (RFC 1951, 3.2.7), after an empty block that makes it whole bytes."""

    def lowest_first(number: int, width: int) -> list[int]:
        return [number >> bit & 1 for bit in range(width)]

    empty = [0, *lowest_first(1, 2), *[0] * 7]
    # the last block, of a code of its own, for 257 symbols and 2 distances; 19 lengths of the code that the lengths are in: the
    # first three are for repetitions, which do not occur, and the others 4, so that a length is its own code word
    block = [1, *lowest_first(2, 2), *lowest_first(0, 5), *lowest_first(1, 5), *lowest_first(15, 4), *[0] * 9, *[0, 0, 1] * 16]
    stored = np.zeros(LITERALS + 3, np.int64)
    stored[: code.size - 1] = code[:-1]
    stored[LITERALS] = code[-1]
    highest_first = (stored[:, None] >> np.arange(3, -1, -1) & 1).reshape(-1)
    return np.packbits(np.concatenate([[*empty, *block], highest_first]).astype(np.uint8), bitorder="little").tobytes()


def _one_after_the_other(words: NDArray[np.uint64], size: NDArray[np.uint64], start: int) -> tuple[NDArray[np.uint64], int]:
    """Words of `size` bits one after the other from bit `start` < 64 on, in 64 bits each; and the bit after the last one."""
    for _ in range(2):  # four words of 15 bits go into one of 64
        if words.size % 2:
            words, size = np.append(words, np.uint64(0)), np.append(size, np.uint64(0))
        words, size = words[::2] | words[1::2] << size[::2], size[::2] + size[1::2]
    ends = np.cumsum(size, dtype=np.int64) + start
    first = ends - size.astype(np.int64)
    place, shift = first >> 6, (first & 63).astype(np.uint64)
    made = np.zeros(int(ends[-1] >> 6) + 2, np.uint64)
    begins = np.flatnonzero(np.diff(place, prepend=-1))
    made[place[begins]] = np.bitwise_or.reduceat(words << shift, begins)
    last = np.append(begins[1:], place.size) - 1  # of those that begin in a place only the last can run over into the next
    made[place[last] + 1] |= words[last] >> np.uint64(1) >> np.uint64(63) - shift[last]
    return made, int(ends[-1])
