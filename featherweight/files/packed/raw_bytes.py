"""The bytes behind the coded part."""

from __future__ import annotations

from featherweight.errors import ArtifactError


class Bulk:
    """The bytes behind the coded part: written one block after the other, read in the same order."""

    def __init__(self, data: bytes = b""):
        self._data = memoryview(data)
        self._parts: list[bytes] = []
        self.spent: dict[str, int] = {}

    def write(self, part: bytes) -> None:
        self._parts.append(part)

    def read(self, size: int, section: str) -> memoryview:
        if size > len(self._data):
            raise ArtifactError(f"the file ends too early: {size} bytes of {section} are missing or cut off")
        part, self._data = self._data[:size], self._data[size:]
        self.spent[section] = self.spent.get(section, 0) + size
        return part

    def rest(self) -> memoryview:
        """What has not been read."""
        return self._data

    def finish(self) -> bytes:
        return b"".join(self._parts)

    def close(self) -> None:
        if len(self._data):
            raise ArtifactError(f"the file is damaged: {len(self._data)} bytes are left over at its end")
