"""Labels against their definition: an entry goes if any of its labels goes, checked by trying every set of labels."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.structure.labels import FIRST, Labels, Planes
from featherweight.structure.rules.movement import segments


def removed(planes: Planes, gone: set[int]) -> np.ndarray:
    """The definition."""
    size = len(planes[0])
    return np.array([any(int(p[i]) in gone for p in planes) for i in range(size)])


def live(*lists: Planes) -> list[int]:
    return sorted({int(v) for planes in lists for p in planes for v in p if v >= FIRST})


def subsets(labels: list[int]) -> list[set[int]]:
    return [set(c) for k in range(len(labels) + 1) for c in itertools.combinations(labels, k)]


@st.composite
def plane_lists(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    size = draw(st.integers(2, 6))
    vector = st.lists(st.integers(-1, 5), min_size=size, max_size=size)
    return draw(st.lists(vector, max_size=3)), draw(st.lists(vector, max_size=3))


@settings(max_examples=120, deadline=None)
@given(plane_lists())
def test_equal_lists_always_remove_the_same(lists: tuple[list[list[int]], list[list[int]]]) -> None:
    labels = Labels()
    pool = labels.fresh(6)

    def planes(rows: list[list[int]]) -> Planes:
        return [np.array([0 if v < 0 else int(pool[v]) for v in row], dtype=np.int64) for row in rows]

    a, b = planes(lists[0]), planes(lists[1])
    labels.equal(a, b, "they are one dimension")
    a, b = labels.resolve(a), labels.resolve(b)
    size = len((lists[0] + lists[1])[0]) if lists[0] + lists[1] else 2
    a, b = a or [np.zeros(size, dtype=np.int64)], b or [np.zeros(size, dtype=np.int64)]
    for gone in subsets(live(a, b)):
        assert (removed(a, gone) == removed(b, gone)).all()


def test_equal_keeps_what_it_can() -> None:
    labels = Labels()
    a, heads, places = labels.fresh(6), labels.fresh(2), labels.fresh(3)
    labels.equal([a], [np.repeat(heads, 3), np.tile(places, 2)], "channels are heads times places")
    assert len(live(labels.resolve([a]))) == 5, "two heads and three places can still go"
    other = labels.fresh(6)
    labels.equal([a], [other], "added")
    assert all((x == y).all() for x, y in zip(labels.resolve([a]), labels.resolve([other]), strict=True))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(-1, 8), min_size=12, max_size=12), st.sampled_from([(3, 4), (2, 6), (2, 3, 2), (12,), (1, 12), (4, 3)])
)
def test_normal_keeps_the_meaning_of_every_position(entries: list[int], shape: tuple[int, ...]) -> None:
    """After factorising, what any set of labels removes is the same read from the vector and from the planes per dimension:
    always a box.
    """
    labels = Labels()
    pool = labels.fresh(9)
    vector = np.array([0 if e < 0 else int(pool[e]) for e in entries], dtype=np.int64)
    planes = labels.normal(vector.reshape(shape), "reshaped")
    flat = labels.resolve([vector])
    per_dim = [labels.resolve(p) for p in planes]
    everything = live(flat, *per_dim)
    for gone in [set(), *({label} for label in everything), set(everything[::2]), set(everything)]:
        by_dim = np.zeros(shape, dtype=bool)
        for d, p in enumerate(per_dim):
            if p:
                by_dim |= removed(p, gone).reshape([-1 if i == d else 1 for i in range(len(shape))])
        by_vector = removed(flat, gone) if flat else np.zeros(12, dtype=bool)
        assert (by_dim.reshape(-1) == by_vector).all()


def test_frozen_labels_keep_their_first_reason() -> None:
    labels = Labels()
    a, b, c = labels.fresh(2), labels.fresh(2), labels.fresh(2)
    labels.join(a, b)
    labels.freeze([a], "an output")
    labels.freeze([c], "a softmax")
    labels.equal([b], [c], "added")
    assert labels.reasons([b]) == ["an output"] and labels.reasons([c]) == ["a softmax"] and labels.resolve([a, b, c]) == []


def test_segments_are_the_smallest() -> None:
    assert segments((2, 12, 5, 5), (2, 3, 4, 25)) == [([0], [0]), ([1], [1, 2]), ([2, 3], [3])]
    assert segments((2, 10), (4, 5)) == [([0, 1], [0, 1])]
    assert segments((2, 5, 1), (2, 5)) == [([0], [0]), ([1], [1]), ([2], [])]
