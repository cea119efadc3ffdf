"""Damaged files, drawn from a seed: what the tests and `benchmarks/fuzz/run.py` hand to the readers."""

from __future__ import annotations

import zlib

import numpy as np
from torch import nn

from featherweight.files.packed import container


def forged(data: bytes, body: bytes, model: nn.Module) -> bytes:
    """A packed file with this body whose checksum is right."""
    return data[:4] + zlib.crc32(body, zlib.crc32(data[:4], container._signature(model))).to_bytes(4, "little") + body


def mutated(random: np.random.Generator, body: bytes) -> bytes:
    """Cut off, made longer, replaced, or with one to three bytes changed."""
    changed = bytearray(body)
    way = random.integers(5)
    if way == 0:
        return bytes(changed[: random.integers(len(changed))])
    if way == 1:
        return bytes(changed) + random.bytes(int(random.integers(1, 40)))
    if way == 2:
        return random.bytes(int(random.integers(1, 2 * len(changed))))
    for _ in range(int(random.integers(1, 4))):
        changed[random.integers(len(changed))] = random.integers(256)
    return bytes(changed)
