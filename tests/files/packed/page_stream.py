"""The coded part and the bulk of a `.fwz` file, after docs/format.md; imports nothing of ours."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

import numpy as np
from canonical import read_words
from lanes import read_stream


class Stream:
    """The coded part and the bulk."""

    def __init__(self, data: bytes, bulk: bytes):
        self.data, self.bulk, self.place = data, bulk, 7
        self.range, self.offset = 1 << 56, int.from_bytes(data[:7].ljust(7, b"\0"), "big")
        self.contexts: dict[str, list[int]] = {}
        self.budget = 1_500_000

    def decode(self, total: int, find: Callable[[int], int], bounds: Callable[[int], tuple[int, int]]) -> int:
        unit = self.range // total
        value = find(min(self.offset // unit, total - 1))
        low, high = bounds(value)
        self.offset -= unit * low
        self.range = self.range - unit * low if high == total else unit * (high - low)
        while self.range < 1 << 48:
            self.range <<= 8
            self.offset = self.offset << 8 | (self.data[self.place] if self.place < len(self.data) else 0)
            self.place += 1
        return value

    def uniform(self, n: int) -> int:
        if n > 1 << 40:
            low = self.uniform(1 << 32)
            return low | self.uniform((n - 1 >> 32) + 1) << 32
        return self.decode(n, lambda point: point, lambda value: (value, value + 1)) if n > 1 else 0

    def symbol(self, frequencies: Sequence[int]) -> int:
        if len(frequencies) == 1:
            return 0
        ends = [0, *accumulate(frequencies)]
        return self.decode(ends[-1], lambda point: bisect_right(ends, point) - 1, lambda value: (ends[value], ends[value + 1]))

    def choice(self, name: str, n: int) -> int:
        return self.adaptive(self.contexts.setdefault(name, [1] * n))

    def adaptive(self, frequencies: list[int]) -> int:
        value = self.symbol(frequencies)
        frequencies[value] += 2
        return value

    def number(self, name: str) -> int:
        size = 0
        while self.choice(f"{name}.{size}", 2):
            size += 1
        return size if size < 2 else (1 << size - 1) + self.uniform(1 << size - 1)

    def signed(self, name: str) -> int:
        folded = self.number(name)
        return folded // 2 if folded % 2 == 0 else -(folded + 1) // 2

    def subset(self, size: int, count: int) -> list[int]:
        found: list[int] = []
        for place in range(size):
            left, ahead = count - len(found), size - place
            if left == 0:
                break
            if left == ahead or self.symbol([ahead - left, left]):
                found.append(place)
        return found

    def spend(self, units: int) -> None:
        self.budget -= units
        assert self.budget >= 0

    # --- the bulk

    def taken(self, size: int) -> bytes:
        part, self.bulk = self.bulk[:size], self.bulk[size:]
        assert len(part) == size
        return part

    def bulk_numbers(self, count: int) -> list[int]:
        nibbles = [half for byte in self.taken(-(-count // 2)) for half in (byte & 15, byte >> 4)][:count]
        return [1 << width | below for width, below in zip(nibbles, self.bulk_bits(nibbles), strict=True)]

    def bulk_bits(self, widths: Sequence[int]) -> list[int]:
        """Numbers of so many bits, the lowest first."""
        whole, found = int.from_bytes(self.taken(-(-sum(widths) // 8)), "little"), []
        for width in widths:
            found.append(whole & (1 << width) - 1)
            whole >>= width
        return found

    def symbols(self, count: int, alphabet: int) -> np.ndarray:
        used = 1 + self.uniform(alphabet)
        names = np.array(self.subset(alphabet, used), np.int64)
        return np.full(count, names[0]) if used == 1 else names[self.stream(count, used)]

    def large(self, count: int, alphabet: int) -> np.ndarray:
        if alphabet <= 4096:
            return self.symbols(count, alphabet)
        high = self.large(count, (alphabet - 1 >> 8) + 1)
        return high << 8 | self.symbols(count, 256)

    def stream(self, count: int, kinds: int, known: list[int] | None = None) -> np.ndarray:
        way = self.choice("group", 17)
        lengths: list[int] = []
        table: list[int] = []
        group = way - 8 if way > 8 else way
        if way > 8:
            first = self.taken(1)[0]
            lengths = [(first & 15) + above for above in self.bulk_bits([first >> 4] * (kinds**group + 1))]
        else:
            table = known or self.bulk_numbers(kinds - 1)
            table = table if known else [*table, (1 << 16) - sum(table)]
            group = group or together(table, count)
            table = of_tuples(table, group)
            lengths = huffman_lengths(table) if way else []
        tuples = -(-count // group)
        data = self.taken(self.number("words") * (1 if way else 2))
        read = read_words(data, lengths) if way else read_stream(data, table, tuples, lanes_of(table, tuples))
        assert len(read) == tuples
        digits = [np.array(read) // kinds**power % kinds for power in reversed(range(group))]
        return np.stack(digits, 1).reshape(-1)[:count]

    def gaps(self, size: int, count: int) -> np.ndarray:
        if count in (0, size):
            return np.arange(count)
        longest = (1 << 3 + self.uniform(6)) - 1
        skips = self.number("skips")
        stay, ahead, shares = (size - count << 32) // size, 1 << 32, []
        for _ in range(longest):
            after = ahead * stay >> 32
            shares.append(ahead - after)
            ahead = after
        place, found = -1, []
        for gap in self.stream(count + skips, longest + 1, frequencies_of([*shares, ahead])).tolist():
            place += gap + (gap < longest)
            if gap < longest:
                found.append(place)
        return np.array(found)


def frequencies_of(shares: Sequence[int]) -> list[int]:
    whole = sum(shares)
    table = [max((share << 16) // whole, 1) for share in shares]
    if max(table) <= sum(table) - (1 << 16):
        table = [share * ((1 << 16) - len(shares)) // whole + 1 for share in shares]
    table[table.index(max(table))] += (1 << 16) - sum(table)
    return table


def entropy(table: Iterable[int]) -> int:
    total = 0
    for share in table:
        power = share / (1 << 16)
        for _ in range(5):
            power *= power
        total += share * (1 - 2 * math.frexp(power)[1])
    return total


def together(table: list[int], count: int) -> int:
    kinds, group = len(table), 1
    while count >= 1000 and kinds ** (group + 1) <= 256:
        group += 1
    while group > 1 and 96 * (1 << 22) * kinds**group > (1 << 17) * group * entropy(table):
        group -= 1
    return group


def of_tuples(table: list[int], group: int) -> list[int]:
    if group == 1:
        return table
    shares = [share << 16 for share in table]
    for _ in range(group - 1):
        shares = [share * other >> 16 for share in shares for other in table]
    return frequencies_of(shares)


def lanes_of(table: list[int], count: int) -> int:
    kinds, bit = len(table), 1 << 22
    digits = max(power for power in range(17) if kinds**power <= 1 << 16)
    price = max(21 * bit - digits * entropy(table), 3 * bit)
    paid = count * entropy(table) // 170 + min(64 * bit, count * entropy(table) // 64)
    return min(max(1, paid // price, count >> 14), 1 << 14, max(1, count // 8))


def huffman_lengths(table: list[int]) -> list[int]:
    """Package-merge over lists of (weight, the symbols in it)."""
    weights = [*table, 1]
    leaves = sorted(range(len(weights)), key=lambda symbol: weights[symbol])  # stable
    level: list[tuple[int, list[int]]] = []
    for _ in range(15):
        pairs = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = sorted([*((weights[symbol], [symbol]) for symbol in leaves), *pairs], key=lambda item: item[0])
    lengths = [0] * len(weights)
    for _, inside in level[: 2 * len(weights) - 2]:
        for symbol in inside:
            lengths[symbol] += 1
    return lengths
