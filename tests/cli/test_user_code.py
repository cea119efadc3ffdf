"""What the user's own loss and optimizer may do, and what is said where a compressed network does not suit them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ordinary import numbers, small, whole_numbers
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

import featherweight as fw
from featherweight.criteria.statistics import collect
from featherweight.errors import FeatherweightError, InputError, TrainingError
from featherweight.recipe.schema import Recipe
from featherweight.recipes import RECIPES, collaborative_ac, l1_filters, progressive_admm
from featherweight.structure import trace

ROWS, LABELS = numbers(32, 12), whole_numbers(4, 32)


def cross_entropy(network: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(network(ROWS), LABELS)


def adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def task(
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = adam
) -> fw.Task:
    return fw.Task((ROWS[:1],), lambda epoch: range(3), loss, lambda network: 0.0, optimizer)


ZEROS = progressive_admm(("4x",), epochs=1, retrain_epochs=1)


@pytest.mark.parametrize("recipe", [ZEROS, l1_filters(epochs=1)], ids=lambda recipe: recipe.name)
def test_a_loss_that_keeps_a_copy_is_told_that_the_network_has_changed(recipe: Recipe) -> None:
    held: list[nn.Module] = []

    def loss(network: nn.Module, batch: Any) -> Tensor:
        held.append(copy.deepcopy(network)) if not held else None
        with torch.no_grad():
            for average, parameter in zip(held[0].parameters(), network.parameters(), strict=True):
                average.lerp_(parameter, 0.1)
        return cross_entropy(network, batch)

    with pytest.raises(TrainingError, match=r"`loss` fails on the compressed network .* must be made of the network"):
        fw.compress(small(), recipe, task(loss))


def test_a_loss_that_fails_on_the_network_as_given_fails_as_it_does() -> None:
    calls: list[int] = []

    def loss(network: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 4:
            raise OSError("a file is gone")
        return cross_entropy(network, batch)

    with pytest.raises(OSError, match="a file is gone"):
        fw.compress(small(), ZEROS, task(loss))


def slope(network: nn.Module, batch: Any) -> Tensor:
    """A loss of the network's derivative by its inputs, as of an equation."""
    rows = ROWS.clone().requires_grad_()
    return torch.autograd.grad(network(rows).square().sum(), rows, create_graph=True)[0].square().mean()


@pytest.mark.third
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_loss_that_differentiates_inside_trains_or_is_refused_by_name(name: str) -> None:
    brief = {"epochs": 1} | ({"episodes": 3, "warm_up": 1} if name == "amc" else {})
    recipe = RECIPES[name](**brief) if name != "decompose" else RECIPES[name]()
    try:
        assert len(fw.compress(small(), recipe, task(slope)).rows) == len(recipe.stages)
    except FeatherweightError as error:
        assert isinstance(error, InputError)


def by_samples(network: nn.Module, batch: Any) -> Tensor:
    """A loss of single samples, mapped."""
    held = dict(network.named_parameters())
    return torch.vmap(lambda row: torch.func.functional_call(network, held, (row[None],)).square().mean())(ROWS).mean()


@pytest.mark.parametrize("recipe", [RECIPES["taylor"](epochs=0), collaborative_ac(epochs=0)], ids=lambda recipe: recipe.name)
def test_a_loss_that_cannot_be_watched_is_refused_with_another_recipe(recipe: Recipe) -> None:
    with pytest.raises(InputError, match=r"l1 and l2 look at weights alone|Take a recipe without them"):
        fw.compress(small(), recipe, task(by_samples))


class Checkpointed(nn.Module):
    def __init__(self, again: bool) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Linear(12, 16), nn.Linear(16, 4), again

    def forward(self, row: Tensor) -> Tensor:
        hidden = torch.relu(self.first(row))
        if self.again and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            return checkpoint(self.second, hidden, use_reentrant=False)
        return self.second(hidden)


def test_what_is_computed_twice_is_counted_once() -> None:
    plain, twice = Checkpointed(False), Checkpointed(True)
    twice.load_state_dict(plain.state_dict())
    sums = [collect(one, trace(one, (ROWS[:1],)), task(), ["zeros", "gradients", "gram"]) for one in (plain, twice)]
    for one, other in zip(sums[0].gram.values(), sums[1].gram.values(), strict=True):
        assert torch.equal(one.matrix, other.matrix)
        assert one.rows == other.rows
    assert sums[0].gram.keys() == sums[1].gram.keys() == {"second"}


@pytest.mark.parametrize("name", ["taylor", "nisp", "thinet", "collaborative"])
def test_a_checkpointed_network_is_cut_as_any_other_or_refused_by_name(name: str) -> None:
    plain, twice = Checkpointed(False), Checkpointed(True)
    twice.load_state_dict(plain.state_dict())
    cut = fw.compress(plain, RECIPES[name](epochs=0), task()).model
    try:
        again = fw.compress(twice, RECIPES[name](epochs=0), task()).model
    except FeatherweightError as error:
        assert "use taylor" in str(error)
        return
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in cut.state_dict().items())


class Converges(nn.Module):
    """As many rounds as it takes, which torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, row: Tensor) -> Tensor:
        hidden = self.first(row)
        while float(hidden.detach().norm()) > 1:
            hidden = hidden / 2
        return self.second(hidden)


def test_weights_go_from_a_network_that_cannot_be_looked_through() -> None:
    row = fw.compress(Converges(), ZEROS, task()).rows[-1]
    assert row.kept == pytest.approx(0.25, abs=0.01)
    assert "units of zeros stay in the network" in " ".join(row.said)


def test_no_units_can_go_says_why_and_what_else_can_be_done() -> None:
    with pytest.raises(InputError, match=r"can be without \(.*progressive_admm"):
        fw.compress(nn.Sequential(nn.Linear(12, 4)), l1_filters(), task())


def matrices(parameters: Iterable[nn.Parameter]) -> Optimizer:
    held = list(parameters)
    if any(parameter.ndim != 2 for parameter in held):
        raise ValueError("takes only matrices")
    return torch.optim.SGD(held, 0.1)


def matrices_apart(parameters: Iterable[nn.Parameter]) -> Optimizer:
    held = list(parameters)
    return torch.optim.SGD(held, 0.1) if any(p.ndim == 2 for p in held) else adam(held)


def without_bias() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))


def test_an_optimizer_of_matrices_is_refused_before_training_or_gives_way_to_one_of_vectors() -> None:
    steps: list[int] = []

    def loss(network: nn.Module, batch: Any) -> Tensor:
        steps.append(1)
        return cross_entropy(network, batch)

    with pytest.raises(InputError, match=r"which are vectors \(ValueError: takes only matrices\)"):
        fw.compress(without_bias(), ZEROS, task(loss, matrices))
    assert len(steps) <= 2  # the contract's look
    row = fw.compress(without_bias(), ZEROS, task(loss, matrices_apart)).rows[-1]
    assert row.kept is not None
    assert row.kept <= 0.25


def test_an_optimizer_that_needs_a_closure_is_refused_before_training() -> None:
    with pytest.raises(InputError, match=r"LBFGS .* only with a closure"):
        fw.compress(small(), ZEROS, task(optimizer=lambda parameters: torch.optim.LBFGS(parameters)))
