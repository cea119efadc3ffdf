"""A small residual network, for the tests of what is cut from one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
