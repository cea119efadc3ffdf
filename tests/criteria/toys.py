"""A small residual network, trained a little on data made here, and its task: quick, in float64, nothing of it is special."""

from __future__ import annotations

import copy
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from featherweight.structure import Graph, trace
from featherweight.task import Task

CLASSES, SAMPLES = 4, 128


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """Sites: `stem` (6 units, read by the block and the head), `block.conv1` (8) and `hidden` (7)."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.block = Block(6, 8)
        self.hidden, self.act = nn.Linear(6 * 4, 7), activation()
        self.out = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(F.relu(self.norm(self.stem(x))))
        return self.out(self.act(self.hidden(F.avg_pool2d(h, 3).flatten(1))))


@functools.cache
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(SAMPLES) % CLASSES
    patterns = torch.randn(CLASSES, 1, 6, 6, generator=generator, dtype=torch.float64)
    return patterns[y] + 0.7 * torch.randn(SAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64), y


class Batches:
    """The same batches in every epoch."""

    def __init__(self, size: int = 32, count: int = SAMPLES) -> None:
        self.size, self.count = size, count

    def __len__(self) -> int:
        return self.count // self.size

    def __iter__(self):  # type: ignore[no-untyped-def]
        x, y = data()
        return iter(list(zip(x[: self.count].split(self.size), y[: self.count].split(self.size), strict=True)))


def cross_entropy(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch[0]), batch[1])


def task(loss=cross_entropy, **batches: int) -> Task:  # type: ignore[no-untyped-def]
    return Task((data()[0][:1],), lambda epoch: Batches(**batches), loss, lambda model: 0.0, lambda p: SGD(p, 0.1))


@functools.cache
def _trained(activation: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(activation).double()
        optimizer = SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(15):
            for batch in Batches():
                optimizer.zero_grad()
                cross_entropy(model, batch).backward()
                optimizer.step()
    return model


@functools.cache
def _traced(activation: type[nn.Module]) -> Graph:
    return trace(_trained(activation), task().example_inputs)


def trained(activation: type[nn.Module] = nn.ReLU) -> tuple[nn.Module, Graph]:
    """A fresh copy of the network, and the graph of all copies: it describes shapes and names, not one copy's tensors."""
    return copy.deepcopy(_trained(activation)), _traced(activation)
