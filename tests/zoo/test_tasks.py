"""The built-in tasks: batches are functions of (seed, epoch), scores are honest, and a network learns."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from featherweight import zoo
from featherweight.task import Task
from featherweight.zoo import datasets, tasks
from featherweight.zoo.datasets import Dataset
from featherweight.zoo.tasks import EpochBatches


def small_images(channels: int, side: int) -> Dataset:
    """300 random training and 20 test images; label = number % 10, and the first pixel names the training image."""
    generator = Generator().manual_seed(0)
    train = torch.randint(0, 256, (300, channels, side, side), dtype=torch.uint8, generator=generator)
    test = torch.randint(0, 256, (20, channels, side, side), dtype=torch.uint8, generator=generator)
    return Dataset(train, torch.arange(300) % 10, test, torch.arange(20) % 10)


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST and CIFAR-10 replaced by small random images of the same shape, so that these tests need no files."""
    monkeypatch.setattr(datasets, "mnist", lambda: small_images(1, 28))
    monkeypatch.setattr(datasets, "cifar10", lambda: small_images(3, 32))


def equal(left: list[tuple[Tensor, Tensor]], right: list[tuple[Tensor, Tensor]]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(images, others) and torch.equal(labels, other_labels)
        for (images, labels), (others, other_labels) in zip(left, right, strict=True)
    )


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize("name", tasks.TASKS)
def test_batches_are_a_function_of_seed_and_epoch(name: str) -> None:
    make = tasks.TASKS[name]
    if name == "digits":
        pytest.importorskip("sklearn")
    task = make(seed=3)
    once = list(task.batches(5))
    torch.manual_seed(99)  # the global generator has no part in it
    assert equal(once, list(make(seed=3).batches(5)))
    assert len(task.batches(5)) == len(once)
    assert equal(once[2:], list(islice(iter(task.batches(5)), 2, None)))  # drawn and dropped
    other_epoch, other_seed = list(task.batches(6)), list(make(seed=4).batches(5))
    assert not equal(once, other_epoch) and not equal(once, other_seed)
    assert torch.cat([labels for _, labels in once]).sort()[0].equal(torch.cat([labels for _, labels in other_epoch]).sort()[0])


@pytest.mark.usefixtures("without_files")
def test_a_batch_does_not_depend_on_the_batches_before_it() -> None:
    batches = tasks.cifar10().batches(0)
    assert isinstance(batches, EpochBatches)
    images, labels = batches[2]
    expected_images, expected_labels = list(batches)[2]
    assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)
    assert not torch.equal(batches[0][0], batches[1][0])
    with pytest.raises(IndexError, match="batch 3 of an epoch of 3 batches"):
        batches[3]


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_an_epoch_has_every_image_once(name: str) -> None:
    task = tasks.mnist(augment=False) if name == "mnist" else tasks.cifar10(augment=False)
    dataset = small_images(1, 28) if name == "mnist" else small_images(3, 32)
    images = torch.cat([images for images, _ in task.batches(0)])
    labels = torch.cat([labels for _, labels in task.batches(0)])
    assert [len(labels) for _, labels in task.batches(0)] == [128, 128, 44]
    pixels = dataset.train_inputs.float() / 255
    if name == "cifar10":
        mean, deviation = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
        pixels = (pixels - mean[:, None, None]) / deviation[:, None, None]
    distances = torch.cdist(images.flatten(1), pixels.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.argmin(dim=1)
    assert distances.min(dim=1).values.max() < 1e-3
    assert nearest.sort()[0].equal(torch.arange(300)) and not nearest.equal(torch.arange(300))
    assert labels.equal(dataset.train_labels[nearest])
    assert images.dtype == torch.float32


@pytest.mark.usefixtures("without_files")
def test_held_out_scores_on_training_images() -> None:
    class FirstPixel(nn.Module):
        """Right for exactly the images of `known`: their first pixels lead to their labels, all else to class 0."""

        def __init__(self, known: Tensor, labels: Tensor) -> None:
            super().__init__()
            self.known, self.labels = known.float().flatten(1) / 255, labels

        def forward(self, images: Tensor) -> Tensor:
            match = (images.flatten(1)[:, None] - self.known[None]).abs().amax(dim=2) < 1e-5
            return match.float() @ F.one_hot(self.labels, 10).float()

    train = small_images(1, 28)
    knows_training_set = FirstPixel(train.train_inputs, train.train_labels)
    assert tasks.mnist(held_out=50).evaluate(knows_training_set) == 100.0
    assert tasks.mnist().evaluate(knows_training_set) < 50.0
    batches = tasks.mnist(held_out=50, augment=False).batches(0)
    assert sum(len(labels) for _, labels in batches) == 250


def test_held_out_digits() -> None:
    pytest.importorskip("sklearn")
    assert sum(len(labels) for _, labels in tasks.digits(held_out=137).batches(0)) == 1300


@pytest.mark.usefixtures("without_files")
def test_example_is_one_image_and_finite() -> None:
    for name, shape in (("mnist", (1, 1, 28, 28)), ("cifar10", (1, 3, 32, 32))):
        (image,) = tasks.TASKS[name]().example_inputs
        assert image.shape == shape and image.dtype == torch.float32 and image.std() > 0


class Probe(nn.Module):
    """Notes what it is called with; always answers class 3."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(784, 10)
        self.norm = nn.BatchNorm1d(10)
        self.seen: list[tuple[bool, bool, bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        logits = self.norm(self.fc(images.flatten(1)))
        self.seen.append((self.training, torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), logits.dtype))
        return torch.zeros_like(logits).index_fill(1, torch.tensor([3]), 1.0)


@pytest.mark.usefixtures("without_files")
def test_score_is_accuracy_in_float32_and_leaves_the_modes_alone() -> None:
    probe = Probe().train()
    probe.norm.eval()  # a frozen batch norm in a network in training
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tasks.mnist().evaluate(probe) == 10.0  # 2 of 20 test labels are 3
    assert probe.seen == [(False, True, False, torch.float32)]
    assert probe.training and probe.fc.training and not probe.norm.training


def test_accuracy_counts_every_image_and_restores_after_an_error() -> None:
    class Echo(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.isnan().any():
                raise RuntimeError("not a number")
            return images.flatten(1)

    labels = torch.arange(7) % 10
    inputs = F.one_hot(labels, 10).float().reshape(7, 10, 1, 1)
    inputs[6] = inputs[0]  # one mistake, in the last and partial batch
    network = Echo().train()
    assert tasks.accuracy(network, inputs, labels, lambda images: images, batch_size=3) == pytest.approx(600 / 7)
    with pytest.raises(RuntimeError, match="not a number"):
        tasks.accuracy(network, inputs * float("nan"), labels, lambda images: images)
    assert network.training


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize("fast", [True, False])
def test_loss_runs_in_bfloat16_where_that_is_fast_and_returns_float32(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "multiplies_bfloat16", lambda device: fast)
    task = tasks.mnist()
    batch = next(iter(task.batches(0)))
    probe = Probe()
    loss = task.loss(probe, batch)
    assert probe.seen[0][2:] == ((True, torch.bfloat16) if fast else (False, torch.float32))
    # The probe answers class 3 with logit 1 and all others with 0.
    right = (batch[1] == 3).float().mean().item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(torch.tensor(torch.e + 9).log().item() - right, abs=1e-5)


@pytest.mark.usefixtures("without_files")
def test_optimizers() -> None:
    network = zoo.resnet20()
    optimizer = tasks.cifar10().optimizer(network.parameters())
    decay = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    assert all(decay[id(parameter)] == (5e-4 if parameter.ndim > 1 else 0.0) for parameter in network.parameters())
    assert all(group["lr"] == 0.1 and group["momentum"] == 0.9 and group["nesterov"] for group in optimizer.param_groups)
    only_vector = tasks.cifar10().optimizer([Parameter(torch.zeros(3))])
    assert [group["weight_decay"] for group in only_vector.param_groups] == [0.0]
    adam = tasks.mnist().optimizer(iter([Parameter(torch.zeros(3))]))
    assert isinstance(adam, torch.optim.Adam) and adam.defaults["lr"] == 1e-3


def train(task: Task, network: nn.Module, epochs: int) -> None:
    optimizer = task.optimizer(network.parameters())
    for epoch in range(epochs):
        for batch in task.batches(epoch):
            optimizer.zero_grad()
            task.loss(network, batch).backward()
            optimizer.step()


def test_two_epochs_of_digits() -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    task, network = tasks.digits(), zoo.lenet5()
    before = task.evaluate(network)
    train(task, network, epochs=2)
    assert before < 40
    assert task.evaluate(network) > 85


@pytest.mark.usefixtures("without_files")
def test_a_step_on_photographs_lowers_the_loss_of_its_batch() -> None:
    torch.manual_seed(0)
    task, network = tasks.cifar10(augment=False), zoo.resnet20()
    batch = tuple(part[:32] for part in next(iter(task.batches(0))))
    optimizer = task.optimizer(network.parameters())
    first = task.loss(network, batch)
    for _ in range(4):
        optimizer.zero_grad()
        task.loss(network, batch).backward()
        optimizer.step()
    assert task.loss(network, batch).item() < first.item()
