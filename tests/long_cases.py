"""Which cases `make test` runs of tests that have many or take long; `pytest --all` runs each."""

from __future__ import annotations

import zlib
from collections.abc import Hashable

import pytest


def chosen(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of each test marked `third` the cases whose name's checksum says so, and one at least; a new case moves no other."""
    least: dict[Hashable, int] = {}
    for item in items:
        least[group(item)] = min(drawn(item), least.get(group(item), 1 << 32))

    def stays(item: pytest.Item) -> bool:
        first = drawn(item) == least[group(item)]
        return not item.get_closest_marker("long") and (not item.get_closest_marker("third") or drawn(item) % 3 == 0 or first)

    return [item for item in items if stays(item)]


def group(item: pytest.Item) -> Hashable:
    return item.nodeid.partition("[")[0]


def drawn(item: pytest.Item) -> int:
    return zlib.crc32(item.name.encode())
