"""Hostile packed files: grown from the grammar of the format, or honest ones that were changed. The checksum is always right."""

from __future__ import annotations

import json
import zlib
from functools import partial
from typing import Any

import numpy as np
from damage import mutated
from hostile_edits import hostile_edits
from hostile_victims import Victim, drawn
from torch import nn

from featherweight.errors import ArtifactError
from featherweight.files import packed
from featherweight.files.packed import container
from featherweight.files.packed.coder import Coder, Decoder, Encoder
from featherweight.files.packed.edit_codes import Plain
from featherweight.files.packed.raw_bytes import Bulk

USUAL = 4000  # characters of edits


class Recorder(Coder):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[int] = []

    def code(self, value: int, total: int, bounds: Any, find: Any) -> int:
        self.values.append(value)
        return value


class Author(Decoder):
    """A reader that draws what it reads, after a given beginning, and writes that down: a file of the right grammar."""

    def __init__(self, random: np.random.Generator, beginning: list[int]) -> None:
        super().__init__(b"")
        self.random, self.beginning, self.paper = random, beginning[::-1], Encoder()
        self.low, self.high = [(0.0, 0.0), (0.5, 0.0), (0.8, 0.1), (0.1, 0.8), (0.97, 0.01), (0.3, 0.3)][random.integers(6)]
        self.dice: list[float] = []

    def code(self, value: int, total: int, bounds: Any, find: Any) -> int:
        if self.beginning:
            value = self.beginning.pop()
        else:
            self.dice = self.dice or self.random.random(512).tolist()
            dice = self.dice.pop()
            low, high = self.low, self.low + self.high
            point = 0 if dice < low else total - 1 if dice < high else int((dice - high) / (1 - high) * total)
            value = find(min(point, total - 1))
        self.paper.code(value, total, bounds, find)
        return value


def packed_file(random: np.random.Generator, among: tuple[str, ...]) -> tuple[Victim, bytes, str]:
    """Of one of these victims: an honest file changed, one that is grown, or one that is grown after hostile edits."""
    found = drawn(random, among)
    way = random.random()
    if way < 0.5:
        data = found.packed(int(random.integers(len(found.honest))))
        return found, _closed(data[:4], mutated(random, data[8:]), found), "mutated"
    beginning: list[int] = []
    if way < 0.75:
        recorder, given = Recorder(), hostile_edits(random, found, plain=True)
        try:
            if len(json.dumps(given)) < USUAL or random.random() < 0.03:  # long ones take their time
                Plain(recorder, found.names(), 2**40).code(given)
            beginning = recorder.values
        except (ArtifactError, AssertionError, ValueError):
            pass  # what the format cannot say
    author, junk = Author(random, beginning), random.bytes(int(random.integers(1, 20_000)))
    bulk = Bulk(junk)
    try:
        container._code_network(author, bulk, found.model, None)
        used = junk[: len(junk) - len(bulk.rest())]
    except Exception:  # noqa: BLE001  the file ends here: what is judged is the reader of the file
        used = junk
    stream = author.paper.finish()
    head = b"FZ" + bytes([container.VERSION | (container.HAS_BULK if used else 0), found.signature() & 255])
    return found, _closed(head, container._length(len(stream)) + stream + used if used else stream, found), "grown"


def _closed(head: bytes, body: bytes, found: Victim) -> bytes:
    """The file with its right checksum."""
    return head + zlib.crc32(body, zlib.crc32(head, found.signature())).to_bytes(4, "little") + body


def unpacked(data: bytes, found: Victim) -> nn.Module:
    return packed.unpack(data, found.model)


def opening(data: bytes, found: Victim) -> partial[nn.Module]:
    return partial(unpacked, data, found)
