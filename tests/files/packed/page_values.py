"""Numbers and plain data in a `.fwz` file, after docs/format.md; imports nothing of ours."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from page_stream import Stream

ONE_AND_ZERO = (0, 0x3F800000)
WIDTH = {
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
}
# the types that numpy has; bfloat16 comes back as float32
TYPES = {name: np.dtype("float32" if name == "bfloat16" else name) for name in WIDTH}


class Values(Stream):
    """Numbers and plain data."""

    def floats(self, count: int, hints: Sequence[bool] | None = None) -> np.ndarray:
        """Bit patterns of float32."""
        if count == 0:
            return np.zeros(0, np.uint32)
        hints = hints if hints is not None and len(hints) == count else [True] * count
        way = self.choice("way", 5)
        if way == 0:
            known = self.choice("word", 3)
            if known < 2:
                return np.full(count, ONE_AND_ZERO[known], np.uint32)
            zeros = self.uniform(32)
            return np.full(count, self.uniform(1 << 32 - zeros) << zeros, np.uint32)
        if way == 3:
            kinds = 2 + self.uniform(4095)
            table = self.floats(kinds)
            return table[self.large(count, kinds)]
        if way == 4:
            return self.planes(count, 4).view(np.uint32)[:, 0]
        self.spend(12 * count)
        return self.grid(count, hints) if way == 1 else self.plain_floats(hints)

    def grid(self, count: int, hints: Sequence[bool]) -> np.ndarray:
        exponent, law = self.signed("grid"), self.uniform(4)
        low = self.signed("low") if law != 2 else 0
        high = low + self.number("span") if law != 2 else 0
        found: list[int] = []
        if law == 3:
            found = [low + place for place in self.subset(high - low + 1, count)]
        for hint in hints if law != 3 else ():
            if law in (1, 2) and self.choice(f"zero {bool(hint)}", 2):
                found.append(0)
            elif law == 2:
                size = 1 + self.number("magnitude")
                found.append(-size if self.choice("sign", 2) else size)
            else:
                found.append(low + self.uniform(high - low + 1))
        return np.ldexp(np.array(found, np.float64), exponent).astype(np.float32).view(np.uint32)

    def plain_floats(self, hints: Sequence[bool]) -> np.ndarray:
        trailing, lowest = self.uniform(24), self.uniform(256)
        span = self.uniform(256 - lowest)
        zeros = self.uniform(2)
        self.contexts.pop(f"exponent {span}", None)
        found = []
        for hint in hints:
            if zeros and self.choice(f"zero {bool(hint)}", 2):
                found.append(0)
                continue
            sign = self.choice("sign", 2)
            exponent = lowest + self.choice(f"exponent {span}", span + 1)
            found.append(sign << 31 | exponent << 23 | self.uniform(1 << 23 - trailing) << trailing)
        return np.array(found, np.uint32)

    def planes(self, count: int, width: int) -> np.ndarray:
        columns = []
        for _ in range(width):
            plain = self.choice("plain", 2)
            columns.append(np.frombuffer(self.taken(count), np.uint8) if plain else self.symbols(count, 256).astype(np.uint8))
        return np.ascontiguousarray(np.stack(columns, 1)) if columns else np.zeros((count, 0), np.uint8)

    def tensor(self, shape: tuple[int, ...], kind: str, hints: Sequence[bool] | None = None) -> np.ndarray:
        count, kind = math.prod(shape), kind.removeprefix("torch.")
        if "float" in kind:
            if self.choice("double", 2) == 0:
                return self.floats(count, hints).view(np.float32).astype(TYPES[kind]).reshape(shape)
            if kind == "bfloat16":  # the upper half of a float32
                upper = self.planes(count, 2).view(np.uint16).astype(np.uint32) << 16
                return upper.view(np.float32).reshape(shape)
        elif count <= 4096:
            self.spend(8 * count)
            return np.array([self.signed("integer value") for _ in range(count)], np.int64).astype(TYPES[kind]).reshape(shape)
        return self.planes(count, WIDTH[kind]).view(TYPES[kind]).reshape(shape)

    # --- plain data

    def plain(self, names: Sequence[str], depth: int = 0) -> Any:
        kind = self.choice(f"kind {min(depth, 3)}", 10)
        if kind < 3:
            return (None, False, True)[kind]
        if kind == 3:
            return self.signed("integer")
        if kind == 4:
            return struct.unpack("<d", self.uniform(1 << 64).to_bytes(8, "little"))[0]
        if kind == 5:
            return names[self.uniform(len(names))]
        if kind == 6:
            return self.text()
        size = self.number("length")
        if kind == 7:
            return [self.plain(names, depth + 1) for _ in range(size)]
        if kind == 8:
            return list(accumulate((1 + self.number("gap") for _ in range(size)), initial=-1))[1:]
        return {self.plain(names, depth + 1): self.plain(names, depth + 1) for _ in range(size)}

    def text(self) -> str:
        return bytes(self.choice("letter", 256) for _ in range(self.number("text"))).decode()
