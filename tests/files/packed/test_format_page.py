"""docs/format.md is enough to read a `.fwz` file: a reader that follows it, without our code, gives what ours gives."""

from __future__ import annotations

import ast
import copy
import importlib
import re
from pathlib import Path

import numpy as np
import page_reader
import pytest
import torch
from networks import Small, coded_small
from torch import nn

from featherweight import zoo
from featherweight.files import packed
from featherweight.files.description import Description
from featherweight.files.edits import Snapshot, code_edits
from featherweight.lowrank.factor import factor
from featherweight.weights.codes import Scaled, Sparse
from featherweight.weights.parametrized import attach, plain
from featherweight.weights.views import WHOLE, View

ROOT = Path(__file__).parents[3]
FILES = sorted(ROOT.glob("benchmarks/**/*.fwz"))
QUICK = 10_000  # bytes; a reader in plain Python takes longer than a second for larger ones


CLASSES = {"lenet5_storage": zoo.lenet5, "cifar_bits": zoo.resnet20_projection, "ship": zoo.resnet20_projection}


def made_for(file: Path) -> nn.Module:
    """A network of the class that a committed file is of."""
    folder = file.relative_to(ROOT / "benchmarks").parts[0]
    if folder == "language":
        return importlib.import_module("benchmarks.language.decoder").decoder()
    return CLASSES[folder]()


def described(network: nn.Module) -> page_reader.Network:
    """What its class tells."""
    state = network.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    ties = {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}
    return page_reader.Network(
        [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()],
        [name for name, _ in network.named_parameters()],
        [name for name, _ in network.named_modules()],
        {name: one for name, one in ties.items() if one != name},
    )


def assert_read_alike(data: bytes, network: nn.Module) -> None:
    with np.errstate(all="ignore"):  # the values of the tests are at the ends of what float32 holds
        found = page_reader.read(data, described(network))
    expected = plain(packed.unpack(data, network)).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        other = torch.from_numpy(np.ascontiguousarray(found[name])).reshape(tensor.shape)
        # a product of factors may differ in its last bits; all else is the same to the bit, in float32 where numpy has no type
        assert torch.allclose(other, tensor.to(other.dtype), rtol=1e-5, atol=1e-5, equal_nan=True), name


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=() if file.stat().st_size < QUICK else pytest.mark.long) for file in FILES],
    ids=lambda file: file.stem,
)
def test_a_committed_file_is_read_from_the_page_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    assert_read_alike(file.read_bytes(), made_for(file))


def test_there_are_files() -> None:
    """And of each folder it is known what they are of, also where they are read with --all alone."""
    assert {file.relative_to(ROOT / "benchmarks").parts[0] for file in FILES} == {*CLASSES, "language"}
    assert len(FILES) > 20 and sum(file.stat().st_size < QUICK for file in FILES) > 10


VIEWED = ("o i h w -> o (i h w)", "o i h w -> (i h) (o w)", "o i h w -> i (o h w)", "o i h w -> (o h) (i w)")


@pytest.mark.parametrize("pattern", VIEWED)
def test_layers_that_became_two_are_read_from_the_page_alone(pattern: str) -> None:
    """And a cut of one of them."""
    network = nn.Sequential(nn.Conv2d(6, 10, (3, 5)), nn.ReLU(), nn.Flatten(), nn.Linear(80, 20))
    original = copy.deepcopy(network)
    edits = [factor(network, "0.weight", View(pattern), 2), factor(network, "3.weight", View("o i -> o i"), 3)]
    network[3][0] = nn.Linear(80, 2, bias=False)
    network[3][1] = nn.Linear(2, 20)
    cuts = [["3.0.weight", 0, 3, 0], ["3.1.weight", 1, 3, 0]]
    attributes = [["3.0", "out_features", 3, 2], ["3.1", "in_features", 3, 2]]
    change = {"kind": "cut", "sites": {"3.0": 2}, "keeps": [[0, 2]], "cuts": cuts, "attributes": attributes, "identities": []}
    data = packed.pack(Snapshot.of(network, [*edits, {"edit": "structure", "change": change}]), original)
    assert_read_alike(data, original)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_with_a_thin_input_is_read_from_the_page_alone(kind: type[nn.LSTM | nn.GRU]) -> None:
    network = nn.ModuleDict({"recurrent": kind(20, 6, num_layers=2), "out": nn.Linear(6, 3)})
    original = copy.deepcopy(network)
    edit = factor(network, "recurrent.weight_ih_l0", View("o i -> o i"), 2)
    assert_read_alike(packed.pack(Snapshot.of(network, [edit]), original), original)


@pytest.mark.parametrize("seed", range(6))
def test_every_kind_of_code_is_read_from_the_page_alone(seed: int) -> None:
    _, snapshot = coded_small(seed)
    assert_read_alike(packed.pack(snapshot, Small()), Small())


def test_a_network_with_units_cut_is_read_from_the_page_alone() -> None:
    cuts = [["0.weight", 0, 6, 0], ["0.bias", 0, 6, 0], ["1.weight", 1, 6, 0]]
    attributes = [["0", "out_features", 6, 3], ["1", "in_features", 6, 3]]
    change = {"kind": "cut", "sites": {"0": 3}, "keeps": [[0, 2, 5]], "cuts": cuts, "attributes": attributes, "identities": []}
    small = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 4))
    original = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    data = packed.pack(Snapshot.of(small, [{"edit": "structure", "change": change}]), original)
    assert_read_alike(data, original)


@pytest.mark.parametrize("skew", [0.02, 0.4])
def test_tables_gaps_lanes_and_words_are_read_from_the_page_alone(skew: float) -> None:
    random = np.random.default_rng(0)
    network = nn.Sequential(nn.Linear(100, 40), nn.Linear(40, 100, bias=False), nn.Linear(100, 40))
    original = nn.Sequential(nn.Linear(100, 40), nn.Linear(40, 100, bias=False), nn.Linear(100, 40))
    index = torch.from_numpy(np.flatnonzero(random.random(4_000) < 0.8 * skew + 0.5))
    attach(network, "0.weight", WHOLE, Sparse(1, 4_000, index))
    many = torch.from_numpy(random.binomial(15, skew, (1, 4_000)))
    attach(network, "1.weight", WHOLE, Scaled(many, torch.arange(16).float() - 8))
    few = torch.from_numpy(random.binomial(1, skew, (1, 4_000)))
    attach(network, "2.weight", WHOLE, Scaled(few, torch.tensor([-1.0, 1.0])))
    data = packed.pack(Snapshot.of(network, []), original)
    assert data[2] & 128, "there is a bulk"
    assert_read_alike(data, original)


def test_the_folder_is_as_the_page_says() -> None:
    """The keys of compression.json, and where the state of each code is."""
    page = (ROOT / "docs" / "format.md").read_text().partition("## The artifact folder")[2]
    keys = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page.partition("A `code` edit")[0], re.M)))
    assert sorted(keys) == sorted(Description.model_fields)
    told = page.partition("| kind | whole numbers | numbers |\n|---|---|---|\n")[2].partition("\n\n")[0]
    parts = {kind: set(re.findall(r"`((?:0\.)?(?:code\.\w+|original\d?))`", row)) for row in told.splitlines()
             for kind in re.findall(r"`(\w+)`", row.split("|")[1])}  # fmt: skip
    seen = set()
    for seed in range(6):
        network, _ = coded_small(seed)
        for edit in code_edits(network):
            layer, _, own = edit["parameter"].rpartition(".")
            prefix = f"{layer}.parametrizations.{own}."
            held = {name.removeprefix(prefix) for name in network.state_dict() if name.startswith(prefix)}
            assert held == parts[edit["code"]["kind"]]
            seen.add(edit["code"]["kind"])
    assert seen == set(parts)


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("page_*.py")), ids=lambda file: file.stem)
def test_the_reader_is_of_the_page_alone(file: Path) -> None:
    tree = ast.parse(file.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("featherweight") for name in imported)
