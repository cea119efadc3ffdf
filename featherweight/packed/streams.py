"""Symbols as bytes, several at a time: a Huffman code where it is nearly as short, and an entropy coder of our own elsewhere.

zlib reads a Huffman code (RFC 1951, without matches) ten times faster than anything in numpy. It holds its own frequencies, block
by block, so that short streams are shorter under ours.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError
from featherweight.packed import interleaved
from featherweight.packed.bulk import Bulk
from featherweight.packed.coder import Coder
from featherweight.packed.interleaved import PRECISION, TOTAL

Ints = NDArray[np.int64]

JOINT = 1 << 8  # symbols are coded several at a time while their tuples are no more than this
MOST_TOGETHER = 8
FEW = 1 << 16  # symbols up to which the writer tries every way
LEAST = 1000  # symbols, below which each is coded on its own, under a table
RARE = 32  # they are as many as lose one part in this by the least frequency that a tuple has
MEMORY = 9  # zlib's most: the longest blocks, 32,767 symbols
OVER, OVER_BITS = 1.009, 128  # what a Huffman code may take, of the entropy, and so many bits more


def entropy_bits(counts: Ints) -> float:
    """Empirical entropy of symbols that occur `counts` times, in bits."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum()) if present.size > 1 else 0.0


@dataclass(frozen=True)
class Stream:
    """Symbols made into bytes. group: how many were coded as one by a Huffman code; 0 for lanes, after a table of frequencies."""

    data: bytes
    group: int = 0
    table: bytes = b""

    @property
    def rank(self) -> tuple[bool, int]:
        """The less, the better: a short Huffman code, or any lanes, which are all as long."""
        return not self.group, len(self.data) if self.group else 0


def encode(symbols: NDArray[np.int32], size: int, implied: Ints | None = None) -> Stream:
    """Symbols below `size`; `implied`: frequencies that the reader knows already."""
    counts = np.bincount(symbols, minlength=size)
    if size <= JOINT and symbols.size >= LEAST:
        most = _most_together(size, symbols.size)
        groups = range(1, most + 1) if symbols.size < FEW else [most]  # a small alphabet takes fewer bytes to describe
        short = min((_deflated(symbols, size, group) for group in groups), key=lambda stream: stream.rank)
        if 8 * len(short.data) <= OVER * entropy_bits(counts) + OVER_BITS:
            return short
    table = interleaved.frequencies(counts) if implied is None else implied
    group = _together(table, symbols.size)
    stored = interleaved.write_numbers(table[:-1]) if implied is None else b""  # the last one is what is left of TOTAL
    return Stream(interleaved.encode(_joined(symbols, size, group), _joint(table, group)), 0, stored)


def write(coder: Coder, bulk: Bulk, stream: Stream) -> None:
    """Put it into the file: how it was made and its length into the coded part, its bytes into the bulk."""
    coder.choice(stream.group, "group", MOST_TOGETHER + 1)
    bulk.write(stream.table)
    coder.number(len(stream.data) if stream.group else len(stream.data) // 2, "words")
    bulk.write(stream.data)


def read(coder: Coder, bulk: Bulk, count: int, names: Ints, implied: Ints | None = None) -> NDArray[Any]:
    """`count` symbols; symbol i is called names[i], ascending."""
    tuples: NDArray[Any]
    try:
        group = coder.choice(0, "group", MOST_TOGETHER + 1)
        if group:
            if names.size**group > JOINT:
                raise ArtifactError(f"{group} of {names.size} symbols are more than a byte")
            tuples = _inflated(bulk.read(coder.number(0, "words"), coder.section), -(-count // group), names.size**group)
        else:
            table = _read_table(bulk, names.size, coder.section) if implied is None else implied
            group = _together(table, count)
            data = bulk.read(2 * coder.number(0, "words"), coder.section)
            tuples = interleaved.decode(data, _joint(table, group), -(-count // group))
    except ArtifactError as error:
        raise ArtifactError(f"the file is damaged: the symbols of {coder.section} cannot be decoded: {error}") from None
    return _apart(tuples, names, group)[:count]


def _deflated(symbols: NDArray[np.int32], size: int, group: int) -> Stream:
    made = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS, MEMORY, zlib.Z_HUFFMAN_ONLY)
    return Stream(made.compress(_joined(symbols, size, group).astype(np.uint8).data) + made.flush(), group)


def _inflated(data: memoryview, size: int, tuples: int) -> NDArray[np.uint8]:
    """`size` symbols below `tuples`; never more, whatever the data says."""
    made = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        symbols = np.frombuffer(made.decompress(data, size + 1), np.uint8)
    except zlib.error as error:
        raise ArtifactError(str(error)) from None
    if symbols.size != size or not made.eof or made.unused_data or int(symbols.max(initial=0)) >= tuples:
        raise ArtifactError("its Huffman code is not of so many symbols")
    return symbols


def _read_table(bulk: Bulk, size: int, section: str) -> Ints:
    stored, taken = interleaved.read_numbers(bulk.rest(), size - 1)
    bulk.read(taken, section)
    table = np.append(stored, TOTAL - int(stored.sum()))
    if table[-1] < 1:
        raise ArtifactError("its frequencies sum to too much")
    return table


def _most_together(size: int, count: int) -> int:
    """How many of `count` symbols out of `size` >= 2 go into a byte."""
    group = 1
    while count >= LEAST and size ** (group + 1) <= JOINT:
        group += 1
    return group


def _together(table: Ints, count: int) -> int:
    """How many of `count` symbols are coded as one under a table: fewer where tuples are rarer than 1 of TOTAL."""
    group, bits = _most_together(table.size, count), interleaved.entropy(table)
    # a tuple that is too rare costs 1.4 / TOTAL bits of every other
    while group > 1 and RARE * 3 * interleaved.BIT * table.size**group > 2 * TOTAL * group * bits:
        group -= 1
    return group


def _joint(stored: Ints, group: int) -> Ints:
    """Frequencies of tuples of `group` independent symbols."""
    shares = stored << PRECISION
    for _ in range(group - 1):
        shares = (shares[:, None] * stored[None, :] >> PRECISION).reshape(-1)
    return stored if group == 1 else interleaved.frequencies(shares)


def _joined(symbols: NDArray[np.int32], size: int, group: int) -> NDArray[np.int32]:
    """(n,) symbols -> (n / group,) numbers of tuples, the last one filled up with zeros."""
    parts = np.zeros((-(-symbols.size // group), group), np.int32)
    parts.reshape(-1)[: symbols.size] = symbols
    tuples = parts[:, 0]
    for part in range(1, group):
        tuples = tuples * np.int32(size) + parts[:, part]
    return tuples


def _apart(tuples: NDArray[Any], names: Ints, group: int) -> NDArray[Any]:
    """(n,) numbers of tuples -> (n * group,) names."""
    kind = np.uint8 if int(names[-1]) < 256 else np.uint16
    if group == 1:
        return names.astype(kind)[tuples]
    parts = np.stack(np.unravel_index(np.arange(names.size**group), (names.size,) * group), 1)
    lines = np.ascontiguousarray(names[parts].astype(kind))  # (tuples, group)
    return lines.view(f"V{group * lines.itemsize}")[:, 0][tuples].view(kind)
