"""Packed files: bitwise there and back for every code, small, and safe to open whatever they hold."""

from __future__ import annotations

import base64
import os
import time
import tracemalloc
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from damage import forged, mutated
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight import structure, zoo
from featherweight.errors import ArtifactError, InputError, StorageError
from featherweight.files import packed
from featherweight.files.edits import Snapshot, replay, structure_edit
from featherweight.files.packed import container
from featherweight.weights.codes import CODES, SparseShared
from featherweight.weights.parametrized import attach
from featherweight.weights.views import WHOLE, View


def same(one: Snapshot, two: Snapshot) -> bool:
    """Edits equal, and all tensors bit for bit."""
    alike = one.edits == two.edits and one.state.keys() == two.state.keys()
    return alike and all(bitwise(tensor, two.state[name]) for name, tensor in one.state.items())


def bitwise(one: torch.Tensor, two: torch.Tensor) -> bool:
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(*(torch.cat([t.reshape(-1)]).view(torch.uint8) for t in (one, two)))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_network_comes_back_bitwise(seed: int) -> None:
    model, snapshot = networks.coded_small(seed)
    data = packed.pack(snapshot, networks.Small())
    assert same(packed.read(data, networks.Small()), snapshot)
    back = packed.unpack(data, networks.Small())
    assert same(Snapshot.of(back, []), Snapshot.of(model, []))
    parts = packed.sections(data, networks.Small())
    assert sum(size for _, size in parts) == len(data)
    assert min(size for _, size in parts) >= 0


def test_a_changed_weight_is_seen() -> None:
    """`same` can fail, and the file of another snapshot is another file."""
    _, snapshot = networks.coded_small(3)
    for name, tensor in snapshot.state.items():
        if tensor.is_floating_point() and tensor.numel():
            other = Snapshot(snapshot.edits, {**snapshot.state, name: torch.nextafter(tensor, tensor + 1)})
            assert not same(snapshot, other)
            assert packed.pack(other, networks.Small()) != packed.pack(snapshot, networks.Small())
            break


def test_every_kind_of_code_has_a_number() -> None:
    assert set(container.KINDS) == set(CODES)
    assert list(container.KINDS)[:6] == ["sparse", "rows", "factors", "scaled", "shared", "sparse_shared"]


@pytest.mark.third
@pytest.mark.parametrize(("nonzeros", "centroids", "most"), [(600, 4, 775), (600, 16, 930), (1400, 8, 1780), (2500, 8, 3195)])
def test_a_sparse_lenet_takes_few_bytes(nonzeros: int, centroids: int, most: int) -> None:
    snapshot = packed.rounded(networks.sparse_lenet(nonzeros, centroids), "fixed8", ["*.original"])
    snapshot = packed.rounded(snapshot, "fixed5", ["*.bias"])
    data = packed.pack(snapshot, zoo.lenet5())
    assert same(packed.read(data, zoo.lenet5()), snapshot)
    assert len(data) <= most
    parts = dict(packed.sections(data, zoo.lenet5()))
    assert parts["header"] + parts["structure"] <= 24


def test_the_cost_of_a_mask_follows_its_structure() -> None:
    """The same number of entries costs far less in few rows than spread evenly."""
    sizes = []
    for rows in (500, 20):
        random = np.random.default_rng(0)
        model = nn.Linear(400, 500)
        places = np.sort(random.choice(rows * 400, 1500, replace=False))
        attach(model, "weight", WHOLE, SparseShared(1, 200_000, torch.from_numpy(places), torch.zeros(1500), 1))
        sizes.append(
            dict(packed.sections(packed.pack(Snapshot.of(model, []), nn.Linear(400, 500)), model_of()))["weight: places"]
        )
    assert sizes[1] < 0.65 * sizes[0]


def model_of() -> nn.Module:
    return nn.Linear(400, 500)


@pytest.mark.third
@pytest.mark.parametrize(("size", "density", "levels"), [(400, 0.1, 16), (400, 0.5, 4), (1000, 0.003, 2), (330, 1.0, 16)])
def test_large_tensors_come_within_one_percent_of_their_entropy(size: int, density: float, levels: int) -> None:
    random = np.random.default_rng(0)
    places = np.flatnonzero(random.random(size * size) < density)
    chances = random.dirichlet(np.ones(levels))
    index = random.choice(levels, places.size, p=chances)
    model = nn.Linear(size, size, bias=False)
    attach(model, "weight", WHOLE, SparseShared(1, size * size, torch.from_numpy(places), torch.from_numpy(index), levels))
    snapshot = Snapshot.of(model, [])
    data = packed.pack(snapshot, nn.Linear(size, size, bias=False))
    assert same(packed.read(data, nn.Linear(size, size, bias=False)), snapshot)
    counts = np.array([size * size - places.size, *np.bincount(index, minlength=levels)])
    counts = counts[counts > 0]
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum()) / 8 + 4 * levels
    assert len(data) <= 1.01 * entropy + 32


def test_dead_units_biases_and_norms_are_cheap() -> None:
    plain = packed.pack(Snapshot.of(nn.BatchNorm2d(512), []), nn.BatchNorm2d(512))
    assert len(plain) <= 20  # ones, zeros, zeros, ones, 0


def test_structure_edits_come_back(tmp_path: Path) -> None:
    model = zoo.lenet5()
    result = structure.prune(
        model, structure.trace(model, (torch.zeros(1, 1, 28, 28),)), {"conv1": range(0, 20, 2)}, where="class"
    )
    assert result.edit is not None
    snapshot = Snapshot.of(result.model, [structure_edit(result.edit)])
    assert same(packed.read(packed.pack(snapshot, zoo.lenet5()), zoo.lenet5()), snapshot)


def test_views_that_permute_come_back() -> None:
    model = nn.Conv2d(5, 6, 3)
    view = View("o (g i) h w -> (g h) (o i w)", (("g", 5),))
    rows, cols = view.matrix_shape((6, 5, 3, 3))
    places = torch.arange(0, rows * cols, 7)
    attach(model, "weight", view, SparseShared(rows, cols, places, places % 3, 3))
    snapshot = Snapshot.of(model, [])
    assert same(packed.read(packed.pack(snapshot, nn.Conv2d(5, 6, 3)), nn.Conv2d(5, 6, 3)), snapshot)


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    model, snapshot = networks.coded_small(1)
    path = tmp_path / "new" / "x.fwz"
    size = packed.write(path, snapshot, networks.Small())
    assert path.stat().st_size == size
    assert [file.name for file in path.parent.iterdir()] == ["x.fwz"]
    assert same(Snapshot.of(packed.load(path, networks.Small()), []), Snapshot.of(model, []))
    with pytest.raises(StorageError, match="cannot write"):
        packed.write(path / "below", snapshot, networks.Small())
    with pytest.raises(ArtifactError, match="cannot read"):
        packed.load(tmp_path / "none.fwz", networks.Small())
    path.write_bytes(os.urandom(64) * 40_000)
    with pytest.raises(ArtifactError, match="more bytes than any"):
        packed.load(path, networks.Small())


def test_mistakes_are_named() -> None:
    _, snapshot = networks.coded_small(5)
    data = packed.pack(snapshot, networks.Small())
    with pytest.raises(ArtifactError, match="not of a Small: names or shapes"):
        packed.read(data, networks.Small(7))
    with pytest.raises(ArtifactError, match=r"not a \.fwz file"):
        packed.read(b"PK" + data, networks.Small())
    with pytest.raises(ArtifactError, match="format version 9"):
        packed.read(data[:2] + b"\x09" + data[3:], networks.Small())
    with pytest.raises(ArtifactError, match="checksum"):
        packed.read(data[:-1] + bytes([data[-1] ^ 1]), networks.Small())
    with pytest.raises(ArtifactError, match="checksum"):
        packed.read(data + b"\x00", networks.Small())
    with pytest.raises(InputError, match="has a code for"):
        packed.pack(snapshot, nn.Linear(2, 2))
    state = {name: tensor for name, tensor in snapshot.state.items() if name != "flags"}
    with pytest.raises(InputError, match="lacks 'flags'"):
        packed.pack(Snapshot(snapshot.edits, state), networks.Small())
    with pytest.raises(InputError, match=r"not strictly ascending|outside 0"):
        edits = Snapshot.of(places_of_fc1(), [])
        key = next(name for name in edits.state if name.endswith("position"))
        packed.pack(Snapshot(edits.edits, {**edits.state, key: edits.state[key].flip(0)}), networks.Small())


def places_of_fc1() -> nn.Module:
    model = networks.Small()
    attach(model, "fc1.weight", WHOLE, SparseShared(1, 384, torch.arange(0, 300, 9), torch.zeros(34), 2))
    return model


@pytest.mark.third
@pytest.mark.parametrize("seed", range(2))
def test_damaged_files_end_in_a_named_error_or_in_a_network_within_its_codes(seed: int) -> None:
    """Half of them with a right checksum, so that the decoder itself meets the damage."""
    random = np.random.default_rng(seed)
    _, snapshot = networks.coded_small(seed)
    model = networks.Small()
    data = packed.pack(snapshot, model)
    slowest, refused = 0.0, 0
    for number in range(300):
        body = mutated(random, data[8:])
        hostile = forged(data, body, model) if number % 2 else data[:8] + body
        started = time.process_time()
        try:
            packed.unpack(hostile, model)
        except ArtifactError as error:
            refused += 1
            assert str(error)
        slowest = max(slowest, time.process_time() - started)
    assert refused >= 150
    assert slowest < 1.0


ONCE_AN_INDEX_ERROR = (  # of `networks.Small`, found by the long fuzz; base 85
    "Mp^+;VDEHa0A)mOR@{F^opi8^+Zu7T{*>nv3BG6D&;c8FbyRb>(E`H?UjNtEFdzp3Yo5i-AcrKw?8l#EJa*}nj0yY(QRsP*?+s^;HghCn!<0ov"
    "Izt5u|35#>XIHbf07(0H_}%Q9rBTYYv6c|c6<c|y8}6bGcROK&UgDXUUum~D4)5O5CGIMKm%cYjCcH}v#gy-TRYc90gSIF_e(*xWh6Mk<pon+C"
    "6t}6yqjw8dTfkYtFMIItHE4LIi15w|JjUU5JV^lBqd7c)&y8vqqcl_`%>%p;$dD+IiOU4uD}g~2YK=Sw0&|j#wW;_05Pl#SUGFxhgF~!NY&o*y"
    ";trLK^4E6r#te6#a_hg|6l11a8krMUgbU6jbzRx`r|Y7K{0PgWx&tuV@8MzL*mj}`u4D*svcJj@>YfQ3ob5LQ&xKfe#!3Lsv$U|JbsSkSXk%0^"
    "*%c@pS|Dbb5)n!tzW"
)


def test_damage_that_once_came_out_as_an_index_error_is_named() -> None:
    """A scale of one number was taken for the table of shared values that later symbols point into."""
    with pytest.raises(ArtifactError):
        packed.unpack(base64.b85decode(ONCE_AN_INDEX_ERROR), networks.Small())


@pytest.mark.long
def test_damage_to_a_large_network_stays_within_a_second_and_memory() -> None:
    random = np.random.default_rng(0)
    snapshot = networks.sparse_lenet(600, 8)
    model = zoo.lenet5()
    data = packed.pack(snapshot, model)
    slowest = 0.0
    tracemalloc.start()
    for _ in range(12):
        hostile = forged(data, mutated(random, data[8:]), model)
        started = time.process_time()
        try:
            packed.read(hostile, model)
        except ArtifactError as error:
            assert str(error)
        slowest = max(slowest, time.process_time() - started)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert slowest < 4.0  # under tracemalloc, which is several times slower
    assert peak < 100 * 2**20


def test_rounding_comes_before_scoring_and_is_kept() -> None:
    model, _ = networks.coded_small(11)
    with torch.no_grad():  # in place: the tied weight is one tensor of two names
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and ".code." not in name:
                tensor.copy_(torch.randn_like(tensor.float()))
    exact = Snapshot.of(model, [])
    sizes = {}
    for precision in ("float32", "bfloat16", "float16", "fixed12", "fixed6", "fixed3"):
        coarse = packed.rounded(exact, precision)
        data = packed.pack(coarse, networks.Small())
        assert same(packed.read(data, networks.Small()), coarse)
        assert same(packed.rounded(coarse, precision), coarse)
        sizes[precision] = len(data)
    assert sizes["fixed3"] < sizes["fixed6"] < sizes["fixed12"] < sizes["float32"]
    assert sizes["bfloat16"] < sizes["float16"] < sizes["float32"]
    assert same(packed.rounded(exact, "float32"), exact)
    assert replay(networks.Small(), exact.edits) is not model


@pytest.mark.parametrize("bits", [2, 5, 8, 24])
def test_fixed_point_is_the_finest_that_fits(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(1000) * 3.7
    state = packed.rounded(Snapshot([], {"w": weight}), f"fixed{bits}").state["w"].double()
    step = max(s for s in (2.0**e for e in range(-40, 8)) if bool((state / s % 1 == 0).all()))
    assert float((state - weight.double()).abs().max()) <= step / 2
    assert float((state / step).abs().max()) <= 2 ** (bits - 1) - 1
    assert float((weight.double() / (step / 2)).round().abs().max()) > 2 ** (bits - 1) - 1


def test_rounding_names_its_mistakes() -> None:
    snapshot = Snapshot([], {"w": torch.tensor([1e6, 1.0]), "running_var": torch.tensor([1e-9, 0.0, 1.0])})
    with pytest.raises(InputError, match="Did you mean 'bfloat16'"):
        packed.rounded(snapshot, "bfloat61")
    with pytest.raises(InputError, match="fixed2 to fixed24"):
        packed.rounded(snapshot, "fixed1")
    with pytest.raises(InputError, match="beyond the range"):
        packed.rounded(snapshot, "float16")
    with pytest.raises(InputError, match="no tensor"):
        packed.rounded(snapshot, "float16", ["v*"])
    with pytest.raises(InputError, match="NaN"):
        packed.rounded(Snapshot([], {"w": torch.tensor([float("nan")])}), "float16")
    assert float(packed.rounded(snapshot, "fixed4", ["running_var"]).state["running_var"][0]) > 0


def test_storage_counts_parts_of_real_files() -> None:
    snapshot = packed.rounded(networks.sparse_lenet(600, 8), "fixed8")
    counted = packed.storage(snapshot, zoo.lenet5())
    assert counted.file == len(packed.pack(snapshot, zoo.lenet5())) == counted.weights + counted.places + counted.rest
    assert counted.dense == 431_080 * 4
    assert counted.file < counted.zstd < counted.gzip < counted.dense
    assert counted.rest < 40
    names = [name for name, _, _ in counted.table()]
    assert names[-1] == "whole .fwz file"
