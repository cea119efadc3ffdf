"""Codes: how a matrix that lies in a set is stored and trained.

A code is a parametrization (`torch.nn.utils.parametrize`): its buffers are the frozen discrete part (positions, indices,
levels), the parametrization's originals are the continuous part (values, factors, scales, centroids). What is trained after
projection, what `state_dict()` holds and what `bits()` counts is therefore one object, and training cannot leave the set.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.weights.svd import truncated

FLOAT_BITS = 32


class Code(nn.Module, abc.ABC):
    """A (rows, cols) matrix as a free continuous part and a frozen discrete part."""

    kind: ClassVar[str]

    def __init__(self, rows: int, cols: int):
        super().__init__()
        self.rows, self.cols = rows, cols

    @abc.abstractmethod
    def forward(self, *free: Tensor) -> Tensor:
        """Decode: the free part -> (rows, cols)."""

    @abc.abstractmethod
    def right_inverse(self, matrix: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Refit: the free part whose decoding is nearest to `matrix` (rows, cols), the discrete part fixed."""

    @abc.abstractmethod
    def free(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the free part."""

    @abc.abstractmethod
    def bits(self) -> int:
        """Information held: 32 bits a free number, and the discrete part at the size of an enumerative code."""

    @abc.abstractmethod
    def weights(self) -> int:
        """Entries of the matrix that are not forced to zero."""

    def problem(self) -> str | None:
        """What is wrong with the discrete part, in words; None if every index is in range and positions ascend."""
        for name, (limit, ascending) in self.ranges().items():
            index = self.get_buffer(name).reshape(-1)
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < limit:
                return f"{name} has entries outside 0 .. {limit - 1}"
            if ascending and bool((index[1:] <= index[:-1]).any()):
                return f"{name} is not strictly ascending"
        return None

    def ranges(self) -> dict[str, tuple[int, bool]]:
        """Index buffer -> (one more than its largest legal entry, must it ascend)."""
        return {}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Indices are narrower in a state than in memory; what loads a state takes both."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, (limit, _) in self.ranges().items():
            destination[prefix + name] = destination[prefix + name].to(_stored_type(limit))

    def layout(self) -> dict[str, Any]:
        """What `blank` needs to build a code of this shape; plain JSON data."""
        return {"kind": self.kind, "rows": self.rows, "cols": self.cols, "sizes": self.sizes()}

    @abc.abstractmethod
    def sizes(self) -> dict[str, int]:
        """The integers, besides rows and cols, that fix the shapes of all tensors of this code."""


class Sparse(Code):
    """Entries at fixed positions; free: their values (count,). `index`: (count,) ascending places in the flattened matrix."""

    kind = "sparse"

    def __init__(self, rows: int, cols: int, index: Tensor):
        super().__init__(rows, cols)
        self.register_buffer("index", index.to(_index_type(rows * cols)))
        self.index: Tensor

    def forward(self, *free: Tensor) -> Tensor:
        (values,) = free
        flat = values.new_zeros(self.rows * self.cols)
        return flat.index_put_((self.index.long(),), values).view(self.rows, self.cols)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return matrix.reshape(-1)[self.index.long()]

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.index.numel(),),)

    def bits(self) -> int:
        return self.index.numel() * FLOAT_BITS + _log2_choose(self.rows * self.cols, self.index.numel())

    def weights(self) -> int:
        return self.index.numel()

    def ranges(self) -> dict[str, tuple[int, bool]]:
        return {"index": (self.rows * self.cols, True)}

    def sizes(self) -> dict[str, int]:
        return {"count": self.index.numel()}

    @classmethod
    def blank(cls, rows: int, cols: int, count: int) -> Sparse:
        return cls(rows, cols, torch.zeros(count, dtype=torch.int64))


class Rows(Code):
    """Whole rows; free: the kept rows (count, cols). `index`: (count,) ascending."""

    kind = "rows"

    def __init__(self, rows: int, cols: int, index: Tensor):
        super().__init__(rows, cols)
        self.register_buffer("index", index.to(_index_type(rows)))
        self.index: Tensor

    def forward(self, *free: Tensor) -> Tensor:
        (kept,) = free
        return kept.new_zeros(self.rows, self.cols).index_put_((self.index.long(),), kept)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return matrix[self.index.long()]

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.index.numel(), self.cols),)

    def bits(self) -> int:
        return self.weights() * FLOAT_BITS + _log2_choose(self.rows, self.index.numel())

    def weights(self) -> int:
        return self.index.numel() * self.cols

    def ranges(self) -> dict[str, tuple[int, bool]]:
        return {"index": (self.rows, True)}

    def sizes(self) -> dict[str, int]:
        return {"count": self.index.numel()}

    @classmethod
    def blank(cls, rows: int, cols: int, count: int) -> Rows:
        return cls(rows, cols, torch.zeros(count, dtype=torch.int64))


class Factors(Code):
    """A product of thin factors; free: left (rows, rank) and right (rank, cols), the singular values split evenly."""

    kind = "factors"

    def __init__(self, rows: int, cols: int, rank: int):
        super().__init__(rows, cols)
        self.rank = rank

    def forward(self, *free: Tensor) -> Tensor:
        left, right = free
        return left @ right

    def right_inverse(self, matrix: Tensor) -> tuple[Tensor, ...]:
        left, right = truncated(matrix, rank=self.rank).factors()
        # of one layout, wherever they come from: a product's last bits depend on its factors' strides
        return left.to(matrix.dtype).contiguous(), right.to(matrix.dtype).contiguous()

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.rows, self.rank), (self.rank, self.cols))

    def bits(self) -> int:
        return self.rank * (self.rows + self.cols) * FLOAT_BITS

    def weights(self) -> int:
        return self.rank * (self.rows + self.cols)

    def sizes(self) -> dict[str, int]:
        return {"rank": self.rank}

    @classmethod
    def blank(cls, rows: int, cols: int, rank: int) -> Factors:
        return cls(rows, cols, rank)


class Scaled(Code):
    """One of a few fixed levels times its row's scale; free: scale (rows, 1). `index`: (rows, cols) into `levels` (count,)."""

    kind = "scaled"

    def __init__(self, index: Tensor, levels: Tensor):
        super().__init__(index.shape[0], index.shape[1])
        self.register_buffer("index", index.to(_index_type(levels.numel())))
        self.register_buffer("levels", levels.float())  # small whole numbers: exact, and the same in files of any precision
        self.index: Tensor
        self.levels: Tensor

    def forward(self, *free: Tensor) -> Tensor:
        (scale,) = free
        return self.levels.to(scale.dtype)[self.index.long()] * scale

    def right_inverse(self, matrix: Tensor) -> Tensor:
        chosen = self.levels.to(matrix.dtype)[self.index.long()]
        square = (chosen * chosen).sum(1, keepdim=True)
        return (matrix * chosen).sum(1, keepdim=True) / square.clamp_min(torch.finfo(matrix.dtype).tiny)

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.rows, 1),)

    def bits(self) -> int:
        return self.rows * FLOAT_BITS + math.ceil(self.index.numel() * math.log2(self.levels.numel()))

    def weights(self) -> int:
        return int((self.levels[self.index.long()] != 0).sum())

    def ranges(self) -> dict[str, tuple[int, bool]]:
        return {"index": (self.levels.numel(), False)}

    def sizes(self) -> dict[str, int]:
        return {"count": self.levels.numel()}

    @classmethod
    def blank(cls, rows: int, cols: int, count: int) -> Scaled:
        return cls(torch.zeros(rows, cols, dtype=torch.uint8), torch.zeros(count))


class SparseScaled(Code):
    """One of a few fixed levels times its row's scale at fixed positions, zero elsewhere; free: scale (rows, 1).

    `position`: (count,) ascending places in the flattened matrix; `index`: (count,) into `levels` (shared,).
    """

    kind = "sparse_scaled"

    def __init__(self, rows: int, cols: int, position: Tensor, index: Tensor, levels: Tensor):
        super().__init__(rows, cols)
        self.register_buffer("position", position.to(_index_type(rows * cols)))
        self.register_buffer("index", index.to(_index_type(levels.numel())))
        self.register_buffer("levels", levels.float())
        self.position: Tensor
        self.index: Tensor
        self.levels: Tensor

    def forward(self, *free: Tensor) -> Tensor:
        (scale,) = free
        place = self.position.long()
        values = self.levels.to(scale.dtype)[self.index.long()] * scale[place // self.cols, 0]
        return scale.new_zeros(self.rows * self.cols).index_put_((place,), values).view(self.rows, self.cols)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        place, chosen = self.position.long(), self.levels.double()[self.index.long()]
        row, values = place // self.cols, matrix.reshape(-1)[place].double()
        sums = torch.zeros(2, self.rows, dtype=torch.float64, device=matrix.device)
        sums.index_add_(1, row, torch.stack([values * chosen, chosen * chosen]))
        return (sums[0] / sums[1].clamp_min(torch.finfo(torch.float64).tiny)).to(matrix.dtype)[:, None]

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.rows, 1),)

    def bits(self) -> int:
        count = self.position.numel()
        places = _log2_choose(self.rows * self.cols, count)
        return self.rows * FLOAT_BITS + places + math.ceil(count * math.log2(max(self.levels.numel(), 1)))

    def weights(self) -> int:
        return int((self.levels[self.index.long()] != 0).sum())

    def ranges(self) -> dict[str, tuple[int, bool]]:
        return {"position": (self.rows * self.cols, True), "index": (self.levels.numel(), False)}

    def sizes(self) -> dict[str, int]:
        return {"count": self.position.numel(), "shared": self.levels.numel()}

    @classmethod
    def blank(cls, rows: int, cols: int, count: int, shared: int) -> SparseScaled:
        empty = torch.zeros(count, dtype=torch.int64)
        return cls(rows, cols, empty, empty, torch.zeros(shared))


class Shared(Code):
    """Every entry is one of a few shared values; free: centroids (count,). `index`: (rows, cols) into them."""

    kind = "shared"

    def __init__(self, index: Tensor, count: int):
        super().__init__(index.shape[0], index.shape[1])
        self.count = count
        self.register_buffer("index", index.to(_index_type(count)))
        self.index: Tensor

    def forward(self, *free: Tensor) -> Tensor:
        (centroids,) = free
        return centroids[self.index.long()]

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return _means(matrix.reshape(-1), self.index.reshape(-1).long(), self.count)

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.count,),)

    def bits(self) -> int:
        return self.count * FLOAT_BITS + math.ceil(self.index.numel() * math.log2(self.count))

    def weights(self) -> int:
        return self.index.numel()

    def ranges(self) -> dict[str, tuple[int, bool]]:
        return {"index": (self.count, False)}

    def sizes(self) -> dict[str, int]:
        return {"count": self.count}

    @classmethod
    def blank(cls, rows: int, cols: int, count: int) -> Shared:
        return cls(torch.zeros(rows, cols, dtype=torch.uint8), count)


class SparseShared(Code):
    """Shared values at fixed positions, zero elsewhere; free: centroids (shared,).

    `position`: (count,) ascending places in the flattened matrix; `index`: (count,) into the centroids.
    """

    kind = "sparse_shared"

    def __init__(self, rows: int, cols: int, position: Tensor, index: Tensor, shared: int):
        super().__init__(rows, cols)
        self.shared = shared
        self.register_buffer("position", position.to(_index_type(rows * cols)))
        self.register_buffer("index", index.to(_index_type(shared)))
        self.position: Tensor
        self.index: Tensor

    def forward(self, *free: Tensor) -> Tensor:
        (centroids,) = free
        flat = centroids.new_zeros(self.rows * self.cols)
        return flat.index_put_((self.position.long(),), centroids[self.index.long()]).view(self.rows, self.cols)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return _means(matrix.reshape(-1)[self.position.long()], self.index.long(), self.shared)

    def free(self) -> tuple[tuple[int, ...], ...]:
        return ((self.shared,),)

    def bits(self) -> int:
        count = self.position.numel()
        places = _log2_choose(self.rows * self.cols, count)
        return self.shared * FLOAT_BITS + places + math.ceil(count * math.log2(max(self.shared, 1)))

    def weights(self) -> int:
        return self.position.numel()

    def ranges(self) -> dict[str, tuple[int, bool]]:
        return {"position": (self.rows * self.cols, True), "index": (self.shared, False)}

    def sizes(self) -> dict[str, int]:
        return {"count": self.position.numel(), "shared": self.shared}

    @classmethod
    def blank(cls, rows: int, cols: int, count: int, shared: int) -> SparseShared:
        empty = torch.zeros(count, dtype=torch.int64)
        return cls(rows, cols, empty, empty, shared)


CODES: dict[str, Callable[..., Code]] = {  # kind -> (rows, cols, **sizes) -> a code whose discrete part is still to be loaded
    code.kind: code.blank for code in (Sparse, Rows, Factors, Scaled, Shared, SparseShared, SparseScaled)
}


def _means(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Mean of the members of each of `count` clusters, 0 for an empty one; summed in float64 so a refit is stable."""
    total = torch.zeros(count, dtype=torch.float64, device=values.device).index_add_(0, index, values.double())
    members = torch.bincount(index, minlength=count).clamp_min(1)
    return (total / members).to(values.dtype)


def _index_type(count: int) -> torch.dtype:
    """The smallest type for numbers below `count` that every backend of torch.distributed sends: neither gloo nor NCCL sends
    int16, and a wrapper for several processes sends buffers."""
    return torch.uint8 if count <= 2**8 else torch.int32 if count <= 2**31 else torch.int64


def _stored_type(count: int) -> torch.dtype:
    """The smallest type for them in a state dict, and so in every file."""
    return torch.int16 if 2**8 < count <= 2**15 else _index_type(count)


def _log2_choose(total: int, chosen: int) -> int:
    """ceil(log2(total choose chosen)): the bits of an enumerative code of the positions."""
    logs = math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
    return math.ceil(max(logs, 0.0) / math.log(2))
