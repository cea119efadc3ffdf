"""Statistics of units: against a network gated by hand, per-sample derivatives and plain loops; bounded memory; named errors."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import hessian, jacrev
from toys import CLASSES, SAMPLES, Net, cross_entropy, data, task, trained

from featherweight import zoo
from featherweight.criteria import CRITERIA, NEEDS
from featherweight.criteria.patches import patches
from featherweight.criteria.readers import Unobservable
from featherweight.criteria.statistics import STATISTICS, Stats, TooFewSamples, collect, memory
from featherweight.errors import InputError
from featherweight.structure import trace
from featherweight.structure.errors import UnknownSite

SITES = ("stem", "block.conv1", "hidden")


@pytest.fixture(scope="module")
def everything() -> tuple[nn.Module, Stats]:
    model, graph = trained()
    model.train()  # the statistics are those of eval mode, whatever the mode
    stats = collect(model, graph, task(), STATISTICS, samples=SAMPLES, positions=1000)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    return model.eval(), stats


def by_hand(model: Net, x: Tensor, gates: dict[str, Tensor]) -> tuple[Tensor, dict[str, list[Tensor]]]:
    """The network with each unit multiplied by its gate wherever it is read; the outputs, and what is read."""
    stem, inner = gates["stem"].reshape(1, -1, 1, 1), gates["block.conv1"].reshape(1, -1, 1, 1)
    h = F.relu(model.norm(model.stem(x)))
    b = model.block
    between = F.relu(b.bn1(b.conv1(h * stem)))
    after = F.relu(h + b.bn2(b.conv2(between * inner)))
    pooled = F.avg_pool2d(after, 3)
    hidden = F.relu(model.hidden((pooled * stem).flatten(1)))
    return model.out(hidden * gates["hidden"]), {"stem": [h, pooled], "block.conv1": [between], "hidden": [hidden]}


def ones() -> dict[str, Tensor]:
    return {"stem": torch.ones(6).double(), "block.conv1": torch.ones(8).double(), "hidden": torch.ones(7).double()}


def per_sample(function: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor], derive: Any) -> list[dict[str, Any]]:
    x, y = data()
    return [derive(lambda g, n=n: function(x[n : n + 1], y[n : n + 1], g))(ones()) for n in range(SAMPLES)]


def test_gradients_are_those_of_the_loss_of_each_sample(everything: tuple[nn.Module, Stats]) -> None:
    model, stats = everything
    found = per_sample(lambda x, y, g: F.cross_entropy(by_hand(model, x, g)[0], y), jacrev)
    for site in SITES:
        u = torch.stack([one[site] for one in found])
        torch.testing.assert_close(stats.gradients[site], u.mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(stats.magnitudes[site], u.abs().mean(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(stats.pairs[site], u.T @ u / SAMPLES, rtol=1e-9, atol=1e-12)


def test_gradients_agree_with_finite_differences(everything: tuple[nn.Module, Stats]) -> None:
    model, stats = everything
    x, y = data()
    for site in SITES:
        for unit in (0, 3):
            up, down = ones(), ones()
            up[site][unit] += 1e-6
            down[site][unit] -= 1e-6
            with torch.no_grad():
                slope = (F.cross_entropy(by_hand(model, x, up)[0], y) - F.cross_entropy(by_hand(model, x, down)[0], y)) / 2e-6
            assert abs(float(slope - stats.gradients[site][unit])) < 1e-7


def test_pairs_are_the_curvature_that_the_paper_defines(everything: tuple[nn.Module, Stats]) -> None:
    """s_ij = mean_n (df/dg_i)^T diag(y / f^2) (df/dg_j), f the softmax; df/dg by finite differences, the rest as Hessian of
    -log f_y in f."""
    model, stats = everything
    x, y = data()
    for site in SITES:
        columns = []
        for unit in range(len(ones()[site])):
            up, down = ones(), ones()
            up[site][unit] += 1e-5
            down[site][unit] -= 1e-5
            with torch.no_grad():
                columns.append((by_hand(model, x, up)[0].softmax(1) - by_hand(model, x, down)[0].softmax(1)) / 2e-5)
        jacobians = torch.stack(columns, 2)  # (samples, classes, units)
        with torch.no_grad():
            f = by_hand(model, x, ones())[0].softmax(1)
        expected = torch.zeros(jacobians.shape[2], jacobians.shape[2]).double()
        for n in range(SAMPLES):
            bent = hessian(lambda p, n=n: -torch.log(p[y[n]]))(f[n])
            expected += jacobians[n].T @ bent @ jacobians[n] / SAMPLES
        torch.testing.assert_close(stats.pairs[site], expected, rtol=1e-5, atol=1e-8)
        eigenvalues = torch.linalg.eigvalsh(stats.pairs[site])
        assert float(eigenvalues[0]) >= -1e-12 * float(eigenvalues[-1])


def squared(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    wanted = F.one_hot(batch[1], CLASSES).double()
    return 0.5 * (network(batch[0]) - wanted).square().sum(1).mean()


@pytest.mark.parametrize("factor", [3.0])
def test_pairs_of_least_squares_are_gauss_newton(factor: float) -> None:
    """Of `hidden`, in whose gates the network is linear, they are the exact Hessian; of the others J^T J by jacobians."""
    model, graph = trained()
    scaled = task(lambda network, batch: factor * squared(network, batch))
    stats = collect(model.eval(), graph, scaled, ["pairs", "gradients"], samples=SAMPLES, curvature="least_squares")
    x, y = data()
    wanted = F.one_hot(y, CLASSES).double()

    def loss(gates: dict[str, Tensor]) -> Tensor:
        return factor * 0.5 * (by_hand(model, x, gates)[0] - wanted).square().sum(1).mean()

    exact = hessian(lambda g: loss({**ones(), "hidden": g}))(ones()["hidden"])
    torch.testing.assert_close(stats.pairs["hidden"], exact, rtol=1e-8, atol=1e-12)
    jacobian = jacrev(lambda g: by_hand(model, x, {**ones(), "stem": g})[0])(ones()["stem"]).flatten(0, 1)
    torch.testing.assert_close(stats.pairs["stem"], factor * jacobian.T @ jacobian / SAMPLES, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(stats.gradients["stem"], jacrev(loss)(ones())["stem"], rtol=1e-8, atol=1e-12)


def test_pairs_of_the_outputs_are_of_their_squared_change() -> None:
    """Exactly for a single output, where the random signs do not matter; for several, in the mean over the signs."""
    model, graph = trained()
    x = data()[0]
    jacobian = jacrev(lambda g: by_hand(model.eval(), x, {**ones(), "stem": g})[0])(ones()["stem"])  # (samples, classes, units)
    found = torch.zeros(6, 6).double()
    for seed in range(40):
        stats = collect(model, graph, task(size=128), ["pairs"], sites=["stem"], samples=SAMPLES, curvature="outputs", seed=seed)
        found += stats.pairs["stem"] / 40
    expected = jacobian.flatten(0, 1).T @ jacobian.flatten(0, 1) / SAMPLES
    assert float((found - expected).norm() / expected.norm()) < 0.05
    assert stats.curvature == "outputs" and not stats.gradients
    model.out = nn.Linear(7, 1).double()
    stats = collect(
        model,
        trace(model, task().example_inputs),
        task(lambda n, b: n(b[0]).mean()),
        ["pairs"],
        samples=SAMPLES,
        curvature="outputs",
    )
    jacobian = jacrev(lambda g: by_hand(model, x, {**ones(), "stem": g})[0])(ones()["stem"])[:, 0]
    torch.testing.assert_close(stats.pairs["stem"], jacobian.T @ jacobian / SAMPLES)


def test_zeros_are_counted_where_units_are_read(everything: tuple[nn.Module, Stats]) -> None:
    model, stats = everything
    with torch.no_grad():
        _, read = by_hand(model, data()[0], ones())
    for site in SITES:
        values = torch.cat([v.movedim(1, 0).flatten(1) for v in read[site]], 1)
        torch.testing.assert_close(stats.zeros[site], (values == 0).double().mean(1))
        assert 0 < float(stats.zeros[site].max()) <= 1


def test_weights_are_squared_sums_of_products_by_batch(everything: tuple[nn.Module, Stats]) -> None:
    model, stats = everything
    expected = torch.zeros(6).double()
    made = [model.stem.weight, model.block.conv2.weight]  # both feed the residual stream
    for batch in task().batches(0):
        gradients = torch.autograd.grad(cross_entropy(model, batch), made)
        total = sum((w * g).flatten(1).sum(1) for w, g in zip(made, gradients, strict=True))
        expected += total.detach() ** 2 / 4
    torch.testing.assert_close(stats.weights["stem"], expected)


def test_gram_holds_the_second_moments_of_patches(everything: tuple[nn.Module, Stats]) -> None:
    model, stats = everything
    with torch.no_grad():
        _, read = by_hand(model, data()[0], ones())
    for module, rows in (
        ("block.conv2", F.unfold(read["block.conv1"][0], 3, padding=1).transpose(1, 2).flatten(0, 1)),
        ("hidden", read["stem"][1].flatten(1)),
        ("out", read["hidden"][0]),
    ):
        rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
        assert stats.gram[module].rows == len(rows)
        torch.testing.assert_close(stats.gram[module].matrix, rows.T @ rows / len(rows))
    channels = torch.cat([read["hidden"][0], torch.ones(SAMPLES, 1)], 1)
    torch.testing.assert_close(stats.responses["out"].matrix, channels.T @ channels / SAMPLES)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
        nn.Conv2d(3, 5, 3, padding="same", padding_mode="reflect", bias=False),
        nn.Conv1d(3, 5, 3, stride=2, bias=False),
        nn.Conv3d(3, 5, 2, bias=False),
        nn.Linear(7, 5, bias=False),
    ],
)
def test_a_patch_times_the_weight_is_an_output_of_the_layer(layer: nn.Module) -> None:
    x = torch.randn(2, 3, *[7] * (1 if isinstance(layer, nn.Linear) else layer.weight.ndim - 2))
    outputs = layer(x)
    flat = outputs.flatten(0, -2) if isinstance(layer, nn.Linear) else outputs.flatten(2).transpose(1, 2).flatten(0, 1)
    whole = patches(layer, x, 10**6, torch.Generator())
    torch.testing.assert_close(whole @ layer.weight.flatten(1).T, flat)
    some = patches(layer, x, 2, torch.Generator().manual_seed(0)) @ layer.weight.flatten(1).T
    assert len(some) == 4
    near = torch.cdist(some.detach(), flat.detach()).argmin(1)
    torch.testing.assert_close(some, flat[near])
    assert len(set(near.tolist())) == 4  # different places
    half = len(flat) // 2
    assert (near[:2] < half).all() and (near[2:] >= half).all()  # two of each sample


def live_bytes() -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is Tensor:
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.long
def test_memory_is_what_is_said_and_does_not_grow_with_the_samples() -> None:
    model, graph = trained()
    said = memory(model, graph, STATISTICS)
    sizes = [6, 8, 7]
    widths = [6 * 9 + 1, 8 * 9 + 1, 6 * 4 + 1, 7 + 1, 7 + 1]  # four readers, and the last one's channels
    assert said == 8 * (4 * sum(sizes) + sum(n**2 for n in sizes) + sum(d**2 for d in widths))
    held = []
    for samples in (32, 128):
        before = live_bytes()
        stats = collect(model, graph, task(), STATISTICS, samples=samples)
        held.append(live_bytes() - before)
        assert stats.samples == samples
        del stats
    assert held[0] == held[1]
    assert said <= held[0] <= said + 8 * 10 * sum(sizes) * 4  # the positions of units, in int64, are all there is beside the sums


def test_sums_that_do_not_fit_are_refused_before_anything_runs() -> None:
    model, graph = trained()

    def never(network: nn.Module, batch: object) -> Tensor:
        raise AssertionError("it ran")

    with pytest.raises(InputError, match="more than the limit of 1,000"):
        collect(model, graph, task(never), ["gram"], limit=1000)


def test_collaborative_selection_costs_one_backward_pass_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On ResNet-56, all of its sites at once: at most 2 passes over the calibration samples were allowed."""
    model = zoo.resnet56()
    graph = trace(model, (torch.randn(1, 3, 32, 32),))
    calls = {"backward": 0, "forward": 0}
    grad = torch.autograd.grad

    def counting(*arguments: Any, **options: Any) -> Any:
        calls["backward"] += 1
        return grad(*arguments, **options)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls["forward"] += 1
        return F.cross_entropy(network(batch[0]), batch[1])

    monkeypatch.setattr(torch.autograd, "grad", counting)
    monkeypatch.setattr(Tensor, "backward", None)
    x, y = torch.randn(6, 3, 32, 32), torch.arange(6)
    small = dataclasses.replace(task(loss), train=lambda epoch: list(zip(x.split(2), y.split(2), strict=True)))
    stats = collect(model, graph, small, ["gradients", "pairs"], samples=6)
    assert calls == {"backward": 3, "forward": 3}
    collect(model, graph, small, ["gradients", "pairs"], samples=6, curvature="outputs")
    assert calls == {"backward": 3 + 6, "forward": 3 + 3}
    assert set(stats.pairs) == set(graph.sites) and len(graph.sites) >= 28


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_the_samples_that_there_are_are_taken_and_an_empty_epoch_is_an_error() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(), ["zeros"], samples=129)
    assert stats.samples == 128
    assert stats.caveat() == "judged by the 128 samples that an epoch holds, where 129 were asked for"
    assert collect(model, graph, task(), ["zeros"], samples=128).caveat() == ""
    with pytest.raises(TooFewSamples, match="gave no sample to look at: is the data set empty"):
        collect(model, graph, dataclasses.replace(task(), train=lambda epoch: []), ["zeros"])


def test_unknown_names_are_errors() -> None:
    model, graph = trained()
    with pytest.raises(InputError, match=r"no statistic is named 'zeroes'.*Did you mean 'zeros'"):
        collect(model, graph, task(), ["zeroes"])
    with pytest.raises(UnknownSite, match="hiden"):
        collect(model, graph, task(), ["zeros"], sites=["hiden"])


class Hidden(nn.Module):
    """Its second matrix is no module's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(36, 5), nn.Parameter(torch.randn(CLASSES, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.first(x.flatten(1))), self.second)


def test_a_site_that_cannot_be_watched_is_left_out_or_refused_where_it_was_asked_for() -> None:
    model = Hidden().double()
    graph = trace(model, task().example_inputs)
    stats = collect(model, graph, task(), ["zeros"], samples=32)
    assert stats.sites == () and "only what Conv and Linear modules read" in stats.unobservable["first"]
    with pytest.raises(Unobservable, match=r"none of the sites can be watched: 'first'.*Rank them by their weights"):
        collect(model, graph, task(), ["zeros"], sites=["first"])
    assert collect(model, graph, task(), [], sites=["first"]).sites == ("first",)  # weights can be ranked


def test_losses_that_statistics_cannot_be_taken_of_are_refused() -> None:
    model, graph = trained()
    with pytest.raises(InputError, match="runs the network 2 times"):
        collect(model, graph, task(lambda n, b: cross_entropy(n, b) + n(b[0]).sum()), ["gradients"], samples=32)
    with pytest.raises(InputError, match="runs the network 0 times"):
        collect(model, graph, task(lambda n, b: b[0].sum()), ["gradients"], samples=32)
    with pytest.raises(InputError, match="one finite number"):
        collect(model, graph, task(lambda n, b: n(b[0]).sum() * float("nan")), ["gradients"], samples=32)
    with pytest.raises(InputError, match="curvature is one of loss, least_squares, outputs, not 'output'"):
        collect(model, graph, task(), ["pairs"], samples=32, curvature="output")
    with pytest.raises(InputError, match="same multiple of the squared error"):
        collect(model, graph, task(), ["pairs"], samples=32, curvature="least_squares")


def test_frozen_weights_are_looked_at_as_others_and_stay_frozen() -> None:
    model, graph = trained()
    expected = collect(model, graph, task(), ["weights", "gradients", "pairs"], samples=32)
    model.requires_grad_(False)
    found = collect(model, graph, task(), ["weights", "gradients", "pairs"], samples=32)
    for site in expected.sites:
        torch.testing.assert_close(found.weights[site], expected.weights[site])
        torch.testing.assert_close(found.pairs[site], expected.pairs[site])
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_statistic_that_was_not_collected_is_named() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(), ["zeros"], samples=32)
    stats.require("zeros")
    with pytest.raises(InputError, match="'pairs' was not collected"):
        stats.require("pairs")
    for name, criterion in CRITERIA.items():  # what an error says to collect can be collected
        lacking = [statistic for statistic in NEEDS[name] if statistic != "zeros"]
        if lacking:
            with pytest.raises(InputError, match=r"was not collected: name it in") as caught:
                criterion(model, graph, stats)
            assert str(caught.value).split("'")[1] in STATISTICS
