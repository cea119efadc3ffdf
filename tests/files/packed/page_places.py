"""Where the entries of a code lie and which symbol each is, after docs/format.md; imports nothing of ours."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from einops import rearrange
from page_values import Values

SHAPE, URN = (1, 2, 4, 8, 16, 48, 256, 1 << 17), (1, 4, 12, 32, 96, 256, 1024, 1 << 20)
CONTRAST = (4096, 256, 16, 1)
ONE = 1 << 32
FOLLOWED = 1 << 22

Extent = tuple[int, int, int]
Hints = list[bool] | None


class Reader(Values):
    """Places and symbols."""

    def entries(self, extent: Extent, count: int, options: dict[str, int], hints: tuple[Hints, Hints], full: bool) -> np.ndarray:
        rows, channels, cells = extent
        width = channels * cells
        if rows == 1:
            return np.array(self.subset(width, count), np.int64)
        row_weight = weights_of(hints[0], rows, options["rows"])
        channel_weight = np.array(weights_of(hints[1], channels, options["channels"]), np.int64)
        shape, urn, inner = SHAPE[options["shape"]], URN[options["urn"]], URN[options["inner"]]
        prior = np.maximum((channel_weight << 12) * urn // (4 * channel_weight.sum()), 1)
        seen, seen_channel = np.zeros(width, np.int64), np.zeros(channels, np.int64)
        found: list[int] = []
        first = 0
        exposure: list[int] = []
        for row in range(rows):
            left = count - len(found)
            if left == 0:
                break
            if not exposure:
                share = np.repeat((seen_channel << 12) + prior, cells)
                inside = ((seen << 12) + (inner << 10) // cells << 14) // np.repeat((seen_channel << 12) + (inner << 10), cells)
                share = share << 4 if cells == 1 else np.maximum(share * inside >> 10, 1)
                exposure = [0, *np.cumsum(share).tolist()]
            pull = max(1, shape * exposure[width] * sum(row_weight[row:]) // (8 * row_weight[row] * left))
            begin, alike = (first, rows - row) if options["ordered"] else (0, 1)
            mine = self.row(exposure, pull, shape, left, full, begin, alike)
            if mine:
                first, exposure = mine[0], []
                seen[mine] += 1
                np.add.at(seen_channel, np.array(mine) // cells, 1)
                found += [row * width + place for place in mine]
            elif options["ordered"]:
                break
        assert len(found) == count
        return np.array(found, np.int64)

    def row(self, exposure: list[int], pull: int, shape: int, left: int, full: bool, begin: int, alike: int) -> list[int]:
        width, place = len(exposure) - 1, begin
        mine: list[int] = []
        while place < width and len(mine) < left:
            power = shape + 8 * len(mine) if mine else shape * alike
            ahead, base, start = width - place, log2(pull + exposure[place]), place

            def below(gap: int, power: int = power, base: int = base, start: int = start) -> int:
                return ONE - survival(power * (log2(pull + exposure[start + gap]) - base) >> 3) + gap

            forced = full and not mine
            last = ahead - 1 if forced else ahead
            total = below(ahead) if forced else ONE + ahead + 1
            gap = self.decode(
                total,
                lambda point, last=last, below=below: bisect_right(range(last + 1), point, key=below) - 1,
                lambda gap, last=last, below=below, total=total: (below(gap), total if gap == last else below(gap + 1)),
            )
            if gap == ahead:
                break
            mine.append(place + gap)
            place += gap + 1
        return mine

    def options(self, spatial: bool, row_hints: bool, channel_hints: bool) -> dict[str, int]:
        read = {"shape": self.uniform(8), "urn": self.uniform(8)}
        read["inner"] = self.uniform(8) if spatial else 7
        read["rows"] = self.uniform(4) if row_hints else 0
        read["channels"] = self.uniform(4) if channel_hints else 0
        return read | {"ordered": self.uniform(2)}

    def lines(self, size: int, hints: Hints) -> np.ndarray:
        pairs, found = [[1, 1] for _ in range(4)], [1]
        for line in range(size):
            found.append(self.adaptive(pairs[2 * (hints is not None and hints[line]) + found[-1]]))
        return np.flatnonzero(found[1:])

    def plan(self, whole: Extent, hints: tuple[Hints, Hints], count: int) -> np.ndarray:
        turned, trimmed = self.uniform(2), self.uniform(2)
        nested = self.uniform(2) if whole[2] > 1 else 0
        cells = whole[2]
        outside = (whole[1], whole[0], cells) if turned else whole
        hints = (hints[1], hints[0]) if turned else hints
        extent = outside
        rows = channels = np.zeros(0, np.int64)
        if trimmed:
            self.spend(3 * sum(outside))
            rows, channels = self.lines(outside[0], hints[0]), self.lines(outside[1], hints[1])
            extent, hints = (rows.size, channels.size, cells), (None, None)
        self.spend(work(extent, count))
        outer = self.options(cells > 1 and not nested, hints[0] is not None, hints[1] is not None)
        if nested:
            inner = self.options(False, False, False)
            number = 1 + self.number("blocks")
            blocks = self.entries((extent[0], extent[1], 1), number, outer, hints, bool(trimmed))
            inside = self.entries((number, cells, 1), count, inner, (None, None), True)
            found = blocks[inside // cells] * cells + inside % cells
        else:
            found = self.entries(extent, count, outer, hints, bool(trimmed))
        row, channel, cell = found // (extent[1] * cells), found // cells % extent[1], found % cells
        if trimmed:
            row, channel = rows[row], channels[channel]
        row, channel = (channel, row) if turned else (row, channel)
        return np.sort((row * whole[1] + channel) * cells + cell)

    def places(self, layout: Layout, count: int) -> np.ndarray:
        """Of the matrix."""
        if count in (0, layout.size):
            return np.arange(count)
        if not self.choice("large", 2):
            found = self.plan(layout.extent, layout.hints, count)
            return found if layout.order is None else np.sort(np.argsort(layout.order)[found])
        if not self.choice("two levels", 2):
            return self.gaps(layout.size, count)
        self.spend(sum(layout.matrix))
        rows, columns = (np.array(self.subset(extent, 1 + self.uniform(extent)), np.int64) for extent in layout.matrix)
        inside = self.gaps(rows.size * columns.size, count)
        return rows[inside // columns.size] * layout.matrix[1] + columns[inside % columns.size]

    def marks(self, layout: Layout, places: np.ndarray, alphabet: int) -> np.ndarray:
        count = places.size
        if alphabet <= 1 or count == 0:
            return np.zeros(count, np.int64)
        units = count * (6 + alphabet // 8)
        if alphabet > 256 or units > self.budget or not self.choice("small", 2):
            return self.large(count, alphabet)
        self.spend(units)
        _, channels, cells = layout.extent
        rule = self.uniform(4)
        own = places if layout.order is None else layout.order[places]
        lines = (own * 0, own // (channels * cells), own % (channels * cells), own // cells % channels)[rule]
        every, after, last = [1] * alphabet, [[0] * alphabet for _ in range(alphabet)], dict[int, int]()
        result = np.empty(count, np.int64)
        for number in np.argsort(own).tolist():
            line = int(lines[number])
            before = last.get(line) if rule else None
            if before is None:
                value = self.symbol(every)
            else:
                value = self.symbol([one + 6 * more for one, more in zip(every, after[before], strict=True)])
                after[before][value] += 1
            every[value] += 2
            last[line] = value
            result[number] = value
        return result

    def dense(self, layout: Layout, alphabet: int) -> np.ndarray:
        everywhere = np.arange(layout.size)
        if not self.choice("background", 2):
            return self.marks(layout, everywhere, alphabet)
        background, count = self.uniform(alphabet), self.uniform(layout.size)
        places = self.places(layout, count)
        rest = self.marks(layout, places, alphabet - 1)
        result = np.full(layout.size, background)
        result[places] = rest + (rest >= background)
        return result


@dataclass
class Layout:
    """How a matrix lies in its parameter; `order`: place in the matrix -> place in the parameter."""

    extent: Extent
    matrix: tuple[int, int]
    order: np.ndarray | None = None
    hints: tuple[Hints, Hints] = (None, None)

    @property
    def size(self) -> int:
        return self.matrix[0] * self.matrix[1]


def layout_of(shape: tuple[int, ...], view: str, axes: dict[str, int], outputs: list[bool] | None) -> Layout:
    order = np.arange(math.prod(shape)).reshape(shape)
    moved = rearrange(order, view, **axes)
    left, right = view.split("->")
    same, size = re.findall(r"[\w.]+", left) == re.findall(r"[\w.]+", right), order.size
    if not same and size > FOLLOWED:
        return Layout((*moved.shape, 1), moved.shape)
    places = None if same else moved.reshape(-1)
    if len(shape) < 2:
        hints = outputs if outputs is not None and len(outputs) == size else None
        return Layout((size, 1, 1), (1, size), places, (both(hints), None))
    first, channels, cells = shape[0], shape[1], math.prod(shape[2:])
    hints = None
    if outputs is not None and (n := len(outputs)) > 1 and channels % n == 0 and (cells == 1 or n == channels):
        channels, cells, hints = n, cells * (channels // n), outputs
    return Layout((first, channels, cells), (first, size // first) if same else moved.shape, places, (None, both(hints)))


def both(hints: Hints) -> Hints:
    return hints if hints is not None and any(hints) and not all(hints) else None


def weights_of(hints: Hints, count: int, contrast: int) -> list[int]:
    return [4096 if hints is None or hint else CONTRAST[contrast] for hint in (hints or [True] * count)]


def work(extent: Extent, count: int) -> int:
    rows, channels, cells = extent
    lines = max(rows, channels) if cells == 1 else max(rows * channels, 1)
    listed = rows * channels * cells if 1 in (rows, channels) else 0
    return lines * (40 + max(channels * cells, rows * cells) // 20) + 40 * count + listed + 3 * (rows + channels)


def log2(value: int) -> int:
    n = value.bit_length()
    m = (value << 42 - n if n <= 42 else value >> n - 42) - (1 << 41)
    cell, rest = m >> 31, m & 0x7FFFFFFF
    return (n - 1 << 32) + LOG[cell] + ((LOG[cell + 1] - LOG[cell]) * rest >> 31)


def survival(x: int) -> int:
    whole, cell, rest = x >> 32, (x & ONE - 1) >> 22, x & 0x3FFFFF
    return POWER[cell] - ((POWER[cell] - POWER[cell + 1]) * rest >> 22) >> whole if whole <= 32 else 0


def _logarithm(cell: int) -> int:
    m, result = 1024 + cell << 50, 0
    for _ in range(32):
        m = m * m >> 60
        result = result << 1 | m >> 61
        m >>= m >> 61
    return result


def _powers() -> list[int]:
    root = 1 << 95
    for _ in range(10):
        root = math.isqrt(root << 96)
    return [power >> 64 for power in accumulate(range(1024), lambda power, _: power * root >> 96, initial=1 << 96)]


LOG = [*(_logarithm(cell) for cell in range(1024)), ONE]
POWER = _powers()
