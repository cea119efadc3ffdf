"""What was typed when an artifact was made here, kept in the user's own state folder and never in the artifact.

An artifact holds no code and no paths of its maker's. A later command on the same folder, on the machine where it was made, finds
here what the user typed then; whatever the artifact says, only that is run. A folder that somebody else has put there since
is opened with the user's own network, as if he had named it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from featherweight.cli import usercode
from featherweight.errors import InputError
from featherweight.files import storage
from featherweight.zoo import own_data, sources

LARGEST = 2**16


@dataclass(frozen=True)
class Typed:
    """The MODEL of an artifact, its --data or None, and each --input; files by their whole paths."""

    model: str
    data: str | None
    shapes: tuple[str, ...] = ()


_TYPED: TypeAdapter[Typed] = TypeAdapter(Typed)  # made here: nothing is compiled while a file is read


def keep(folder: Path, typed: Typed) -> None:
    """Remember. Where the state folder cannot be written nothing is, and later commands ask."""
    absolute = Typed(_absolute(typed.model), _absolute(typed.data) if typed.data else None, typed.shapes)
    path = _path(folder)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.replace(path, lambda file: file.write(json.dumps(asdict(absolute)).encode()))


def of(folder: Path) -> Typed | None:
    """What was typed for the artifact in `folder`, where its files are still there."""
    try:
        typed = _TYPED.validate_json(storage.read(_path(folder), LARGEST))
        file = usercode.split(typed.model)[0]
    except (OSError, ValidationError, InputError):
        return None
    return typed if file is None or file.is_file() else None


def _path(folder: Path) -> Path:
    given = os.environ.get("XDG_STATE_HOME")
    state = Path(given) if given else Path.home() / ".local" / "state"
    return state / "featherweight" / "made" / f"{hashlib.sha256(bytes(folder.resolve())).hexdigest()[:32]}.json"


def _absolute(text: str) -> str:
    file, name = usercode.split(text)
    if file is not None:
        return f"{file.absolute()}:{name}"
    if own_data.is_own(text):
        return own_data.absolute(text)
    if sources.is_source(text) and text.startswith("hf:") and Path(text[3:]).is_dir():
        return f"hf:{Path(text[3:]).absolute()}"
    return text
