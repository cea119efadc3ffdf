"""The contract with the user's problem: what cannot work is refused by name before any training, and costs one batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from featherweight import ADMM, Constrain, Distillation, Recipe, Rule, Steps, Task, TopK, Train, Training, compress
from featherweight.errors import InputError, TrainingError
from featherweight.recipes import progressive_admm
from featherweight.run.contract import check_task
from featherweight.task import itself

INPUTS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
BATCHES = [(INPUTS[i : i + 4], LABELS[i : i + 4]) for i in (0, 4, 8)]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def task(**changes: Any) -> Task:
    plain = Task(
        example_inputs=(INPUTS[:1],),
        train=lambda epoch: BATCHES,
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        evaluate=lambda model: float((model.eval()(INPUTS).argmax(1) == LABELS).float().mean()),
        optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2),
        logits=itself,
    )
    return dataclasses.replace(plain, **changes)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(INPUTS, LABELS, strict=True))


def stream(epoch: int) -> DataLoader[Any]:
    return DataLoader(Stream(), batch_size=4, generator=torch.Generator())  # which keeps it from drawing from the global one


def detached(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]).detach(), batch[1])


ANOTHER = list(network().parameters())
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a stream": ({"train": stream}, r"without a length.*featherweight\.Steps\(loader"),
    "an empty loader": ({"train": lambda epoch: []}, "holds no batch"),
    "a loader that drops its only batch": (
        {"train": lambda epoch: DataLoader(list(zip(INPUTS, LABELS, strict=True)), 64, drop_last=True)},
        "drop_last",
    ),
    "an example by another name": (
        {"example_inputs": {"x": INPUTS[:1]}},
        r"does not run on the task's `example_inputs` \(x=.*a dict by name",
    ),
    "an example of another shape": ({"example_inputs": (INPUTS[:1, :2],)}, r"does not run on the task's `example_inputs`"),
    "no example": ({"example_inputs": ()}, "hold no tensor"),
    "a text as example": ({"example_inputs": "x"}, "the example is a str; give the network's inputs as a tuple by position"),
    "a score that is NaN": ({"evaluate": lambda model: math.nan}, "finite number.*it gave nan"),
    "a score that is infinite": ({"evaluate": lambda model: -math.inf}, "it gave -inf"),
    "a score that is a tensor": ({"evaluate": lambda model: torch.tensor(0.5)}, r"gave a Tensor. Write float"),
    "no score": ({"evaluate": lambda model: None}, "gave a NoneType"),
    "a loss of each sample": (
        {"loss": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")},
        r"a tensor of one number.*shape \(4,\)",
    ),
    "a loss that is a float": ({"loss": lambda model, batch: 0.5}, "gave a float"),
    "a loss without gradients": ({"loss": detached}, "does not depend on any trained parameter"),
    "an optimizer of another network": (
        {"optimizer": lambda parameters: torch.optim.Adam(ANOTHER, 1e-3)},
        "none of the parameters",
    ),
    "no optimizer": ({"optimizer": lambda parameters: None}, "gave a NoneType"),
    "an optimizer without the targets": (
        {"optimizer": lambda parameters: torch.optim.Adam(sorted(parameters, key=lambda p: p.ndim)[:4], 1e-3)},
        r"does not hold 0\.weight, 4\.weight",
    ),
    "logits that are no tensor": ({"logits": lambda output: output["logits"]}, "`logits` fails on what the network puts out"),
    "logits of one class": ({"logits": lambda output: output[:, :1]}, "hold no two classes along dimension 1"),
    "classes along no dimension": ({"classes": 2}, "hold no two classes along dimension 2"),
    "logits not said": ({"logits": None}, r"Task\(\.\.\., logits="),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_work_is_refused_before_any_training(name: str) -> None:
    changes, says = BROKEN[name]
    steps: list[int] = []
    broken = task(**changes)
    stages = (
        Train("dense", train=Training(5)),
        Constrain("s", (Rule("weights", TopK()),), keep=0.5, driver=ADMM(0.1, 2), train=Training(1), distill=Distillation(0.5)),
    )
    with pytest.raises(InputError, match=says):
        compress(network(), Recipe("r", stages), broken, monitor=lambda progress: steps.append(progress.step))
    assert steps == []


def test_the_check_leaves_the_network_the_task_and_the_generator_as_they_were() -> None:
    model = network()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, generator = [module.training for module in model.modules()], torch.get_rng_state()
    checked = check_task(task(), model)
    assert checked.batch[0] is BATCHES[0][0] and checked.trained == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_stream_is_trained_on_when_its_batches_are_counted() -> None:
    recipe = progressive_admm(keep=("2x",), epochs=2, retrain_epochs=1)
    results = []
    for batches in (lambda epoch: Steps(stream(epoch), 3), lambda epoch: BATCHES):
        torch.manual_seed(0)
        results.append(compress(network(), recipe, task(train=batches)).model.state_dict())
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())


@pytest.mark.parametrize(("held", "says"), [(2, "gives only 2"), (4, "gives more")])
def test_an_epoch_that_is_not_as_long_as_the_first_is_said(held: int, says: str) -> None:
    """The rates and a resumed run count on the length."""
    odd = task(train=lambda epoch: Steps([*BATCHES, *BATCHES], 3) if epoch == 0 else Lying(held))
    with pytest.raises(TrainingError, match=says):
        compress(network(), Recipe("r", (Train("s", train=Training(2)),)), odd)


class Lying(list[Any]):
    def __init__(self, held: int) -> None:
        super().__init__([*BATCHES, *BATCHES][:held])

    def __len__(self) -> int:
        return 3


def test_an_optimizer_over_a_part_may_train_that_part() -> None:
    """A frozen part and a factory that leaves it out, the usual idiom: the frozen weight is no target."""
    model = network()
    model[0].requires_grad_(False)
    usual = task(optimizer=lambda parameters: torch.optim.Adam([p for p in parameters if p.requires_grad], 1e-2))
    row = compress(model, progressive_admm(keep=("2x",), epochs=1, retrain_epochs=1), usual).rows[-1]
    assert set(row.targets) == {"4.weight"}
    assert any("0.weight: it is frozen" in sentence for sentence in row.said)
