"""Sets: what must hold of a matrix. Each is one frozen description with one algorithm, its projection."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from featherweight.weights import codes, kmeans, sizes
from featherweight.weights.scales import best_scales
from featherweight.weights.set import Counted, Set
from featherweight.weights.sizes import (
    Menu,
    SetError,
    among_largest,
    checked,
    clustering_error,
    finite,
    largest,
    pieces,
    ratio,
    support,
)
from featherweight.weights.svd import squared_values, truncated


@dataclass(frozen=True)
class TopK(Counted):
    """min |m - z|_F  s.t.  |z|_0 <= count.

    Exact: the `count` entries of largest magnitude; of equal ones, any, but never more than `count`. O(n). Zhang et al. 2018
    (arXiv 1804.03294), eq. 6. `count=None` leaves the size to the plan. Surrogate: the l1 norm.
    """

    kind: Literal["top_k"] = "top_k"
    exact: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def encode(self, matrix: Tensor) -> codes.Sparse:
        count = self.checked(matrix)
        return codes.Sparse(matrix.shape[0], matrix.shape[1], largest(matrix.reshape(-1), count))

    def kept(self, matrix: Tensor) -> Tensor:
        return among_largest(matrix, self.checked(matrix))

    def violation(self, matrix: Tensor) -> float:
        count = self.checked(matrix)
        squares = matrix.reshape(-1).double().square().sort().values
        return ratio(squares[: squares.numel() - count].sum(), squares.sum())

    def pull(self, matrix: Tensor) -> Tensor:
        return matrix.sign()

    def menu(self, matrix: Tensor) -> Menu:
        rows, cols = finite(self, matrix).shape
        return Menu(matrix.reshape(-1), lambda k: codes.Sparse.blank(rows, cols, k).bits())


@dataclass(frozen=True)
class TopEach(Counted):
    """min |m - z|_F  s.t.  at most `count` entries of each row of z are not zero.

    Exact: the `count` entries of largest magnitude of each row; of equal ones, any. O(n log cols). Through a view whose rows are
    groups of M inputs this is N:M sparsity (Mishra et al. 2021, arXiv 2104.08378). Surrogate: the l1 norm.
    """

    kind: Literal["top_each"] = "top_each"
    exact: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def most(self, matrix: Tensor) -> int:
        return matrix.shape[1]

    def encode(self, matrix: Tensor) -> codes.Sparse:
        rows, cols = matrix.shape
        places = matrix.abs().topk(self.checked(matrix), dim=1, sorted=False).indices.sort(dim=1).values
        return codes.Sparse(rows, cols, (places + cols * torch.arange(rows, device=matrix.device)[:, None]).reshape(-1))

    def kept(self, matrix: Tensor) -> Tensor:
        places = matrix.abs().topk(self.checked(matrix), dim=1, sorted=False).indices
        return torch.zeros(matrix.shape, dtype=torch.bool, device=matrix.device).scatter_(1, places, True)

    def violation(self, matrix: Tensor) -> float:
        count = self.checked(matrix)
        squares = matrix.double().square().sort(dim=1).values
        return ratio(squares[:, : squares.shape[1] - count].sum(), squares.sum())

    def pull(self, matrix: Tensor) -> Tensor:
        return matrix.sign()

    def shrunk(self, matrix: Tensor) -> Self:
        return replace(self, count=int(matrix.count_nonzero(dim=1).max()))


@dataclass(frozen=True)
class TopRows(Counted):
    """min |m - z|_F  s.t.  at most `count` rows of z are not zero.

    Exact: the rows of largest Euclidean norm. O(n). He et al. 2018 (SFP); Zhang et al. 2018 (StructADMM, arXiv 1807.11091).
    Surrogate: the group lasso.
    """

    kind: Literal["top_rows"] = "top_rows"
    exact: ClassVar[bool] = True
    prunes: ClassVar[bool] = True
    selects: ClassVar[bool] = True

    def most(self, matrix: Tensor) -> int:
        return matrix.shape[0]

    def encode(self, matrix: Tensor) -> codes.Rows:
        count = self.checked(matrix)
        index = torch.linalg.vector_norm(matrix, dim=1).topk(count, sorted=False).indices
        return codes.Rows(matrix.shape[0], matrix.shape[1], index.sort().values)

    def violation(self, matrix: Tensor) -> float:
        count = self.checked(matrix)
        squares = matrix.double().square().sum(1).sort().values
        return ratio(squares[: squares.numel() - count].sum(), squares.sum())

    def pull(self, matrix: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
        return torch.where(norm > 0, matrix / norm, 0.0)

    def menu(self, matrix: Tensor) -> Menu:
        rows, cols = finite(self, matrix).shape
        return Menu(sizes.row_squares(matrix), lambda k: codes.Rows.blank(rows, cols, k).bits(), squared=False)

    def shrunk(self, matrix: Tensor) -> Self:
        return replace(self, count=int(matrix.any(dim=1).sum()))


@dataclass(frozen=True)
class LowRank(Set):
    """min |m - z|_F  s.t.  rank(z) <= rank, or with `energy`: the least rank whose dropped sum of squares is <= energy |m|_F^2.

    Exact for a rank: truncated singular value decomposition (Eckart and Young 1936). O(rows cols min(rows, cols)). The energy
    rule is that of Trained Rank Pruning (arXiv 1910.04576), relative and so blind to the scale of the weight.
    Surrogate: the nuclear norm, with subgradient U V^T over the kept rank (Avron et al. 2012).
    """

    rank: int | None = None
    energy: float | None = None
    kind: Literal["low_rank"] = "low_rank"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise SetError(f"LowRank takes a rank or an energy, not both (given rank={self.rank}, energy={self.energy})")
        if self.energy is not None and not 0 <= self.energy < 1:
            raise SetError(f"LowRank energy is the dropped share of the squared norm, in [0, 1), given {self.energy}")

    def check(self, matrix: Tensor) -> None:
        _ = finite(self, matrix) if self.energy is not None else self.rank_of(matrix)

    def complete(self) -> bool:
        return self.rank is not None or self.energy is not None

    def encode(self, matrix: Tensor) -> codes.Factors:
        return codes.Factors(matrix.shape[0], matrix.shape[1], self.rank_of(matrix))

    def rank_of(self, matrix: Tensor) -> int:
        """The rank that the projection of `matrix` has (at most)."""
        if self.energy is None:
            return checked(self, self.rank, matrix, min(matrix.shape), "rank")
        squares = squared_values(finite(self, matrix))
        dropped = squares.flip(0).cumsum(0)  # dropped[i]: the i + 1 smallest
        return squares.numel() - int((dropped <= self.energy * dropped[-1]).sum())

    def violation(self, matrix: Tensor) -> float:
        if self.energy is not None:
            return 0.0  # any matrix has a rank that keeps the energy it keeps; the rule binds only at projection
        rank = checked(self, self.rank, matrix, min(matrix.shape), "rank")
        squares = torch.linalg.svdvals(matrix.double()).square()
        return ratio(squares[rank:].sum(), squares.sum())

    def pull(self, matrix: Tensor) -> Tensor:
        # at a weight that the energy rule has projected, what is left of the energy is kept whole: rounding alone is dropped
        kept = truncated(matrix, energy=1e-12) if self.energy is not None else truncated(matrix, rank=self.rank_of(matrix))
        return kept.pull().to(matrix.dtype)

    def menu(self, matrix: Tensor) -> Menu:
        squares = squared_values(finite(self, matrix))
        rows, cols = matrix.shape
        return Menu(squares, lambda k: codes.Factors.blank(rows, cols, k).bits(), squared=False)

    def sized(self, size: int) -> LowRank:
        return LowRank(rank=size)

    def size(self) -> int:
        return self.rank if self.rank is not None else super().size()


LARGEST_LEVEL = 127  # what int8 holds of both signs; codes of files written before may hold 128, and are read as they are


@dataclass(frozen=True)
class Levels(Set):
    """min |m - z|_F  s.t.  every entry of row r of z is scale_r times one of a few fixed levels, for some scale_r >= 0.

    uniform: +-1, +-2 .. +-2^(bits-1), at 8 bits +-127; no zero (it belongs to pruning; Ye et al. 2018, arXiv 1811.01907);
    power_of_two: +-1, +-2, +-4 .. (2^(bits-1) of each sign); binary: +-1; ternary: -1, 0, +1.
    Exact: each row's scale minimises the distance over the whole range (`scales.best_scale`). O(n log n). One scale for the
    whole tensor or one a filter is a matter of the view. Surrogate: half the squared distance to the set.
    `sparse`: what is zero in m stays zero, at no level, and has no part in the scale.
    """

    levels: Literal["uniform", "power_of_two", "binary", "ternary"] = "binary"
    bits: int | None = None
    sparse: bool = False
    kind: Literal["levels"] = "levels"
    exact: ClassVar[bool] = True

    def __post_init__(self) -> None:
        takes_bits = self.levels in ("uniform", "power_of_two")
        if not takes_bits and self.bits is not None:
            raise SetError(f"Levels({self.levels!r}) has a fixed number of levels; bits={self.bits} does not apply")
        most = 8 if self.levels == "uniform" else 5
        if takes_bits and self.bits is not None and not 1 <= self.bits <= most:
            raise SetError(f"Levels({self.levels!r}) takes 1 to {most} bits, given {self.bits}")

    def positive(self) -> Tensor:
        """The levels >= 0, ascending, float64."""
        if self.levels in ("binary", "ternary"):
            return torch.tensor([1.0] if self.levels == "binary" else [0.0, 1.0], dtype=torch.float64)
        if self.bits is None:
            raise SetError(f"Levels({self.levels!r}) needs its bits")
        steps = torch.arange(min(2 ** (self.bits - 1), LARGEST_LEVEL), dtype=torch.float64)
        return steps + 1 if self.levels == "uniform" else 2.0**steps

    def complete(self) -> bool:
        return self.bits is not None or self.levels in ("binary", "ternary")

    def encode(self, matrix: Tensor) -> codes.Scaled | codes.SparseScaled:
        finite(self, matrix)
        positive = self.positive().to(matrix.device)
        levels = torch.cat([-positive[positive > 0].flip(0), positive])  # ascending, so an index is a rank
        scale = best_scales(matrix.abs(), positive, self.sparse).clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        index = torch.empty(matrix.shape, dtype=torch.uint8, device=matrix.device)  # there are 256 levels at most
        for part, of, into in zip(*(pieces(whole) for whole in (matrix, scale.expand_as(matrix), index)), strict=True):
            into.copy_(kmeans.nearest(part.double() / of, levels))
        position = support(matrix) if self.sparse else None
        if position is None:
            return codes.Scaled(index, levels.to(matrix.dtype))
        return codes.SparseScaled(matrix.shape[0], matrix.shape[1], position, index.reshape(-1)[position], levels)

    def near(self, matrix: Tensor, member: Tensor) -> Tensor:
        """Levels at the member's scale, then the scale that is best for these, for each row: one round of Lloyd's, O(n)."""
        finite(self, matrix)
        positive = self.positive().to(matrix)
        held = torch.where(member == 0, math.inf, member.abs()).amin(1, keepdim=True) / positive[positive > 0][0]
        magnitudes = matrix.abs()
        scale = torch.where(held.isfinite(), held, torch.finfo(matrix.dtype).tiny)
        level = positive[kmeans.nearest(magnitudes / scale, positive)]
        if self.sparse:
            level = level * (matrix != 0)
        scale = (magnitudes * level).sum(1, keepdim=True) / level.square().sum(1, keepdim=True).clamp_min(1)
        return torch.where(matrix > 0, level, -level) * scale

    def violation(self, matrix: Tensor) -> float:
        finite(self, matrix)
        positive = self.positive().to(matrix.device)
        scale, missed = best_scales(matrix.abs(), positive, self.sparse)[:, None].expand_as(matrix), matrix.new_zeros(()).double()
        for part, of in zip(pieces(matrix), pieces(scale), strict=True):
            magnitudes = part.double().abs()
            near = positive[kmeans.nearest(magnitudes / of.clamp_min(torch.finfo(torch.float64).tiny), positive)] * of
            squares = (magnitudes - near).square()
            missed += squares[part != 0].sum() if self.sparse else squares.sum()
        return ratio(missed, matrix.double().square().sum())

    def masked(self) -> Levels:
        return replace(self, sparse=True)


@dataclass(frozen=True)
class Codebook(Counted):
    """min |m - z|_F  s.t.  the entries of z take at most `count` different values.

    Exact below `kmeans.EXACT_LIMIT` entries, a local optimum above (see `kmeans.centroids`). Han et al. 2016 (Deep
    Compression); Ye et al. 2018 (arXiv 1811.01907), sec. 3. Surrogate: half the squared distance to the set.
    `sparse`: what is zero in m stays zero, and only the entries that are not share the `count` values.
    """

    sparse: bool = False
    kind: Literal["codebook"] = "codebook"
    exact: ClassVar[bool] = True
    least: ClassVar[int] = 1

    def encode(self, matrix: Tensor) -> codes.Shared | codes.SparseShared:
        count = self.checked(matrix)
        position = support(matrix) if self.sparse else None
        if position is None:
            return codes.Shared(kmeans.nearest(matrix, kmeans.centroids(matrix.reshape(-1), count)), count)
        return _clustered(matrix, position, count)

    def violation(self, matrix: Tensor) -> float:
        count = self.checked(matrix)
        return clustering_error(matrix[matrix != 0] if self.sparse else matrix.reshape(-1), count, matrix)

    def masked(self) -> Codebook:
        return replace(self, sparse=True)


@dataclass(frozen=True)
class SparseCodebook(Counted):
    """min |m - z|_F  s.t.  |z|_0 <= count and the non-zero entries of z take at most `shared` different values.

    Approximate: the `count` entries of largest magnitude, then k-means of those (Ye et al. 2018, arXiv 1811.01907: prune, then
    cluster what is left). Surrogate: half the squared distance to the set.
    """

    shared: int = 16
    kind: Literal["sparse_codebook"] = "sparse_codebook"
    exact: ClassVar[bool] = False
    prunes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.shared < 1:
            raise SetError(f"SparseCodebook needs at least 1 shared value, given {self.shared}")

    def encode(self, matrix: Tensor) -> codes.SparseShared:
        count = self.checked(matrix)
        return _clustered(matrix, largest(matrix.reshape(-1), count), self.shared)

    def violation(self, matrix: Tensor) -> float:
        count = self.checked(matrix)
        ordered = (flat := matrix.reshape(-1).double())[flat.abs().argsort()]
        dropped, kept = ordered[: flat.numel() - count], ordered[flat.numel() - count :]
        inner = clustering_error(kept, self.shared, kept) if count else 0.0
        return ratio(dropped.square().sum() + inner**2 * kept.square().sum(), flat.square().sum())

    def menu(self, matrix: Tensor) -> Menu:
        rows, cols = finite(self, matrix).shape
        return Menu(matrix.reshape(-1), lambda k: codes.SparseShared.blank(rows, cols, k, self.shared).bits())


def _clustered(matrix: Tensor, position: Tensor, shared: int) -> codes.SparseShared:
    """k-means of the entries at `position` (ascending); the others are zero."""
    chosen = matrix.reshape(-1)[position]
    centers = kmeans.centroids(chosen, shared)
    return codes.SparseShared(matrix.shape[0], matrix.shape[1], position, kmeans.nearest(chosen, centers), shared)


SETS: tuple[type[Set], ...] = (TopK, TopEach, TopRows, LowRank, Levels, Codebook, SparseCodebook)
