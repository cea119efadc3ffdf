"""Checkpoints: everything a run needs to go on, written so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from featherweight.errors import ArtifactError, StorageError


def write(path: Path, payload: Any) -> None:
    """Save plain data and tensors under `path`, atomically: a temporary name, fsync, rename. Raises StorageError."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write the checkpoint {path}: {error}. Free space or choose another --workdir") from error


def read(path: Path) -> Any | None:
    """What `write` saved, or None where there is none. Loads data and tensors only. Raises ArtifactError if it is damaged."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # what goes on may have no GPU
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ArtifactError(f"the checkpoint {path} is damaged ({error}); delete it to start over") from error


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
