"""Packed files on disk."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from featherweight.errors import ArtifactError, StorageError
from featherweight.files import storage
from featherweight.files.edits import Snapshot
from featherweight.files.packed.container import largest_file, pack, unpack

SUFFIX = ".fwz"


def write(path: str | Path, snapshot: Snapshot, network: nn.Module) -> int:
    """Pack into a file, all or nothing; its size in bytes. Raises StorageError if it cannot be written."""
    path, data = Path(path), pack(snapshot, network)
    try:
        storage.replace(path, lambda file: file.write(data))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}. Free space or choose another place") from error
    return len(data)


def load(path: str | Path, model: nn.Module) -> nn.Module:
    """A copy of `model`, an instance of the class that was compressed, as the file holds it. Raises ArtifactError."""
    try:
        return unpack(content(path, model), model)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from None


def content(path: str | Path, model: nn.Module) -> bytes:
    """The bytes of a file, unless it is larger than any of this network. Raises ArtifactError."""
    try:
        with storage.opened(path, follow=True) as file:  # the user's own path
            data = file.read(largest_file(model) + 1)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > largest_file(model):
        raise ArtifactError(f"{path} has more bytes than any file of a {type(model).__name__} has")
    return data
