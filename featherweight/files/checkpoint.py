"""Checkpoints: everything a run needs to go on, written so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from featherweight.errors import ArtifactError, StorageError
from featherweight.files import storage
from featherweight.files import tensors as tensor_files

LARGEST = 2**40  # bytes of a checkpoint of any network
MOST_TENSORS = 100_000


def write(path: Path, payload: Any) -> None:
    """Save plain data and tensors under `path`, atomically, tensors from the CPU. Raises StorageError."""
    try:
        data = tensor_files.plain(payload)
        storage.replace(path, lambda file: torch.save(data, file))
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise StorageError(f"cannot write the checkpoint {path}: {error}. Free space or choose another --workdir") from error


def read(path: Path, most: int = LARGEST, tensors: int = MOST_TENSORS) -> Any | None:
    """What `write` saved, or None where there is none: data and tensors only, at most `most` bytes and `tensors`.

    Raises ArtifactError if it is damaged, larger, or anything but a regular file.
    """
    if not os.path.lexists(path):
        return None
    try:
        return tensor_files.load(path, most, tensors)
    except (OSError, tensor_files.Damaged) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"the checkpoint {path} is damaged ({said}); delete it to start over") from error
