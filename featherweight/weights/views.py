"""A view is a reversible pattern between a parameter and the matrix whose rows, columns or entries a set speaks of."""

from __future__ import annotations

import keyword
import math
import re
from dataclasses import dataclass

from einops import EinopsError, rearrange
from torch import Tensor

from featherweight.errors import InputError, short, shortened

LONGEST_PATTERN = 256  # characters
MOST_AXES = 32
LARGEST_SIZE = 2**53


class ViewError(InputError):
    """A pattern that is malformed or does not fit a parameter's shape."""


@dataclass(frozen=True)
class View:
    """An einops pattern with two axes on its right, such as `"o i h w -> (i h) (o w)"`; exact in both directions.

    `sizes` gives the axes that a shape alone does not tell: `View("(n d) i -> n (d i)", (("n", 12),))`.
    `...` stands for all the axes of the parameter: `"... -> () (...)"` is one row, the whole tensor.
    """

    pattern: str = "... -> () (...)"
    sizes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.pattern) > LONGEST_PATTERN or len(self.sizes) > MOST_AXES:
            raise ViewError(
                f"view pattern {short(self.pattern)} is too long: at most {LONGEST_PATTERN} characters and {MOST_AXES} axes"
            )
        left, arrow, right = self.pattern.partition("->")
        if not arrow or "->" in right:
            raise ViewError(f"view pattern {self.shown} must have one '->', such as 'o i h w -> o (i h w)'")
        if len(_groups(right)) != 2:
            raise ViewError(
                f"view pattern {self.shown} must give a matrix: two groups on the right, it has {len(_groups(right))}"
            )
        names = [_names(side) for side in (left, right)]
        odd = [name for name in names[0] if name != "..." and not _is_axis(name, "..." in names[0])]
        if odd or _unbalanced(left) or _unbalanced(right):
            what = f"{short(odd[0])} is no axis name" if odd else "its parentheses do not match or are nested"
            raise ViewError(f"view pattern {self.shown}: {what}; axes are words, such as in '(g h) i -> h (g i)'")
        if sorted(names[0]) != sorted(names[1]) or len(set(names[0])) != len(names[0]):
            raise ViewError(f"view pattern {self.shown} must name every axis once on each side, or it could not be undone")
        if len(names[0]) > MOST_AXES:
            raise ViewError(f"view pattern {self.shown} has {len(names[0])} axes; at most {MOST_AXES} are allowed")
        unknown = [name for name, _ in self.sizes if name not in names[0]]
        if unknown:
            raise ViewError(
                f"view pattern {self.shown} has no axis {short(unknown[0])}; its axes are {shortened(', '.join(names[0]))}"
            )
        wrong = [size for _, size in self.sizes if not 1 <= size < LARGEST_SIZE]
        if wrong:
            raise ViewError(f"view pattern {self.shown}: axis sizes must be at least 1, given {short(wrong[0])}")

    @property
    def shown(self) -> str:
        """The pattern as messages show it."""
        return short(self.pattern, 200)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """(...) -> (rows, cols); shares memory where the pattern allows it. Raises ViewError if it does not fit."""
        left, right, sizes = self._resolve(tuple(weight.shape))
        return rearrange(weight, f"{left} -> {right}", **sizes)

    def to_weight(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """(rows, cols) -> `shape`; the exact inverse of `to_matrix`."""
        left, right, sizes = self._resolve(tuple(shape))
        try:
            return rearrange(matrix, f"{right} -> {left}", **sizes)
        except EinopsError as error:
            raise ViewError(f"matrix of shape {tuple(matrix.shape)} is not a {self.shown} of shape {tuple(shape)}") from error

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The (rows, cols) that a parameter of `shape` becomes."""
        _, right, sizes = self._resolve(tuple(shape))
        rows, cols = (math.prod(sizes[name] for name in group) for group in _groups(right))
        return rows, cols

    def _resolve(self, shape: tuple[int, ...]) -> tuple[str, str, dict[str, int]]:
        """Both sides with `...` spelled out, and the size of every axis."""
        left, right = (side.strip() for side in self.pattern.split("->"))
        named = len([group for group in _groups(left) if group != ["..."]])
        if "..." in left:
            axes = " ".join(f"axis{i}" for i in range(len(shape) - named))
            left, right = left.replace("...", axes), right.replace("...", axes)
        groups = _groups(left)
        if len(groups) != len(shape):
            raise ViewError(f"view {self.shown} is for {len(groups)} dimensions, the parameter has shape {shape}")
        sizes = dict(self.sizes)
        for group, extent in zip(groups, shape, strict=True):
            unknown = [name for name in group if name not in sizes]
            known = math.prod(sizes[name] for name in group if name in sizes)
            if len(unknown) > 1:
                raise ViewError(f"view {self.shown} needs a size for all but one of {shortened(', '.join(group))}: give `sizes`")
            if extent % known or (not unknown and extent != known):
                given = shortened(str(dict(self.sizes)))
                raise ViewError(f"view {self.shown} with {given} does not divide the shape {shape}: {known} into {extent}")
            if unknown:
                sizes[unknown[0]] = extent // known
        return left, right, sizes


def _groups(side: str) -> list[list[str]]:
    """`"(i h) o"` -> [["i", "h"], ["o"]]; `()` is an empty group, an axis of length 1."""
    return [(inner if paren else single).split() for paren, inner, single in re.findall(r"(\(([^()]*)\))|([^\s()]+)", side)]


def _is_axis(name: str, spelled_out: bool) -> bool:
    """A word that einops takes for the name of an axis. `spelled_out`: `...` stands for axis0, axis1 and so on."""
    plain = name.isidentifier() and name.isascii() and not keyword.iskeyword(name) and name.strip("_") == name != "axis"
    return plain and not (spelled_out and re.fullmatch(r"axis\d+", name))


def _unbalanced(side: str) -> bool:
    return re.fullmatch(r"([^()]|\([^()]*\))*", side) is None


def _names(side: str) -> list[str]:
    return [name for group in _groups(side) for name in group]


WHOLE = View("... -> () (...)")
