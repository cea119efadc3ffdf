"""Training: the task's loss is always trained on, in any network; and what a pass over data moves is put back or refilled."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ordinary import ORDINARY, Ordinary, itself, numbers, seeded
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._pytree import tree_leaves

from featherweight import Distillation, Recipe, Task, Train, Training, compress
from featherweight.errors import InputError, TrainingError
from featherweight.network.calls import tensors_of
from featherweight.network.copies import is_expanded
from featherweight.network.evaluating import evaluating, training
from featherweight.recipe.reading import from_dict
from featherweight.recipes import RECIPES
from featherweight.training.distillation import distilled, settled
from featherweight.training.fit import Losses, fit, recalibrate, squared_gradients

NOTHING_TO_LEARN = ("whole numbers in eval", "example of zeros")  # no logits in eval mode, or none but 0
WITH_LOGITS = [name for name, ordinary in ORDINARY.items() if ordinary.logits is not None and name not in NOTHING_TO_LEARN]


def task_of(ordinary: Ordinary, **changes: Any) -> Task:
    """Three times the same batch; its loss calls the network as its owner does."""
    made = Task(
        ordinary.example,
        lambda epoch: [0, 1, 2],
        lambda network, batch: ordinary.loss(network),
        lambda network: 0.0,
        lambda parameters: SGD(list(parameters), 0.02),
        logits=ordinary.logits,
        classes=ordinary.classes,
    )
    return dataclasses.replace(made, **changes)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def trained(name: str, steps: int = 60) -> nn.Module:
    network, ordinary = ORDINARY[name].make(), ORDINARY[name]
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad and not is_expanded(p)], 1e-2)
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.zero_grad()
            ordinary.loss(network).backward()
            optimizer.step()
    return network


# --- distillation --------------------------------------------------------------------------------------------------------


def softened(logits: Tensor, dim: int) -> Tensor:
    return (logits.double() / 2).softmax(dim)


@pytest.mark.third
@pytest.mark.parametrize("name", WITH_LOGITS)
def test_distillation_adds_the_divergence_over_the_classes_to_the_loss(name: str) -> None:
    """By hand, sample by sample and position by position, whatever the outputs are and however the network is called."""
    ordinary = ORDINARY[name]
    network, teacher = ordinary.make().eval(), trained(name).eval()
    torch.manual_seed(0)  # the network draws before the teacher
    logits = [ordinary.logits(ordinary.run(model)).detach() for model in (network, teacher)]  # type: ignore[misc]
    found, goal = (softened(values, ordinary.classes) for values in logits)
    torch.manual_seed(0)
    divergence = (goal * (goal.log() - found.log())).sum(ordinary.classes).mean()
    expected = ordinary.loss(network).double() + 0.7 * 2**2 * divergence
    torch.manual_seed(0)
    got = distilled(task_of(ordinary), network, 0, teacher, Distillation(0.7, 2.0))
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    assert divergence > 1e-4


@pytest.mark.parametrize("name", [name for name in ORDINARY if ORDINARY[name].logits is None])
def test_other_outputs_are_matched_by_their_distance(name: str) -> None:
    ordinary, network, teacher = ORDINARY[name], ORDINARY[name].make().eval(), trained(name).eval()
    pairs = zip(tree_leaves(ordinary.run(network)), tree_leaves(ordinary.run(teacher)), strict=True)
    apart = torch.stack([F.mse_loss(one, other) for one, other in pairs]).mean()
    got = distilled(task_of(ordinary), network, 0, teacher, Distillation(0.7, distance="mse"))
    torch.testing.assert_close(got, ordinary.loss(network) + 0.7 * apart)
    with pytest.raises(InputError, match="Task"):
        distilled(task_of(ordinary), network, 0, teacher, Distillation(0.7))


def test_every_call_of_the_network_counts() -> None:
    ordinary, network, teacher = ORDINARY["tabular"], ORDINARY["tabular"].make(), trained("tabular").eval()
    (row,) = ordinary.args

    def apart(rows: Tensor) -> Tensor:
        only = task_of(ordinary, loss=lambda model, batch: 0 * model(rows).sum())
        return distilled(only, network, 0, teacher, Distillation())

    both = task_of(ordinary, loss=lambda model, batch: 0 * (model(row[:2]).sum() + model(input=row[2:]).sum()))
    torch.testing.assert_close(distilled(both, network, 0, teacher, Distillation()), (apart(row[:2]) + apart(row[2:])) / 2)
    never = task_of(ordinary, loss=lambda model, batch: model[0](row).sum())
    with pytest.raises(InputError, match="never does"):
        distilled(never, network, 0, teacher, Distillation())


@pytest.mark.third
@pytest.mark.parametrize("name", ORDINARY)
def test_left_open_it_is_on_where_outputs_are_logits_and_the_network_is_trained(name: str) -> None:
    ordinary, asked = ORDINARY[name], Distillation(auto=True)
    generator = torch.get_rng_state()
    on, why = settled(asked, task_of(ordinary), trained(name, 200).eval(), 0)
    off, why_not = settled(asked, task_of(ordinary), ordinary.make().eval(), 0)
    reason = "is not trained" if ordinary.logits else "does not say which output is logits"
    assert off is None and ("it gave a list" if name == "whole numbers in eval" else reason) in why_not
    if ordinary.logits is None or name in NOTHING_TO_LEARN:
        assert on is None
    else:
        assert on is asked and "added to the loss with weight 1" in why
    one = settled(asked, task_of(ordinary, logits=lambda output: tensors_of(output)[0][..., :1], classes=-1), ordinary.make(), 0)
    assert one[0] is None and (ordinary.logits is None or name in NOTHING_TO_LEARN or "no two classes" in one[1])
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("period", [2, 3, 4, "sorted"])
def test_a_trained_network_is_seen_in_whatever_order_labels_come(period: int | str) -> None:
    """A batch whose labels come in turns meets its like again after some shifts, and all of it is then the same."""
    count, classes = 24, period if isinstance(period, int) else 2
    labels = torch.arange(count) % classes if isinstance(period, int) else torch.arange(count) // (count // 2)
    knows = nn.Linear(classes, classes, bias=False)
    nn.init.eye_(knows.weight).data.mul_(10)  # fits each sample
    task = Task.classification([(F.one_hot(labels, classes).float(), labels)], [])
    asked = Distillation(auto=True)
    assert settled(asked, task, knows, 0)[0] is asked
    nn.init.zeros_(knows.weight)
    assert "is not trained" in settled(asked, task, knows, 0)[1]


@pytest.mark.third
@pytest.mark.parametrize("recipe", [n for n, make in RECIPES.items() if any(s.distill and s.distill.loss for s in make().stages)])
@pytest.mark.parametrize("name", ["regression"])
def test_another_loss_gives_another_network_in_every_recipe_that_distils_by_default(recipe: str, name: str) -> None:
    few: dict[str, Any] = {"epochs": 1} | ({} if recipe == "layerwise_admm" else {"retrain_epochs": 1, "every": 2})
    few |= {"progressive_admm": {"keep": ("2x",)}, "admm_joint": {"keep": ("2x",), "sizes": (4,), "level_epochs": 1}}.get(
        recipe, {}
    )
    made = RECIPES[recipe](**few)
    ordinary, network = ORDINARY[name], trained(name)
    task = task_of(ordinary)
    other = task_of(ordinary, loss=lambda model, batch: 0.5 * ordinary.loss(model))
    assert not equal(compress(network, made, task).model, compress(network, made, other).model)


def test_a_mixture_of_earlier_versions_is_refused_by_name_and_can_be_said() -> None:
    data = Recipe("r", (Train("s", distill=Distillation(0.9)),)).to_dict()
    assert from_dict(data).stages[0].distill == Distillation(0.9)
    data["stages"][0]["distill"] = {"weight": 0.9, "temperature": 4.0}
    with pytest.raises(InputError, match=r"stages.0.distill: say `loss` beside the weight.*1 - 0.9 is the mixture"):
        from_dict(data)
    ordinary, network, teacher = ORDINARY["tabular"], ORDINARY["tabular"].make(), trained("tabular").eval()
    alone = distilled(task_of(ordinary), network, 0, teacher, Distillation(1.0, loss=0.0))
    mixed = distilled(task_of(ordinary), network, 0, teacher, Distillation(0.9, loss=1 - 0.9))
    torch.testing.assert_close(mixed, (1 - 0.9) * ordinary.loss(network) + 0.9 * alone)


def test_a_report_says_what_was_decided() -> None:
    recipe = RECIPES["admm_quantization"](bits=(4,), epochs=1, retrain_epochs=0)
    for name, said in (("tabular", "distilled from the dense network"), ("regression", "does not say which output is logits")):
        row = compress(trained(name), recipe, task_of(ORDINARY[name])).rows[-1]
        assert any(said in sentence for sentence in row.said)
        assert type(row).from_dict(row.to_dict()).said == row.said


# --- modes ---------------------------------------------------------------------------------------------------------------


class FreezesItself(nn.Module):
    """Keeps its norm in eval mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def train(self, mode: bool = True) -> FreezesItself:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, row: Tensor) -> Tensor:
        return self.out(torch.relu(self.norm(self.first(row))))


class Split(nn.Module):
    """One norm for training, one for evaluation only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.clean, self.noisy, self.out = nn.Linear(12, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, row: Tensor) -> Tensor:
        hidden = self.first(row)
        return self.out(torch.relu(self.noisy(hidden) if self.training else self.clean(hidden)))


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), norm, nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))


def put_to_eval() -> nn.Module:
    network = normed(nn.BatchNorm1d(8))
    network[1].eval()
    network[3].eval()
    return network


def frozen_and_scored() -> nn.Module:
    network = normed(nn.BatchNorm1d(8))
    network[1].requires_grad_(False)
    return network.eval()


NORMED: dict[str, tuple[Any, set[str], set[str]]] = {  # network, buffers that training refills, modules that stay in eval mode
    "norm": (lambda: normed(nn.BatchNorm1d(8)), {"1"}, set()),
    "momentum None": (lambda: normed(nn.BatchNorm1d(8, momentum=None)), {"1"}, set()),
    "synchronised": (lambda: normed(nn.SyncBatchNorm(8)), {"1"}, set()),
    "no statistics": (lambda: normed(nn.BatchNorm1d(8, track_running_stats=False)), set(), set()),
    "scored before": (lambda: normed(nn.BatchNorm1d(8)).eval(), {"1"}, set()),
    "overridden": (FreezesItself, set(), {"norm"}),
    "split": (Split, {"noisy"}, set()),
    "put to eval": (put_to_eval, set(), {"1", "3"}),
    "frozen and scored": (frozen_and_scored, set(), {"1"}),
    "spectral": (lambda: normed(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))), set(), set()),
}
ROWS = [numbers(16, 12, seed=seed) for seed in range(4)]


def passing(loss: Any = None) -> Task:
    def plain(network: nn.Module, batch: Tensor) -> Tensor:
        return network(batch).square().mean()

    return Task((ROWS[0][:1],), lambda epoch: ROWS, loss or plain, lambda network: 0.0, lambda ps: SGD(list(ps), 0.01), itself)


def differentiating(network: nn.Module, batch: Tensor) -> Tensor:
    """A gradient penalty."""
    inputs = batch.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(inputs).sum(), inputs, create_graph=True)
    return gradient.square().mean()


def prepared(name: str) -> nn.Module:
    network = seeded(NORMED[name][0])()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.fill_(0.75)
            module.running_var.fill_(2.5)
    return network


def marks(network: nn.Module) -> tuple[Any, ...]:
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [m.training for m in network.modules()], [n.momentum for n in norms], [p.grad for p in network.parameters()]


@pytest.mark.parametrize("loss", [None, differentiating], ids=["plain", "differentiates inside"])
@pytest.mark.parametrize("name", NORMED)
def test_recalibration_refills_the_norms_that_train_and_changes_nothing_else(name: str, loss: Any) -> None:
    network = prepared(name)
    before, outside = copy.deepcopy(network.state_dict()), marks(network)
    recalibrate(network, passing(loss), 0)
    after = network.state_dict()
    moved = {key.rpartition(".")[0] for key in after if not torch.equal(after[key], before[key])}
    assert moved == NORMED[name][1] and marks(network) == outside
    for norm in moved:
        first = network.get_submodule("first" if name == "split" else "0")
        means = torch.stack([first(rows).mean(0) for rows in ROWS]).mean(0)
        torch.testing.assert_close(after[f"{norm}.running_mean"], means.detach())


@pytest.mark.parametrize("name", NORMED)
def test_an_error_or_an_empty_loader_leaves_every_statistic_as_it_was(name: str) -> None:
    def breaks(network: nn.Module, batch: Tensor) -> Tensor:
        if batch is ROWS[2]:
            raise KeyboardInterrupt
        return network(batch).sum()

    for task, error in ((passing(breaks), KeyboardInterrupt), (dataclasses.replace(passing(), train=lambda epoch: []), ())):
        network = prepared(name)
        before, outside = copy.deepcopy(network.state_dict()), marks(network)
        with contextlib.suppress(error):
            recalibrate(network, task, 0)
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
        assert marks(network) == outside


@pytest.mark.parametrize("name", NORMED)
def test_squared_gradients_leave_the_network_as_it_was(name: str) -> None:
    network = prepared(name)
    before, outside = copy.deepcopy(network.state_dict()), marks(network)
    squares = squared_gradients(network, passing(), 0)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()) and marks(network) == outside
    assert any(bool(square.any()) for square in squares.values())


@pytest.mark.parametrize("name", NORMED)
def test_what_its_owner_keeps_in_eval_mode_stays_there_while_training(name: str) -> None:
    network = prepared(name)
    before = {key: value.clone() for key, value in network.named_buffers()}
    outside, seen = marks(network)[0], set[str]()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        seen.update(path for path, module in model.named_modules() if not module.training)
        return model(batch).square().mean()

    fit(network, SGD(network.parameters(), 0.01), passing(loss), Training(1))
    assert seen == NORMED[name][2] and marks(network)[0] == outside
    for path in seen:
        assert all(torch.equal(network.get_buffer(key), value) for key, value in before.items() if key.startswith(f"{path}."))
    with evaluating(network), training(network):
        assert network.training
    assert [module.training for module in network.modules()] == outside


# --- losses --------------------------------------------------------------------------------------------------------------


class Far(Tensor):
    """A loss that says that it is on an accelerator, and counts how often it is waited for."""

    waits = 0

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def __float__(self) -> float:
        Far.waits += 1
        return float(self.as_subclass(Tensor))


def test_losses_on_an_accelerator_are_read_together_and_the_first_that_is_not_finite_is_named() -> None:
    Far.waits = 0
    losses = Losses(Training(1), 100, 40, [0.5])
    for value in range(15):
        losses.add(torch.tensor(float(value)).as_subclass(Far))
    assert Far.waits == 0 and len(losses) == 16
    assert losses[-1] == 14.0 and Far.waits == 15 and list(losses) == [0.5, *map(float, range(15))]
    with pytest.raises(TrainingError, match="the loss is nan at step 58 of 100"):
        for step in range(16):
            losses.add(torch.tensor(math.nan if step == 1 else 1.0).as_subclass(Far))
    with pytest.raises(TrainingError, match="the loss is inf at step 1 of 9"):
        Losses(Training(1), 9, 0).add(torch.tensor(math.inf))
