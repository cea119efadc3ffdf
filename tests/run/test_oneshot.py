"""The entries that need no training, on every ordinary network: what was asked comes out, and the given network stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ordinary import ORDINARY
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import featherweight as fw
from featherweight import zoo
from featherweight.errors import FeatherweightError, RecipeError
from featherweight.run import oneshot

ENTRIES: dict[str, Callable[..., fw.Compressed]] = {
    "prune": fw.prune,
    "factorize": fw.factorize,
    "quantize": fw.quantize,
    "cluster": fw.cluster,
}
IMAGE = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def stored(network: nn.Module) -> dict[str, Any]:
    return {name: value.clone() for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}


@pytest.mark.third
@pytest.mark.parametrize(
    ("entry", "name"), [(entry, name) for entry in ENTRIES for i, name in enumerate(ORDINARY) if entry == "prune" or i < 6]
)
def test_it_works_on_a_copy_or_is_refused_by_name(entry: str, name: str, tmp_path: Path) -> None:
    ordinary = ORDINARY[name]
    network = ordinary.make()
    before, training = stored(network), network.training
    try:
        done = ENTRIES[entry](network, ordinary.example)
    except FeatherweightError as error:
        assert len(str(error)) > 30
    else:
        done.save(tmp_path / "art")
        loaded = fw.load(tmp_path / "art", ordinary.make())
        assert {n: p.shape for n, p in loaded.named_parameters()} == {n: p.shape for n, p in done.model.named_parameters()}
        dense, last = (row.measured for row in done.rows)
        assert dense.score is None and str(done.report).startswith("stage")
        changed = (last.parameters, last.bits, last.macs) != (dense.parameters, dense.bits, dense.macs)
        assert changed or done.rows[-1].said or done.rows[-1].spent  # nothing to do is said
    after = stored(network)
    assert network.training == training and before.keys() == after.keys()
    assert all(torch.equal(after[n], value) or value.is_complex() or torch.isnan(value).any() for n, value in before.items())


def macs(network: nn.Module, *example: torch.Tensor) -> int:
    """By PyTorch's own counter, which counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*example)
    return counter.get_total_flops() // 2


def test_half_of_the_multiplications_of_a_resnet_are_kept() -> None:
    torch.manual_seed(0)
    network = zoo.CifarResNet(1, zoo.ProjectionShortcut)
    whole = macs(network, *IMAGE)
    assert 0.48 * whole <= macs(fw.prune(network, IMAGE, macs=0.5).model, *IMAGE) <= 0.5 * whole
    assert 0.45 * whole <= macs(fw.factorize(network, IMAGE, macs=0.5).model, *IMAGE) <= 0.5 * whole


def test_a_share_is_asked_in_three_ways_alike() -> None:
    torch.manual_seed(0)
    network, example = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (torch.randn(1, 8),)
    half = macs(fw.prune(network, example, macs=0.5).model, *example)
    assert half == macs(fw.prune(network, example, macs="50%").model, *example) <= 0.5 * macs(network, *example)
    assert half == macs(fw.prune(network, example, macs="2x").model, *example)


@pytest.mark.long
def test_sizes_that_the_class_cannot_express_are_allotted_anew() -> None:
    """The zeros that option A of ResNet pads with hang on two sizes: a random half of both fits, those of a budget need not, and
    are not asked for."""
    torch.manual_seed(0)
    done = fw.prune(zoo.resnet20(), IMAGE, macs=0.5)
    spent = done.rows[-1].spent
    assert spent is not None and any("class cannot express" in why for why in spent.left_out.values())
    assert spent.after <= 0.5 * spent.before
    assert done.model(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def by_samples(network: nn.Module, example: tuple[torch.Tensor]) -> None:
    """A loader that shuffles draws from the caller's generator."""
    data = DataLoader([(torch.ones(64), 0), (torch.zeros(64), 1)], 2, shuffle=True)
    fw.prune(network, example, criterion="taylor", data=data, loss=lambda n, b: nn.functional.cross_entropy(n(b[0]), b[1]))


@pytest.mark.parametrize("entry", [fw.prune, fw.factorize, fw.quantize, fw.cluster, by_samples], ids=lambda entry: entry.__name__)
def test_the_caller_s_random_numbers_go_on_as_if_nothing_had_been_called(entry: Any) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 8))
    example = (torch.randn(1, 64),)
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    entry(network, example)
    assert torch.equal(torch.rand(4), wanted)


def test_what_is_ignored_keeps_all_of_its_units_and_values() -> None:
    torch.manual_seed(0)
    network = zoo.CifarResNet(1, zoo.ProjectionShortcut)
    done = fw.prune(network, IMAGE, macs=0.8, ignore=[network.stage2[0].conv1, "conv1", "stage3.*"])
    kept = dict(done.model.named_modules())
    assert kept["stage2.0.conv1"].out_channels == 32 and kept["conv1"].out_channels == 16
    assert kept["stage3.0.conv2"].out_channels == 64
    coded = fw.quantize(network, IMAGE, bits=2, ignore="stage2").model.state_dict()
    assert torch.equal(coded["stage2.0.conv1.weight"], network.stage2[0].conv1.weight)
    assert "stage3.0.conv1.weight" not in coded


def test_a_few_bits_are_a_few_values_a_row_and_the_best_ones() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 6), nn.ReLU(), nn.Linear(6, 3))
    done = fw.quantize(network, (torch.randn(1, 40),), bits=2)
    for row, original in zip(done.model[0].weight, network[0].weight, strict=True):
        scale = row.abs().min()
        assert set((row / scale).round().tolist()) <= {-2.0, -1.0, 1.0, 2.0}
        closer = [float((original - torch.where(original.abs() < 1.5 * s, s, 2 * s) * original.sign()).square().sum())
                  for s in torch.linspace(0.5, 1.5, 101) * scale]  # fmt: skip
        assert float((original - row).square().sum()) <= min(closer) * 1.0001
    values = fw.cluster(network, (torch.randn(1, 40),), values=3).model[0].weight.unique()
    assert len(values) == 3


def test_a_criterion_that_looks_at_data_takes_them() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    batches = [(torch.randn(16, 8), torch.randint(0, 3, (16,))) for _ in range(2)]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    done = fw.prune(network, (torch.randn(1, 8),), criterion="collaborative", data=batches, loss=loss, evaluate=lambda n: 7.0)
    assert done.rows[-1].measured.score == 7.0 and done.model[0].out_features < 12


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: fw.prune(3, 5, criterion="l3", macs=7, allocate="x"), ["5 mistakes", "torch.nn.Module", "l3", "given 'x'"]),
        (lambda net: fw.quantize(net, IMAGE, bits=77, per="z", ignore=[3]), ["2 mistakes", "1 to 8 bits", "per is row or layer"]),
        (lambda net: fw.prune(net, IMAGE, criterion="taylor"), ["give data", "loss"]),
        (lambda net: fw.prune(net, IMAGE, ignore="nope"), ["'nope' matches no site"]),
        (lambda net: fw.prune(net, IMAGE, ignore=nn.Linear(1, 1)), ["not a module of the network"]),
        (lambda net: fw.quantize(net, IMAGE, ignore="*"), ["ignore leaves no target"]),
        (lambda net: fw.prune(net, IMAGE, macs="half"), ["given 'half'"]),
        (lambda net: fw.prune(net, IMAGE, macs=0.5, bytes=0.5), ["one budget"]),
        (lambda net: fw.factorize(net, IMAGE, macs=0.01), ["out of reach"]),
        (lambda net: fw.factorize(net, IMAGE, macs=0.5, view="depth"), ["given 'depth'"]),
        (lambda net: fw.cluster(net, IMAGE, values=0), ["given 0"]),
        (lambda net: fw.prune(net, (torch.randn(1, 4, 32, 32),)), ["does not run on the example"]),
    ],
)
def test_mistakes_are_told_by_name_and_all_at_once(call: Callable[[nn.Module], Any], says: list[str]) -> None:
    with pytest.raises(FeatherweightError) as caught:
        call(zoo.CifarResNet(1, zoo.ProjectionShortcut))
    assert all(part in str(caught.value) for part in says), str(caught.value)
    if len(says) > 2:
        assert isinstance(caught.value, RecipeError)


def test_the_package_shows_what_it_offers_and_nothing_else() -> None:
    assert dir(fw) == sorted(fw.__all__) and all(hasattr(fw, name) for name in fw.__all__)
    modules = [name for name in fw.__all__ if type(getattr(fw, name)).__name__ == "module"]
    assert modules == ["recipes", "structure"]
    for name in fw.__all__:  # no function is named like its module
        thing = getattr(fw, name)
        assert getattr(thing, "__module__", "") != f"featherweight.{name}"


def test_quantize_with_data_ends_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX files are checked in it")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 4))
    batches = [(torch.randn(8, 3, 16, 16), torch.zeros(8)) for _ in range(3)]
    done = fw.quantize(network, IMAGE, bits=7, data=batches)
    wrote = done.export(tmp_path / "net.onnx")
    assert wrote.integers is not None and wrote.integers["samples"] == 24 and not wrote.integers["left"]
    assert 0 < wrote.integers["error"] < 0.1 and done.export(tmp_path / "net.onnx", integers=None).integers is None
    assert fw.quantize(network, IMAGE, data=[batch[0] for batch in batches]).seen[0].batch == 8
    with pytest.raises(FeatherweightError, match="does not begin with the network's inputs"):
        fw.quantize(network, IMAGE, data=[torch.randn(8, 5)])
    with pytest.raises(FeatherweightError, match="no batch"):
        fw.quantize(network, IMAGE, data=[])


def test_inputs_without_labels_serve_to_fit_and_to_reconstruct() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)).eval()
    batches, new = list(torch.randn(640, 8).split(64)), torch.randn(200, 8)

    def apart(small: nn.Module) -> float:
        with torch.no_grad():
            return float((small(new) - net(new)).square().mean())

    cut, fitted, taught = (
        fw.prune(net, (new[:1],), macs=0.5, data=batches, refit=refit, reconstruct=epochs)
        for refit, epochs in ((False, 0), (None, 0), (False, 6))
    )
    assert apart(fitted.model) < 0.2 * apart(cut.model) and apart(taught.model) < 0.5 * apart(cut.model)
    assert [row.stage for row in taught.rows] == ["dense", "pruned"] and taught.rows[-1].said[0].startswith("reconstruct: mean")
    with pytest.raises(RecipeError, match="taylor looks at labels"):
        fw.prune(net, (new[:1],), criterion="taylor", data=batches)
    with pytest.raises(RecipeError, match="refit and reconstruct look at inputs"):
        fw.prune(net, (new[:1],), reconstruct=3)


class Gated(nn.Module):
    """The halves of what one layer makes: a number of the code says where the second begins."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.out = nn.Linear(8, 32), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = self.both(x)
        return self.out(both[..., :16].tanh() * both[..., 16:])


def test_what_the_class_cannot_express_is_cut_in_the_graph_and_opens_without_the_class(tmp_path: Path) -> None:
    network, x = Gated().eval(), torch.randn(5, 8)
    with pytest.raises(FeatherweightError, match="where='graph'"):
        fw.prune(network, (x,), macs=0.5)
    done = fw.prune(network, (x,), macs=0.5, where="graph", data=list(torch.randn(4, 32, 8)))
    dense, small = (row.measured.macs for row in done.rows)
    assert small is not None and dense is not None and small <= dense / 2
    done.save(tmp_path / "art")
    torch.testing.assert_close(fw.load(tmp_path / "art")(x), done.model(x))
    assert done.export(tmp_path / "model.onnx").relative < 1e-4
    with pytest.raises(FeatherweightError, match="no graph of an exported module"):
        done.pack(tmp_path / "model.fwz")
    with pytest.raises(RecipeError, match="where is class or graph"):
        fw.prune(network, (x,), where="both")  # type: ignore[arg-type]


def test_what_comes_back_is_shown_as_its_table() -> None:
    small = fw.prune(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (torch.randn(1, 8),), macs=0.5)
    assert repr(small) == f"Sequential by prune\n{small.report}" and "tensor" not in repr(small)


def test_what_teaches_a_cut_network_takes_no_step_along_a_steeper_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    before: list[float] = []
    after: list[float] = []

    def norm(into: list[float]) -> Callable[..., None]:
        def look(optimizer: torch.optim.Optimizer, *_: object) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            into.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

        return look

    hooks = register_optimizer_step_pre_hook(norm(before)), register_optimizer_step_post_hook(norm(after))
    try:
        data = [torch.randn(16, 8) for _ in range(4)]
        monkeypatch.setattr(oneshot, "STEEPEST", 0.01)
        fw.prune(network, data[0][:2], macs=0.5, data=data, refit=False, reconstruct=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert min(before) > 0.02 and max(after) < 0.0101
