"""Modules as their owners made them: every entry that copies, stores, fills, counts or ranks takes every ordinary network."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from ordinary import ORDINARY, ROW, Members, Ordinary, TensorState, numbers, seeded, small
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import featherweight as fw
from featherweight.budget.costs import cost_of
from featherweight.cli import console
from featherweight.files import packed
from featherweight.files.edits import Snapshot
from featherweight.measurement import measure
from featherweight.network.calls import Inputs, tensors_of
from featherweight.network.copies import UnsupportedNetwork, bare, copied, fill, state_of, unwrapped
from featherweight.run.report import Row, notes
from featherweight.structure import prune as prune_units
from featherweight.structure import trace
from featherweight.structure.errors import StructureError
from featherweight.weights.codes import Scaled, Sparse
from featherweight.weights.parameters import bits_of, parameters_of
from featherweight.weights.parametrized import attach, computed, decoded, detach, plain
from featherweight.weights.views import WHOLE

EVERY = pytest.mark.parametrize("name", ORDINARY)
WRAPPED = {"data parallel": "module.", "a wrapper inside": ".module."}


def outputs(ordinary: Ordinary, network: nn.Module) -> list[Tensor]:
    """With random numbers drawn alike; inputs that are 0 throughout would show nothing and are 1."""
    network.eval()
    given = Inputs.of(ordinary.example).map(lambda tensor: tensor if tensor.any() else torch.ones_like(tensor))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return tensors_of(given.call(network))


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) > 0 and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one, two, strict=True))


def other(ordinary: Ordinary) -> nn.Module:
    """The same class with other values, as a fresh one has: what a file is loaded into."""
    network = ordinary.make()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point() and 0 not in tensor.stride():
                tensor.add_(1.0)
    return network


def places(network: nn.Module) -> list[int]:
    """Of each parameter, by name, the number of the memory it lies in."""
    held = [p.untyped_storage().data_ptr() for _, p in network.named_parameters(remove_duplicate=False)]
    return [held.index(place) for place in held]


@EVERY
def test_a_copy_computes_the_same_and_is_its_own(name: str) -> None:
    ordinary = ORDINARY[name]
    network = ordinary.make()
    before = outputs(ordinary, network)
    twin = copied(network)
    assert same(outputs(ordinary, twin), before)
    own, inner = dict(twin.named_parameters(remove_duplicate=False)), bare(network)
    assert list(own) == list(dict(inner.named_parameters(remove_duplicate=False)))
    assert not any(part in f".{key}" for key in own for part in (".module.", "_orig_mod."))
    for key, parameter in inner.named_parameters(remove_duplicate=False):
        assert own[key].requires_grad == parameter.requires_grad
        assert vars(own[key]) == vars(parameter)
    if name != "shared and expanded":
        assert places(twin) == places(inner)
    assert [m.training for m in twin.modules()] == [m.training for m in inner.modules()]
    with torch.no_grad():
        for parameter in {id(p): p for p in own.values()}.values():
            parameter.add_(1.0)  # also where the original is expanded, and could not be written to
    assert same(outputs(ordinary, network), before) and not same(outputs(ordinary, twin), before)


@pytest.mark.third
@EVERY
@pytest.mark.parametrize("kind", ["artifact", "packed"])
def test_what_is_loaded_computes_what_was_saved(name: str, kind: str, tmp_path: Path) -> None:
    ordinary = ORDINARY[name]
    network = ordinary.make()
    if kind == "artifact":
        fw.save_cut(tmp_path / "a", network)
        loaded = fw.load(tmp_path / "a", other(ordinary))
    else:
        packed.write(tmp_path / "a.fwz", Snapshot.of(network, []), other(ordinary))
        loaded = fw.load(tmp_path / "a.fwz", other(ordinary))
    assert same(outputs(ordinary, loaded), outputs(ordinary, network))
    assert not same(outputs(ordinary, other(ordinary)), outputs(ordinary, network))


ON_META = [
    name
    for name in ORDINARY
    if name not in (*WRAPPED, "pruning masks", "old weight norm", "old spectral norm", "foreign parametrizations", "float64")
    and name not in ("members that cannot be copied", "extra state, marks", "shared and expanded", "encoder, keyword, dict")
]


@pytest.mark.parametrize("name", ON_META)
@pytest.mark.parametrize("file", ["a", "a.fwz"])
def test_a_network_on_the_meta_device_is_filled(name: str, file: str, tmp_path: Path) -> None:
    ordinary = ORDINARY[name]
    network = ordinary.make()
    fw.save_cut(tmp_path / "a", network)
    packed.write(tmp_path / "a.fwz", Snapshot.of(network, []), network)
    with torch.device("meta"):
        empty = ordinary.make()
    loaded = fw.load(tmp_path / file, empty)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert same(outputs(ordinary, loaded), outputs(ordinary, network))


def test_codes_and_ties_are_filled_on_the_meta_device(tmp_path: Path) -> None:
    def make() -> nn.Module:
        network = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        network[2].weight = network[0].weight
        network[2].weight.no_decay = True
        return network

    network = make()
    attach(network, "4.weight", WHOLE, Sparse(1, 36, torch.tensor([0, 7, 30])))
    Snapshot.of(network, [])
    fw.save_cut(tmp_path / "a", network)
    with torch.device("meta"):
        empty = make()
    loaded = fw.load(tmp_path / "a", empty)
    row = numbers(3, 6)
    assert torch.equal(loaded(row), network(row))
    assert loaded[2].weight is loaded[0].weight and loaded[0].weight.no_decay is True


def test_what_no_file_holds_is_refused_on_the_meta_device(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("shift", torch.ones(4), persistent=False)

        def forward(self, row: Tensor) -> Tensor:
            return self.layer(row) + self.shift

    fw.save_cut(tmp_path / "a", Shifted())
    with torch.device("meta"):
        empty = Shifted()
    with pytest.raises(
        UnsupportedNetwork, match=r"'shift' is on the meta device and in no state dict.*build the network on the CPU"
    ):
        fw.load(tmp_path / "a", empty)
    with pytest.raises(UnsupportedNetwork, match=r"'layer\.weight' is on the meta device and has no values"):
        fw.save_cut(tmp_path / "b", empty)
    with pytest.raises(UnsupportedNetwork, match=r"on the meta device and has no values to measure"):
        measure(empty, (ROW[:, :4],), lambda network: 0.0)


# --- what cannot be copied, stored or told -----------------------------------------------------------------------------


def test_members_are_copied_where_they_can_be_and_shared_where_not() -> None:
    network = seeded(Members)()
    twin: Any = copied(network)
    assert twin.lock is network.lock and twin.settings[0]["lock"] is network.settings[0]["lock"]
    assert twin.settings is not network.settings and twin.settings[1]["rates"] is not network.settings[1]["rates"]
    assert twin.settings[1] == network.settings[1]
    assert twin.numbers is network.numbers and twin.random is not network.random
    assert torch.equal(twin.cached[0], network.cached[0]) and twin.cached[0].grad_fn is None
    calls = network.calls
    twin(ROW)
    assert twin.calls == calls + 1 and network.calls == calls  # the hook is the copy's own method


def test_a_member_deep_in_an_object_and_a_hook_that_holds_one() -> None:
    class Logger:
        def __init__(self) -> None:
            self.lock, self.seen = threading.Lock(), [torch.zeros(1)]

        def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
            with self.lock:
                self.seen[0] += 1

    network = small()
    logger = Logger()
    network.register_forward_hook(logger)
    twin = copied(network)
    twin(ROW)
    assert float(logger.seen[0]) == 0.0


def test_a_member_whose_own_copying_fails_is_named() -> None:
    class Stubborn:
        def __deepcopy__(self, memo: Any) -> Any:
            raise ZeroDivisionError("no")

    network = small()
    network.member = Stubborn()
    with pytest.raises(UnsupportedNetwork, match=r"this Sequential cannot be copied: ZeroDivisionError: no\. Give the member"):
        copied(network)


def test_wrappers_are_taken_off_and_what_is_not_ready_is_refused() -> None:
    network = small()
    assert unwrapped(nn.DataParallel(network)) is network
    compiled = torch.compile(nn.DataParallel(network), backend="eager")
    assert unwrapped(compiled) is network
    assert list(state_of(compiled)) == list(network.state_dict())
    assert measure(compiled, (ROW,), lambda given: 0.0).macs == 12 * 16 + 16 * 12 + 12 * 4
    with pytest.raises(UnsupportedNetwork, match=r"0\.weight, 0\.bias have no shape yet.*run the network once"):
        copied(nn.Sequential(nn.LazyLinear(3)))

    class FSDPModule(nn.Linear):
        """As torch's `fully_shard` names the class that it puts before the module's own."""

    with pytest.raises(UnsupportedNetwork, match="'0' is sharded over processes"):
        state_of(nn.Sequential(FSDPModule(2, 2)))


class Extra(nn.Module):
    def __init__(self, given: Any) -> None:
        super().__init__()
        self.layer, self.given = nn.Linear(12, 4), given

    def get_extra_state(self) -> Any:
        return self.given

    def set_extra_state(self, state: Any) -> None:
        self.given = state

    def forward(self, row: Tensor) -> Tensor:
        return self.layer(row)


def test_a_state_that_no_file_can_hold_is_refused_by_name(tmp_path: Path) -> None:
    network = Extra({"largest": [1.0]})
    for call in (
        lambda: fw.save_cut(tmp_path / "a", network),
        lambda: packed.write(tmp_path / "a.fwz", Snapshot([], {}), network),
        lambda: state_of(nn.DataParallel(network)),
    ):
        with pytest.raises(UnsupportedNetwork, match=r"'_extra_state', what get_extra_state\(\) gives, is a dict.*in buffers"):
            call()
    assert not (tmp_path / "a").exists()
    measured = measure(network, (ROW,), lambda given: 0.0)
    assert measured.notes == ("state that is no tensor is in no size: _extra_state (dict)",)
    assert cost_of("bytes", network, trace(network, (ROW,)))({}) == 4 * 52
    integers = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedNetwork, match=r"quantised already"):
        fw.save_cut(tmp_path / "a", integers)
    holder = small()
    holder.register_buffer("far", torch.eye(3).to_sparse())
    with pytest.raises(UnsupportedNetwork, match=r"'far' is sparse"):
        state_of(holder)


def test_compress_refuses_such_a_state_before_it_trains() -> None:
    def never(network: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("it trained")

    task = fw.Task((ROW,), lambda epoch: [(ROW,)], never, lambda network: 0.0, lambda p: torch.optim.SGD(p, 0.1))
    with pytest.raises(UnsupportedNetwork, match="get_extra_state"):
        fw.compress(Extra({}), fw.recipes.progressive_admm(keep=("2x",), epochs=1, retrain_epochs=1), task)


def test_a_tensor_as_extra_state_comes_back(tmp_path: Path) -> None:
    network = seeded(TensorState)()
    network.largest = torch.full((3, 1), 2.5)[:1]
    fw.save_cut(tmp_path / "a", network)
    loaded: Any = fw.load(tmp_path / "a", seeded(TensorState)())
    assert torch.equal(loaded.largest, network.largest)


def test_coding_and_decoding_keep_marks_and_what_is_trained() -> None:
    network = small()
    network[0].weight.no_decay = True
    network[0].weight.requires_grad_(False)
    attach(network, "0.weight", WHOLE, Scaled(torch.zeros(1, 192, dtype=torch.uint8), torch.tensor([1.0])))
    assert network[0].parametrizations.weight.original.no_decay and not network[0].parametrizations.weight.original.requires_grad
    decoded_again = plain(network)[0].weight
    assert decoded_again.no_decay and not decoded_again.requires_grad
    detach(network, "0.weight")
    assert network[0].weight.no_decay and not network[0].weight.requires_grad


def test_a_masked_weight_is_computed_anew_when_it_is_filled() -> None:
    network = small()
    prune.l1_unstructured(network[0], "weight", 0.5)
    state = {name: tensor + 1 for name, tensor in state_of(network).items() if not name.endswith("_mask")}
    fill(network, state | {"0.weight_mask": network[0].weight_mask.clone()})
    assert torch.equal(network[0].weight, network[0].weight_orig * network[0].weight_mask)


# --- sizes -------------------------------------------------------------------------------------------------------------


def counted(network: nn.Module) -> tuple[int, int]:
    """(entries, bits) of all parameters, those in one place of memory once."""
    seen: dict[Any, Tensor] = {}
    for parameter in network.parameters():
        seen.setdefault((parameter.untyped_storage().data_ptr(), parameter.storage_offset(), parameter.shape), parameter)
    return sum(p.numel() for p in seen.values()), sum(8 * p.nbytes for p in seen.values())


@pytest.mark.third
@EVERY
def test_every_parameter_is_in_the_sizes(name: str) -> None:
    ordinary = ORDINARY[name]
    network = ordinary.make()
    example = ordinary.example
    found = measure(network, example, lambda given: 1.0)
    assert (found.parameters, found.bits) == counted(network)
    assert found.nonzeros <= found.parameters
    named = computed(bare(network))
    assert all(any(weight in note for note in found.notes) for weight in named)


@pytest.mark.third
@EVERY
def test_a_budget_of_parameters_or_bytes_counts_what_the_network_holds(name: str) -> None:
    ordinary = ORDINARY[name]
    if name == "shared and expanded":
        pytest.skip("graphs count memory under two parameters twice")
    network = bare(ordinary.make())
    try:
        graph = trace(network, ordinary.example)
    except StructureError:
        assert name == "members that cannot be copied"  # its forward holds a lock
        return
    assert cost_of("parameters", network, graph)({}) == counted(network)[0]
    held = {id(t): t for t in network.state_dict(keep_vars=True).values()}
    assert cost_of("bytes", network, graph)({}) == sum(t.nbytes for t in held.values())


def test_foreign_parametrizations_are_named_with_the_way_out() -> None:
    network = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    prune.l1_unstructured(network[1], "weight", 4)
    found = computed(network)
    assert found["0.weight"].by == "WeightNorm" and found["1.weight"].masked
    assert found["0.weight"].stored == ("0.parametrizations.weight.original0", "0.parametrizations.weight.original1")
    for how in found.values():
        eval(how.remove, {"torch": torch, "network": network})
    assert computed(network) == {} and isinstance(network[0].weight, nn.Parameter)


def test_masked_entries_are_no_nonzeros_and_a_code_is_told_from_a_stranger() -> None:
    network = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4), nn.Linear(4, 4))
    prune.l1_unstructured(network[1], "weight", 10)
    attach(network, "2.weight", WHOLE, Sparse(1, 16, torch.tensor([1, 5])))
    weights = decoded(network)
    assert list(weights) == sorted(
        ["0.bias", "0.parametrizations.weight.original", "1.bias", "1.weight_orig", "2.bias", "2.weight"]
    )
    assert int(weights["1.weight_orig"].count_nonzero()) == 6 and int(weights["2.weight"].count_nonzero()) == 2
    with pytest.raises(fw.FeatherweightError, match="stored for a weight that the network's own parametrization computes"):
        attach(network, "0.parametrizations.weight.original", WHOLE, Sparse(1, 16, torch.tensor([1, 5])))
    assert parametrize.is_parametrized(network[0], "weight")


def test_bits_are_those_of_the_types_that_are_held() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    network.register_parameter("table", nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False))
    assert bits_of(parameters_of(network)) == {"0.bias": 64, "0.weight": 256, "1.bias": 64, "1.weight": 256, "table": 24}
    attach(network, "0.weight", WHOLE, Sparse(1, 16, torch.tensor([1, 5])))
    assert bits_of(parameters_of(network))["0.weight"] == 2 * 16 + 7  # two values, and log2(16 choose 2) for where they are


def test_a_cut_keeps_marks_and_what_is_trained() -> None:
    network = small()
    network[0].weight.no_decay = True
    network[0].bias.requires_grad_(False)
    prune_units(network, trace(network, (ROW,)), {"0": [1, 5]})
    assert network[0].weight.shape == (2, 12) and network[0].weight.no_decay
    assert not network[0].bias.requires_grad and network[0].weight.requires_grad


def test_what_sizes_leave_out_stands_in_the_report_and_under_an_inspection() -> None:
    network = nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 4)))
    network.register_buffer("table", torch.zeros(100))
    measured = measure(network, (ROW,), lambda given: 0.0)
    assert measured.notes == (
        "0.weight: computed by WeightNorm, and counted as the parameters that are stored",
        "buffers are in no size: 400 bytes",
    )
    row = Row("dense", measured, None, {}, 0, 0.0, None, {})
    assert [note for note in notes([row]) if note.startswith("sizes")] == [f"sizes: {note}" for note in sorted(measured.notes)]
    assert Row.from_dict(row.to_dict()) == row
    old = row.to_dict()
    del old["measured"]["notes"]  # as earlier versions wrote it
    assert Row.from_dict(old).measured.notes == ()
    assert str(console.compared(measured, measured)[0].caption) == "\n".join(f"sizes: {note}" for note in measured.notes)
    assert console.compared(measured, Row.from_dict(old).measured)[1] == []
