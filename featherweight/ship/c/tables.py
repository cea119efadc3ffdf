"""Weights as tables of a C file, and the calls of kernels over them."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from featherweight.ship.c import convolutions, kernels
from featherweight.ship.c.memory import Memory
from featherweight.ship.c.numbers import by_count, bytes_of, cropped
from featherweight.ship.c.steps import CError

DENSE_LINEAR_FROM, DENSE_RECURRENT_FROM = 0.25, 0.03  # a recurrent layer's matrices are small, and read at every step
FEW = 400  # a layer that is less than one in so many of a network's multiplications is stored as takes the fewest bytes
SHARED = 256  # different values, up to which there may be a table of them


class Tables(Memory):
    """What is written of weights; kernels are written for the sizes that use them, and grow with each."""

    def over(self, kernel: str, kind: str, tiles: convolutions.Reached) -> str:
        """The name of a convolution over non-zeros, which has what `tiles` names from now on."""
        own = self.reach(f"{kernel}_{kind}", tiles)
        both = self.reach(f"tiles_{kind}", tiles)
        self.used[f"tiles_{kind}"] = convolutions.sparse_tiles(kind, both)
        written = convolutions.sparse_flat if kernel == "conv" else convolutions.sparse_rows
        self.used[f"{kernel}_{kind}"] = written(kind, own)
        return f"{self.name}_{kernel}_{kind}"

    def stage(self, stride: tuple[int, int], pad: int, kernel: int, dilation: int, width: int, ow: int) -> str:
        """The name of what lays out windows, which can do these from now on."""
        fast = []
        for x0 in (k * dilation - pad for k in range(kernel)):
            hi = min(ow, width - x0 if x0 < width else 0)
            fast.append(stride == (1, 1) and ow % 4 == 0 and x0 >= -16 and ow - hi <= 16)
        reached = self.reach("stage", convolutions.laid(ow) if any(fast) else dict.fromkeys(convolutions.LANES, frozenset()))
        self.all_strides = self.all_strides or not all(fast)
        self.used["stage"] = convolutions.stage(reached, self.all_strides)
        return f"{self.name}_stage"

    def reach(self, key: str, tiles: convolutions.Reached) -> convolutions.Reached:
        before = self.reached.get(key, {})
        self.reached[key] = {lanes: before.get(lanes, frozenset()) | tiles[lanes] for lanes in convolutions.LANES}
        return self.reached[key]

    def entries(self, weight: Tensor, held: Tensor, place: Tensor, what: str) -> tuple[str, str]:
        """Kind of the entries (see `kernels.Entries`), and the tables of places, counts and values, with what decodes them."""
        self.sparse.append(what)
        counts, outputs = held.flatten(1).sum(1), by_count(held)
        order = [place[row].reshape(-1).argsort(stable=True) for row in held]
        values = torch.cat([weight[k][held[k]][order[k]] for k in outputs])
        offsets = torch.cat([place[held[k]][order[k]] for k in outputs])
        self.distinct = len(set(offsets.tolist()))
        return self.stored(values, offsets, [number for k in outputs for number in (int(counts[k]), k)], what)

    def stored(self, values: Tensor, places: Tensor, pairs: list[int], what: str) -> tuple[str, str]:
        kind, shift, unit, table = form(values, places, pairs)
        bits = int(kind.removesuffix("t"))
        if not kind.endswith("t"):
            return kind, f"{self.integers(places.tolist(), bits)}, {self.integers(pairs, bits)}, {self.floats(values, what)}"
        both = places // unit * 2**shift + torch.searchsorted(table, values)
        tables = (self.integers(both.tolist(), bits), self.integers(pairs, bits), self.floats(table, what))
        return kind, f"{', '.join(tables)}, {shift}, {unit}"

    @cached_property
    def multiplications(self) -> int:
        return self.program.multiplications()

    def matrix(
        self, weight: Tensor, bias: Tensor, what: str, read: str, write: str, relu: int, rows: int = 1,
        dense_from: float = DENSE_LINEAR_FROM,
    ) -> str:  # fmt: skip
        """A call that multiplies by a matrix (outputs, inputs), one of `rows`."""
        weight = weight.float()
        if self.small:
            return self.spread(weight, bias, what, (read, write), (1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1), relu)
        outputs, inputs = weight.shape
        held = weight != 0
        order, counts = by_count(held), held.sum(1).tolist()
        weights, places = weight[order][held[order]], held[order].nonzero()[:, 1]
        pairs = [number for k in order for number in (counts[k], k)]
        if FEW * rows * len(weights) <= self.multiplications:
            dense = 4 * weight.numel() <= takes(weights, places, pairs)
        else:
            dense = float(held.double().mean()) >= dense_from
        if self.always_dense or dense:
            self.dense.append(what)
            call = self.need("rows", kernels.ROWS)
            return (
                f"{call}({read}, {write}, {outputs}, {inputs}, {self.floats(weight, what)}, {self.floats(bias, what)}, {relu});"
            )
        self.sparse.append(what)
        biases, (kind, tables) = self.floats(bias[order], what), self.stored(weights, places, pairs, what)
        call = self.need(f"dot_{kind}", kernels.dot(kind))
        return f"{call}({read}, {write}, {outputs}, {tables}, {biases}, {relu});"

    def spread(self, weight: Tensor, bias: Tensor, what: str, arrays: tuple[str, str], shape: tuple[int, ...], relu: int) -> str:
        """A call of the small way. `shape`: kernel, its width, the input's height, width, dilation, padding, output, stride."""
        outputs, places = weight.shape
        self.sparse.append(what)
        at = weight.reshape(-1).nonzero()[:, 0].tolist()
        values = weight.reshape(-1)[at].float() if at else torch.zeros(0)
        if not bool(torch.cat([values, bias.float()]).isfinite().all()):
            raise CError(f"{what} has weights that are not finite numbers")
        steps, before = [], 0
        for place in at:
            steps += [255] * ((place - before) // 255) + [(place - before) % 255]
            before = place
        width = 4 if what in self.whole else 3
        given = [outputs, places, *shape, len(steps), relu, width]
        self.largest = max(self.largest, *given)
        self.number += 1
        own = f"{self.name}_t{self.number}"
        self.tables.append(f"static const {self.name}_p {own}[] = {{{', '.join(map(str, given))}}};")
        self.bytes += 2 * len(given)
        call = self.need("spread", kernels.SPREAD)
        values = values if width == 4 else cropped(values)
        kept, index = torch.unique(values, return_inverse=True)
        table = "0"
        if len(kept) <= 256 and width * len(kept) + len(values) < width * len(values):
            table, entries = self.integers(bytes_of(kept, width), 8), self.integers(index.tolist(), 8)
        else:
            entries = self.integers(bytes_of(values, width), 8)
        biases = self.integers(bytes_of(bias.float(), 4), 8)
        return f"{call}({arrays[0]}, {arrays[1]}, {own}, {self.integers(steps, 8)}, {entries}, {table}, {biases});"


def form(values: Tensor, places: Tensor, pairs: list[int]) -> tuple[str, int, int, Tensor]:
    """The kind of entries that takes the fewest bytes; of one with a table: the bits of a value's number, what every place is a
    multiple of, and the table, whose numbers rise."""
    largest = max([int(places.max()) if len(places) else 0, *pairs])
    found = [(4 + bits // 8) * len(values) + bits // 8 * len(pairs) for bits in (16, 32)]
    kinds = [(found[bits // 32], str(bits)) for bits in (16, 32) if largest < 2**bits]
    table = values.unique()
    unit = math.gcd(*places.tolist()) or 1
    shift = max(1, math.ceil(math.log2(len(table)))) if len(table) > 1 else 1
    if 0 < len(table) <= SHARED:
        most = int(places.max()) // unit * 2**shift + len(table)
        kinds += [
            (bits // 8 * (len(values) + len(pairs)) + 4 * len(table), f"{bits}t")
            for bits in (16, 32)
            if max(most, *pairs) < 2**bits
        ]
    return min(kinds, key=lambda one: one[0])[1], shift, unit, table


def takes(values: Tensor, places: Tensor, pairs: list[int]) -> int:
    """Bytes of the tables."""
    kind, _, _, table = form(values, places, pairs)
    bits = int(kind.removesuffix("t"))
    each = bits // 8 + (0 if kind.endswith("t") else 4)
    return each * len(values) + bits // 8 * len(pairs) + (4 * len(table) if kind.endswith("t") else 0)
