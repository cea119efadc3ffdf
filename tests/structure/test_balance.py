"""Equal counts per block against their definition, and the entries of blocked dimensions against loops."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.structure import Cut, Edit, Moved, prune, replay, sweep, trace
from featherweight.structure.balance import Even, balance, even_units
from featherweight.structure.entries import clear, entry_rows, pick
from featherweight.structure.errors import EditMismatch
from featherweight.structure.labels import Labels
from tests.structure.probes import build
from tests.structure.test_labels import live, removed, subsets
from tests.structure.zeroing import inputs, output, relative


@st.composite
def blocked_planes(draw: st.DrawFn) -> tuple[int, list[list[list[int]]]]:
    """Number of blocks, and one or two lists of planes over a dimension of two entries a block; -1: never removed."""
    blocks = draw(st.integers(2, 3))
    vector = st.lists(st.integers(-1, 6), min_size=2 * blocks, max_size=2 * blocks)
    return blocks, draw(st.lists(st.lists(vector, min_size=1, max_size=2), min_size=1, max_size=2))


@settings(max_examples=150, deadline=None)
@given(blocked_planes())
def test_every_selection_takes_equally_many_of_each_block(case: tuple[int, list[list[list[int]]]]) -> None:
    blocks, lists = case
    labels = Labels()
    pool = labels.fresh(7)
    demands = [Even([np.array([0 if v < 0 else int(pool[v]) for v in row]) for row in rows], blocks, "groups") for rows in lists]
    balance(labels, demands)
    for demand in demands:
        planes = labels.resolve(demand.planes)
        for gone in subsets(live(planes)) if planes else []:
            lost = removed(planes, gone).reshape(blocks, -1).sum(1)
            assert (lost == lost[0]).all()


def test_the_blocks_of_shufflenet_are_matched_whole() -> None:
    """216 channels in blocks of 72 before 24 more, read in blocks of 80: counted by hand, 56 triples and 8 units of 3 triples."""
    labels = Labels()
    channels = labels.fresh(240)
    balance(labels, [Even([channels[:216]], 3, "made"), Even([channels], 3, "read")])
    unit, sizes = np.unique(labels.find(channels), return_counts=True)
    assert (unit >= channels[0]).all() and sorted(sizes.tolist()) == [3] * 56 + [9] * 8


def test_of_groups_and_places_the_places_stay() -> None:
    """All groups together are even as well, but then nothing would be left."""
    labels = Labels()
    groups, places = labels.fresh(3), labels.fresh(4)
    balance(labels, [Even([np.repeat(groups, 4), np.tile(places, 3)], 3, "groups")])
    assert live(labels.resolve([groups])) == [] and live(labels.resolve([places])) == places.tolist()


def test_what_fits_nowhere_is_left_over() -> None:
    units, rest = even_units(np.array([1, 2, 3, 4, 4, 0]), 2)
    assert [sorted(u.tolist()) for u in units] == [[1, 2, 4]] and rest.tolist() == [3]
    assert even_units(np.zeros(4, dtype=np.int64), 2)[0] == []


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_entries_of_ordinary_and_blocked_dimensions(dim: int) -> None:
    torch.manual_seed(dim)
    tensor = torch.randn(6, 4, 3)
    blocks = 3 if dim == 1 else 1
    size = tensor.shape[dim]
    keep = [b * size + i for b in range(blocks) for i in ([1, 2], [0, 2], [0, 1])[b]]
    expected, cleared, rows = [], tensor.clone(), []
    for b in range(blocks):
        part = tensor[2 * b : 2 * b + 2] if blocks > 1 else tensor
        kept = [entry - b * size for entry in keep if entry // size == b]
        expected.append(torch.stack([part.select(dim, i) for i in kept], dim))
        rows += [part.select(dim, i).reshape(-1) for i in range(size)]
        for i in set(range(size)) - set(kept):
            (cleared[2 * b : 2 * b + 2] if blocks > 1 else cleared).select(dim, i).zero_()
    assert torch.equal(pick(tensor, dim, blocks * size, keep), torch.cat(expected))
    assert torch.equal(entry_rows(tensor, dim, blocks * size), torch.stack(rows))
    moved = Moved(tensor, None, (Cut("w", dim, size, tuple(keep), blocks),))
    assert torch.equal(moved.select(tensor), torch.cat(expected))
    clear(tensor, dim, blocks * size, sorted(set(range(blocks * size)) - set(keep)))
    assert torch.equal(tensor, cleared)


def test_groups_that_lose_different_places() -> None:
    """The channels before a grouped convolution go at other places in each group, in the user's class, and the edit replays."""
    model, example = build("uneven groups", dtype=torch.float64)
    graph = trace(model, example)
    assert set(graph.frozen) == {"head.bias"}
    assert {"stem": 2, "expand": 14}.items() <= {name: site.size for name, site in graph.sites.items()}.items()
    columns = [s for s in graph.sites["stem"].unit(0) if s.parameter == "compress.weight" and s.dim == 1]
    assert [s.rows for s in columns] == [(0, 4), (4, 8), (8, 12)] and len({s.index for s in columns}) > 1
    x = inputs(example)
    result = prune(model, graph, {"stem": [1], "expand": [0, 3, 4, 9]})
    assert result.where == "class" and result.edit is not None and model.compress.weight.shape == (12, 7, 3, 3)
    fresh, _ = build("uneven groups", seed=1, dtype=torch.float64)
    replay(fresh, [json.loads(json.dumps(result.edit.to_dict()))])
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(fresh, x), output(model, x))
    cut = next(c for c in result.edit.cuts if c.blocks == 3)
    data = Edit("cut", (), (Cut("compress.weight", 1, 20, cut.keep[1:], 3),)).to_dict()
    with pytest.raises(EditMismatch, match="equally many"):
        Edit.from_dict(data)


def test_dead_channels_of_groups_that_lose_different_places() -> None:
    model, example = build("uneven groups", dtype=torch.float64)
    graph = trace(model, example)
    x = inputs(example)
    with torch.no_grad():
        for number in (2, 5):
            for part in graph.sites["expand"].unit(number):
                if part.parameter in ("expand.weight", "expand.bias", "norm.weight", "norm.bias") and part.dim == 0:
                    model.get_parameter(part.parameter)[list(part.index)] = 0
    # one channel that nothing reads, of a unit whose other channels are read
    part = next(s for s in graph.sites["expand"].unit(7) if s.parameter == "compress.weight")
    assert part.rows is not None
    with torch.no_grad():
        model.compress.weight[part.rows[0] : part.rows[1], part.index[0]] = 0
    before = output(model, x)
    result = sweep(model, graph)
    assert dict(result.edit.sites if result.edit else ()) == {"expand": 12}
    assert relative(before, output(model, x)) < 1e-12
