"""Where a code has entries and which symbol each one is: the model or the table that is smallest, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featherweight.errors import ArtifactError
from featherweight.files.packed import large_symbols, sparse_places
from featherweight.files.packed.coder import Coder, Meter, Symbols, code_subset, code_symbol
from featherweight.files.packed.raw_bytes import Bulk
from featherweight.files.packed.streams import entropy_bits

Ints = NDArray[np.int64]

BUDGET = 1_500_000  # units of work, about a microsecond each, that a whole file may ask of the models in Python
SUBSET = 1 << 16  # longest list of rows or columns that is coded as a subset
TRIALS, EFFORT = 24, 2_000_000  # how long the writer looks for the best options: runs of a model, and units of work
FEW = 1600  # entries, from which on a model has to gain something, since it is read a hundred times slower than a table: ..
WORTH, WORTH_OF_MARKS = 1.01, 1.05  # .. of the bits of the places, and of the symbols
CONTEXTS = 4  # of an entry's symbol: none, the one before it in its row, in its column, in its channel


@dataclass
class Budget:
    """Work that is still allowed; the same on both sides, so that no file can ask for more than its writer would have spent."""

    left: int = BUDGET

    def allows(self, work: int) -> bool:
        return work <= self.left

    def spend(self, work: int) -> None:
        if work > self.left:
            raise ArtifactError("the file is damaged: it asks for more work than any file needs")
        self.left -= work


@dataclass(frozen=True)
class Layout:
    """How the matrix of a code lies in its parameter.

    extent   (rows, channels, cells): outputs, inputs or groups of inputs that belong to one unit, and places in each
    order    place in the matrix -> place in the parameter; None if they are the same
    matrix   (rows, cols) to be searched for empty ones where the tensor is large
    alive    per row and per channel: has the neighbouring layer anything there
    """

    extent: tuple[int, int, int]
    matrix: tuple[int, int]
    order: Ints | None = None
    alive: tuple[Ints | None, Ints | None] = field(default=(None, None))

    @property
    def size(self) -> int:
        return self.matrix[0] * self.matrix[1]

    def places(self, matrix_places: Ints) -> Ints:
        return matrix_places if self.order is None else self.order[matrix_places]

    def living(self, places: Ints) -> tuple[int, int, int]:
        """The extent of the rows and channels that have entries."""
        _, channels, cells = self.extent
        return np.unique(places // (channels * cells)).size, np.unique(places // cells % channels).size, cells


def _work(extent: tuple[int, int, int], count: int) -> int:
    """Units that a model takes for `count` entries in an array of this extent."""
    rows, channels, cells = extent
    lines = max(rows, channels) if cells == 1 else max(rows * channels, 1)
    per_line = 40 + max(channels * cells, rows * cells) // 20
    listed = rows * channels * cells if min(rows, channels) == 1 else 0
    return lines * per_line + 40 * count + listed + 3 * (rows + channels)


def code_places(coder: Coder, bulk: Bulk, budget: Budget, places: Ints | None, layout: Layout, count: int) -> Ints:
    """`count` ascending places in the matrix of `layout`."""
    if count in (0, layout.size):
        return np.arange(count)
    plan: _Plan | None = None if places is not None else _Plan()
    if places is not None:
        plan = _search(np.sort(layout.places(places)), layout, count, budget)
        worth = WORTH if count >= FEW else 1.0
        if plan is not None and _bulk_bits(places, layout) < worth * plan.bits:
            plan = None
    if coder.choice(int(plan is None), "large", 2):
        return _code_bulk_places(coder, bulk, budget, places, layout, count)
    found = _code_plan(coder, budget, None if places is None else np.sort(layout.places(places)), layout, count, plan or _Plan())
    if layout.order is None:
        return found
    back = np.empty(layout.size, np.int64)
    back[layout.order] = np.arange(layout.size)
    return np.sort(back[found])


@dataclass(frozen=True)
class _Plan:
    """turned: columns outside, rows inside; trimmed: first which rows and channels have entries at all; nested: first which
    (row, channel) blocks have entries, then where in each. `outer` and `inner`: the options of the two."""

    turned: bool = False
    trimmed: bool = False
    nested: bool = False
    outer: sparse_places.Options = sparse_places.USUAL
    inner: sparse_places.Options = sparse_places.USUAL
    bits: float = 0.0


def _search(places: Ints, layout: Layout, count: int, budget: Budget) -> _Plan | None:
    """Each shape of plan after a few trials, and the two best of them after more; None where the budget allows no plan."""
    whole, trimmed = _work(layout.extent, count), _work(layout.living(places), count) + 3 * sum(layout.extent)
    work = whole if budget.allows(whole) else trimmed
    if not budget.allows(work):
        return None
    trials = max(2, min(TRIALS, EFFORT // work))
    shapes = [shape for shape in product((False, True), repeat=3) if layout.extent[2] > 1 or not shape[2]]
    shapes = [shape for shape in shapes if (budget.allows(trimmed) if shape[1] else work == whole)]
    plans = sorted((_tried(places, layout, count, min(trials, 4), *shape) for shape in shapes), key=lambda plan: plan.bits)
    more = [_tried(places, layout, count, trials, plan.turned, plan.trimmed, plan.nested) for plan in plans[:2]]
    return min([*plans, *more], key=lambda plan: plan.bits)


def _tried(places: Ints, layout: Layout, count: int, trials: int, turned: bool, trimmed: bool, nested: bool) -> _Plan:
    meter = Meter()
    extent, alive, flat = _turn(layout, places, turned)
    if trimmed:
        rows, channels, flat = _code_lines(meter, flat, extent, alive)
        extent, alive = (rows.size, channels.size, extent[2]), (None, None)
    assert flat is not None
    if not nested:
        outer, bits = sparse_places.search(flat, extent, count, alive, trimmed, trials)
        return _Plan(turned, trimmed, nested, outer, sparse_places.USUAL, meter.bits + bits)
    blocks, local = _nest(flat, extent[2])
    meter.number(blocks.size - 1, "blocks")
    outer, bits = sparse_places.search(blocks, (extent[0], extent[1], 1), blocks.size, alive, trimmed, trials)
    inner, more = sparse_places.search(local, (blocks.size, extent[2], 1), count, (None, None), True, trials)
    return _Plan(turned, trimmed, nested, outer, inner, meter.bits + bits + more)


def _code_plan(coder: Coder, budget: Budget, places: Ints | None, layout: Layout, count: int, plan: _Plan) -> Ints:
    """The places in the parameter, ascending."""
    turned, trimmed = bool(coder.uniform(int(plan.turned), 2)), bool(coder.uniform(int(plan.trimmed), 2))
    spatial = layout.extent[2] > 1
    nested = bool(coder.uniform(int(plan.nested), 2)) if spatial else False
    whole, alive, flat = _turn(layout, places, turned)
    extent = whole
    if trimmed:
        budget.spend(3 * sum(whole))
        rows, channels, flat = _code_lines(coder, flat, whole, alive)
        extent, alive = (rows.size, channels.size, whole[2]), (None, None)
    budget.spend(_work(extent, count))
    if not count <= math.prod(extent):
        raise ArtifactError(f"the file is damaged: {count} entries of {coder.section} in {math.prod(extent)} places")
    outer = plan.outer.code(coder, spatial and not nested, alive[0] is not None, alive[1] is not None)
    if not nested:
        found = sparse_places.code_entries(coder, flat, extent, count, outer, alive, trimmed)
    else:
        inner = plan.inner.code(coder, False, False, False)
        blocks, local = (None, None) if flat is None else _nest(flat, extent[2])
        number = 1 + coder.number(0 if blocks is None else blocks.size - 1, "blocks")
        if number > min(count, extent[0] * extent[1]) or number * extent[2] < count:
            raise ArtifactError(f"the file is damaged: {number} blocks for {count} entries of {coder.section}")
        blocks = sparse_places.code_entries(coder, blocks, (extent[0], extent[1], 1), number, outer, alive, trimmed)
        _complete(coder, blocks, number)
        local = sparse_places.code_entries(coder, local, (number, extent[2], 1), count, inner, nonempty=True)
        found = blocks[local // extent[2]] * extent[2] + local % extent[2]
    _complete(coder, found, count)
    if trimmed:
        width = extent[1] * extent[2]
        channel = channels[found % width // extent[2]]
        found = (rows[found // width] * whole[1] + channel) * whole[2] + found % extent[2]
    return np.sort(_turn_back(found, layout.extent) if turned else found)


def _code_lines(
    coder: Coder, places: Ints | None, extent: tuple[int, int, int], alive: tuple[Ints | None, Ints | None]
) -> tuple[Ints, Ints, Ints | None]:
    """The rows and the channels that have entries, and the places among only those."""
    _, channels, cells = extent
    lines = []
    for axis, line in enumerate((None, None) if places is None else (places // (channels * cells), places // cells % channels)):
        hit = np.zeros(extent[axis], np.int64)
        if line is not None:
            hit[line] = 1
        hint = alive[axis]
        contexts = [Symbols(2) for _ in range(4)]  # the line before as well: living units may stand together
        classes = [0] * extent[axis] if hint is None else (hint > 0).astype(int).tolist()
        found = [1]
        for kind, value in zip(classes, hit.tolist(), strict=True):
            found.append(contexts[2 * kind + found[-1]].code(coder, value))
        lines.append(np.flatnonzero(found[1:]))
    if places is not None:
        row = np.searchsorted(lines[0], places // (channels * cells))
        channel = np.searchsorted(lines[1], places // cells % channels)
        places = (row * lines[1].size + channel) * cells + places % cells
    return lines[0], lines[1], places


def _complete(coder: Coder, found: Ints, count: int) -> None:
    if found.size != count:
        raise ArtifactError(f"the file is damaged: {coder.section} has {found.size} entries of {count}")


def _turn(
    layout: Layout, places: Ints | None, turned: bool
) -> tuple[tuple[int, int, int], tuple[Ints | None, Ints | None], Ints | None]:
    rows, channels, cells = layout.extent
    if not turned:
        return layout.extent, layout.alive, places
    if places is not None:
        row, channel, cell = places // (channels * cells), places // cells % channels, places % cells
        places = np.sort((channel * rows + row) * cells + cell)
    return (channels, rows, cells), (layout.alive[1], layout.alive[0]), places


def _turn_back(places: Ints, extent: tuple[int, int, int]) -> Ints:
    rows, channels, cells = extent
    channel, row, cell = places // (rows * cells), places // cells % rows, places % cells
    return (row * channels + channel) * cells + cell


def _nest(places: Ints, cells: int) -> tuple[Ints, Ints]:
    """Blocks of `cells` that have an entry, and the entries' places in the blocks laid end to end."""
    blocks, which = np.unique(places // cells, return_inverse=True)
    return blocks, which * cells + places % cells


def _live(places: Ints, layout: Layout) -> tuple[Ints, Ints]:
    cols = layout.matrix[1]
    rows_hit, cols_hit = np.zeros(layout.matrix[0], bool), np.zeros(cols, bool)
    rows_hit[places // cols] = True
    cols_hit[places % cols] = True
    return np.flatnonzero(rows_hit), np.flatnonzero(cols_hit)


def _bulk_bits(places: Ints, layout: Layout) -> float:
    return min(large_symbols.gap_bits(layout.size, places.size), _two_level_bits(places, layout)) + 64


def _two_level_bits(places: Ints, layout: Layout) -> float:
    if sum(layout.matrix) > SUBSET:
        return np.inf
    rows, cols = _live(places, layout)
    lists = large_symbols.gap_bits(layout.matrix[0], rows.size) + large_symbols.gap_bits(layout.matrix[1], cols.size)
    return lists + large_symbols.gap_bits(rows.size * cols.size, places.size) + 64


def _code_bulk_places(coder: Coder, bulk: Bulk, budget: Budget, places: Ints | None, layout: Layout, count: int) -> Ints:
    two_levels = False
    if places is not None and budget.allows(sum(layout.matrix)):
        two_levels = _two_level_bits(places, layout) < large_symbols.gap_bits(layout.size, count)
    if not coder.choice(int(two_levels), "two levels", 2):
        return large_symbols.code_gaps(coder, bulk, places, layout.size, count)
    if sum(layout.matrix) > SUBSET:
        raise ArtifactError(f"the file is damaged: {coder.section} is too large for lists of rows and columns")
    budget.spend(sum(layout.matrix))
    lines = []
    for axis, given in enumerate((None, None) if places is None else _live(places, layout)):
        extent = layout.matrix[axis]
        number = 1 + coder.uniform(0 if given is None else given.size - 1, extent)
        lines.append(np.array(code_subset(coder, [] if given is None else given.tolist(), extent, number), np.int64))
    rows, cols = lines
    inside: Ints | None = None
    if places is not None:
        width = layout.matrix[1]
        inside = np.searchsorted(rows, places // width) * cols.size + np.searchsorted(cols, places % width)
    if count > rows.size * cols.size:
        raise ArtifactError(f"the file is damaged: {count} entries of {coder.section} in {rows.size} x {cols.size} places")
    inside = large_symbols.code_gaps(coder, bulk, inside, rows.size * cols.size, count)
    return rows[inside // cols.size] * layout.matrix[1] + cols[inside % cols.size]


def code_marks(
    coder: Coder, bulk: Bulk, budget: Budget, marks: NDArray[Any] | None, places: Ints | None, layout: Layout, alphabet: int
) -> NDArray[Any]:
    """One symbol below `alphabet` for each of the ascending matrix `places`, in their order; for every place if None."""
    count = layout.size if places is None else places.size
    if alphabet <= 1 or count == 0:
        return np.zeros(count, np.int64)
    work = count * (6 + alphabet // 8)
    possible = alphabet <= 256 and budget.allows(work)
    if not possible:
        return code_large_symbols(coder, bulk, marks, count, alphabet)
    small, context = (False, 0) if marks is None else _small(marks, places, layout, alphabet)
    if not coder.choice(int(small), "small", 2):
        return code_large_symbols(coder, bulk, marks, count, alphabet)
    budget.spend(work)
    context = coder.uniform(context, CONTEXTS)
    order, ordered = _order(places, layout)
    given = None if marks is None else marks[order].tolist()
    found = _code_marks(coder, given, ordered, layout, alphabet, context)
    result = np.empty(count, np.int64)
    result[order] = found
    return result


def _order(places: Ints | None, layout: Layout) -> tuple[Ints, Ints]:
    """The order in which symbols at these matrix places, or at all, are coded one by one, and the places in it."""
    ordered = layout.places(np.arange(layout.size) if places is None else places)
    order = np.arange(ordered.size) if layout.order is None else np.argsort(ordered)
    return order, ordered[order]


def _small(marks: NDArray[Any], places: Ints | None, layout: Layout, alphabet: int) -> tuple[bool, int]:
    """Are the symbols to be coded one by one, and in which context?"""
    order, ordered = _order(places, layout)
    given, costs = marks[order].tolist(), []
    for option in range(CONTEXTS if marks.size < 20_000 else 1):
        meter = Meter()
        _code_marks(meter, given, ordered, layout, alphabet, option)
        costs.append(meter.bits)
    table = entropy_bits(np.bincount(marks, minlength=alphabet)) + 14 * alphabet
    return marks.size < FEW or WORTH_OF_MARKS * min(costs) < table, int(np.argmin(costs))


def _code_marks(coder: Coder, marks: list[int] | None, places: Ints, layout: Layout, alphabet: int, context: int) -> list[int]:
    _, channels, cells = layout.extent
    lines = {0: places * 0, 1: places // (channels * cells), 2: places % (channels * cells), 3: places // cells % channels}
    overall, total = [1] * alphabet, alphabet
    last: dict[int, int] = {}
    after = [[0] * alphabet for _ in range(alphabet)] if context else []
    sums = [0] * alphabet
    found = []
    for number, line in enumerate(lines[context].tolist()):
        value = marks[number] if marks is not None else 0
        before = last.get(line) if context else None
        if before is None:
            value = code_symbol(coder, value, overall, total)
        else:
            mixed = [a + 6 * b for a, b in zip(overall, after[before], strict=True)]
            value = code_symbol(coder, value, mixed, total + 6 * sums[before])
            after[before][value] += 1
            sums[before] += 1
        overall[value] += 2
        total += 2
        last[line] = value
        found.append(value)
    return found


def code_large_symbols(coder: Coder, bulk: Bulk, values: NDArray[Any] | None, count: int, alphabet: int) -> NDArray[Any]:
    """Symbols below `alphabet` under stored tables, in two or three parts if the alphabet is a very large one."""
    if alphabet <= large_symbols.LARGEST_ALPHABET:
        return large_symbols.code_symbols(coder, bulk, values, count, alphabet)
    high = code_large_symbols(coder, bulk, None if values is None else values >> 8, count, (alphabet - 1 >> 8) + 1)
    low = large_symbols.code_symbols(coder, bulk, None if values is None else values & 255, count, 256)
    return high.astype(np.int64) << 8 | low


def code_dense(
    coder: Coder, bulk: Bulk, budget: Budget, values: NDArray[Any] | None, layout: Layout, alphabet: int
) -> NDArray[Any]:
    """One symbol below `alphabet` for every place of the matrix, in its order: all alike, or the rarer ones by their places."""
    size = layout.size
    background, count = 0, size
    if values is not None and size and alphabet <= large_symbols.LARGEST_ALPHABET:
        counts = np.bincount(values, minlength=alphabet)
        background = int(counts.argmax())
        if counts[background] * 10 > size * (9 if size > SUBSET else 5):  # tuples of dense symbols are the faster ones
            count = size - int(counts[background])
    if not coder.choice(int(count < size), "background", 2):
        return code_marks(coder, bulk, budget, values, None, layout, alphabet)
    background = coder.uniform(background, alphabet)
    count = coder.uniform(count, size)
    places = code_places(coder, bulk, budget, None if values is None else np.flatnonzero(values != background), layout, count)
    rest = None if values is None else values[places] - (values[places] > background)
    rest = code_marks(coder, bulk, budget, rest, places, layout, alphabet - 1)
    result = np.full(size, background, np.int64)
    result[places] = rest + (rest >= background)
    return result
