"""Rankings: on every ordinary network, every criterion ranks each site or says why not; and it takes the samples there are."""

from __future__ import annotations

import dataclasses
import functools
from collections import UserDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ordinary import ORDINARY, ROW, Ordinary, UNet, numbers, seeded
from torch import Tensor, nn

import featherweight as fw
from featherweight.budget.amc import Search
from featherweight.criteria import CRITERIA, NEEDS
from featherweight.criteria.statistics import collect
from featherweight.errors import InputError
from featherweight.network.copies import bare
from featherweight.recipe.units import Units
from featherweight.run.cut_units import NOT_EXPRESSIBLE, cut, may_go
from featherweight.run.report import notes
from featherweight.structure import Graph, trace
from featherweight.structure.errors import StructureError

ABOUT_THE_WHOLE = ("nisp", "discriminative")  # they may refuse a network: an operation, an output that no head gives


@functools.cache
def traced(name: str) -> tuple[nn.Module, Graph] | None:
    ordinary = ORDINARY[name]
    network = bare(ordinary.make()).eval()
    try:
        return network, trace(network, ordinary.example)
    except StructureError:
        return None


def task_of(ordinary: Ordinary) -> fw.Task:
    """Two batches of the four samples that the network is made for."""
    return fw.Task(
        ordinary.example,
        lambda epoch: [0, 1],
        lambda network, batch: ordinary.loss(network),
        lambda network: 0.0,
        torch.optim.SGD,
    )


@pytest.mark.third
@pytest.mark.parametrize("name", [name for name in ORDINARY if name != "members that cannot be copied"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_site_is_ranked_or_named(name: str, criterion: str) -> None:
    found = traced(name)
    assert found is not None
    network, graph = found
    trained = [parameter.requires_grad for parameter in network.parameters()]
    try:
        stats = collect(network, graph, task_of(ORDINARY[name]), NEEDS[criterion])
        rankings = CRITERIA[criterion](network, graph, stats)
    except InputError as error:
        if name == "whole numbers in eval" and criterion != "bn_scale":  # which needs a norm first
            assert "the task's loss fails in eval mode" in str(error) and "l1 and l2 look at weights alone" in str(error)
            return
        whole = criterion in ABOUT_THE_WHOLE
        assert whole or str(error).startswith("the criterion can rank no site: ")
        assert whole or all(repr(site) in str(error) for site in graph.sites)
        return
    assert stats.samples == (8 if NEEDS[criterion] else 0) or not stats.sites
    left_out = (stats.unobservable if NEEDS[criterion] else {}) | rankings.left_out
    assert set(rankings) | set(left_out) == set(graph.sites) and not set(rankings) & set(left_out)
    assert all(len(reason) > 10 for reason in left_out.values())
    for site, ranking in rankings.items():
        assert ranking.size == graph.sites[site].size
        assert len(ranking.keep(1)) == 1
    assert [parameter.requires_grad for parameter in network.parameters()] == trained


@dataclasses.dataclass
class Given:
    name: str
    scale: Tensor
    row: Tensor


class Boxed(nn.Module):
    """Takes its row in whatever its owner packs it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, box: Any = None, *, row: Tensor | None = None) -> Tensor:
        if row is None:
            box = box[0] if isinstance(box, tuple) else box
            row = box.row if isinstance(box, Given) else box["row"] if isinstance(box, (dict, UserDict)) else box
        return self.out(torch.relu(self.first(row)))


@pytest.mark.parametrize(
    "box",
    [
        ROW,
        {"name": "a", "row": ROW},
        UserDict(row=ROW),
        (ROW, None),
        Given("a", torch.tensor(2.0), ROW),
    ],
    ids=["tensor", "dict", "user dict", "tuple", "dataclass with a number first"],
)
def test_samples_are_counted_however_the_network_is_called(box: Any) -> None:
    network = seeded(Boxed)()
    graph = trace(network, (ROW,))
    task = fw.Task((ROW,), lambda epoch: [box] * 3, lambda n, b: n(b).square().mean(), lambda n: 0.0, torch.optim.SGD)
    by_name = dataclasses.replace(task, train=lambda epoch: [ROW] * 3, loss=lambda n, b: n(row=b).square().mean())
    for given in (task, by_name):
        stats = collect(network, graph, given, ["gradients", "pairs", "zeros"])
        assert (stats.samples, stats.count) == (12, 3)
        expected = collect(network, graph, dataclasses.replace(task, train=lambda epoch: [ROW] * 3), ["gradients"])
        torch.testing.assert_close(stats.magnitudes["first"], expected.magnitudes["first"])
    with pytest.raises(InputError, match=r"called without a tensor that has a batch dimension \(\[.1.\]\)"):
        collect(network, graph, dataclasses.replace(task, loss=lambda n, b: n([1]) and b), ["gradients"])


def u_net_task(count: int = 8) -> fw.Task:
    image = numbers(count, 3, 8, 8)
    batches = [image[i : i + 4] for i in range(0, count, 4)]
    return fw.Task(
        (image[:1],),
        lambda epoch: batches,
        lambda network, batch: F.mse_loss(network(batch), batch[:, :2]),
        lambda network: 0.0,
        lambda parameters: torch.optim.SGD(parameters, 0.01),
    )


def test_what_is_left_out_is_said_in_the_plan_the_row_and_the_report() -> None:
    network, task = seeded(UNet)(), u_net_task()
    asked = Units("thinet", macs=0.9, refit=True)
    sites, left_out = may_go(network, trace(network, task.example_inputs), asked)
    assert "deep.0" in left_out and "a transposed convolution, whose patches are not sampled" in left_out["deep.0"]
    assert sites and not set(sites) & set(left_out)
    rows = fw.compress(network, fw.recipes.thinet(macs=0.9, epochs=0), task).rows
    row = next(row for row in rows if row.spent)
    spent = row.spent
    assert spent is not None and spent.left_out.keys() >= left_out.keys()
    assert any("judged by the 8 samples that an epoch holds, where 1,024 were asked for" in caveat for caveat in spent.caveats)
    told = "\n".join(notes(rows))
    assert "keeps all units of 'deep.0': it is read by up, a transposed convolution" in told and "judged by the 8 samples" in told
    assert type(row).from_dict(row.to_dict()) == row


def test_a_budget_is_met_by_the_sites_that_are_left_and_without_any_the_way_out_is_named() -> None:
    network, task = seeded(UNet)(), u_net_task()
    done = cut(network, task, Units("collaborative", macs=0.9, refit=True), 0)
    assert done.spent.after <= 0.9 * done.spent.before and network.deep[0].out_channels == 12
    with pytest.raises(InputError, match=r"no units can go.*deep\.0: it is read by up.*Match other sites, or take l1_filters"):
        cut(seeded(UNet)(), task, Units("thinet", macs=0.9, sites="deep.0"), 0)
    with pytest.raises(InputError, match=r"no units can go.*Match other sites, or make the weights smaller.*: progressive_admm"):
        cut(seeded(UNet)(), task, Units("l1", macs=0.9, sites="no such"), 0)
    assert NOT_EXPRESSIBLE.startswith("the network's own class")


def table_net() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)))()


def table_task(count: int) -> fw.Task:
    """Batches of four rows."""
    labels = torch.arange(count) % 4
    rows = numbers(count, 12) + labels[:, None]
    return fw.Task(
        (rows[:1],),
        lambda epoch: list(zip(rows.split(4), labels.split(4), strict=True)),
        lambda given, batch: F.cross_entropy(given(batch[0]), batch[1]),
        lambda given: 0.0,
        lambda parameters: torch.optim.SGD(parameters, 0.01),
    )


@pytest.mark.parametrize("recipe", ["apoz", "taylor", "thinet", "channel_lasso", "collaborative", "discriminative"])
def test_recipes_take_the_samples_there_are(recipe: str) -> None:
    rows = fw.compress(table_net(), getattr(fw.recipes, recipe)(macs=0.5, epochs=0), table_task(12)).rows
    spent = next((row.spent for row in rows if row.spent), None)
    assert spent is not None and spent.after <= 0.5 * spent.before
    assert any("judged by the 12 samples" in caveat for caveat in spent.caveats)


def test_a_search_over_few_samples_is_judged_by_others_than_the_criterion_saw() -> None:
    seen: list[int] = []
    task = table_task(12)

    def batches(epoch: int) -> Any:
        for number, batch in enumerate(task.batches(epoch)):
            seen.append(number)
            yield batch

    asked = Units("channel_lasso", macs=0.5, allocate=Search(2, 1))
    spent = cut(table_net(), dataclasses.replace(task, train=batches), asked, 0).spent
    assert spent.after <= 0.5 * spent.before
    assert "the criterion looked at half of the 12 samples, and the search was judged by the others" in spent.caveats
    assert max(seen) == 2
    with pytest.raises(InputError, match=r"the epoch holds 1: give smaller batches, or fewer `samples`"):
        cut(table_net(), table_task(4), asked, 0)
