"""The range coder of small things: integers only, one code path for writing, reading and measuring.

A model calls `coder.code(...)` with the value to write, and gets back the value that was read; an `Encoder` returns what it
was given, a `Decoder` ignores it, a `Meter` only counts the bits. So every model below is written once and cannot disagree
with itself.
"""

from __future__ import annotations

import abc
import math
from bisect import bisect_right
from collections.abc import Callable

from featherweight.errors import ArtifactError

WHOLE, LEAST = 1 << 56, 1 << 48  # the range starts at WHOLE and is kept above LEAST
LARGEST_TOTAL = 1 << 40
LONGEST_NUMBER = 62  # bits


class Coder(abc.ABC):
    """Codes values by intervals of a total. `spent`: section -> bits, filled while `section` names one."""

    decoding: bool = False

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self.section = "header"
        self.contexts: dict[str, Symbols] = {}

    @abc.abstractmethod
    def code(self, value: int, total: int, bounds: Callable[[int], tuple[int, int]], find: Callable[[int], int]) -> int:
        """Code `value`, whose interval is `bounds(value)` in 0 .. total; `find` is the value whose interval holds a point."""

    def symbols(self, name: str, count: int) -> Symbols:
        """The adaptive frequencies kept under `name` for as long as this coder lives."""
        if name not in self.contexts:
            self.contexts[name] = Symbols(count)
        return self.contexts[name]

    def uniform(self, value: int, count: int) -> int:
        """An integer in 0 .. count - 1, all equally likely; any size of count."""
        if count <= LARGEST_TOTAL:
            return self.code(value, count, lambda v: (v, v + 1), lambda point: point) if count > 1 else 0
        low = self.uniform(value & 0xFFFFFFFF, 1 << 32)
        return low | self.uniform(value >> 32, ((count - 1) >> 32) + 1) << 32

    def choice(self, value: int, name: str, count: int) -> int:
        """An integer in 0 .. count - 1 under the adaptive frequencies `name`."""
        return self.symbols(name, count).code(self, value)

    def number(self, value: int, name: str) -> int:
        """An integer >= 0: its bit length under adaptive frequencies, one yes or no a step, then its lower bits."""
        length = value.bit_length()
        size = 0
        while self.choice(int(size < length), f"{name}.{size}", 2):
            size += 1
            if size > LONGEST_NUMBER:
                raise ArtifactError("the file is damaged: it holds a number of more than 62 bits")
        if size < 2:
            return size
        top = 1 << (size - 1)
        return top + self.uniform(value - top, top)

    def signed(self, value: int, name: str) -> int:
        """Any integer: 0, -1, 1, -2, 2 .. as 0, 1, 2, 3, 4 .."""
        folded = self.number(2 * value if value >= 0 else -2 * value - 1, name)
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2


class Encoder(Coder):
    """Writes."""

    def __init__(self) -> None:
        super().__init__()
        self._low, self._range = 0, WHOLE
        self._out = bytearray()

    def code(self, value: int, total: int, bounds: Callable[[int], tuple[int, int]], find: Callable[[int], int]) -> int:
        low, high = bounds(value)
        if not 0 <= low < high <= total:
            raise AssertionError(f"{value} has the empty interval {low} .. {high} of {total}")
        unit = self._range // total
        self._low += unit * low
        self._range = self._range - unit * low if high == total else unit * (high - low)
        if self._low >= WHOLE:
            self._low -= WHOLE
            self._carry()
        while self._range < LEAST:
            self._out.append(self._low >> 48)
            self._low = (self._low & (LEAST - 1)) << 8
            self._range <<= 8
        return value

    def _carry(self) -> None:
        place = len(self._out) - 1
        while self._out[place] == 255:
            self._out[place] = 0
            place -= 1
        self._out[place] += 1

    def finish(self) -> bytes:
        """All the bytes: the fewest that lie in the last interval, since a reader continues with zeros."""
        for length in range(8):
            step = 1 << (56 - 8 * length)
            point = -(-self._low // step) * step
            if point < self._low + self._range:
                break
        if point >= WHOLE:
            point -= WHOLE
            self._carry()
        return bytes(self._out) + point.to_bytes(7, "big")[:length]


class Decoder(Coder):
    """Reads."""

    decoding = True

    def __init__(self, data: bytes):
        super().__init__()
        self._data, self._place, self._range = data, 0, WHOLE
        self._offset = 0
        for _ in range(7):
            self._offset = self._offset << 8 | self._next()

    def _next(self) -> int:
        self._place += 1
        if self._place <= len(self._data):
            return self._data[self._place - 1]
        if self._place > len(self._data) + 8:
            raise ArtifactError("the file ends too early: what it describes needs more bytes than it holds")
        return 0

    def code(self, value: int, total: int, bounds: Callable[[int], tuple[int, int]], find: Callable[[int], int]) -> int:
        unit = self._range // total
        value = find(min(self._offset // unit, total - 1))
        low, high = bounds(value)
        self._offset -= unit * low
        before, self._range = self._range, self._range - unit * low if high == total else unit * (high - low)
        self.spent[self.section] = self.spent.get(self.section, 0.0) + math.log2(before / self._range)
        while self._range < LEAST:
            self._offset = self._offset << 8 | self._next()
            self._range <<= 8
        return value

    def close(self) -> None:
        """Raises ArtifactError if bytes are left over."""
        if self._place < len(self._data):
            raise ArtifactError(f"the file is damaged: {len(self._data) - self._place} bytes of its coded part are left over")


class Meter(Coder):
    """Counts the bits that an Encoder would write."""

    def __init__(self) -> None:
        super().__init__()
        self.bits = 0.0

    def code(self, value: int, total: int, bounds: Callable[[int], tuple[int, int]], find: Callable[[int], int]) -> int:
        low, high = bounds(value)
        self.bits += math.log2(total / (high - low))
        return value


class Symbols:
    """Adaptive frequencies of 0 .. count - 1 (Krichevsky and Trofimov 1981: each starts at one half)."""

    def __init__(self, count: int):
        self.frequencies = [1] * count
        self.total = count

    def code(self, coder: Coder, value: int) -> int:
        value = code_symbol(coder, value, self.frequencies, self.total)
        self.frequencies[value] += 2
        self.total += 2
        return value


def code_symbol(coder: Coder, value: int, frequencies: list[int], total: int) -> int:
    """One symbol under the given frequencies, all > 0, whose sum is `total`."""
    if len(frequencies) == 1:
        return 0

    def bounds(symbol: int) -> tuple[int, int]:
        low = sum(frequencies[:symbol])
        return low, low + frequencies[symbol]

    def find(point: int) -> int:
        symbol = 0
        while point >= frequencies[symbol]:
            point -= frequencies[symbol]
            symbol += 1
        return symbol

    return coder.code(value, total, bounds, find)


def code_ascending(coder: Coder, value: int, cumulative: Callable[[int], int], count: int, total: int) -> int:
    """One of 0 .. count - 1; symbol j has the interval cumulative(j) .. cumulative(j + 1), and the last one ends at `total`."""

    def bounds(symbol: int) -> tuple[int, int]:
        return cumulative(symbol), total if symbol == count - 1 else cumulative(symbol + 1)

    return coder.code(value, total, bounds, lambda point: bisect_right(range(count), point, key=cumulative) - 1)


def code_subset(coder: Coder, places: list[int], size: int, count: int) -> list[int]:
    """`count` ascending integers below `size`, all such sets equally likely: an enumerative code, O(size)."""
    wanted = set(places)
    left = count
    found = []
    for place in range(size):
        if left == 0:
            break
        ahead = size - place
        if left == ahead or code_symbol(coder, int(place in wanted), [ahead - left, left], ahead):
            found.append(place)
            left -= 1
    return found
