"""Menus of sizes, and what else sets share: checks of sizes and matrices, entries ranked by magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight import kmeans
from featherweight.errors import InputError

SAMPLE = 1 << 16  # entries by which `largest` guesses its bound


class SetError(InputError):
    """A size that is out of range, or a matrix that cannot be projected."""


@dataclass(frozen=True)
class Menu:
    """The sizes 0 .. most that a set admits for one matrix, and what each costs.

    errors   (most + 1,) float64: the squared distance at each size, non-increasing
    bits     size -> storage in bits
    """

    errors: Tensor
    bits: Callable[[int], int]

    @property
    def most(self) -> int:
        return self.errors.numel() - 1


def checked(owner: object, size: int | None, matrix: Tensor, most: int, name: str, least: int = 0) -> int:
    """`size` if it lies in [least, most] and the matrix is finite."""
    if size is None:
        raise SetError(f"{type(owner).__name__} has no {name} yet: give one, or let a plan choose it from a budget")
    if not least <= size <= most:
        raise SetError(
            f"{type(owner).__name__} {name} must be from {least} to {most} for a {tuple(matrix.shape)} matrix, given {size}"
        )
    finite(owner, matrix)
    return size


def finite(owner: object, matrix: Tensor) -> Tensor:
    if matrix.numel() and not math.isfinite(float(torch.linalg.vector_norm(matrix, ord=math.inf))):  # one pass, NaN stays NaN
        raise SetError(
            f"{type(owner).__name__} was given a matrix with NaN or infinite entries: the training before has diverged"
        )
    return matrix


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """The indices, ascending, of the `count` largest entries of a vector; of equal ones, any.

    Of a long vector only the entries above a bound guessed from a sample are ranked: exact, since a bound that lets too few
    through is given up, and several times faster than ranking all.
    """
    n = magnitudes.numel()
    if n > SAMPLE * 8 and count < n // 4:
        sample = magnitudes[:: n // SAMPLE].sort(descending=True).values
        place = count / n * sample.numel()
        bound = sample[min(sample.numel() - 1, int(place + 4 * math.sqrt(place) + 8))]
        candidates = (magnitudes >= bound).nonzero().squeeze(1)
        if count <= candidates.numel() <= n // 2:
            best = magnitudes[candidates].topk(count, sorted=False).indices
            chosen = torch.zeros(candidates.numel(), dtype=torch.bool, device=magnitudes.device)
            chosen[best] = True
            return candidates[chosen]
    return magnitudes.topk(count, sorted=False).indices.sort().values


def support(matrix: Tensor) -> Tensor | None:
    """The places, ascending, of the entries that are not zero; None where all are."""
    flat = matrix.reshape(-1)
    places = flat.nonzero().squeeze(1)
    return None if places.numel() == flat.numel() else places


def ratio(missed: Tensor, whole: Tensor) -> float:
    """sqrt(missed / whole), 0 for the zero matrix."""
    return math.sqrt(float(missed) / float(whole)) if float(whole) > 0 else 0.0


def clustering_error(values: Tensor, count: int, whole: Tensor) -> float:
    """Relative distance of `values` from having `count` distinct values."""
    if values.unique().numel() <= count:
        return 0.0
    centers = kmeans.centroids(values.double(), count)
    missed = (values.double() - centers[kmeans.nearest(values.double(), centers)]).square().sum()
    return ratio(missed, whole.double().square().sum())


def sorted_menu(squares: Tensor, bits: Callable[[int], int]) -> Menu:
    """A menu whose error at size k is the sum of all but the k largest `squares`."""
    return Menu(torch.cat([squares.new_zeros(1), squares.sort().values.cumsum(0)]).flip(0), bits)
