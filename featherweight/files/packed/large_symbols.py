"""Large things: symbols under frequencies that are stored, gaps under a geometric law, and bytes as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError
from featherweight.files.packed import interleaved, streams
from featherweight.files.packed.coder import Coder, code_subset
from featherweight.files.packed.raw_bytes import Bulk
from featherweight.files.packed.streams import Ints, entropy_bits

LARGEST_ALPHABET = 1 << 12
WIDTHS = range(3, 9)  # bits of the symbols that gaps are written in: few where entries are dense
DENSE = 20  # places an entry, below which they are


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
    if values is None:
        return streams.read(coder, bulk, count, used)
    streams.write(coder, bulk, streams.encode(_places(used, alphabet)[values], used_count))
    return values


def code_gaps(coder: Coder, bulk: Bulk, places: Ints | None, size: int, count: int) -> Ints:
    """`count` ascending places below `size`, each place as likely as any other: their gaps under a geometric law."""
    if count in (0, size):
        return np.arange(count)
    if places is not None:
        gaps = np.diff(places, prepend=-1) - 1
        usual = 4 if size < DENSE * count else 8
        widths = WIDTHS if count < streams.FEW else [usual]
        bits, skips, stream = min(
            (_in_symbols(gaps, size, bits) for bits in widths), key=lambda made: (*made[2].rank, made[0] != usual)
        )
        coder.uniform(bits - WIDTHS[0], len(WIDTHS))
        coder.number(skips, "skips")
        streams.write(coder, bulk, stream)
        return places
    longest = (1 << WIDTHS[0] + coder.uniform(0, len(WIDTHS))) - 1
    skipped = coder.number(0, "skips")
    if skipped > size // longest:
        raise ArtifactError(f"the file is damaged: {skipped} skips of {longest} places in a tensor of {size}")
    read = streams.read(coder, bulk, count + skipped, np.arange(longest + 1), _geometric(size, count, longest))
    entry = read < longest
    ends = np.cumsum(read + entry, dtype=np.int64)
    found: Ints = ends[entry] - 1
    if found.size != count or int(ends[-1]) > size:
        raise ArtifactError(f"the file is damaged: the places of {coder.section} do not fit the network")
    return found


def gap_bits(size: int, count: int) -> float:
    """What `code_gaps` needs, nearly."""
    return entropy_bits(np.array([count, size - count]))


def _in_symbols(gaps: Ints, size: int, bits: int) -> tuple[int, int, streams.Stream]:
    """`bits`; the symbols below 2^bits, and how many are the last one, which stands for so many empty places and no entry."""
    longest = (1 << bits) - 1
    skips = gaps // longest
    symbols = np.full(int(skips.sum()) + gaps.size, longest, np.int32)
    symbols[np.cumsum(skips + 1) - 1] = gaps - skips * longest
    return bits, symbols.size - gaps.size, streams.encode(symbols, longest + 1, _geometric(size, gaps.size, longest))


def _geometric(size: int, count: int, longest: int) -> Ints:
    """Frequencies of the gaps 0 .. longest - 1 and of `longest` or more, at a density of count / size."""
    stay = (size - count << 32) // size
    table, ahead = [], 1 << 32
    for _ in range(longest):
        after = ahead * stay >> 32
        table.append(ahead - after)
        ahead = after
    return interleaved.frequencies(np.array([*table, ahead], np.int64))


def _places(used: Ints, alphabet: int) -> NDArray[np.int32]:
    places = np.zeros(alphabet, np.int32)
    places[used] = np.arange(used.size)
    return places
