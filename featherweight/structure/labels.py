"""Integer labels for the entries of a dimension: union-find, substitution, and the two rules `equal` and `normal`.

An entry that carries label l goes when l goes; label 0 never goes. A *plane* is one label vector over a dimension, and a
dimension has a short
list of planes: an entry goes if **any** of its labels goes. Since planes belong to dimensions and not to positions, what is
kept of a tensor is always a box, and every operation can be cut to it.

Labels below `FIRST` are reasons: to freeze a label is to join it to the reason why it can never go. Joining and freezing are
always sound: they lose units that could have gone, never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.int64]
Planes = list[Vector]

FIRST = 1 << 16  # the first label that is not a reason


def pattern(vector: Vector) -> Vector:
    """The equality pattern of a vector: entry i holds the position where vector[i] occurs first."""
    _, first, inverse = np.unique(vector, return_index=True, return_inverse=True)
    return first[inverse.reshape(vector.shape)]


class Labels:
    """A growing set of labels with `join`, `freeze`, `substitute`; all operations are vectorised."""

    def __init__(self) -> None:
        self._parent: Vector = np.arange(FIRST, dtype=np.int64)
        # left[l] >= 0: label l stands for "left[l] or right[l]"
        self._left: Vector = np.full(FIRST, -1, dtype=np.int64)
        self._right: Vector = np.full(FIRST, -1, dtype=np.int64)
        self._used = FIRST
        self._reasons: list[str] = ["never removed"]
        self._reason_index: dict[str, int] = {}

    @property
    def used(self) -> int:
        """One more than the largest label in use."""
        return self._used

    def fresh(self, count: int) -> Vector:
        """`count` new labels."""
        start, self._used = self._used, self._used + count
        if self._used > len(self._parent):
            size = max(self._used, 2 * len(self._parent))
            grown = np.arange(size, dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
            missing = np.full(size - len(self._left), -1, dtype=np.int64)
            self._left, self._right = np.concatenate([self._left, missing]), np.concatenate([self._right, missing])
        return np.arange(start, self._used, dtype=np.int64)

    def find(self, vector: Vector) -> Vector:
        """The representative of each label; a reason (< FIRST) where the label is frozen."""
        root = self._parent[vector]
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                return root
            root = above

    def reasons(self, planes: Planes) -> list[str]:
        """The different reasons why labels of these planes never go, those that hold most entries first."""
        count: dict[int, int] = {}
        for vector in planes:
            for roots in self._expand(vector):
                for root, number in zip(*np.unique(roots[roots < FIRST], return_counts=True), strict=True):
                    if root:
                        count[int(root)] = count.get(int(root), 0) + int(number)
        return [self._reasons[root] for root in sorted(count, key=lambda r: -count[r])]

    def _reason_label(self, reason: str) -> int:
        if reason not in self._reason_index:
            if len(self._reasons) >= FIRST:
                return 0
            self._reason_index[reason] = len(self._reasons)
            self._reasons.append(reason)
        return self._reason_index[reason]

    def frozen(self, size: int, reason: str) -> Vector:
        """A plane of which nothing goes, for this reason."""
        return np.full(size, self._reason_label(reason), dtype=np.int64)

    def join(self, a: Vector, b: Vector) -> None:
        """Make the labels of `a` and `b` the same, entry by entry. Both must be resolved (no substitution on their roots)."""
        while True:
            first, second = self.find(a), self.find(b)
            # two reasons are never joined, so that each label keeps the reason that froze it first
            differ = (first != second) & ((first >= FIRST) | (second >= FIRST))
            if not differ.any():
                return
            low, high = np.minimum(first, second)[differ], np.maximum(first, second)[differ]
            np.minimum.at(self._parent, high, low)

    def freeze(self, planes: Planes, reason: str) -> None:
        """No entry of these planes ever goes."""
        for vector in self.resolve(planes):
            roots = self.find(np.unique(vector))
            roots = roots[roots >= FIRST]
            if len(roots):
                self._parent[roots] = self._reason_label(reason)

    def substitute(self, label: Vector, left: Vector, right: Vector, reason: str) -> None:
        """Each entry of `label` (resolved) from now on means "left or right"; labels given several times tie their meanings
        together.
        """
        roots = self.find(label)
        frozen = roots < FIRST
        if frozen.any():
            self.freeze([left[frozen], right[frozen]], reason)
            roots, left, right = roots[~frozen], left[~frozen], right[~frozen]
        if not len(roots):
            return
        unique, first, inverse = np.unique(roots, return_index=True, return_inverse=True)
        if len(unique) < len(roots):
            self.tie(left, left[first][inverse], reason)
            self.tie(right, right[first][inverse], reason)
        self._left[unique], self._right[unique] = left[first], right[first]

    def tie(self, a: Vector, b: Vector, reason: str) -> None:
        """`equal` for two single planes whose labels may have been substituted meanwhile."""
        self.equal([a], [b], reason)

    def _expand(self, vector: Vector) -> Planes:
        roots = self.find(vector)
        substituted = self._left[roots] >= 0
        if not substituted.any():
            return [roots]
        left = np.where(substituted, self._left[roots], roots)
        right = np.where(substituted, self._right[roots], 0)
        return self._expand(left) + self._expand(right)

    def resolve(self, planes: Planes) -> Planes:
        """The planes with representatives: frozen labels 0, substitutions expanded, empty and repeated planes dropped."""
        result: Planes = []
        for vector in planes:
            for roots in self._expand(vector):
                plane = np.where(roots < FIRST, 0, roots)
                if plane.any() and not any(np.array_equal(plane, other) for other in result):
                    result.append(plane)
        return result

    def equal(self, a: Planes, b: Planes, reason: str) -> None:
        """Two lists of planes over one dimension must remove the same entries.

        In this order: common planes say nothing; what stands alone is frozen; one against one is joined; planes of the same
        equality
        pattern are joined; one against several is substituted ("goes if its head or its place in the head goes"); a plane that
        refines
        another is joined to it; everything else is frozen. Repeats until nothing is left, since each step can merge others.
        """
        while True:
            a, b = self.resolve(a), self.resolve(b)
            common = [p for p in a if any(np.array_equal(p, q) for q in b)]
            a = [p for p in a if not any(np.array_equal(p, q) for q in common)]
            b = [p for p in b if not any(np.array_equal(p, q) for q in common)]
            if not a or not b:
                self.freeze(a + b, reason)
                return
            if len(a) == 1 and len(b) == 1:
                self.join(a[0], b[0])
                continue
            pair = next(((p, q) for p in a for q in b if np.array_equal(pattern(p), pattern(q))), None)
            if pair is not None:
                self.join(*pair)
                continue
            if len(a) == 1 or len(b) == 1:
                one, several = (a[0], b) if len(a) == 1 else (b[0], a)
                if not any(np.isin(one, plane[plane > 0]).any() for plane in several):
                    self._split(one, several, reason)
                    continue
            pair = next(((p, q) for p in a for q in b if _refines(p, q) or _refines(q, p)), None)
            if pair is not None:
                self.join(*pair)
                continue
            self.freeze(a + b, reason)
            return

    def _split(self, label: Vector, planes: Planes, reason: str) -> None:
        """Substitute label -> any of planes, by halves, since a substitution has two sides."""
        left = planes[0]
        right = planes[1] if len(planes) == 2 else self.fresh(len(label))
        self.substitute(label, left, right, reason)
        if len(planes) > 2:
            self.equal([right], planes[1:], reason)

    def normal(self, tensor: NDArray[np.int64], reason: str) -> list[Planes]:
        """Planes per dimension for a tensor of labels, one label a position (an executed movement).

        A label that is the same everywhere is frozen (without it nothing would be left); one that varies along a single
        dimension is a plane
        there; one that varies along several is factorised into fresh labels per dimension, of which any removes it. That is how
        channels reshaped to (heads, places) give removable heads and removable places.
        """
        shape = tensor.shape
        result: list[Planes] = [[] for _ in shape]
        if tensor.size == 0:
            self.freeze([tensor.reshape(-1)], reason)
            return result
        for plane in self.resolve([np.ascontiguousarray(tensor).reshape(-1)]):
            grid = plane.reshape(shape)
            varies = [d for d in range(grid.ndim) if shape[d] > 1 and (grid != grid.take([0], axis=d)).any()]
            if not varies:
                self.freeze([plane[:1]], reason)
            elif len(varies) == 1:
                index = tuple(slice(None) if d == varies[0] else 0 for d in range(grid.ndim))
                result[varies[0]].append(grid[index].copy())
            else:
                index = tuple(slice(None) if d in varies else 0 for d in range(grid.ndim))
                core = grid[index]
                factors = [self.fresh(size) for size in core.shape]
                spread = [
                    np.broadcast_to(f.reshape([-1 if i == d else 1 for i in range(core.ndim)]), core.shape).reshape(-1)
                    for d, f in enumerate(factors)
                ]
                self._split(core.reshape(-1), spread, reason)
                for d, factor in zip(varies, factors, strict=True):
                    result[d].append(factor)
        return result

    def components(self, vectors: Sequence[Vector]) -> Vector:
        """For every label used so far, a representative of the labels that occur together with it in some vector."""
        other = Labels.__new__(Labels)
        other._parent = np.arange(self._used, dtype=np.int64)
        for vector in vectors:
            live = np.unique(vector[vector >= FIRST])
            if len(live) > 1:
                other.join(live, np.broadcast_to(live[:1], live.shape))
        return other.find(np.arange(self._used, dtype=np.int64))


def _refines(fine: Vector, coarse: Vector) -> bool:
    """Do equal labels of `fine` always sit on equal labels of `coarse`?"""
    _, first, inverse = np.unique(fine, return_index=True, return_inverse=True)
    return bool(np.array_equal(coarse[first][inverse], coarse))
