"""Artifacts: a compressed network as a folder of data, loaded into the user's own class without unpickling anything.

DIR/model.safetensors    the state of the compressed network
DIR/compression.json     format version, edits, recipe and report; data only, unknown keys are refused
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from featherweight import packed, structure
from featherweight.checkpoint import sync_folder
from featherweight.copies import EXTRA, UnsupportedNetwork, copied, fill, state_of, unstorable
from featherweight.edits import Snapshot, check_state, replay, structure_edit
from featherweight.errors import ArtifactError, InputError, StorageError, did_you_mean
from featherweight.structure import exported
from featherweight.structure.errors import StructureError
from featherweight.version import __version__

FORMAT: Literal[1] = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "compression.json"
LARGEST_DESCRIPTION = 64 * 2**20  # bytes; a bound on what a hostile file can make us parse


class Description(BaseModel):
    """What compression.json holds.

    model, data    the built-in names, if such were used; they are never imported
    exports        file name -> what `export.export` measured of it
    exported       the network itself, as `structure.exported` writes it, where its class cannot express what was cut
    """

    model_config = ConfigDict(extra="forbid")

    format: Annotated[Literal[1], Field(description="format version")] = FORMAT
    featherweight: str = ""
    model: str | None = None
    data: str | None = None
    edits: list[dict[str, Any]]
    exported: dict[str, Any] | None = None
    recipe: dict[str, Any]
    report: list[dict[str, Any]]
    exports: dict[str, dict[str, Any]] = {}


def save(folder: str | Path, snapshot: Snapshot, description: Description) -> dict[str, int]:
    """Write an artifact and return its files' sizes in bytes. All or nothing: an existing artifact is replaced at the end.

    Raises StorageError if it cannot be written and InputError if `folder` exists and is not an artifact.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an artifact of featherweight: choose another output folder")
    part: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        old = part.with_name(part.name + ".old")
        os.chmod(part, 0o755)
        save_file({name: tensor.contiguous().cpu() for name, tensor in snapshot.state.items()}, part / WEIGHTS)
        (part / DESCRIPTION).write_text(description.model_dump_json(indent=1))
        for file in part.iterdir():
            os.chmod(file, 0o644)
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        sizes = {file.name: file.stat().st_size for file in sorted(part.iterdir())}
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(part, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(folder.parent)
        return sizes
    except (OSError, SafetensorError) as error:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        raise StorageError(f"cannot write the artifact {folder}: {error}. Free space or choose another folder") from error


def describe(folder: str | Path) -> Description:
    """Read and check DIR/compression.json. Raises ArtifactError."""
    path = Path(folder) / DESCRIPTION
    try:
        if path.stat().st_size > LARGEST_DESCRIPTION:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes, more than the {LARGEST_DESCRIPTION} that one may have")
        return Description.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{folder} is not an artifact of featherweight: cannot read {DESCRIPTION} ({error.strerror})"
        ) from None
    except ValidationError as error:
        raise ArtifactError("\n".join([f"{path} is damaged or of another format:", *map(_problem, error.errors()[:5])])) from None
    except RecursionError:
        raise ArtifactError(f"{path} is nested too deeply to be an artifact") from None


def save_cut(folder: str | Path, network: nn.Module, edits: Iterable[structure.Edit] = ()) -> dict[str, int]:
    """Write a network that `prune`, `drop` or `sweep` made: `edits` in order, or the exported module itself (no edits needed).

    Returns the files' sizes in bytes. Raises as `save`, NotStorable for an exported module with operations of its own, and
    UnsupportedNetwork for a state that no file can hold.
    """
    if isinstance(network, fx.GraphModule):
        state = state_of(network)
        described = Description(featherweight=__version__, edits=[], exported=exported.to_dict(network), recipe={}, report=[])
        return save(folder, Snapshot([], state), described)
    snapshot = Snapshot.of(network, [structure_edit(edit) for edit in edits])
    return save(folder, snapshot, Description(featherweight=__version__, edits=snapshot.edits, recipe={}, report=[]))


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A copy of `model`, an instance of the class that was compressed, with the edits replayed and the state loaded.

    `folder`: an artifact, or a packed file (.fwz). An artifact of an exported module needs no `model`. Nothing is unpickled,
    imported or executed; `model` itself is not changed, and may be on the meta device: what is loaded is then on the CPU.
    Raises ArtifactError, and UnsupportedNetwork for a `model` that cannot be filled.
    """
    if Path(folder).suffix != ".fwz" and (written := describe(folder).exported) is not None:
        return _load_exported(written, _state(Path(folder) / WEIGHTS), folder)
    if model is None:
        raise InputError(f"{folder} holds weights and edits, not code: give it an instance of the class that was compressed")
    if Path(folder).suffix == ".fwz":
        return packed.load(Path(folder), model)
    edits, state = describe(folder).edits, _state(Path(folder) / WEIGHTS)
    network = replay(copied(model), edits)
    expected = network.state_dict()
    for name, value in expected.items():
        if not isinstance(value, Tensor) and (problem := unstorable(name, value)):
            raise UnsupportedNetwork(problem)
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or extra:
        name = (missing or extra)[0]
        side = "lacks" if missing else "holds"
        other = "has it" if missing else "does not have"
        near = did_you_mean(name, expected)
        raise ArtifactError(f"{folder} is not of a {type(model).__name__}: it {side} {name!r}, which the network {other}.{near}")
    for name, tensor in state.items():
        if name.rpartition(".")[2] == EXTRA:  # the module itself says what it takes
            continue
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            given, wanted = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, expected[name]))
            raise ArtifactError(f"{folder} is not of a {type(model).__name__}: {name!r} is {given}, the network has {wanted}")
    fill(network, state)
    check_state(network)
    return network


def note_export(folder: str | Path, name: str, measured: dict[str, Any]) -> None:
    """Add to an artifact's description what was measured of a file exported into it. Raises ArtifactError and StorageError."""
    described, path = describe(folder), Path(folder) / DESCRIPTION
    part = path.with_suffix(".part")
    try:
        part.write_text(described.model_copy(update={"exports": described.exports | {name: measured}}).model_dump_json(indent=1))
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}. Free space or choose another folder") from error


def _load_exported(written: dict[str, Any], state: dict[str, Tensor], folder: str | Path) -> nn.Module:
    """Build an exported module after checking that it claims no tensor that the file does not hold."""
    try:
        claimed = {name: tuple(shape) for name, (_, shape, *_) in written["tensors"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder} holds no exported module: {error!r}") from None
    held = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if claimed != held:
        name = sorted(claimed.items() ^ held.items())[0][0]
        raise ArtifactError(f"{folder}: the module and its weights disagree about {name!r}")
    try:
        network = exported.from_dict(written)
        network.load_state_dict(state)
    except (StructureError, RuntimeError) as error:
        raise ArtifactError(f"{folder}: {error}") from None
    return network


def snapshot(folder: str | Path) -> Snapshot:
    """An artifact's edits and state, not yet tried on any network. Raises ArtifactError."""
    return Snapshot(describe(folder).edits, _state(Path(folder) / WEIGHTS))


def _state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or damaged: {error}") from None


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "file"
    near = did_you_mean(where, Description.model_fields) if item["type"] == "extra_forbidden" else ""
    return f"  - {where}: {item['msg']}{near}"


def file_sizes(folder: str | Path) -> dict[str, int]:
    """Bytes of each file of an artifact."""
    return {file.name: file.stat().st_size for file in sorted(Path(folder).iterdir()) if file.is_file()}
