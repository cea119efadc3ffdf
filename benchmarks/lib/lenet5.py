"""What the benchmarks on LeNet-5 share: a loss from the dense network's outputs, and a small network as one of full size."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import Task, zoo
from featherweight.weights.parametrized import plain
from featherweight.zoo import datasets, tasks
from featherweight.zoo.tasks import EpochBatches, LabelledImages

BATCH = 256


def distilled(seed: int, dense: nn.Module, temperature: float, held_out: int = 0) -> Task:
    """MNIST without augmentation whose loss is the distance from the dense network's outputs, which are computed once."""
    dataset = datasets.held_out(datasets.mnist(), held_out) if held_out else datasets.mnist()
    pixels = dataset.train_inputs
    with torch.no_grad():
        dense.eval()
        outputs = torch.cat([dense(images.float() / 255) for images in pixels.split(500)])
    wanted = F.log_softmax(outputs / temperature, dim=1)
    plain_task = tasks.mnist(seed, held_out, augment=False, batch_size=BATCH)

    def batches(epoch: int) -> EpochBatches:
        return replace(plain_task.batches(epoch), labels=wanted)  # type: ignore[type-var]

    def loss(network: nn.Module, batch: LabelledImages) -> Tensor:
        images, wanted = batch
        logits = F.log_softmax(network(images) / temperature, dim=1)
        return temperature**2 * F.kl_div(logits, wanted, reduction="batchmean", log_target=True)

    return replace(plain_task, train=batches, loss=loss)


def widened(small: nn.Module) -> nn.Module:
    """A LeNet-5 of full size that computes what `small` does: its units come first, all else is zero. A file need not say then
    which units are left: they are the first ones; nor in what order they are: that of their first entries.
    """
    network = zoo.lenet5()
    state = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    for name, tensor in in_order(plain(small).state_dict()).items():
        state[name][tuple(slice(size) for size in tensor.shape)] = tensor
    network.load_state_dict(state)
    return network


def in_order(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same function of a LeNet-5, whose hidden units may stand in any order: each layer's by the places of their weights."""
    state = dict(state)
    for layer, reader in (("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")):
        rows = (state[f"{layer}.weight"] != 0).flatten(1).tolist()
        order = sorted(range(len(rows)), key=lambda row: [not entry for entry in rows[row]])
        for own in (f"{layer}.weight", f"{layer}.bias"):
            state[own] = state[own][order]
        inputs = state[f"{reader}.weight"]
        state[f"{reader}.weight"] = inputs.unflatten(1, (len(rows), -1))[:, order].reshape(inputs.shape)
    return state
