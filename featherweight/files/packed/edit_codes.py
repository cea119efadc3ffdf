"""Edits of structure as data: numbers, lists and names, in a few bits each."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

from featherweight.errors import ArtifactError, InputError
from featherweight.files.packed.coder import Coder

NOTHING, NO, YES, INTEGER, FLOAT, NAME, TEXT, LIST, RISING, MAPPING = range(10)
WORDS = [
    "edit",
    "kind",
    "sites",
    "keeps",
    "cuts",
    "attributes",
    "identities",
    "cut",
    "drop",
    "tensor",
    "dim",
    "size",
    "keep",
    "module",
    "name",
    "before",
    "after",
    "parameter",
    "pattern",
    "sizes",
    "code",
    "rows",
    "cols",
    "count",
    "rank",
    "shared",
    "structure",
    "factors",
    "low_rank",
    "replace",
    "weight",
    "bias",
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "groups",
    "num_features",
    "normalized_shape",
    "num_channels",
    "num_heads",
    "embed_dim",
    "hidden_size",
]
DEEPEST = 16
LONGEST_TEXT = 4096


class Plain:
    """Codes plain JSON data. `names`: those that the network itself tells; `most`: values that one file may hold."""

    def __init__(self, coder: Coder, names: list[str], most: int):
        self.coder, self.left = coder, most
        self.names = list(dict.fromkeys([*WORDS, *names]))
        self.place = {name: place for place, name in enumerate(self.names)}

    def code(self, value: Any, depth: int = 0) -> Any:
        """`value`, or what is read; lists come back as lists, mappings as dicts."""
        self._count(depth)
        kind = self.coder.choice(self._kind(value), f"kind {min(depth, 3)}", 10)
        if kind in (NOTHING, NO, YES):
            return (None, False, True)[kind]
        if kind == INTEGER:
            return self.coder.signed(value if self._writing(value) else 0, "integer")
        if kind == FLOAT:
            word = int.from_bytes(struct.pack("<d", value), "little") if self._writing(value) else 0
            return struct.unpack("<d", self.coder.uniform(word, 1 << 64).to_bytes(8, "little"))[0]
        if kind == NAME:
            return self.names[self.coder.uniform(self.place[value] if self._writing(value) else 0, len(self.names))]
        if kind == TEXT:
            return self.text(value)
        size = self.coder.number(len(value) if self._writing(value) else 0, "length")
        if kind == RISING:
            return self._rising(value, size)
        if kind == LIST:
            items = value if self._writing(value) else [None] * self._checked(size)
            return [self.code(item, depth + 1) for item in items]
        pairs = list(value.items()) if self._writing(value) else [(None, None)] * self._checked(size)
        return {str(self.code(key, depth + 1)): self.code(item, depth + 1) for key, item in pairs}

    def text(self, value: str | None) -> str:
        raw = value.encode() if value is not None else b""
        if len(raw) > LONGEST_TEXT:
            raise InputError(f"an edit holds a text of {len(raw)} bytes; a packed file takes up to {LONGEST_TEXT}")
        size = self.coder.number(len(raw), "text")
        if size > LONGEST_TEXT:
            raise ArtifactError("the file is damaged: it holds a name of more than 4096 bytes")
        self.left -= size
        read = bytes(self.coder.choice(raw[i] if raw else 0, "letter", 256) for i in range(size))
        try:
            return read.decode()
        except UnicodeDecodeError:
            raise ArtifactError("the file is damaged: it holds a name that is not text") from None

    def _rising(self, value: Any, size: int) -> list[int]:
        place = -1
        found = []
        for number in range(self._checked(size)):
            place += 1 + self.coder.number(value[number] - place - 1 if self._writing(value) else 0, "gap")
            found.append(place)
        return found

    def _kind(self, value: Any) -> int:
        if value is None or isinstance(value, bool):
            return {None: NOTHING, False: NO, True: YES}[value]
        if isinstance(value, int):
            return INTEGER
        if isinstance(value, float):
            return FLOAT
        if isinstance(value, str):
            return NAME if value in self.place else TEXT
        if isinstance(value, list | tuple):
            whole = len(value) > 1 and all(type(item) is int and item >= 0 for item in value)
            return RISING if whole and all(a < b for a, b in pairwise(value)) else LIST
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return MAPPING
        raise InputError(f"an edit holds {value!r}, which is not plain data")

    def _writing(self, value: Any) -> bool:
        return not self.coder.decoding

    def _checked(self, size: int) -> int:
        if size > self.left:
            raise ArtifactError(f"the file is damaged: a list of {size} in its edits")
        return size

    def _count(self, depth: int) -> None:
        self.left -= 1
        if self.left < 0 or depth > DEEPEST:
            raise ArtifactError("the file is damaged: its edits are larger or deeper than any network's")
