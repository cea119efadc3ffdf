"""Budgets on networks whose classes hold sizes together: no refusal after work has begun, and a plan says what will be cut. More
networks, and what comes after the cut: `test_attention_budgets.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attentions import TOKENS, Encoder, Fused, OfTheInput, OneNumber
from torch import nn

import featherweight as fw
from featherweight import Task, recipes
from featherweight.budget.tied import Tied
from featherweight.cli.outline import cuts
from featherweight.errors import InputError
from featherweight.recipe.reading import from_dict
from featherweight.recipe.units import Adaptive
from featherweight.run.learn_units import Proportions
from featherweight.structure import trace

NETWORKS = {
    "one number": (lambda: Encoder(OneNumber, layers=1), 0.79),
    "fused": (lambda: Encoder(Fused, layers=1), 0.67),
    "of the input": (lambda: Encoder(OfTheInput, layers=1), 0.85),
}
CLASSES = torch.zeros(4, dtype=torch.long)


def task() -> Task:
    batch = (TOKENS.repeat(4, 1), CLASSES)
    return Task(
        (TOKENS,), [batch], lambda n, b: F.cross_entropy(n(b[0]), b[1]), lambda n: 0.0, lambda p: torch.optim.SGD(p, 1e-2)
    )


def measured(network: nn.Module) -> tuple[int, int]:
    graph = trace(network, (TOKENS,))
    return graph.macs(), graph.parameters()


@pytest.mark.third
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plan_cuts_what_a_run_cuts_and_nothing_is_refused(name: str) -> None:
    build, share = NETWORKS[name]
    network = build().eval()
    planned = cuts(network, task(), "macs", share)
    result = fw.prune(network, (TOKENS,), macs=share)
    dense, cut = measured(network), measured(result.model)
    assert (cut[0], dense[0]) == (planned["macs"]["after"], planned["macs"]["before"])
    assert (cut[1], dense[1]) == (planned["parameters"]["after"], planned["parameters"]["before"])
    assert share - 0.1 < cut[0] / dense[0] <= share
    lost = [site for site, kept in planned["kept"].items() if kept["units"] < kept["of"]]
    heads = [site for site in lost if site.startswith("attentions")]
    assert bool(heads) == (name != "of the input"), lost
    said = [reason for site, reason in planned["spent"]["left_out"].items() if site.startswith("attentions")]
    assert (name not in ("of the input", "fused")) != any("where='graph'" in reason for reason in said)


def test_groups_are_sites_at_levels() -> None:
    tied = Tied((("a", "b"), ("c",)), {"a": 4, "b": 8, "c": 3})
    assert tied.levels == {"a": 4, "c": 3} and tied.sizes({"a": 3, "c": 2}) == {"a": 3, "b": 6, "c": 2}
    losses = {"a": [8.0, 4.0, 2.0, 1.0, 0.0], "b": [float(k) for k in range(8, -1, -1)], "c": [3.0, 1.0, 0.5, 0.0]}
    damage = tied.losses(losses)
    assert [damage["a"][k] for k in range(5)] == [16, 10, 6, 3, 0] and damage["c"] is losses["c"]
    assert tied.cost(lambda sizes: sum(sizes.values()))({"a": 1, "c": 1}) == 4


class Halves(nn.Module):
    """One number for two halves of a layer's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 12
        self.c = nn.Conv2d(3, 12, 3)
        self.a, self.b = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u, v = torch.split(self.c(x).relu(), self.channels // 2, 1)
        return (self.a(u) + self.b(v)).mean((2, 3))


def test_what_is_learned_holds_tied_sites_together() -> None:
    network, x = Halves(), torch.randn(1, 3, 9, 9)
    learned = Proportions(Adaptive(0.7), network, (x,), torch.optim.SGD(network.parameters(), 1e-2), 4)
    assert learned.sites == ("c", "c#2") and learned.proportions.shape == (1,) and learned.kept().shape == (2,)
    sizes, _ = learned.chosen()
    assert sizes["c"] == sizes["c#2"] < 6
    assert learned.cut() and network(x).shape == (1, 4) and network.channels == 2 * sizes["c"]


def test_what_changes_a_statistic_goes_where_it_is_asked_for_and_is_said() -> None:
    network = Encoder(Fused, layers=1).eval()
    rows: Any = fw.compress(network, recipes.l1_filters(macs=0.6, soft=True, epochs=1), task()).rows
    assert rows[1].measured.macs <= 0.6 * rows[0].measured.macs
    (said,) = [text for text in rows[1].spent.remarks() if "statistic" in text]
    assert "the outputs differ by" in said and "fine-tuning has to repair" in said
    recipe = recipes.l1_filters(soft=True)
    assert from_dict(recipe.to_dict()) == recipe and not recipes.l1_filters().stages[1].units.soft


class Normed(nn.Module):
    """Nothing goes but the width."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)))


def test_where_nothing_else_goes_the_way_out_is_named() -> None:
    def loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    def made(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 1e-2)

    with pytest.raises(InputError, match=r"soft=True"):
        fw.compress(
            Normed(),
            recipes.l1_filters(macs=0.6),
            Task((torch.ones(1, 4),), [(torch.ones(2, 4), CLASSES[:2])], loss, lambda n: 0.0, made),
        )


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x[:, torch.rand(x.shape[1]).argsort()[:3]]).relu()).mean(1)


def test_a_network_that_draws_numbers_in_eval_mode_is_cut_and_it_is_said() -> None:
    result = fw.prune(Draws(), (torch.randn(1, 6, 4),), macs=0.6)
    assert any("draws random numbers in eval mode" in text for text in result.rows[-1].spent.remarks())
