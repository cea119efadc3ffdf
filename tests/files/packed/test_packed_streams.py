"""The two coders: what they write comes back, on any machine, in about as many bits as it is worth."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from canonical import read_words
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import read_stream

from featherweight.errors import ArtifactError
from featherweight.files.packed import huffman, interleaved, large_symbols, sparse_places, streams
from featherweight.files.packed.coder import Coder, Decoder, Encoder, Meter, code_subset
from featherweight.files.packed.raw_bytes import Bulk


def program(coder: Coder, values: list[tuple[str, int, int]]) -> list[int]:
    out = []
    for kind, value, size in values:
        if kind == "uniform":
            out.append(coder.uniform(value % size, size))
        elif kind == "choice":
            out.append(coder.choice(value % 7, f"c{size % 3}", 7))
        elif kind == "number":
            out.append(coder.number(value, "n"))
        else:
            out.append(coder.signed(value - 2**40, "s"))
    return out


STEPS = st.tuples(
    st.sampled_from(["uniform", "choice", "number", "signed"]), st.integers(0, 2**50), st.integers(1, 2**64 - 1) | st.just(1)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_small_coder_gives_back_what_it_was_given(values: list[tuple[str, int, int]]) -> None:
    encoder, meter = Encoder(), Meter()
    written = program(encoder, values)
    data = encoder.finish()
    program(meter, values)
    decoder = Decoder(data)
    blank = [(kind, 0, size) for kind, _, size in values]
    read = program(decoder, [(kind, 0 if kind != "signed" else 2**40, size) for kind, _, size in blank])
    decoder.close()
    assert read == written
    assert len(data) <= meter.bits / 8 + 1.01
    assert sum(decoder.spent.values()) <= meter.bits + 0.01 * len(values) + 1e-6  # the last of an interval takes what is over


def test_carries_run_through_bytes_of_ones() -> None:
    """The last of a very long interval, again and again, then a step up: the carry passes all bytes written so far."""
    for last in range(3):
        encoder = Encoder()
        for _ in range(40):
            encoder.code(254, 255, lambda v: (v, v + 1), lambda p: p)
        encoder.code(last, 3, lambda v: (v, v + 1), lambda p: p)
        decoder = Decoder(encoder.finish())
        assert [decoder.uniform(0, 255) for _ in range(40)] == [254] * 40
        assert decoder.uniform(0, 3) == last


def test_a_stream_that_ends_too_early_is_named() -> None:
    encoder = Encoder()
    for value in range(200):
        encoder.uniform(value * 7919 % 1000, 1000)
    decoder = Decoder(encoder.finish()[:-20])
    with pytest.raises(ArtifactError, match="ends too early"):
        for _ in range(200):
            decoder.uniform(0, 1000)


@pytest.mark.parametrize(("size", "count"), [(1, 0), (1, 1), (5, 5), (40, 3), (300, 150)])
def test_subsets_cost_the_logarithm_of_their_number(size: int, count: int) -> None:
    places = sorted(np.random.default_rng(0).choice(size, count, replace=False).tolist())
    encoder, meter = Encoder(), Meter()
    code_subset(encoder, places, size, count)
    code_subset(meter, places, size, count)
    assert code_subset(Decoder(encoder.finish()), [], size, count) == places
    assert meter.bits == pytest.approx(math.log2(math.comb(size, count)), abs=1e-6)


@pytest.mark.parametrize("alphabet", [2, 3, 17, 32, 33, 200, 1000])
def test_large_symbols_come_back_at_their_entropy_and_need_no_floating_point(alphabet: int) -> None:
    random = np.random.default_rng(alphabet)
    chances = random.dirichlet(np.ones(alphabet) * 0.3)
    values = random.choice(alphabet, 70_001, p=chances)
    coder, bulk = Encoder(), Bulk()
    large_symbols.code_symbols(coder, bulk, values, values.size, alphabet)
    head, data = coder.finish(), bulk.finish()
    back = large_symbols.code_symbols(Decoder(head), Bulk(data), None, values.size, alphabet)
    np.testing.assert_array_equal(back, values)
    counts = np.bincount(values)
    entropy = float(-(counts[counts > 0] * np.log2(counts[counts > 0] / counts.sum())).sum()) / 8
    table = 12 * np.count_nonzero(counts) / 8  # a frequency takes 4 to 19 bits, those of common symbols most
    assert len(head) + len(data) - table <= 1.008 * entropy + 16  # lanes cost about six in a thousand


def test_a_long_stream_is_a_huffman_code_of_tuples_where_that_is_near_its_entropy() -> None:
    random = np.random.default_rng(0)
    symbols = random.choice(5, 20_000, p=[0.4, 0.2, 0.2, 0.1, 0.1]).astype(np.int32)
    entropy = streams.entropy_bits(np.bincount(symbols)) / 8
    made = streams.encode(symbols, 5)
    assert made.way == 3  # 5^3 of 256, under the frequencies of the five
    assert len(made.front) + len(made.data) <= 1.005 * entropy + 16

    pairs = (symbols[:10_000, None] * np.array([[1, 1]], np.int32)).reshape(-1)  # each twice: half the information
    made = streams.encode(pairs, 5)
    assert made.way == streams.MOST_TOGETHER + 2  # under lengths of all pairs
    code, taken = huffman.read_lengths(memoryview(made.front), 26)
    assert taken == len(made.front)
    assert read_words(made.data, code.tolist()) == (6 * pairs[::2]).tolist()
    assert len(made.front) + len(made.data) <= 0.55 * entropy

    skewed = (random.random(20_000) < 0.001).astype(np.int32)
    assert streams.encode(skewed, 2).way == streams.LANES  # at least a bit for each byte: far from its entropy


@pytest.mark.parametrize("way", [streams.LANES, 1, 3, streams.MOST_TOGETHER + 1, streams.MOST_TOGETHER + 3])
def test_every_way_is_read_as_it_says(way: int) -> None:
    symbols = np.random.default_rng(0).integers(0, 5, 2000).astype(np.int32)
    table = interleaved.frequencies(np.bincount(symbols))
    stored = interleaved.write_numbers(table[:-1])
    codes = {found[0]: found for found in streams._huffman_codes(symbols, table, stored)}
    if way == streams.LANES:
        together = streams._joined(symbols, 5, streams._together(table, 2000))
        joint = streams._joint(table, streams._together(table, 2000))
        made = streams.Stream(interleaved.encode(together, joint), way, stored)
    else:
        _, code, front, bits = codes[way]
        made = streams.Stream(huffman.encode(streams._joined(symbols, 5, streams._group(way)), code), way, front)
        assert len(made.front) + len(made.data) == -(-bits // 8)
    coder, bulk = Encoder(), Bulk()
    streams.write(coder, bulk, made)
    head, data = coder.finish(), bulk.finish()
    names = np.array([0, 2, 3, 7, 300])
    np.testing.assert_array_equal(streams.read(Decoder(head), Bulk(data), 2000, names), names[symbols])
    with pytest.raises(ArtifactError, match="damaged"):
        streams.read(Decoder(head), Bulk(data[:-1]), 2000, names)


def test_more_together_than_a_byte_holds_are_refused() -> None:
    coder = Encoder()
    coder.choice(4, "group", streams.WAYS)
    with pytest.raises(ArtifactError, match="4 of 5 symbols are more than a byte"):
        streams.read(Decoder(coder.finish()), Bulk(b"1234567890"), 100, np.arange(5))


@pytest.mark.parametrize("size", [2, 3, 40, 999])
def test_interleaved_streams_are_what_their_definition_says(size: int) -> None:
    random = np.random.default_rng(0)
    table = interleaved.frequencies((random.dirichlet(np.ones(size) * 0.2) * 2**32).astype(np.int64))
    assert int(table.sum()) == 1 << 16
    assert int(table.min()) >= 1
    symbols = random.integers(0, size, 7001)
    data = interleaved.encode(symbols, table)
    lanes, *_ = interleaved._layout(table, symbols.size)
    assert read_stream(data, table.tolist(), symbols.size, lanes) == symbols.tolist()
    np.testing.assert_array_equal(interleaved.decode(memoryview(data), table, symbols.size), symbols)
    assert (lanes > 1) == (size > 2)


def test_rare_symbols_have_a_frequency_even_if_there_are_thousands() -> None:
    for size, frequent in ((4096, 90), (4096, 1), (300, 299)):
        counts = np.ones(size, np.int64)
        counts[:frequent] = 10**8
        table = interleaved.frequencies(counts)
        assert int(table.sum()) == 1 << 16
        assert int(table.min()) >= 1
        assert int(table[0]) >= int(table[-1])


def test_a_damaged_stream_is_refused_or_still_gives_symbols_of_its_table() -> None:
    random = np.random.default_rng(1)
    table = interleaved.frequencies(np.ones(50, np.int64))
    whole = interleaved.encode(random.integers(0, 50, 5000), table)
    refused = {0: 0, 1: 0, 2: 0}
    for number in range(300):
        missing = number % 3
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        try:
            found = interleaved.decode(memoryview(bytes(data[: len(data) - missing])), table, 5000)
        except ArtifactError:
            refused[missing] += 1
        else:
            assert found.max() < 50
    assert refused[1] == refused[2] == 100
    assert refused[0] > 20  # a lane that has lost its way may find it again; the checksum of the file is what guards it
    with pytest.raises(ArtifactError, match="cannot be a stream"):
        interleaved.decode(memoryview(whole[:6]), table, 5000)


@pytest.mark.parametrize(("size", "count"), [(100_000, 1), (100_000, 300), (100_000, 9_000), (100_000, 60_000), (30, 29)])
def test_gaps_come_back_at_the_entropy_of_their_density(size: int, count: int) -> None:
    places = np.sort(np.random.default_rng(1).choice(size, count, replace=False))
    coder, bulk = Encoder(), Bulk()
    large_symbols.code_gaps(coder, bulk, places, size, count)
    head, data = coder.finish(), bulk.finish()
    np.testing.assert_array_equal(large_symbols.code_gaps(Decoder(head), Bulk(data), None, size, count), places)
    share = count / size
    entropy = -size * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(head) + len(data) <= 1.01 * entropy + 16


def test_integer_functions_are_monotone_and_near() -> None:
    points = sorted({int(2**x) for x in np.linspace(0, 60, 5000)} | set(range(1, 3000)))
    logs = [sparse_places._log2(point) for point in points]
    assert all(a <= b for a, b in pairwise(logs))
    assert max(abs(value / sparse_places.ONE - math.log2(point)) for value, point in zip(logs, points, strict=True)) < 1e-6
    exponents = range(0, 40 * sparse_places.ONE, sparse_places.ONE // 77)
    powers = [sparse_places._survival(exponent) for exponent in exponents]
    assert all(a >= b for a, b in pairwise(powers))
    assert max(abs(p / sparse_places.ONE - 2 ** (-e / sparse_places.ONE)) for p, e in zip(powers, exponents, strict=True)) < 1e-6
    # frozen: if these change, files written before can no longer be read
    assert (sparse_places._log2(3), sparse_places._log2(12345678901), sparse_places._survival(sparse_places.ONE // 3)) == FROZEN


FROZEN = (6807362105, 143981421557, 3408917975)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9), st.integers(1, 6), st.booleans(), st.booleans())
def test_places_come_back_under_any_options(seed: int, rows: int, channels: int, cells: int, hinted: bool, full: bool) -> None:
    random = np.random.default_rng(seed)
    extent = (rows, channels, cells)
    mask = random.random(extent) < random.random() ** 2
    if full:
        mask[:, random.integers(channels), random.integers(cells)] = True  # every row has an entry
    places = np.flatnonzero(mask.reshape(-1))
    alive = (random.integers(0, 2, rows), random.integers(0, 2, channels)) if hinted else (None, None)
    shapes, urns, contrasts = len(sparse_places.SHAPES), len(sparse_places.URNS), len(sparse_places.CONTRASTS)
    menus = (shapes, urns, urns, contrasts, contrasts, 2)
    options = sparse_places.Options(*(int(random.integers(menu)) for menu in menus))
    if options.ordered:
        places = in_order(places, rows, channels * cells)
    encoder = Encoder()
    sparse_places.code_entries(encoder, places, extent, places.size, options, alive, full)
    found = sparse_places.code_entries(Decoder(encoder.finish()), None, extent, places.size, options, alive, full)
    np.testing.assert_array_equal(found, places)


def in_order(places: np.ndarray, rows: int, width: int) -> np.ndarray:
    """The same rows, sorted by their first entry; those without any come last."""
    lines: list[list[int]] = [[] for _ in range(rows)]
    for place in places.tolist():
        lines[place // width].append(place % width)
    lines.sort(key=lambda line: line[:1] or [width])
    return np.array([row * width + column for row, line in enumerate(lines) for column in line], np.int64)


def test_rows_in_order_are_stored_without_their_order() -> None:
    rows, width, count = 80, 600, 300
    random = np.random.default_rng(0)
    anyhow = np.sort(random.choice(rows * width, count, replace=False))

    def bits(places: np.ndarray) -> float:
        return sparse_places.search(places, (rows, width, 1), count, (None, None), False, 24)[1]

    saved = bits(anyhow) - bits(in_order(anyhow, rows, width))
    assert 0.9 * math.lgamma(rows + 1) / math.log(2) < saved  # log2 of the orders there are
