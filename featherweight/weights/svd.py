"""Truncated singular value decompositions, fast enough to be taken during training.

Singular values and one side's vectors come from the Gram matrix of the shorter side, in float64; matrices of one shape are
decomposed together. Squaring costs half the digits: values below some 1e-7 of the largest are not told from 0, which is the
rounding of the float32 matrices this is for. A float64 matrix is decomposed directly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import InputError, TrainingError


class DecompositionError(TrainingError):
    """A matrix that LAPACK could not decompose, or that is not finite."""


@dataclass(frozen=True)
class Thin:
    """The nearest matrix of rank <= r (Eckart and Young 1936), as left @ diag(values) @ right, all float64.

    left     (rows, r), orthonormal columns
    values   (r,), falling
    right    (r, cols), orthonormal rows; 0 where the value is 0
    dropped  share of the squared norm of the matrix that is not in it
    """

    left: Tensor
    values: Tensor
    right: Tensor
    dropped: float

    @property
    def rank(self) -> int:
        return self.values.numel()

    def matrix(self) -> Tensor:
        """(rows, cols): the projection."""
        return (self.left * self.values) @ self.right

    def pull(self) -> Tensor:
        """(rows, cols): U V^T, a subgradient of the nuclear norm at `matrix()` (Avron et al. 2012)."""
        return self.left @ self.right

    def factors(self) -> tuple[Tensor, Tensor]:
        """(rows, r) and (r, cols), whose product is `matrix()`; the values split evenly."""
        root = self.values.sqrt()
        return self.left * root, root[:, None] * self.right


def truncated(matrix: Tensor, *, rank: int | None = None, energy: float | None = None, name: str = "the matrix") -> Thin:
    """argmin |m - z|_F  s.t.  rank(z) <= `rank`; with `energy`, of the least rank that drops at most that share of |m|_F^2.

    `name` appears in errors. Raises DecompositionError, and InputError for a rank or an energy out of range.
    """
    return truncated_all({name: matrix}, rank=rank, energy=energy)[name]


def truncated_all(
    matrices: Mapping[str, Tensor], *, rank: int | Mapping[str, int] | None = None, energy: float | None = None
) -> dict[str, Thin]:
    """`truncated` of many named matrices; those of one shape, dtype and device are decomposed in one call."""
    if (rank is None) == (energy is None):
        raise InputError(f"a truncated decomposition takes either a rank or an energy (given rank={rank}, energy={energy})")
    if energy is not None and not 0 <= energy < 1:
        raise InputError(f"energy is the dropped share of the squared norm, in [0, 1), given {energy}")
    alike: dict[tuple[torch.Size, torch.dtype, torch.device], list[str]] = defaultdict(list)
    for name, matrix in matrices.items():
        if matrix.ndim != 2:
            raise InputError(f"{name} has shape {tuple(matrix.shape)}, not that of a matrix: look at it through a view")
        asked = rank.get(name) if isinstance(rank, Mapping) else rank
        if energy is None and (asked is None or not 0 <= asked <= min(matrix.shape)):
            raise InputError(f"{name}: the rank of a {tuple(matrix.shape)} matrix is 0 to {min(matrix.shape)}, given {asked}")
        alike[matrix.shape, matrix.dtype, matrix.device].append(name)
    found: dict[str, Thin] = {}
    for names in alike.values():
        for name, (left, squares, right) in zip(names, _decomposed({n: matrices[n] for n in names}), strict=True):
            kept = rank.get(name) if isinstance(rank, Mapping) else rank
            kept = _rank_by_energy(squares, energy) if energy is not None else kept
            whole = float(squares.sum())
            dropped = float(squares[kept:].sum()) / whole if whole > 0 else 0.0
            found[name] = Thin(left[:, :kept], squares[:kept].sqrt(), right[:kept], dropped)
    return {name: found[name] for name in matrices}


@torch.no_grad()
def squared_values(matrix: Tensor, name: str = "the matrix") -> Tensor:
    """(rows, cols) -> (min(rows, cols),): the squared singular values, falling, float64; a fraction of a decomposition's cost.

    Raises as `truncated`.
    """
    stack = _checked({name: matrix})
    if matrix.dtype == torch.float64:
        return torch.linalg.svdvals(stack)[0].square().to(matrix.device)
    squares = torch.linalg.eigvalsh(_gram_matrix(stack)).flip(-1)
    return _without_noise(squares)[0].to(matrix.device)


def _rank_by_energy(squares: Tensor, energy: float) -> int:
    """The least k with sum(squares[k:]) <= energy * sum(squares)."""
    dropped = squares.flip(0).cumsum(0)  # dropped[i]: the i + 1 smallest
    return squares.numel() - int((dropped <= energy * squares.sum()).sum())


Decomposition = tuple[Tensor, Tensor, Tensor]  # left (rows, n), squares (n,) falling, right (n, cols), n the shorter side


@torch.no_grad()
def _decomposed(matrices: dict[str, Tensor]) -> list[Decomposition]:
    """All of one shape, dtype and device."""
    one = next(iter(matrices.values()))
    stack = _checked(matrices)
    try:
        parts = _singular(stack) if one.dtype == torch.float64 else _gram(stack)
    except torch.linalg.LinAlgError:  # one of them failed: find it, and give it LAPACK's slower and steadier routine
        parts = _one_by_one(stack, list(matrices))
    return [tuple(part[i].to(one.device) for part in parts) for i in range(len(matrices))]  # type: ignore[misc]


def _checked(matrices: dict[str, Tensor]) -> Tensor:
    """(batch, rows, cols) in float64, finite and not empty."""
    stack = torch.stack([matrix.detach() for matrix in matrices.values()])
    if stack.device.type == "mps":  # which has no float64
        stack = stack.cpu()
    finite = torch.isfinite(stack).flatten(1).all(1).tolist()
    if not all(finite):
        broken = [name for name, is_finite in zip(matrices, finite, strict=True) if not is_finite]
        raise DecompositionError(f"{', '.join(broken)}: NaN or infinite entries: the training before diverged, lower its rate")
    if min(stack.shape[1:]) == 0:
        raise InputError(f"{next(iter(matrices))} has shape {tuple(stack.shape[1:])}: an empty matrix has no decomposition")
    return stack.double()


def _singular(stack: Tensor) -> Decomposition:
    left, values, right = torch.linalg.svd(stack, full_matrices=False)
    return left, values.square(), right


def _gram(stack: Tensor) -> Decomposition:
    """(batch, rows, cols) -> batched decomposition by the eigenvectors of the shorter side's Gram matrix."""
    wide = stack.shape[1] <= stack.shape[2]
    short = stack if wide else stack.mT  # (batch, n, longer)
    squares, vectors = torch.linalg.eigh(_gram_matrix(stack))
    squares, vectors = _without_noise(squares.flip(-1)), vectors.flip(-1)
    inverse = torch.where(squares > 0, squares.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    other = inverse[..., None] * (vectors.mT @ short)  # (batch, n, longer)
    return (vectors, squares, other) if wide else (other.mT, squares, vectors.mT)


def _gram_matrix(stack: Tensor) -> Tensor:
    """(batch, n, n) of the shorter side."""
    return stack @ stack.mT if stack.shape[1] <= stack.shape[2] else stack.mT @ stack


def _without_noise(squares: Tensor) -> Tensor:
    """(batch, n), falling: what is rounding of the Gram matrix becomes 0."""
    noise = squares[:, :1] * squares.shape[1] * torch.finfo(torch.float64).eps
    return torch.where(squares > noise, squares, 0.0)


def _one_by_one(stack: Tensor, names: list[str]) -> Decomposition:
    parts = []
    for name, matrix in zip(names, stack, strict=True):
        try:
            parts.append(_singular(matrix[None]))
        except torch.linalg.LinAlgError as error:
            raise DecompositionError(
                f"{name}: LAPACK could not decompose its {tuple(matrix.shape)} matrix ({error}). Its entries span "
                f"{float(matrix.abs().min()):.1e} to {float(matrix.abs().max()):.1e}: lower the rate of the training before"
            ) from error
    left, squares, right = zip(*parts, strict=True)
    return torch.cat(left), torch.cat(squares), torch.cat(right)
