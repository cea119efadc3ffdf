"""What every set answers: its nearest member, how far a matrix is from it, its size and the sizes to choose from."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from featherweight.weights import codes
from featherweight.weights.sizes import Menu, SetError, checked, finite


class Set(abc.ABC):
    """A subset of the (rows, cols) matrices. Finals are frozen dataclasses; their first line is the problem they solve."""

    exact: ClassVar[bool]  # is `project` the true Euclidean projection?
    prunes: ClassVar[bool] = False  # does it force entries to zero, by a size that `shrunk` can lower?
    selects: ClassVar[bool] = False  # does it only choose which entries stay, so that they may be weighed?

    @abc.abstractmethod
    def encode(self, matrix: Tensor) -> codes.Code:
        """The code whose decoding, refitted to `matrix`, is the projection."""

    @abc.abstractmethod
    def violation(self, matrix: Tensor) -> float:
        """Distance from the set over the norm of the matrix, in [0, 1]; 0 inside. An upper bound where `exact` is False."""

    def pull(self, matrix: Tensor) -> Tensor:
        """A subgradient, at `matrix`, of the set's convex surrogate; by default of half the squared distance to the set."""
        return matrix - self.project(matrix)

    def project(self, matrix: Tensor) -> Tensor:
        """The nearest member of the set, or a near one where `exact` is False. Same shape, dtype and device."""
        code = self.encode(matrix)
        free = code.right_inverse(matrix)
        return code(*free) if isinstance(free, tuple) else code(free)

    def kept(self, matrix: Tensor) -> Tensor:
        """Of a set that selects entries: which those of `matrix` are (same shape, bool)."""
        code = self.encode(matrix)
        return code(*(torch.ones(shape, dtype=torch.bool, device=matrix.device) for shape in code.free()))

    def near(self, matrix: Tensor, member: Tensor) -> Tensor:
        """A member near `matrix` that costs little to find from one that was near it a step ago: by default the projection."""
        return self.project(matrix)

    def check(self, matrix: Tensor) -> None:
        """Raises SetError if the set's size is missing or out of range for `matrix`, or `matrix` is not finite."""
        finite(self, matrix)

    @abc.abstractmethod
    def complete(self) -> bool:
        """Has it a size, or does it still wait for one from a plan?"""

    def menu(self, matrix: Tensor) -> Menu:
        """The admissible sizes for `matrix`. Raises SetError for a set that has no size to choose."""
        raise SetError(f"{type(self).__name__} has no size for an allocator to choose; give its size in the rule")

    def sized(self, size: int) -> Set:
        """The same set with its size replaced."""
        raise SetError(f"{type(self).__name__} has no size to set")

    def size(self) -> int:
        """The size that `sized` sets. Raises SetError where there is none, or none yet."""
        raise SetError(f"{type(self).__name__} has no size, or none yet")

    def shrunk(self, matrix: Tensor) -> Set:
        """The set that a member which has lost dead rows and columns still lies in, with no size beyond what it uses."""
        return self

    def masked(self) -> Set:
        """The set of the members whose entries are zero wherever the matrix's are: zero belongs to pruning."""
        return self


@dataclass(frozen=True)
class Counted(Set):
    """A set whose size is a count. None leaves it to the plan."""

    count: int | None = None
    least: ClassVar[int] = 0

    def most(self, matrix: Tensor) -> int:
        """The largest count that `matrix` has room for."""
        return matrix.numel()

    def checked(self, matrix: Tensor) -> int:
        """The count. Raises SetError if it is missing or out of range, or `matrix` is not finite."""
        return checked(self, self.count, matrix, self.most(matrix), "count", self.least)

    def check(self, matrix: Tensor) -> None:
        self.checked(matrix)

    def complete(self) -> bool:
        return self.count is not None

    def sized(self, size: int) -> Self:
        return replace(self, count=size)

    def size(self) -> int:
        return self.count if self.count is not None else super().size()

    def shrunk(self, matrix: Tensor) -> Self:
        return replace(self, count=int(matrix.count_nonzero())) if self.prunes else self
