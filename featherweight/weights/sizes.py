"""Menus of sizes, and what else sets share: checks of sizes and matrices, entries ranked by magnitude."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.weights import kmeans

RANKED = 1 << 22  # entries up to which the magnitudes of all are copied to find the largest
PIECE = 1 << 22  # entries of a long vector that are looked at together; bounds the memory
DIGIT = 16  # bits


class SetError(InputError):
    """A size that is out of range, or a matrix that cannot be projected."""


@dataclass(frozen=True)
class Part:
    """Some steps of a menu: from size `first` on, one for each of the `count`.

    errors   () -> (count + 1,) float64: the squared distance at the sizes first .. first + count
    whole    () -> that at size 0, (1,)
    """

    first: int
    count: int
    errors: Callable[[], Tensor]
    whole: Callable[[], Tensor]


@dataclass(frozen=True)
class Menu:
    """The sizes 0 .. most that a set admits for one matrix, and what each costs.

    values   (most,) in any order: what a size adds, the largest first. Squared they are the gains, or as they are where `squared`
             is False. Held, not copied: a menu takes no memory until it is asked, and reads the values as they are then
    bits     size -> storage in bits
    """

    values: Tensor
    bits: Callable[[int], int]
    squared: bool = True

    @property
    def most(self) -> int:
        return self.values.numel()

    @property
    def errors(self) -> Tensor:
        """(most + 1,) float64: the squared distance at each size, non-increasing."""
        parts = list(self.parts(max(self.most, 1)))
        return parts[0].errors() if parts else torch.zeros(1, dtype=torch.float64)

    def parts(self, piece: int) -> Iterator[Part]:
        """All steps, last ones first, by `piece`: at most one copy of the values is made, and sorted, where errors are asked."""
        sums = _Sums(self, piece)
        for begin in range(0, self.most, piece):
            end = min(begin + piece, self.most)
            yield Part(self.most - end, end - begin, functools.partial(sums.errors, begin), sums.whole)


class _Sums:
    """Running sums of the gains of a menu from the smallest on, in float64 and in that order whatever the pieces."""

    def __init__(self, menu: Menu, piece: int) -> None:
        self.menu, self.piece = menu, piece

    @functools.cached_property
    def _ascending(self) -> Tensor:
        values = self.menu.values.detach().reshape(-1)
        values = values.abs() if self.menu.squared else values.clone()
        values = values.cpu() if values.dtype in (torch.float32, torch.float64) else values.cpu().float()
        values.numpy().sort()  # in place, where torch would make two more copies
        return values

    @functools.cached_property
    def _before(self) -> list[Tensor]:
        """The sum before each piece, and that of all; (1,) each."""
        found = [torch.zeros(1, dtype=torch.float64)]
        for begin in range(0, self.menu.most, self.piece):
            found.append(self._from(begin, found[-1])[-1:].clone())
        return found

    def _from(self, begin: int, before: Tensor) -> Tensor:
        gains = self._ascending[begin : begin + self.piece].double()
        return torch.cat([before, gains.square() if self.menu.squared else gains]).cumsum(0)

    def errors(self, begin: int) -> Tensor:
        return self._from(begin, self._before[begin // self.piece]).flip(0)

    def whole(self) -> Tensor:
        return self._before[-1]


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
    # one pass, in which NaN stays NaN
    if matrix.numel() and not all(map(math.isfinite, torch.stack(torch.aminmax(matrix.detach())).tolist())):
        raise SetError(
            f"{type(owner).__name__} was given a matrix with NaN or infinite entries: the training before has diverged"
        )
    return matrix


def largest(values: Tensor, count: int) -> Tensor:
    """The indices, ascending, of the `count` entries of a vector that are largest in magnitude; of equal ones the first."""
    chosen = torch.empty(count, dtype=torch.int64, device=values.device)
    filled = 0
    for begin, mask in _chosen(values, count):
        found = mask.nonzero().squeeze(1)
        chosen[filled : filled + found.numel()] = found.add_(begin)
        filled += found.numel()
    return chosen


def among_largest(matrix: Tensor, count: int) -> Tensor:
    """Which entries (same shape, bool) are among the `count` that are largest in magnitude; of equal ones the first."""
    values = matrix.reshape(-1)
    kept = torch.empty(values.numel(), dtype=torch.bool, device=values.device)
    for begin, mask in _chosen(values, count):
        kept[begin : begin + mask.numel()] = mask
    return kept.view(matrix.shape)


def _chosen(values: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """Where each piece of a vector begins, and which of its entries are among the `count` largest in magnitude."""
    bound, equal = last_of([values], count)
    for begin in range(0, values.numel(), PIECE):
        keys = keys_of(values[begin : begin + PIECE])
        chosen = keys >= bound
        ties = keys == bound
        surplus = int(ties.count_nonzero()) - equal
        if surplus > 0:
            chosen &= ~ties | (ties.cumsum(0) <= equal)
        equal = max(-surplus, 0)
        yield begin, chosen


def last_of(parts: Sequence[Tensor], count: int) -> tuple[int, int]:
    """The key of the entry that is `count`-th in magnitude of all in `parts`, and how many of that key are among the first.

    Exact. `parts`: vectors of one type. Of more than RANKED entries digits are counted, 16 bits at a time, and no copy is made.
    """
    if count == 0:
        return torch.iinfo(keys_of(parts[0][:0]).dtype).max, 0  # above every key
    if sum(part.numel() for part in parts) > RANKED:
        return _by_digits(parts, count)
    keys = keys_of(parts[0]) if len(parts) == 1 else torch.cat([keys_of(part) for part in parts])
    if keys.device.type == "cpu":
        ordered = keys.numpy()
        ordered.partition(ordered.size - count)  # a tenth of the time that torch's topk takes
        keys = keys[ordered.size - count :]
        bound = int(keys[0])
    else:
        keys = keys.topk(count, sorted=False).values
        bound = int(keys.min())
    return bound, count - int((keys > bound).count_nonzero())


def _by_digits(parts: Sequence[Tensor], count: int) -> tuple[int, int]:
    bits = 8 * keys_of(parts[0][:1]).element_size()
    bound, left = 0, count
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64, device=parts[0].device)
        for piece in (piece for part in parts for piece in part.split(PIECE)):
            keys = keys_of(piece)
            if shift + DIGIT < bits:
                keys = keys[(keys >> (shift + DIGIT)) == bound]
            counts += torch.bincount((keys >> shift) & ((1 << DIGIT) - 1), minlength=1 << DIGIT)
        above = counts.flip(0).cumsum(0)  # of the largest digits
        place = int((above < left).sum())
        left -= int(above[place - 1]) if place else 0
        bound = bound << DIGIT | (1 << DIGIT) - 1 - place
    return bound, left


def keys_of(values: Tensor) -> Tensor:
    """Whole numbers in the order of the magnitudes: the bits of a float that is not negative."""
    magnitudes = values.abs()
    if magnitudes.dtype == torch.float64:
        return magnitudes.view(torch.int64)
    return magnitudes.float().view(torch.int32)


def pieces(matrix: Tensor) -> Iterator[Tensor]:
    """Views of whole rows, or of parts of long ones, that make up a matrix."""
    for block in matrix.split(max(1, PIECE // max(matrix.shape[1], 1))):
        yield from block.split(PIECE, dim=1)


def row_squares(matrix: Tensor) -> Tensor:
    """(rows,) float64: the squared norm of each row."""
    blocks = matrix.split(max(1, PIECE // max(matrix.shape[1], 1)))
    return torch.cat([block.double().square().sum(1) for block in blocks])


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
