"""Symbols as bytes, several at a time: a Huffman code where that is nearly as short as lanes, which take longer to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError
from featherweight.files.packed import huffman, interleaved
from featherweight.files.packed.coder import Coder
from featherweight.files.packed.interleaved import PRECISION, TOTAL
from featherweight.files.packed.raw_bytes import Bulk

Ints = NDArray[np.int64]

JOINT = huffman.LITERALS  # symbols are coded several at a time while their tuples are no more than this
MOST_TOGETHER = 8
LANES, WAYS = 0, 1 + 2 * MOST_TOGETHER  # the others: so many together, under frequencies of each or under lengths of all tuples
FEW = 1 << 16  # symbols up to which the writer tries every way
LEAST = 1000  # symbols, below which each is coded on its own, under a table
RARE = 32  # they are as many as lose one part in this by the least frequency that a tuple has
OVER, OVER_BITS = 1.008, 128  # what a Huffman code may take, of the entropy, and so many bits more, but for its table


def entropy_bits(counts: Ints) -> float:
    """Empirical entropy of symbols that occur `counts` times, in bits."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum()) if present.size > 1 else 0.0


@dataclass(frozen=True)
class Stream:
    """Symbols made into bytes: `way`, below WAYS, says how; `front` is the table that it needs."""

    data: bytes
    way: int
    front: bytes

    @property
    def rank(self) -> tuple[bool, int]:
        """The less, the better: a short Huffman code, or any lanes, which are all as long."""
        return self.way == LANES, 0 if self.way == LANES else len(self.front) + len(self.data)


def encode(symbols: NDArray[np.int32], size: int, implied: Ints | None = None) -> Stream:
    """Symbols below `size`; `implied`: frequencies that the reader knows already."""
    counts = np.bincount(symbols, minlength=size)
    table = interleaved.frequencies(counts) if implied is None else implied
    stored = interleaved.write_numbers(table[:-1]) if implied is None else b""  # the last one is what is left of TOTAL
    if size <= JOINT and symbols.size >= LEAST:
        way, code, front, bits = min(_huffman_codes(symbols, table, stored), key=lambda found: found[-1])
        if bits <= OVER * entropy_bits(counts) + OVER_BITS + 8 * len(stored):
            return Stream(huffman.encode(_joined(symbols, size, _group(way)), code), way, front)
    group = _together(table, symbols.size)
    return Stream(interleaved.encode(_joined(symbols, size, group), _joint(table, group)), LANES, stored)


def write(coder: Coder, bulk: Bulk, stream: Stream) -> None:
    """Put it into the file: how it was made and its length into the coded part, its bytes into the bulk."""
    coder.choice(stream.way, "group", WAYS)
    bulk.write(stream.front)
    coder.number(len(stream.data) // 2 if stream.way == LANES else len(stream.data), "words")
    bulk.write(stream.data)


def read(coder: Coder, bulk: Bulk, count: int, names: Ints, implied: Ints | None = None) -> NDArray[Any]:
    """`count` symbols; symbol i is called names[i], ascending."""
    tuples: NDArray[Any]
    try:
        way = coder.choice(LANES, "group", WAYS)
        group = _group(way)
        if names.size**group > JOINT:
            raise ArtifactError(f"{group} of {names.size} symbols are more than a byte")
        if way > MOST_TOGETHER:
            code, taken = huffman.read_lengths(bulk.rest(), names.size**group + 1)
            bulk.read(taken, coder.section)
        else:
            table = _read_table(bulk, names.size, coder.section) if implied is None else implied
            group = group or _together(table, count)
            joint = _joint(table, group)
            code = huffman.lengths(joint) if way else joint
        data = bulk.read(coder.number(0, "words") * (1 if way else 2), coder.section)
        tuples = (huffman if way else interleaved).decode(data, code, -(-count // group))
    except ArtifactError as error:
        raise ArtifactError(f"the file is damaged: the symbols of {coder.section} cannot be decoded: {error}") from None
    return _apart(tuples, names, group)[:count]


def _group(way: int) -> int:
    """How many symbols a Huffman code has as one."""
    return way - MOST_TOGETHER if way > MOST_TOGETHER else way


def _huffman_codes(symbols: NDArray[np.int32], table: Ints, stored: bytes) -> Iterator[tuple[int, Ints, bytes, int]]:
    """(way, lengths of the words, what stands in front, bits of it all) of all that are worth a try."""
    most = _most_together(table.size, symbols.size)
    for group in range(1, most + 1) if symbols.size < FEW else [most]:  # fewer together need a smaller table
        counts = np.bincount(_joined(symbols, table.size, group), minlength=table.size**group)
        independent, measured = huffman.lengths(_joint(table, group)), huffman.lengths(np.maximum(counts, 1))
        yield group, independent, stored, huffman.bits(counts, independent) + 8 * len(stored)
        front = huffman.write_lengths(measured)
        yield MOST_TOGETHER + group, measured, front, huffman.bits(counts, measured) + 8 * len(front)


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
