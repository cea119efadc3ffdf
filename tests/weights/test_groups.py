"""Groups: what an optimizer is told of a weight by its shape, it is told of the code's free values, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import table
import torch
from test_loops import SAM, base_of_sam
from torch import nn
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Adagrad, AdamW

from featherweight import Constrain, Rule, Task, TopK, Train, compress
from featherweight.errors import InputError
from featherweight.recipe.schema import Recipe
from featherweight.training.schedule import Training
from featherweight.weights.constrained import freeze
from featherweight.weights.optimizers import build, chain, held_by
from featherweight.weights.sets import Set
from featherweight.weights.targets import Target
from featherweight.weights.views import View


def by_rank(parameters: list[Parameter], kind: Callable[..., Any] = AdamW) -> Any:
    """The common idiom: matrices decay, vectors do not."""
    decay, rest = ([p for p in parameters if (p.ndim >= 2) == wide] for wide in (True, False))
    return kind([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=0.01)


def decays(optimizer: Any) -> dict[int, float]:
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("one", table.TRAINED, ids=str)
@pytest.mark.parametrize("kind", [AdamW, SGD, Adagrad])
def test_what_decays_as_a_weight_decays_as_a_code(one: Set, kind: Callable[..., Any]) -> None:
    model = table.toy()
    freeze(model, "conv.weight", Target(one.__class__(rank=2) if hasattr(one, "rank") else one, View("o i h w -> o (i h w)")))
    freeze(model, "hidden.weight", Target(TopK(30)))
    optimizer = build(lambda ps: by_rank(ps, kind), model)
    found = decays(optimizer)
    assert {id(p) for p in model.parameters()} == found.keys()
    for name, parameter in model.named_parameters():
        assert found[id(parameter)] == (0.0 if "bias" in name else 0.1), name
    model(table.images()).square().mean().backward()
    optimizer.step()  # state that was made beforehand, as Adagrad's, fits


def test_where_shapes_decide_nothing_the_optimizer_is_the_factorys_own() -> None:
    model = table.toy()
    freeze(model, "hidden.weight", Target(TopK(30)))
    made = []

    def factory(parameters: list[Parameter]) -> LBFGS:
        made.append(LBFGS(parameters))
        return made[-1]

    optimizer = build(factory, model)
    assert optimizer is made[0]
    assert optimizer._params is optimizer.param_groups[0]["params"]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(p)] for p in held_by(optimizer)] == sorted(names.values())


def test_a_wrapper_and_what_it_wraps_get_the_same_groups() -> None:
    model = table.toy()
    freeze(model, "hidden.weight", Target(TopK(30)))
    optimizer = build(lambda ps: by_rank(ps, lambda groups, lr: SAM(groups, base_of_sam)), model)
    for one in chain(optimizer):
        assert decays(one)[id(model.hidden.parametrizations.weight.original)] == 0.1


def test_a_mark_on_a_free_value_is_seen_by_the_factory() -> None:
    model = table.toy()
    freeze(model, "hidden.weight", Target(TopK(30)))
    model.hidden.parametrizations.weight.original.no_decay = True
    optimizer = build(
        lambda ps: AdamW(
            [{"params": [p], "weight_decay": 0.0 if p.ndim < 2 or getattr(p, "no_decay", False) else 0.1} for p in ps]
        ),
        model,
    )
    found = decays(optimizer)
    assert found[id(model.hidden.parametrizations.weight.original)] == 0.0
    assert found[id(model.out.weight)] == 0.1


def task(optimizer: Callable[..., Any], calls: list[int]) -> Task:
    def loss(network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return network(batch).square().mean()

    return Task((table.images(1),), lambda epoch: [table.images()], loss, lambda network: 0.0, optimizer)


def recipe() -> Recipe:
    dense = Train("dense", train=Training(2))
    return Recipe("two", (dense, Constrain("pruned", (Rule("hidden.weight", TopK(9)),), train=Training(0), retrain=Training(1))))


def test_compress_retrains_with_the_groups_of_the_dense_network() -> None:
    made: list[Any] = []

    def factory(parameters: list[Parameter]) -> Any:
        made.append(by_rank(list(parameters)))
        return made[-1]

    compress(table.toy(), recipe(), task(factory, []))
    shapes = [sum(p.numel() for p in group["params"]) for group in made[-2].param_groups]
    assert shapes == [6 * 4 + 9 + 48, 6 + 12 + 4]


def test_an_optimizer_without_a_target_is_refused_before_the_first_stage_trains() -> None:
    calls: list[int] = []
    with pytest.raises(InputError, match=r"does not hold hidden\.weight"):
        compress(table.toy(), recipe(), task(lambda ps: SGD([p for p in ps if p.ndim == 1], 0.1), calls))
    assert len(calls) == 1, "the one batch that the task is tried on"
