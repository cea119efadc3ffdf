"""The entries of a dimension of a tensor: picked, set to 0, looked at one by one.

As a rule a dimension has as many entries as it is long. The columns of a grouped convolution's weight (rows, columns a group,
kernel) may be *blocked*: each group of rows has columns of its own, so that groups x columns are the entries of dimension 1,
block after block. Every block keeps equally many of them, so the weight stays a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """Of dimension `dim` of this tensor, `size` entries long, only `keep` stay.

    blocks  more than 1 for the columns of a grouped convolution: so many equal parts of dimension 0 have `size` entries each of
            their own, numbered part after part, and keep equally many
    """

    tensor: str
    dim: int
    size: int
    keep: tuple[int, ...]
    blocks: int = 1

    @property
    def left(self) -> int:
        """How long the dimension is afterwards."""
        return len(self.keep) // self.blocks

    @property
    def is_even(self) -> bool:
        """Does every block keep equally many entries, and at least one? `keep` is known to rise and to lie in range."""
        if not 0 < self.blocks <= len(self.keep) or len(self.keep) % self.blocks:
            return False
        parts = np.array(self.keep, dtype=np.int64).reshape(self.blocks, -1) // self.size
        return bool((parts == np.arange(self.blocks)[:, None]).all())


def blocks_of(tensor: Tensor, dim: int, entries: int) -> int:
    """How many blocks of dimension 0 have entries of their own along `dim`; 1 for an ordinary dimension."""
    return entries // tensor.shape[dim]


def entry_rows(tensor: Tensor, dim: int, entries: int) -> Tensor:
    """(entries, rest): everything that belongs to each entry."""
    blocks = blocks_of(tensor, dim, entries)
    if blocks == 1:
        return tensor.movedim(dim, 0).reshape(entries, -1)
    return _parts(tensor, blocks).movedim(dim + 1, 1).reshape(entries, -1)


def pick(tensor: Tensor, dim: int, entries: int, keep: Sequence[int]) -> Tensor:
    """Only the entries `keep` (rising); of blocked ones every block must keep equally many."""
    index = torch.tensor(keep, device=tensor.device)
    blocks = blocks_of(tensor, dim, entries)
    if blocks == 1:
        return tensor.index_select(dim, index)
    columns = index.reshape(blocks, -1) % tensor.shape[dim]
    return torch.cat([p.index_select(dim, c) for p, c in zip(_parts(tensor, blocks), columns, strict=True)])


def clear(tensor: Tensor, dim: int, entries: int, gone: Sequence[int]) -> None:
    """Set these entries to 0, in place."""
    blocks = blocks_of(tensor, dim, entries)
    for number, part in enumerate([tensor] if blocks == 1 else tensor.chunk(blocks)):
        first = number * tensor.shape[dim]
        own = [i - first for i in gone if 0 <= i - first < tensor.shape[dim]]
        part.index_fill_(dim, torch.tensor(own, dtype=torch.int64, device=tensor.device), 0.0)


def _parts(tensor: Tensor, blocks: int) -> Tensor:
    """(blocks, rows a block, ...)."""
    return tensor.reshape(blocks, -1, *tensor.shape[1:])
