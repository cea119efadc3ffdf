"""Where the entries of a sparse matrix lie: a model that learns which rows, channels and columns are alive.

Row by row, the distance to the next entry is coded. A row's rate is unknown, with a gamma prior around what is left for it, so
that empty and crowded rows both come cheap; a row with k entries after an exposure e stays empty up to exposure e' with
probability ((b + e) / (b + e')) ** (a + k). Exposure accrues by column in proportion to the entries seen before in that column
and its channel (a two-level Polya urn). All in integers: the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from featherweight.files.packed.coder import Coder, Meter, code_ascending, code_subset

Ints = NDArray[np.int64]

FINE = 32  # bits after the point of logarithms and survival probabilities
ONE = 1 << FINE
CELLS = 1024  # of the two tables

SHAPES = (1, 2, 4, 8, 16, 48, 256, 1 << 17)  # of the gamma prior, in eighths
URNS = (1, 4, 12, 32, 96, 256, 1024, 1 << 20)  # prior mass, in quarters of an entry
CONTRASTS = (4096, 256, 16, 1)  # weight of a unit whose neighbour layer has nothing there, against 4096


@dataclass(frozen=True)
class Options:
    """Places in the menus above. `rows` and `channels`: contrast of dead neighbours; `urn` by channel, `inner` in a channel.

    ordered   0 or 1: the rows come in the order of their first entries, empty ones last. Units of a network may be put in any
              order, so the order of n rows is log2(n!) bits that need not be stored.
    """

    shape: int = 1
    urn: int = 4
    inner: int = 7
    rows: int = 0
    channels: int = 0
    ordered: int = 0

    def code(self, coder: Coder, spatial: bool, row_context: bool, channel_context: bool) -> Options:
        shape, urn = coder.uniform(self.shape, len(SHAPES)), coder.uniform(self.urn, len(URNS))
        inner = coder.uniform(self.inner, len(URNS)) if spatial else 0
        rows = coder.uniform(self.rows, len(CONTRASTS)) if row_context else 0
        channels = coder.uniform(self.channels, len(CONTRASTS)) if channel_context else 0
        return Options(shape, urn, inner, rows, channels, coder.uniform(self.ordered, 2))


USUAL = Options()
EVEN = Options(len(SHAPES) - 1, len(URNS) - 1, len(URNS) - 1)  # every place as likely as any other


def code_entries(
    coder: Coder,
    places: Ints | None,
    extent: tuple[int, int, int],
    count: int,
    options: Options,
    alive: tuple[Ints | None, Ints | None] = (None, None),
    nonempty: bool = False,
) -> Ints:
    """`count` ascending flat places in an array of `extent` = (rows, channels, cells of a channel).

    `alive`: per row and per channel, whether the neighbouring layers have anything there. `nonempty`: every row has an entry.
    """
    rows, channels, cells = extent
    width = channels * cells
    if rows == 1:
        return np.array(code_subset(coder, [] if places is None else places.tolist(), width, count), np.int64)
    row_weights = _weights(alive[0], rows, options.rows).tolist()
    prior = _weights(alive[1], channels, options.channels)
    urn, inner, shape = URNS[options.urn], URNS[options.inner], SHAPES[options.shape]
    prior_mass = np.maximum((prior << 12) * urn // (4 * prior.sum()), 1)
    seen, seen_channel = np.zeros(width, np.int64), np.zeros(channels, np.int64)
    starts = [0] * (rows + 1) if places is None else np.searchsorted(places, np.arange(rows + 1) * width).tolist()
    flat = [] if places is None else places.tolist()
    left, weight_left = count, sum(row_weights)
    exposure: list[int] = []
    found: list[int] = []
    first = 0
    for row in range(rows):
        if left == 0:
            break
        if not exposure:  # the counts have changed
            exposure = _exposure(seen, seen_channel, prior_mass, inner, cells)
        start = row * width
        mine = [place - start for place in flat[starts[row] : starts[row + 1]]]
        prior_exposure = max(1, shape * exposure[-1] * weight_left // (8 * row_weights[row] * left))
        begin, alike = (first, rows - row) if options.ordered else (0, 1)
        entries = _code_row(coder, mine, exposure, prior_exposure, shape, left, nonempty, begin, alike)
        if options.ordered and not entries:
            break
        weight_left -= row_weights[row]
        if entries:
            first = entries[0]
            left -= len(entries)
            found += [start + entry for entry in entries]
            columns = np.array(entries)
            seen[columns] += 1
            np.add.at(seen_channel, columns // cells, 1)
            exposure = []
    return np.array(found, np.int64) if coder.decoding or places is None else places


def _code_row(
    coder: Coder, mine: list[int], exposure: list[int], prior: int, shape: int, left: int, nonempty: bool, begin: int, alike: int
) -> list[int]:
    """The columns of one row, none before `begin`; `exposure`: (width + 1,) ascending.

    The row's first entry is the first one of `alike` rows of the same law: their chances to have none so far multiply.
    """
    width = len(exposure) - 1
    found: list[int] = []
    place = begin
    while place < width and len(found) < left:
        base, ahead = _log2(prior + exposure[place]), width - place
        power = shape + 8 * len(found) if found else shape * alike

        def cumulative(gap: int, place: int = place, base: int = base, power: int = power) -> int:
            return ONE - _survival(power * (_log2(prior + exposure[place + gap]) - base) >> 3) + gap

        forced = nonempty and not found  # the symbol `ahead` says that the row is over
        total = cumulative(ahead) if forced else ONE + ahead + 1
        target = mine[len(found)] - place if len(found) < len(mine) else ahead
        gap = code_ascending(coder, target, cumulative, ahead if forced else ahead + 1, total)
        if gap == ahead:
            break
        found.append(place + gap)
        place += gap + 1
    return found


def _exposure(seen: Ints, seen_channel: Ints, prior: Ints, inner: int, cells: int) -> list[int]:
    """Cumulative expected share of the columns, in integers: (width + 1,)."""
    share = (seen_channel << 12) + prior
    if cells > 1:
        within = ((seen << 12) + (inner << 10) // cells << 14) // np.repeat((seen_channel << 12) + (inner << 10), cells)
        share = np.maximum(np.repeat(share, cells) * within >> 10, 1)
    else:
        share = share << 4
    return [0, *np.cumsum(share).tolist()]


def _weights(alive: Ints | None, count: int, contrast: int) -> Ints:
    if alive is None:
        return np.full(count, CONTRASTS[0], np.int64)
    return np.where(alive > 0, CONTRASTS[0], CONTRASTS[contrast]).astype(np.int64)


def search(
    places: Ints, extent: tuple[int, int, int], count: int, alive: tuple[Ints | None, Ints | None], nonempty: bool, trials: int
) -> tuple[Options, float]:
    """The options found best by changing one at a time, and the bits they lead to."""

    def bits(options: Options) -> float:
        meter = Meter()
        options.code(meter, extent[2] > 1, alive[0] is not None, alive[1] is not None)
        code_entries(meter, places, extent, count, options, alive, nonempty)
        return meter.bits

    menus = {"ordered": 2} if _ordered(places, extent) else {}
    menus |= {"shape": len(SHAPES), "urn": len(URNS)}
    menus |= {"inner": len(URNS)} if extent[2] > 1 else {}
    menus |= {"rows": len(CONTRASTS)} if alive[0] is not None else {}
    menus |= {"channels": len(CONTRASTS)} if alive[1] is not None else {}
    tried = {USUAL: bits(USUAL), EVEN: bits(EVEN)}
    best = min(tried, key=lambda option: tried[option])
    least = tried[best]
    improved = extent[0] > 1
    while improved and trials > 0:
        improved = False
        for field, size in menus.items():
            for step in (1, -1):
                while trials > 0 and 0 <= getattr(best, field) + step < size:
                    option = replace(best, **{field: getattr(best, field) + step})
                    if option in tried:
                        break
                    trials -= 1
                    tried[option] = cost = bits(option)
                    if cost >= least:
                        break
                    best, least, improved = option, cost, True
    return best, least


def _ordered(places: Ints, extent: tuple[int, int, int]) -> bool:
    """Are the rows in the order of their first entries, the empty ones last?"""
    rows, first = np.unique(places // (extent[1] * extent[2]), return_index=True)
    columns = places[first] % (extent[1] * extent[2])
    return bool((rows == np.arange(rows.size)).all() and (np.diff(columns) >= 0).all())


def _log2(value: int) -> int:
    """log2 of an integer > 0, FINE bits after the point; non-decreasing in `value`."""
    length = value.bit_length()
    mantissa = (value << 42 - length if length <= 42 else value >> length - 42) - (1 << 41)  # 41 bits
    table = _logarithms()
    cell, rest = mantissa >> 31, mantissa & 0x7FFFFFFF
    low = table[cell]
    return (length - 1 << FINE) + low + ((table[cell + 1] - low) * rest >> 31)


def _survival(exponent: int) -> int:
    """2 ** -exponent, both with FINE bits after the point; non-increasing."""
    whole, rest = exponent >> FINE, exponent & ONE - 1
    if whole > FINE:
        return 0
    table = _powers()
    cell, rest = rest >> 22, rest & 0x3FFFFF
    high = table[cell]
    return high - ((high - table[cell + 1]) * rest >> 22) >> whole


@cache
def _logarithms() -> list[int]:
    """log2(1 + i / CELLS), bit by bit: squaring doubles a logarithm."""
    table = []
    for cell in range(CELLS):
        mantissa, result = (CELLS + cell) << 50, 0  # one is 1 << 60
        for _ in range(FINE):
            mantissa = mantissa * mantissa >> 60
            result <<= 1
            if mantissa >> 61:
                mantissa >>= 1
                result |= 1
        table.append(result)
    return [*table, ONE]


@cache
def _powers() -> list[int]:
    """2 ** (-i / CELLS): the root by ten integer square roots, then its powers."""
    root = 1 << 95  # one half, of 1 << 96
    for _ in range(10):
        root = math.isqrt(root << 96)
    table, power = [], 1 << 96
    for _ in range(CELLS + 1):
        table.append(power >> 96 - FINE)
        power = power * root >> 96
    return table
