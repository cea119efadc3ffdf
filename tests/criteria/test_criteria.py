"""Every criterion: renumbered units are ranked the same, dead ones go first, and each does what its paper says."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import oracles
import pytest
import table
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toys import SAMPLES, data, task, trained

from featherweight.budget.units import Stopping, allocate, hull, stopping
from featherweight.criteria import (
    CRITERIA,
    NEEDS,
    Lasso,
    Ordered,
    Ranking,
    Unsuited,
    by_score,
    discriminative,
    refit,
    unfitted,
)  # fmt: skip
from featherweight.criteria.auxiliary import default_pivots, losses, trained_heads, with_auxiliary
from featherweight.criteria.propagate import infinite_selection
from featherweight.criteria.readers import find_readers, gated, masks
from featherweight.criteria.reconstruct import responses_of
from featherweight.criteria.statistics import STATISTICS, Moments, collect
from featherweight.errors import InputError
from featherweight.structure import Graph, trace

WITH_BATCH_NORM = ("stem", "block.conv1")  # `hidden` has none


def sites_of(criterion: str) -> tuple[str, ...] | None:
    return WITH_BATCH_NORM if criterion == "bn_scale" else None


def ranked(criterion: str, model: nn.Module, graph: Graph) -> dict[str, Ranking]:
    stats = collect(model, graph, task(), NEEDS[criterion], samples=SAMPLES, positions=1000, sites=sites_of(criterion))
    return CRITERIA[criterion](model, graph, stats)


@functools.cache
def plainly(criterion: str) -> dict[str, Ranking]:
    return ranked(criterion, *trained())


def rearranged(site: str, order: Tensor) -> nn.Module:
    """The same function, the units of a site in another order: unit i is the one that was order[i]."""
    model, graph = trained()
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, dim in graph.sites[site].parameters:
            whole = tensors[name].clone()
            for i in range(graph.sites[site].size):
                for part, source in zip(graph.sites[site].unit(i), graph.sites[site].unit(int(order[i])), strict=True):
                    if (part.parameter, part.dim) == (name, dim):
                        old = whole.index_select(dim, torch.tensor(source.index))
                        tensors[name].index_copy_(dim, torch.tensor(part.index), old)
    return model


@pytest.mark.third
@pytest.mark.parametrize("criterion", table.CRITERIA)
def test_renumbered_units_are_ranked_the_same(criterion: str) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    model, graph = rearranged("stem", order), trained()[1]
    x = data()[0][:8]
    assert torch.allclose(model.eval()(x), trained()[0].eval()(x), atol=1e-9)
    after, before = ranked(criterion, model, graph)["stem"], plainly(criterion)["stem"]
    for k in range(1, 7):
        assert sorted(order[list(after.keep(k))].tolist()) == list(before.keep(k))
        assert after.loss(k) == pytest.approx(before.loss(k), rel=1e-5, abs=1e-9)


@pytest.mark.third
@pytest.mark.parametrize("criterion", table.CRITERIA)
@pytest.mark.parametrize(("site", "unit"), [("stem", 2), ("block.conv1", 5)])
def test_a_dead_unit_goes_first(criterion: str, site: str, unit: int) -> None:
    """All that it owns is 0, and so is what its going costs."""
    model, graph = trained()
    with torch.no_grad():
        for part in graph.sites[site].unit(unit):
            if part.parameter in dict(model.named_parameters()):
                model.get_parameter(part.parameter).index_fill_(part.dim, torch.tensor(part.index), 0.0)
    if criterion == "collaborative":
        _settled(model)  # away from a minimum the first-order term may gain by a live unit's going
    ranking = ranked(criterion, model, graph)[site]
    assert unit not in ranking.keep(ranking.size - 1)
    assert ranking.loss(ranking.size - 1) == pytest.approx(0, abs=1e-6)


def _settled(model: nn.Module) -> None:
    """Train in eval mode until the loss is small: the gradients of the gates go to 0 there. Dead weights have no gradients."""
    x, y = data()
    model.eval()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    model.zero_grad()
    for parameter in model.parameters():
        parameter.grad = None


@pytest.mark.parametrize("criterion", table.CRITERIA)
def test_every_size_is_kept_and_losing_nothing_costs_nothing(criterion: str) -> None:
    sites = sites_of(criterion) or ("stem", "block.conv1", "hidden")
    assert tuple(plainly(criterion)) == sites
    for ranking in plainly(criterion).values():
        for k in range(1, ranking.size + 1):
            kept = ranking.keep(k)
            assert len(kept) == k and list(kept) == sorted(set(kept)) and set(kept) <= set(range(ranking.size))
        assert ranking.loss(ranking.size) == pytest.approx(0, abs=1e-9)
        for k in (0, ranking.size + 1):
            with pytest.raises(InputError, match=f"can keep 1 to {ranking.size}"):
                ranking.keep(k)


def test_the_table_says_what_each_criterion_needs() -> None:
    model, graph = trained()
    assert set(CRITERIA) == set(NEEDS) and set().union(*NEEDS.values()) == set(STATISTICS)
    nothing = collect(model, graph, task(), [])
    for name, criterion in CRITERIA.items():
        if NEEDS[name]:
            with pytest.raises(InputError, match="was not collected"):
                criterion(model, graph, nothing)


# --- each against its definition -----------------------------------------------------------------------------------------


def order_of(ranking: Ranking) -> list[int]:
    assert isinstance(ranking, Ordered)
    return list(ranking.order)


def test_by_score_adds_up_what_goes() -> None:
    ranking = by_score(torch.tensor([2.0, 5.0, 1.0, 2.0]))
    assert ranking.order == (1, 0, 3, 2) and ranking.losses == (10.0, 5.0, 3.0, 1.0, 0.0)
    assert ranking.keep(3) == (0, 1, 3) and ranking.loss(3) == 1.0


def test_norms_of_a_residual_site_are_of_all_layers_that_feed_it() -> None:
    model, _ = trained()
    whole = torch.cat([model.stem.weight.flatten(1), model.block.conv2.weight.flatten(1)], 1).detach()
    assert order_of(plainly("l1")["stem"]) == whole.abs().sum(1).argsort(descending=True).tolist()
    assert order_of(plainly("l2")["stem"]) == whole.norm(dim=1).argsort(descending=True).tolist()
    assert plainly("l2")["stem"].loss(1) == pytest.approx(float(whole.norm(dim=1).sort().values[:-1].sum()))
    assert order_of(plainly("l1")["hidden"]) == model.hidden.weight.abs().sum(1).argsort(descending=True).tolist()


def test_batch_norm_scales_of_a_site_add_up() -> None:
    model, _ = trained()
    scales = model.norm.weight.abs() + model.block.bn2.weight.abs()
    assert order_of(plainly("bn_scale")["stem"]) == scales.argsort(descending=True).tolist()


def test_thinet_removes_as_every_try_would() -> None:
    model, _ = trained()
    model.eval()
    with torch.no_grad():
        hidden = F.relu(model.hidden(F.avg_pool2d(model.block(F.relu(model.norm(model.stem(data()[0])))), 3).flatten(1)))
    contributions = hidden[:, None, :] * model.out.weight.detach()  # (samples, outputs, units)
    gone = oracles.greedy_removal(contributions.numpy())
    assert order_of(plainly("thinet")["hidden"]) == gone[::-1]


def test_responses_of_a_residual_site_sum_over_its_readers() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(), ["gram"], samples=SAMPLES, positions=1000)
    model.eval()
    with torch.no_grad():
        h = F.relu(model.norm(model.stem(data()[0])))
        pooled = F.avg_pool2d(model.block(h), 3)
    expected = torch.zeros(6, 6).double()
    for x, respond in (
        (h, lambda v: F.conv2d(v, model.block.conv1.weight, padding=1)),
        (pooled, lambda v: v.flatten(1) @ model.hidden.weight.T),
    ):
        alone = []
        for unit in range(6):
            only = torch.zeros_like(x)
            only[:, unit] = x[:, unit]
            with torch.no_grad():
                alone.append(respond(only).flatten())
        z = torch.stack(alone)
        expected += z @ z.T / z.sum(0).square().sum()
    torch.testing.assert_close(responses_of(model, graph, stats, "stem", centred=False), expected)


def test_lasso_leaves_what_coordinate_descent_leaves() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(60, 9)) @ (np.eye(9) + 0.4 * generator.normal(size=(9, 9)))
    responses = z.T @ z / 60
    ranking = Lasso(torch.from_numpy(responses))
    top = np.abs(responses.sum(1)).max()
    for penalty in (0.02 * top, 0.2 * top, 0.6 * top):
        b = oracles.lasso_by_coordinates(responses, penalty)
        np.testing.assert_allclose(ranking.shrunk(torch.tensor([penalty]), 5000)[0].numpy(), b, atol=1e-6)
        left = tuple(np.flatnonzero(b).tolist())
        assert ranking.keep(len(left)) == left
        fitted, *_ = np.linalg.lstsq(z[:, left], z.sum(1), rcond=None)
        lack = ((z.sum(1) - z[:, left] @ fitted) ** 2).sum() / (z.sum(1) ** 2).sum()
        assert ranking.loss(len(left)) == pytest.approx(lack, rel=1e-6)


def test_refitted_weights_are_those_of_least_squares() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(), ["gram"], samples=SAMPLES, positions=1000)
    kept = [0, 2, 5, 6]
    new = refit(model, graph, stats, {"block.conv1": [1, 3, 4, 7], "hidden": kept}, damping=1e-12)
    assert set(new) == {"block.conv2.weight", "out.weight", "out.bias"}
    assert new["block.conv2.weight"].shape == model.block.conv2.weight.shape
    model.eval()
    with torch.no_grad():
        h = F.relu(model.norm(model.stem(data()[0])))
        hidden = F.relu(model.hidden(F.avg_pool2d(model.block(h), 3).flatten(1)))
        between = F.relu(model.block.bn1(model.block.conv1(h)))
        inputs = torch.cat([hidden[:, kept], torch.ones(SAMPLES, 1)], 1).numpy()
        fitted, *_ = np.linalg.lstsq(inputs, model.out(hidden).numpy(), rcond=None)
        np.testing.assert_allclose(new["out.weight"][:, kept].numpy(), fitted[:-1].T, atol=1e-6)
        np.testing.assert_allclose(new["out.bias"].numpy(), fitted[-1], atol=1e-6)
        assert not new["out.weight"][:, [1, 3, 4]].any()
        patches = F.unfold(between, 3, padding=1).transpose(1, 2).flatten(0, 1)
        stays = torch.tensor([1, 3, 4, 7]).repeat_interleave(9) * 9 + torch.arange(9).repeat(4)
        wanted = patches @ model.block.conv2.weight.flatten(1).T
        fitted, *_ = np.linalg.lstsq(patches[:, stays].numpy(), wanted.numpy(), rcond=None)
        np.testing.assert_allclose(new["block.conv2.weight"].flatten(1)[:, stays].numpy(), fitted.T, atol=1e-5)


def test_refitting_lessens_what_a_cut_costs() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(), ["gram", "gradients"], samples=SAMPLES, positions=1000)
    keep = {"block.conv1": plainly("thinet")["block.conv1"].keep(4)}
    gates = masks(graph, keep, torch.empty(0).double())
    x, readers = data()[0], find_readers(model, graph).readers
    model.eval()
    with torch.no_grad():
        whole = model(x)
        with gated(model, readers, gates):
            before = float((model(x) - whole).square().mean())
        for name, value in refit(model, graph, stats, keep).items():
            model.get_parameter(name).copy_(value)
        with gated(model, readers, gates):
            after = float((model(x) - whole).square().mean())
    assert after < 0.8 * before


def test_propagated_scores_are_products_of_absolute_weights() -> None:
    """For `hidden` the scores of Inf-FS themselves; for the convolutions, walked back by hand through the toy."""
    model, graph = trained()
    stats = collect(model, graph, task(), ["responses"], samples=SAMPLES)
    scores = infinite_selection(stats.responses["out"])
    assert order_of(plainly("nisp")["hidden"]) == scores.argsort(descending=True).tolist()
    pooled = (scores @ model.hidden.weight.detach().abs()).reshape(6, 2, 2)  # (channels, places after pooling)
    stream = pooled.repeat_interleave(3, 1).repeat_interleave(3, 2)[None] / 9
    with torch.no_grad():
        block = model.block
        fold2 = (block.bn2.weight.abs() / (block.bn2.running_var + block.bn2.eps).sqrt()).reshape(1, -1, 1, 1)
        fold1 = (block.bn1.weight.abs() / (block.bn1.running_var + block.bn1.eps).sqrt()).reshape(1, -1, 1, 1)
        between = F.conv_transpose2d(stream * fold2, block.conv2.weight.abs(), padding=1)
        back = F.conv_transpose2d(between * fold1, block.conv1.weight.abs(), padding=1)
    inner, stem = between.sum((0, 2, 3)), back.sum((0, 2, 3)) + pooled.sum((1, 2))
    for site, expected in (("block.conv1", inner), ("stem", stem)):
        ranking = plainly("nisp")[site]
        assert order_of(ranking) == expected.argsort(descending=True).tolist()
        assert ranking.loss(1) == pytest.approx(float(expected.sort().values[:-1].sum()), rel=1e-9)


def test_propagation_does_not_see_biases_and_limits() -> None:
    """A ReLU6 that a bias has saturated passes no gradient, yet scores go through it: it is 1-Lipschitz."""
    model, graph = trained(nn.ReLU6)
    stats = collect(model, graph, task(), ["responses"], samples=SAMPLES)
    before = CRITERIA["nisp"](model, graph, stats)
    with torch.no_grad():
        model.hidden.bias.fill_(100)
    after = CRITERIA["nisp"](model, graph, stats)
    for site, ranking in before.items():
        assert order_of(after[site]) == order_of(ranking)
        assert 0 < after[site].loss(1) == pytest.approx(ranking.loss(1))


def test_infinite_selection_sums_paths_of_all_lengths() -> None:
    rows = torch.cat([torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), torch.ones(50, 1)], 1).double()
    found = infinite_selection(Moments(rows.T @ rows / 50, 50))
    x = rows[:, :4].numpy()
    spread = x.std(0) / x.std(0).max()
    edges = 0.5 * np.maximum.outer(spread, spread) + 0.5 * (1 - np.abs(np.corrcoef(x.T)))
    step = 0.9 / np.abs(np.linalg.eigvals(edges)).max() * edges
    paths, power = np.zeros((4, 4)), np.eye(4)
    for _ in range(400):
        power = power @ step
        paths += power
    np.testing.assert_allclose(found.numpy(), paths.sum(1), rtol=1e-6)


# --- discrimination-aware ------------------------------------------------------------------------------------------------


def test_auxiliary_heads_learn_the_task_and_leave_the_network_alone() -> None:
    model, graph = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stats = collect(model, graph, task(), ["zeros"], samples=SAMPLES)
    heads = trained_heads(model, stats, ["block"], rounds=30)
    each = losses(model.eval(), heads, task(), data())
    assert set(each) == {"", "block"}
    assert float(each["block"].detach()) < 0.7 * np.log(4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    joint = with_auxiliary(task(), heads).loss(model, data())
    weight = max(0.01, float(each["block"] / each[""]) ** 2)
    assert float(joint) == pytest.approx(float(each[""] + weight * each["block"]))
    bounded = with_auxiliary(task(), heads, most=0.02).loss(model, data())
    assert float(bounded) == pytest.approx(float(each[""] + min(weight, 0.02) * each["block"])) and weight > 0.02
    with pytest.raises(InputError, match=r"no module 'blok' for an auxiliary head. Did you mean 'block'"):
        trained_heads(model, stats, ["blok"])


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_discriminative_selection_takes_the_steepest_units_first(balance: float) -> None:
    """The first group is that of the largest gradients of L in W at W = 0, here by autograd on the whole of it."""
    model, graph = trained()
    stats = collect(model, graph, task(), ["gram"], samples=SAMPLES, positions=1000)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    ranking = discriminative(model, graph, stats, heads={}, rounds=4, balance=balance)["hidden"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        x = F.relu(model.hidden(F.avg_pool2d(model.block(F.relu(model.norm(model.stem(data()[0])))), 3).flatten(1)))
        whole = x @ model.out.weight.T
        bias = model.out.bias + whole.mean(0)  # what least squares leaves of the response without any unit
    weight = torch.zeros_like(model.out.weight, requires_grad=True)
    response = x @ weight.T
    value = balance * F.cross_entropy(response + bias, data()[1]) + (response - whole).square().sum() / whole.square().sum()
    norms = torch.autograd.grad(value, weight)[0].norm(dim=0)
    assert order_of(ranking)[:2] == norms.argsort(descending=True)[:2].tolist()
    assert ranking.loss(1) > ranking.loss(4) > ranking.loss(7) == 0


def test_dcp_adapt_stops_where_a_unit_betters_little() -> None:
    losses = (20.0, 10.0, 4.0, 1.0, 0.9, 0.0)
    assert stopping(losses, 0.05) == 3  # from 3 to 4 it is 0.1 of 10
    assert stopping(losses, 0.35) == 2
    assert stopping(losses, 1.0) == 1
    assert stopping(losses, 0.001) == 5


def test_dcp_adapt_does_not_stop_where_the_damage_rises_for_a_while() -> None:
    convex, bumpy = (20.0, 12.0, 6.0, 2.0, 0.5, 0.0), (20.0, 12.0, 13.0, 2.0, 2.5, 0.0)
    assert hull(convex) == pytest.approx(convex)
    assert hull(bumpy) == pytest.approx((20.0, 12.0, 7.0, 2.0, 1.0, 0.0))
    assert allocate(Stopping(0.2), {"a": convex}, lambda sizes: sizes["a"], 5) == {"a": 3}
    assert allocate(Stopping(0.2), {"a": bumpy}, lambda sizes: sizes["a"], 5) == {"a": 3}


def test_pivots_are_spread_over_blocks_or_layers() -> None:
    model, graph = trained()
    pivots = default_pivots(model, graph, 2)
    assert len(pivots) == 2 and all(pivot in dict(model.named_modules()) for pivot in pivots)


# --- what is refused -----------------------------------------------------------------------------------------------------


def test_criteria_say_what_a_network_lacks() -> None:
    model, graph = trained(nn.Tanh)
    stats = collect(model, graph, task(), ["zeros", "responses"], samples=SAMPLES)
    with pytest.raises(Unsuited, match=r"can rank no site: 'hidden': apoz counts zeros behind a ReLU.*Use taylor"):
        CRITERIA["apoz"](model, graph, replace(stats, sites=("hidden",)))
    found = CRITERIA["apoz"](model, graph, stats)
    assert "hidden" in found.left_out and "hidden" not in found and found
    with pytest.raises(Unsuited, match=r"this network has tanh: use taylor or collaborative"):
        CRITERIA["nisp"](model, graph, stats)
    with pytest.raises(Unsuited, match=r"'hidden': no batch norm with a scale holds its units. Rank by l1 or l2"):
        CRITERIA["bn_scale"](model, graph, replace(stats, sites=("hidden",)))


def test_sites_that_a_criterion_says_nothing_of_are_left_out_with_a_word() -> None:
    model, graph = trained()
    found = CRITERIA["bn_scale"](model, graph, collect(model, graph, task(), []))
    assert set(found) == {"stem", "block.conv1"}
    assert found.left_out == {"hidden": "no batch norm with a scale holds its units"}


def test_a_reader_of_which_too_few_patches_were_seen_keeps_its_weights_with_a_word() -> None:
    model, graph = trained()
    stats = collect(model, graph, task(size=2), ["gram"], samples=2, positions=2)
    kept = {"block.conv1": [0, 1, 2]}
    found = refit(model, graph, stats, kept)
    weight = model.get_parameter("block.conv2.weight").detach()
    assert list(found) == ["block.conv2.weight"]
    assert torch.equal(found["block.conv2.weight"][:, :3], weight[:, :3]) and not found["block.conv2.weight"][:, 3:].any()
    told = unfitted(model, stats, kept)
    assert told == {"block.conv2": "it has 27 weights to fit for each output and 4 patches to fit them to: give more `samples`"}
    assert unfitted(model, collect(model, graph, task(), ["gram"], samples=SAMPLES), kept) == {}


class Bare(nn.Module):
    """What the layer reads is a vector that is learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.out = nn.Parameter(torch.rand(6)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.given).expand(x.shape[0], 6))


def test_a_site_that_no_weight_makes_has_no_norms() -> None:
    model = Bare().double()
    graph = trace(model, task().example_inputs)
    assert len(graph.sites) == 1
    with pytest.raises(Unsuited, match=r"'given': no weight matrix makes its units\. Rank by a criterion that looks at"):
        CRITERIA["l1"](model, graph, collect(model, graph, task(), []))
