"""Floating-point numbers, exactly as given: the fewer bits they were rounded to, the fewer are stored; nothing has to say so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError
from featherweight.files.packed import large_symbols
from featherweight.files.packed.coder import Coder, Meter, code_subset
from featherweight.files.packed.entries import Budget, code_large_symbols
from featherweight.files.packed.raw_bytes import Bulk
from featherweight.files.packed.streams import entropy_bits

Words = NDArray[np.uint32]
Ints = NDArray[np.int64]

SAME, GRID, FLOAT, PALETTE, PLANES = range(5)  # the ways; see the functions of these names
UNIFORM, GAPPED, FOLDED, SUBSET = range(4)  # the laws of GRID
SMALL = 20_000  # numbers up to which each is coded on its own
WORK = 12  # units of a budget for one of them


def code_floats(
    coder: Coder, bulk: Bulk, budget: Budget, words: Words | None, count: int, alive: NDArray[np.bool_] | None = None
) -> Words:
    """`count` float32 numbers as their bit patterns. `alive`: (count,), whether a unit is one that has weights; only a hint."""
    if count == 0:
        return np.zeros(0, np.uint32)
    alive = alive if alive is not None and alive.size == count else np.ones(count, bool)
    way = SAME
    law = UNIFORM
    if words is not None:
        way, law = _best(words, alive, budget)
    way = coder.choice(way, "way", 5)
    if way == SAME:
        return np.full(count, _code_word(coder, int(words[0]) if words is not None else 0), np.uint32)
    if way in (GRID, FLOAT):
        if count > SMALL:
            raise ArtifactError(f"the file is damaged: {coder.section} has too many numbers to be coded one by one")
        budget.spend(WORK * count)
        if way == FLOAT:
            return _code_float(coder, words, alive)
        return _code_grid(coder, words, alive, law)
    if way == PALETTE:
        return _code_palette(coder, bulk, budget, words, count)
    planes = None if words is None else words.view(np.uint8).reshape(-1, 4)
    return code_planes(coder, bulk, planes, count, 4).view(np.uint32)[:, 0]


def code_planes(coder: Coder, bulk: Bulk, planes: NDArray[np.uint8] | None, count: int, width: int) -> NDArray[np.uint8]:
    """(count, width) bytes, a little-endian number a line: each column under a table, or as it is if that gains under 1 %."""
    result = np.empty((count, width), np.uint8)
    for column in range(width):
        given = None if planes is None else np.ascontiguousarray(planes[:, column])
        plain = given is not None and entropy_bits(np.bincount(given)) + 14 * len(np.unique(given)) > 7.92 * count
        if coder.choice(int(plain), "plain", 2):
            result[:, column] = large_symbols.code_plain(coder, bulk, given, count)
        else:
            result[:, column] = large_symbols.code_symbols(coder, bulk, given, count, 256)
    return result


def _best(words: Words, alive: NDArray[np.bool_], budget: Budget) -> tuple[int, int]:
    """The way, and the law of a grid, that need the fewest bits."""
    if bool((words == words[0]).all()):
        return SAME, UNIFORM
    count = words.size
    options: list[tuple[float, int, int]] = []
    if count <= SMALL and budget.allows(WORK * count):
        meter = Meter()
        _code_float(meter, words, alive)
        options.append((meter.bits, FLOAT, UNIFORM))
        if (grid := _grid(words)) is not None:
            for law in (UNIFORM, GAPPED, FOLDED, SUBSET):
                if law == SUBSET and not (bool((np.diff(grid[1]) > 0).all()) and int(np.ptp(grid[1])) < 1 << 16):
                    continue
                meter = Meter()
                _code_grid(meter, words, alive, law)
                options.append((meter.bits, GRID, law))
    if count > 256:
        planes = words.view(np.uint8).reshape(-1, 4)
        bits = [entropy_bits(np.bincount(planes[:, c])) + 14 * len(np.unique(planes[:, c])) for c in range(4)]
        options.append((sum(min(8.0 * count, b + 32) for b in bits), PLANES, UNIFORM))
        sample = np.unique(words[:: max(1, count // 4096)])
        if sample.size < 4096:
            distinct, counts = np.unique(words, return_counts=True)
            if distinct.size <= large_symbols.LARGEST_ALPHABET:
                options.append((entropy_bits(counts) + (14 + 32) * distinct.size + 32, PALETTE, UNIFORM))
    else:
        options.append((32.0 * count + 64, PLANES, UNIFORM))
    return min(options)[1:]


def _code_word(coder: Coder, word: int) -> int:
    """One number: 0, 1, or its bits up to the last that is set."""
    known = (0, 0x3F800000)
    which = coder.choice(known.index(word) if word in known else 2, "word", 3)
    if which < 2:
        return known[which]
    zeros = coder.uniform(_trailing(word), 32)
    return coder.uniform(word >> zeros, 1 << 32 - zeros) << zeros


def _code_float(coder: Coder, words: Words | None, alive: NDArray[np.bool_]) -> Words:
    """Sign, exponent and the mantissa bits that any of the numbers uses; zeros are told apart first."""
    given = words if words is not None else np.zeros(1, np.uint32)
    some = given[given != 0] if bool((given != 0).any()) else given
    zeros = coder.uniform(min(23, _trailing(int(np.bitwise_or.reduce(given)))), 24)
    exponents = some >> 23 & 255
    lowest = coder.uniform(int(exponents.min()), 256)
    span = coder.uniform(int(exponents.max()) - lowest, 256 - lowest)
    symbols, has_zeros = f"exponent {span}", coder.uniform(int(bool((given == 0).any())), 2)
    coder.contexts.pop(symbols, None)
    found = []
    for number, live in enumerate(alive.tolist()):
        word = int(words[number]) if words is not None else 0
        if has_zeros and coder.choice(int(word == 0), f"zero {live}", 2):
            found.append(0)
            continue
        sign = coder.choice(word >> 31, "sign", 2)
        exponent = lowest + coder.choice((word >> 23 & 255) - lowest, symbols, span + 1)
        mantissa = coder.uniform((word & 0x7FFFFF) >> zeros, 1 << 23 - zeros) << zeros
        found.append(sign << 31 | exponent << 23 | mantissa)
    return np.array(found, np.uint32)


def _code_grid(coder: Coder, words: Words | None, alive: NDArray[np.bool_], law: int) -> Words:
    """Whole multiples of one power of two."""
    exponent, values = (0, None) if words is None else _grid(words) or (0, None)
    exponent = coder.signed(exponent, "grid")
    law = coder.uniform(law, 4)
    count = alive.size
    low = high = 0
    if law != FOLDED:
        low = coder.signed(int(values.min()) if values is not None else 0, "low")
        high = low + coder.number(int(values.max()) - low if values is not None else 0, "span")
    if not -160 <= exponent <= 128 or max(abs(low), abs(high)) >= 1 << 24:
        raise ArtifactError(f"the file is damaged: {coder.section} has numbers that are not of float32")
    if law == SUBSET:
        if not count <= high - low + 1 <= 1 << 16:
            raise ArtifactError(f"the file is damaged: {coder.section} has {count} rising numbers in a range of {high - low + 1}")
        places = code_subset(coder, (values - low).tolist() if values is not None else [], high - low + 1, count)
        return _from_grid(coder, np.array(places, np.int64) + low, exponent)
    found = []
    for number, live in enumerate(alive.tolist()):
        value = int(values[number]) if values is not None else 0
        if law != UNIFORM and coder.choice(int(value == 0), f"zero {live}", 2):
            found.append(0)
        elif law == FOLDED:
            size = 1 + coder.number(abs(value) - 1, "magnitude")
            found.append(-size if coder.choice(int(value < 0), "sign", 2) else size)
        else:
            found.append(low + coder.uniform(value - low, high - low + 1))
    return _from_grid(coder, np.array(found, np.int64), exponent)


def _code_palette(coder: Coder, bulk: Bulk, budget: Budget, words: Words | None, count: int) -> Words:
    """The distinct numbers, and which of them each is."""
    distinct, which = (None, None) if words is None else np.unique(words, return_inverse=True)
    size = 2 + coder.uniform(0 if distinct is None else distinct.size - 2, large_symbols.LARGEST_ALPHABET - 1)
    table = code_floats(coder, bulk, budget, distinct, size)
    return table[code_large_symbols(coder, bulk, which, count, size)]


def _grid(words: Words) -> tuple[int, Ints] | None:
    """The largest exponent e, and integers k, such that each number is k 2^e; None if there are none below 2^24."""
    values = words.view(np.float32).astype(np.float64)
    if not bool(np.isfinite(values).all()) or bool((words == 0x80000000).any()):
        return None
    fraction, exponent = np.frexp(values[values != 0])
    mantissa = np.ldexp(np.abs(fraction), 24).astype(np.int64)  # a whole number, below 2^24
    places = exponent.astype(np.int64) - 24 + _trailing_of(mantissa)
    lowest = int(places.min()) if places.size else 0
    whole = np.ldexp(values, -lowest)
    return (lowest, whole.astype(np.int64)) if float(np.abs(whole).max(initial=0)) < 1 << 24 else None


def _from_grid(coder: Coder, values: Ints, exponent: int) -> Words:
    if values.size and int(np.abs(values).max()) >= 1 << 24:
        raise ArtifactError(f"the file is damaged: {coder.section} has numbers that are not of float32")
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(values.astype(np.float64), exponent).astype(np.float32).view(np.uint32)


def _trailing(word: int) -> int:
    """Zero bits below the lowest one that is set; 31 for 0."""
    return (word & -word).bit_length() - 1 if word else 31


def _trailing_of(values: Ints) -> Ints:
    return np.frexp((values & -values).astype(np.float64))[1].astype(np.int64) - 1


def as_words(array: NDArray[Any]) -> Words:
    return np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint32)
