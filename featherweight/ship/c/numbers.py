"""Weights as C has them: texts, bytes, and in an order that its loops like."""

from __future__ import annotations

import torch
from torch import Tensor


def constants(values: Tensor) -> list[str]:
    """The shortest texts that are these float32 numbers, to the bit."""
    texts = [str(value) for value in values.numpy()]
    return [f"{text}f" if "." in text or "e" in text else f"{text}.0f" for text in texts]


def by_count(held: Tensor) -> list[int]:
    """The outputs by how many weights each has."""
    return held.flatten(1).sum(1).argsort(stable=True).tolist()


def cropped(values: Tensor) -> Tensor:
    """float32 numbers to the nearest that have their last byte 0."""
    whole = torch.from_numpy(values.contiguous().numpy().view("int32").copy())
    return torch.from_numpy(((whole.long() + 128) // 256 * 256).to(torch.int32).numpy().view("float32"))


def bytes_of(values: Tensor, width: int) -> list[int]:
    """The first bytes of each float32, as many as `width`, the lowest of them first."""
    whole = torch.from_numpy(values.contiguous().numpy().view("int32").copy()).long() % 2**32
    return torch.stack([whole >> shift & 255 for shift in (0, 8, 16, 24)[4 - width :]], 1).reshape(-1).tolist()


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """(outputs, inputs / groups, ...) -> (outputs, inputs, ...), zero between the groups."""
    if groups == 1:
        return weight
    outputs, inputs = len(weight) // groups, weight.shape[1]
    whole = weight.new_zeros(len(weight), inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole
