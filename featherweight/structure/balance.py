"""Equal counts: labels joined to units that take equally many entries from each block of a dimension.

A grouped convolution needs groups of one size. Where its channels come in other blocks than it reads them in (ShuffleNet with
three groups puts 24 channels after 216 and reads the 240 in blocks of 80), no place in the groups can go as a whole. Any entries
can go if each group loses equally many, and since a union of such choices is such a choice, it is enough to find small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featherweight.structure.labels import Labels, Planes, Vector

Counts = NDArray[np.int64]
BEAM = 64  # choices looked at side by side; more finds smaller units where few labels fit together
MOST_BLOCKS = 16  # beyond these only labels that lie in one block each are paired: the search would take seconds


@dataclass(frozen=True)
class Even:
    """The entries of these planes lie in `blocks` equal blocks, each of which must lose equally many of them."""

    planes: Planes
    blocks: int
    reason: str


def balance(labels: Labels, demands: Sequence[Even]) -> None:
    """Join and freeze labels until every selection meets every demand.

    One demand after the other, over units that the earlier ones made: a union of balanced units is balanced. Of two labels of
    one entry only one is kept, from the plane of which most can go, for what two take together is no sum. Not the most units
    possible: the choice is greedy, and the units are fixed here, before anybody knows which entries matter.
    """
    for demand in demands:
        planes = labels.resolve(demand.planes)
        if not planes:
            continue
        choices = []
        for k, lead in enumerate(planes):
            others = planes[:k] + planes[k + 1 :]
            dropped = np.unique(np.concatenate([lead[:0], *(other[lead > 0] for other in others)]))
            merged = lead.copy()
            for other in others:
                merged = np.where(merged > 0, merged, other)
            merged[np.isin(merged, dropped)] = 0
            units, rest = even_units(merged, demand.blocks)
            sizes = [int(np.isin(merged, unit).sum()) for unit in units]
            # one unit has to stay: a single one that is everything is worth nothing
            choices.append((sum(sizes) - max(sizes, default=0), units, [dropped, rest]))
        _, units, frozen = max(choices, key=lambda choice: choice[0])
        labels.freeze(frozen, demand.reason)
        for unit in units:
            labels.join(unit[1:], np.broadcast_to(unit[:1], unit[1:].shape))


def even_units(plane: Vector, blocks: int) -> tuple[list[Vector], Vector]:
    """Disjoint sets of labels that take equally many entries from each block each, and the labels left over.

    plane  a resolved plane, its length a multiple of blocks
    """
    live, first = np.unique(plane[plane > 0], return_index=True)
    live = live[np.argsort(first)]  # in the order in which they lie in the plane
    number = np.zeros(int(plane.max(initial=0)) + 1, dtype=np.int64)
    number[live] = np.arange(len(live))
    counts = np.zeros((len(live), blocks), dtype=np.int64)
    position = np.flatnonzero(plane)
    np.add.at(counts, (number[plane[position]], position * blocks // len(plane)), 1)
    kinds, kind_of = np.unique(counts, axis=0, return_inverse=True)
    waiting = [live[kind_of.reshape(-1) == k].tolist() for k in range(len(kinds))]
    units: list[Vector] = []
    stuck: set[int] = set()
    while True:
        left = np.array([len(w) for w in waiting], dtype=np.int64)
        start = next((k for k in range(len(kinds)) if left[k] and k not in stuck), None)
        if start is None:
            return units, np.array([label for w in waiting for label in w], dtype=np.int64)
        used = _even_choice(kinds, left, start)
        if used is None:
            stuck.add(start)
            continue
        for _ in range(int((left[used > 0] // used[used > 0]).min())):
            unit = [waiting[k].pop(0) for k in range(len(kinds)) for _ in range(used[k])]
            units.append(np.array(unit, dtype=np.int64))


def _even_choice(kinds: Counts, left: Counts, start: int) -> Counts | None:
    """How many labels of each kind (rows of `kinds`: entries in each block) together take equally many from each block.

    Kinds that lie in one block each are paired directly; else a beam search from one label of kind `start`, smallest sets first.
    """
    blocks = kinds.shape[1]
    one = np.zeros(len(kinds), dtype=np.int64)
    one[start] = 1
    size = int(kinds[start].max())
    if np.count_nonzero(kinds[start]) == 1:
        pure = [np.flatnonzero((kinds[:, b] == size) & (kinds.sum(1) == size) & (left > 0)) for b in range(blocks)]
        if all(len(p) for p in pure):
            one[[int(p[0]) for p in pure]] = 1
            return one
    if blocks > MOST_BLOCKS:
        return None
    beam = one[None]
    steps = np.eye(len(kinds), dtype=np.int64)[(kinds != kinds[:, :1]).any(1)]
    names = np.random.default_rng(0).integers(1, 1 << 40, size=len(kinds))
    for _ in range(2 * blocks + 4):
        total = beam @ kinds
        even = np.flatnonzero((total == total[:, :1]).all(1))
        if len(even):
            result: Counts = beam[even[0]]
            return result
        wider = (beam[:, None] + steps[None]).reshape(-1, len(kinds))
        wider = wider[(wider <= left).all(1)]
        if not len(wider):
            return None
        wider = wider[np.unique(wider @ names, return_index=True)[1]]  # each set once
        total = wider @ kinds
        uneven = blocks * (total**2).sum(1) - total.sum(1) ** 2
        beam = wider[np.argsort(uneven, kind="stable")[:BEAM]]
    return None
