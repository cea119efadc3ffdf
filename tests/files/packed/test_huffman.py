"""The Huffman code: as short as any, as RFC 1951 defines it, and nothing else is read as one."""

from __future__ import annotations

import numpy as np
import pytest
from canonical import least_bits, read_words
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.errors import ArtifactError
from featherweight.files.packed import huffman

FREQUENCIES = st.lists(st.integers(1, 10) | st.integers(1, 2**40), min_size=1, max_size=24)


@settings(max_examples=60, deadline=None)
@given(FREQUENCIES)
def test_no_tree_is_cheaper(frequencies: list[int]) -> None:
    size = huffman.lengths(np.array(frequencies, np.int64))
    counts = [*frequencies, 1]  # the end
    assert int((size * counts).sum()) == least_bits(counts, 15)
    assert sum(2.0**-length for length in size.tolist()) == 1


def test_no_word_is_longer_than_15_bits() -> None:
    steep = [1, 2]
    while len(steep) < 24:
        steep.append(steep[-1] + steep[-2])
    size = huffman.lengths(np.array(steep, np.int64))
    assert least_bits([*steep, 1], 24) < int((size * [*steep, 1]).sum()) == least_bits([*steep, 1], 15)
    assert size.max() == 15


@settings(max_examples=60, deadline=None)
@given(FREQUENCIES, st.integers(0, 300), st.integers(0, 10**6))
def test_words_are_those_of_the_standard(frequencies: list[int], count: int, seed: int) -> None:
    size = huffman.lengths(np.array(frequencies, np.int64))
    symbols = np.random.default_rng(seed).integers(0, len(frequencies), count)
    data = huffman.encode(symbols, size)
    assert len(data) == -(-huffman.bits(np.bincount(symbols, minlength=len(frequencies)), size) // 8)
    assert read_words(data, size.tolist()) == symbols.tolist()
    assert huffman.decode(memoryview(data), size, count).tolist() == symbols.tolist()


@pytest.mark.parametrize("alphabet", [1, 2, 256])
@pytest.mark.parametrize("count", [0, 63, 64, 65, 128, 1000])
def test_pieces_that_are_turned_into_bits_together_join(monkeypatch: pytest.MonkeyPatch, alphabet: int, count: int) -> None:
    random = np.random.default_rng(count)
    size = huffman.lengths(random.integers(1, 10**6, alphabet))
    symbols = random.integers(0, alphabet, count)
    whole = huffman.encode(symbols, size)
    monkeypatch.setattr(huffman, "AT_ONCE", 64)
    assert huffman.encode(symbols, size) == whole
    assert huffman.decode(memoryview(whole), size, count).tolist() == symbols.tolist()


def test_a_stream_of_too_few_or_too_many_symbols_is_refused() -> None:
    size = huffman.lengths(np.array([5, 3, 1]))
    data = huffman.encode(np.array([0, 1, 2, 0, 0, 1] * 5), size)
    assert huffman.decode(memoryview(data), size, 30).size == 30
    for damaged, count in ((data, 29), (data, 31), (data[:-1], 30), (data + b"x", 30), (b"", 30), (b"", 0)):
        with pytest.raises(ArtifactError, match="not of"):
            huffman.decode(memoryview(damaged), size, count)


@pytest.mark.parametrize("size", [[1, 1, 1], [2, 2, 2], [1, 2, 0], [0, 0, 0], [15, 15, 15], [1, 1, 0], [0, 1, 1, 2]])
def test_lengths_of_which_there_is_no_code_are_refused(size: list[int]) -> None:
    data = huffman.encode(np.array([0, 1, 0, 1]), huffman.lengths(np.array([3, 2])))
    with pytest.raises(ArtifactError):
        huffman.decode(memoryview(data), np.array(size), 4)


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40))
def test_stored_lengths_come_back(size: list[int]) -> None:
    data = huffman.write_lengths(np.array(size))
    assert len(data) == 1 + -(-len(size) * (max(size) - min(size)).bit_length() // 8)
    back, taken = huffman.read_lengths(memoryview(data + b"more"), len(size))
    assert (back.tolist(), taken) == (size, len(data))
    if len(data) > 1:
        with pytest.raises(ArtifactError, match="do not hold"):
            huffman.read_lengths(memoryview(data[:-1]), len(size))


def test_no_lengths_at_all_are_refused() -> None:
    with pytest.raises(ArtifactError, match="do not hold"):
        huffman.read_lengths(memoryview(b""), 3)
