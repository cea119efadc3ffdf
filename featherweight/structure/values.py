"""What a walk knows of a tensor of the graph, and what it notes on the way.

Beside planes a value carries two *proofs* per dimension. `zero`: the removed entries are 0 once these slices of the network are
0; a sum over removed entries is only dropped where one factor has such a proof. `constant`: the removed entries do not depend
on the input once these slices are 0 (a filter of zeros leaves its bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from featherweight.structure.labels import Planes

# alternatives; each is a set of (tensor, dimension) whose slices must be 0. Empty: no proof. One empty alternative: always.
Proof = frozenset[frozenset[tuple[str, int]]]
NEVER: Proof = frozenset()
ALWAYS: Proof = frozenset({frozenset()})


def both(a: Proof, b: Proof) -> Proof:
    return _short(frozenset(x | y for x in a for y in b))


def either(a: Proof, b: Proof) -> Proof:
    return _short(a | b)


def _short(proof: Proof, limit: int = 4) -> Proof:
    """Keep the alternatives that ask for least; any subset of a proof is a proof."""
    if len(proof) <= limit:
        return proof
    return frozenset(sorted(proof, key=lambda a: (len(a), sorted(a)))[:limit])


@dataclass
class Value:
    """A tensor of the graph: shape, and per dimension the planes and the proofs."""

    shape: tuple[int, ...]
    planes: list[Planes]
    zero: list[Proof]
    constant: list[Proof]
    known: Tensor | None = None  # the entries, for small integer tensors that do not depend on any input

    @staticmethod
    def plain(shape: Sequence[int]) -> Value:
        """Nothing of it is ever removed."""
        n = len(shape)
        return Value(tuple(shape), [[] for _ in range(n)], [NEVER] * n, [NEVER] * n)

    def like(self) -> Value:
        """The same planes and proofs under a new identity."""
        return Value(self.shape, list(self.planes), list(self.zero), list(self.constant))


@dataclass(frozen=True)
class Factor:
    """Planes of a dimension together with its size; products of such factors count multiply-accumulates."""

    planes: Planes
    size: int


@dataclass(frozen=True)
class Count:
    """Multiply-accumulates of one operation: `times` * product of the factors, or their sum over `repeats` of the batch."""

    node: str
    module: str
    times: int
    factors: tuple[Factor, ...]
    per_batch: bool


@dataclass(frozen=True)
class Reading:
    """A sum over a dimension that has planes: what `sweep` asks about dead units."""

    node: fx.Node
    planes: Planes
    zero: Proof  # of the activation side
    weight: str  # the tensor on the other side when it is one of the network's own, else ""
    weight_dim: int
    bias: str  # where a constant can be folded to, else ""
    constant: Proof
    source: fx.Node | None  # the activation that is read
    source_dim: int
    foldable: bool


def tensors_in(value: Any) -> list[Value]:
    """The tensors in a value, which may be a list."""
    if isinstance(value, Value):
        return [value]
    return [v for item in value for v in tensors_in(item)] if isinstance(value, list) else []
