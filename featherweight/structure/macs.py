"""Sizes as polynomials: how many entries of a dimension, parameters or multiply-accumulates are left when each site keeps so
many units.

Nothing is built: a dimension with one plane keeps (entries per unit) * (units kept); one with two (heads and places) keeps the
product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from featherweight.structure.labels import FIRST, Planes


@dataclass(frozen=True)
class Term:
    """`times` * product of the numbers of units kept at these sites."""

    times: int
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Size:
    """A number of entries as a sum of terms; not `exact` where it depends on which units stay and not only on how many."""

    terms: tuple[Term, ...]
    exact: bool = True

    def at(self, kept: Sequence[int] | NDArray[np.int64]) -> int:
        return sum(term.times * prod(int(kept[s]) for s in term.sites) for term in self.terms)


def size_of(planes: Planes, size: int, site_of: NDArray[np.int64], units: Sequence[int]) -> Size:
    """The size of a dimension with these resolved planes. `site_of[label]`: its site, or -1; `units[site]`: how many units it
    has. Where planes are longer than `size`, that many blocks keep equally many entries each, and the size is that of one.
    """
    if not planes:
        return Size((Term(size, ()),))
    blocks = len(planes[0]) // size
    stack = np.stack(planes)
    sites = np.where(stack >= FIRST, site_of[stack], -1)
    keys, inverse = np.unique(sites, axis=1, return_inverse=True)
    terms = []
    exact = True
    for k in range(keys.shape[1]):
        members = np.flatnonzero(inverse.reshape(-1) == k)
        live = [row for row in range(len(planes)) if keys[row, k] >= 0]
        involved = tuple(int(keys[row, k]) for row in live)
        if not involved:
            terms.append(Term(len(members), ()))
            continue
        combinations, counts = np.unique(stack[live][:, members], axis=1, return_counts=True)
        full = prod(units[s] for s in involved)
        if combinations.shape[1] == full and (counts == counts[0]).all() and len(set(involved)) == len(involved):
            terms.append(Term(int(counts[0]), involved))
        else:
            exact = False
            terms.append(Term(max(1, len(members) // full), involved))
    return Size(tuple(Term(t.times // blocks, t.sites) for t in terms), exact)


Sizes = Mapping[str, int]
