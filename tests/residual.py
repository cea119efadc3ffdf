"""A small residual network and a task for it, for the tests of what is cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherweight.task import Task, itself


class Block(nn.Module):
    """x -> relu(x + F(x)), F with an inner layer of its own width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Residual(nn.Module):
    """A stem, blocks on a residual stream of eight channels, and a classifier."""

    def __init__(self, *inner: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(Block(8, width) for width in inner))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


EXAMPLE = (torch.ones(1, 1, 6, 6),)
DOUBLE = (EXAMPLE[0].double(),)


def residual(*inner: int) -> nn.Module:
    """The same weights every time, and statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = Residual(*(inner or (12, 24, 10)))
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(32, 1, 6, 6))
    return network


def held(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def toy_task(count: int, lift: float) -> Task:
    """Three classes of noise, told by how much the first row of an image is lifted; `count` batches of 32 an epoch."""

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(epoch)
        labels = torch.randint(0, 3, (count, 32), generator=generator)
        images = torch.randn(count, 32, 1, 6, 6, generator=generator)
        images[:, :, 0, 0] += lift * labels[..., None].float()
        return list(zip(images, labels, strict=True))

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    def score(network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            return sum(float((network(x).argmax(1) == y).float().mean()) for x, y in batches(99)) * 100 / count

    return Task(EXAMPLE, batches, loss, score, lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9), logits=itself)
