"""Large things: stored or geometric tables of frequencies, and symbols coded under them several at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError
from featherweight.packed import interleaved
from featherweight.packed.coder import Coder, code_subset
from featherweight.packed.interleaved import PRECISION, TOTAL

Ints = NDArray[np.int64]

LARGEST_ALPHABET = 1 << 12
JOINT = 1 << 8  # symbols are coded several at a time while their tuples are no more than this; two of those go into a lane's end
LEAST_JOINED = 1000  # symbols, below which each is coded on its own
RARE = 32  # they are as many as lose one part in this by the least frequency that a tuple has
NARROW, WIDE = 16, 256  # symbols that gaps are written in: pairs of the first where entries are dense
DENSE = 20  # places an entry, below which they are


class Bulk:
    """The bytes behind the coded part: written one block after the other, read in the same order."""

    def __init__(self, data: bytes = b""):
        self._data = memoryview(data)
        self._parts: list[bytes] = []
        self.spent: dict[str, int] = {}

    def write(self, part: bytes) -> None:
        self._parts.append(part)

    def read(self, size: int, section: str) -> memoryview:
        if size > len(self._data):
            raise ArtifactError(f"the file ends too early: {size} bytes of {section} are missing or cut off")
        part, self._data = self._data[:size], self._data[size:]
        self.spent[section] = self.spent.get(section, 0) + size
        return part

    def rest(self) -> memoryview:
        """What has not been read."""
        return self._data

    def finish(self) -> bytes:
        return b"".join(self._parts)

    def close(self) -> None:
        if len(self._data):
            raise ArtifactError(f"the file is damaged: {len(self._data)} bytes are left over at its end")


def code_plain(coder: Coder, bulk: Bulk, values: NDArray[np.uint8] | None, count: int) -> NDArray[np.uint8]:
    """`count` bytes as they are."""
    if values is not None:
        bulk.write(values.tobytes())
        return values
    return np.frombuffer(bulk.read(count, coder.section), np.uint8)


def code_symbols(coder: Coder, bulk: Bulk, values: NDArray[Any] | None, count: int, alphabet: int) -> NDArray[Any]:
    """`count` symbols below `alphabet` <= LARGEST_ALPHABET, under frequencies that are stored; equal symbols cost nothing."""
    counts = np.zeros(alphabet, np.int64) if values is None else np.bincount(values, minlength=alphabet)
    used_count = 1 + coder.uniform(int(np.count_nonzero(counts)) - 1, alphabet)
    used = np.array(code_subset(coder, np.flatnonzero(counts).tolist(), alphabet, used_count), np.int64)
    if used_count == 1:
        return np.full(count, used[0], np.int64) if values is None else values
    stored = _code_table(coder, bulk, counts[used] if values is not None else None, used_count)
    if values is not None:
        _write(coder, bulk, stored, _places(used, alphabet)[values])
        return values
    return _read(coder, bulk, stored, count, used)


def code_gaps(coder: Coder, bulk: Bulk, places: Ints | None, size: int, count: int) -> Ints:
    """`count` ascending places below `size`, each place as likely as any other: their gaps under a geometric law."""
    if count in (0, size):
        return np.arange(count)
    table = _geometric(size, count)
    longest = len(table) - 1  # this symbol stands for `longest` empty places and no entry
    if places is not None:
        gaps = np.diff(places, prepend=-1) - 1
        skips = gaps // longest
        symbols = np.full(int(skips.sum()) + count, longest, np.int32)
        symbols[np.cumsum(skips + 1) - 1] = gaps - skips * longest
        coder.number(symbols.size - count, "skips")
        _write(coder, bulk, table, symbols)
        return places
    skipped = coder.number(0, "skips")
    if skipped > size // longest:
        raise ArtifactError(f"the file is damaged: {skipped} skips of {longest} places in a tensor of {size}")
    read = _read(coder, bulk, table, count + skipped, np.arange(longest + 1))
    entry = read < longest
    ends = np.cumsum(read + entry, dtype=np.int64)
    found: Ints = ends[entry] - 1
    if found.size != count or int(ends[-1]) > size:
        raise ArtifactError(f"the file is damaged: the places of {coder.section} do not fit the network")
    return found


def entropy_bits(counts: Ints) -> float:
    """Empirical entropy of symbols that occur `counts` times, in bits."""
    present = counts[counts > 0].astype(np.float64)
    return float((present * np.log2(present.sum() / present)).sum()) if present.size > 1 else 0.0


def gap_bits(size: int, count: int) -> float:
    """What `code_gaps` needs, nearly."""
    return entropy_bits(np.array([count, size - count]))


def _code_table(coder: Coder, bulk: Bulk, counts: Ints | None, size: int) -> Ints:
    """Frequencies > 0 with the sum TOTAL, from counts; the last one is what is left."""
    if counts is not None:
        table = interleaved.frequencies(counts)
        bulk.write(interleaved.write_numbers(table[:-1]))
        return table
    stored, taken = interleaved.read_numbers(bulk.rest(), size - 1)
    bulk.read(taken, coder.section)
    table = np.append(stored, TOTAL - int(stored.sum()))
    if table[-1] < 1:
        raise ArtifactError(f"the file is damaged: the frequencies of {coder.section} sum to too much")
    return table


def _joint(stored: Ints, group: int) -> Ints:
    """Frequencies of tuples of `group` independent symbols."""
    shares = stored << PRECISION
    for _ in range(group - 1):
        shares = (shares[:, None] * stored[None, :] >> PRECISION).reshape(-1)
    return stored if group == 1 else interleaved.frequencies(shares)


def _geometric(size: int, count: int) -> Ints:
    """Frequencies of the gaps 0 .. longest - 1 and of `longest` or more, at a density of count / size."""
    longest = min((NARROW if size < DENSE * count else WIDE) - 1, max(1, 4 * size // count))
    stay = (size - count << 32) // size
    table, ahead = [], 1 << 32
    for _ in range(longest):
        after = ahead * stay >> 32
        table.append(ahead - after)
        ahead = after
    return interleaved.frequencies(np.array([*table, ahead], np.int64))


def _together(table: Ints, count: int) -> int:
    """How many of `count` symbols are coded as one."""
    group, bits = 1, interleaved.entropy(table)
    while count >= LEAST_JOINED and (tuples := table.size ** (group + 1)) <= JOINT:
        lost = 3 * interleaved.BIT * tuples // (2 * TOTAL)  # by tuples that are rarer than 1 of TOTAL: 1.4 / TOTAL bits for each
        if lost * RARE > (group + 1) * bits:
            break
        group += 1
    return group


def _write(coder: Coder, bulk: Bulk, table: Ints, symbols: NDArray[np.int32]) -> None:
    group = _together(table, symbols.size)
    parts = np.zeros((-(-symbols.size // group), group), np.int32)
    parts.reshape(-1)[: symbols.size] = symbols
    tuples = parts[:, 0]
    for part in range(1, group):
        tuples = tuples * np.int32(table.size) + parts[:, part]
    stream = interleaved.encode(tuples, _joint(table, group))
    coder.number(len(stream) // 2, "words")
    bulk.write(stream)


def _read(coder: Coder, bulk: Bulk, table: Ints, count: int, names: Ints) -> NDArray[Any]:
    """`count` symbols; symbol i is called names[i]."""
    stream = bulk.read(2 * coder.number(0, "words"), coder.section)
    group = _together(table, count)
    try:
        tuples = interleaved.decode(stream, _joint(table, group), -(-count // group))
    except ArtifactError as error:
        raise ArtifactError(f"the file is damaged: the symbols of {coder.section} cannot be decoded: {error}") from None
    return _apart(tuples, names, group)[:count]


def _apart(tuples: NDArray[np.uint16], names: Ints, group: int) -> NDArray[Any]:
    """(n,) tuples of ranks -> (n * group,) names."""
    kind = np.uint8 if int(names[-1]) < 256 else np.uint16
    parts = np.stack(np.unravel_index(np.arange(names.size**group), (names.size,) * group), 1)
    lines = np.ascontiguousarray(names[parts].astype(kind))  # (tuples, group)
    return lines.view(f"V{group * lines.itemsize}")[:, 0][tuples].view(kind)


def _places(used: Ints, alphabet: int) -> NDArray[np.int32]:
    places = np.zeros(alphabet, np.int32)
    places[used] = np.arange(used.size)
    return places
