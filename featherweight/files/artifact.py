"""Artifacts: a compressed network as a folder of data, loaded into the user's own class without unpickling anything.

DIR/model.safetensors    the state of the compressed network
DIR/compression.json     format version, edits, recipe and report; data only, unknown keys are refused
DIR/README.md            for people: the lines that open it
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from featherweight import structure
from featherweight.errors import ArtifactError, InputError, StorageError, did_you_mean, shortened
from featherweight.files import libraries, packed, readme, storage, tensors
from featherweight.files.description import LARGEST_DESCRIPTION, Description, description_from
from featherweight.files.edits import Snapshot, check_state, replay, structure_edit
from featherweight.network.copies import EXTRA, UnsupportedNetwork, copied, fill, state_of, unstorable
from featherweight.structure import exported
from featherweight.structure.errors import StructureError
from featherweight.version import __version__

WEIGHTS, DESCRIPTION, README = "model.safetensors", "compression.json", "README.md"
TRIES = 5  # at reading an artifact that others are being put in the place of


def check_output(folder: Path) -> None:
    """Raises InputError if an artifact may not be written under this name, since something else is there."""
    if folder.is_symlink():
        raise InputError(f"{folder} is a link to {os.readlink(folder)}: give that folder itself, or remove the link")
    if os.path.lexists(folder) and not _replaceable(folder):
        raise InputError(f"{folder} exists and is not an artifact of featherweight: choose another output folder")


def _replaceable(folder: Path) -> bool:
    """Is it an artifact, or an empty folder?"""
    return folder.is_dir() and not folder.is_symlink() and ((folder / DESCRIPTION).is_file() or not any(folder.iterdir()))


def save(
    folder: str | Path, snapshot: Snapshot, description: Description, opened: readme.Opened = readme.UNKNOWN
) -> dict[str, int]:
    """Write an artifact and return its files' sizes in bytes. All or nothing: an existing artifact is replaced in one step.

    opened  how its README says that it is opened

    Raises StorageError if it cannot be written, and InputError if `folder` is a link, or exists and is not an artifact.
    """
    folder = Path(os.path.abspath(folder))
    sizes: dict[str, int] = {}

    def fill(part: Path) -> None:
        save_file({name: tensor.contiguous().cpu() for name, tensor in snapshot.state.items()}, part / WEIGHTS)
        (part / DESCRIPTION).write_text(description.text(), encoding="utf-8")
        (part / README).write_text(readme.text(description, opened), encoding="utf-8")
        sizes.update({file.name: file.stat().st_size for file in sorted(part.iterdir())})

    try:
        check_output(folder)
        storage.replace_folder(folder, fill, _replaceable)
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: text that is no Unicode, a name with a zero byte
        if isinstance(error, InputError):
            raise
        raise StorageError(f"cannot write the artifact {folder}: {error}. Free space or choose another folder") from error
    return sizes


def describe(folder: str | Path) -> Description:
    """Read and check DIR/compression.json. Raises ArtifactError."""
    return _read(Path(folder), _description)


T = TypeVar("T")


def _read(folder: Path, parts: Callable[[int, Path], T]) -> T:
    """`parts` of the open folder, all of one artifact even while another takes its place."""
    try:
        if not os.path.lexists(folder):
            storage.take_up(folder)
        for tries in range(TRIES):
            with storage.folder_of(folder) as inside:
                try:
                    return parts(inside, folder)
                except ArtifactError:
                    if tries + 1 == TRIES or not storage.moved(inside, folder):
                        raise
        raise AssertionError("the last try returns or raises")
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{folder} is not an artifact of featherweight: cannot read {DESCRIPTION} ({said})") from None


def _description(inside: int, folder: Path) -> Description:
    path = folder / DESCRIPTION
    try:
        text = storage.read(DESCRIPTION, LARGEST_DESCRIPTION, folder=inside)
    except OSError as error:
        said = f"cannot read {DESCRIPTION} ({error.strerror})"
        raise ArtifactError(f"{folder} is not an artifact of featherweight: {said}") from None
    try:
        return description_from(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged or of another format:\n  - {shortened(str(error), 400)}") from None


def _whole(inside: int, folder: Path) -> tuple[Description, dict[str, Tensor]]:
    return _description(inside, folder), _state(inside, folder)


def save_cut(folder: str | Path, network: nn.Module, edits: Iterable[structure.Edit] = ()) -> dict[str, int]:
    """Write a network that `prune`, `drop` or `sweep` made: `edits` in order, or the exported module itself (no edits needed).

    Returns the files' sizes in bytes. Raises as `save`, NotStorable for an exported module with operations of its own, and
    UnsupportedNetwork for a state that no file can hold.
    """
    if exported.is_exported(network):
        state = state_of(network)
        described = Description(featherweight=__version__, edits=[], exported=exported.to_dict(network), recipe={}, report=[])
        return save(folder, Snapshot([], state), described)
    snapshot = Snapshot.of(network, [structure_edit(edit) for edit in edits])
    described = Description(featherweight=__version__, edits=snapshot.edits, recipe={}, report=[])
    return save(folder, snapshot, described, readme.Opened(type(network).__name__, None))


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A copy of `model`, an instance of the class that was compressed, with the edits replayed and the state loaded.

    `folder`: an artifact, or a packed file (.fwz). An artifact of an exported module needs no `model`, and one of a network of
    timm, torchvision or transformers is built by that library where no `model` is given (see `libraries`). Nothing else is
    imported or executed, and nothing unpickled; `model` itself is not changed, and may be on the meta device: what is loaded is
    then on the CPU. Raises ArtifactError, LibraryMissing, and UnsupportedNetwork for a `model` that cannot be filled.
    """
    needed = InputError(f"{folder} holds weights and edits, not code: give it an instance of the class that was compressed")
    if Path(folder).suffix == ".fwz":
        if model is None:
            raise needed
        return packed.load(Path(folder), model)
    described, state = _read(Path(folder), _whole)
    if described.exported is not None:
        return _load_exported(described.exported, state, folder)
    source = described.source
    model = built(folder) if model is None else model
    if model is None:
        raise needed
    try:
        return _filled(described.edits, state, model, folder)
    except ArtifactError as error:
        if source is None or (now := libraries.version_of(source.library)) in ("", source.version):
            raise
        raise ArtifactError(
            f"{folder} was made with {source.library} {source.version}, and the {source.name} of {now}, which is installed, "
            f"differs: pip install {source.library}=={source.version}. {error}"
        ) from None


def built(folder: str | Path) -> nn.Module | None:
    """The network that was compressed, with random weights, where an installed library builds it; else None.

    Raises ArtifactError, LibraryMissing, and InputError for a network that the library does not have.
    """
    source = describe(folder).source
    if source is None:
        return None
    return libraries.build(source, libraries.HUGE + 100 * file_sizes(folder).get(WEIGHTS, 0))


def _filled(edits: list[dict[str, Any]], state: dict[str, Tensor], model: nn.Module, folder: str | Path) -> nn.Module:
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
        shown = shortened(repr(name))
        raise ArtifactError(f"{folder} is not of a {type(model).__name__}: it {side} {shown}, which the network {other}.{near}")
    for name, tensor in state.items():
        if name.rpartition(".")[2] == EXTRA:  # the module itself says what it takes
            continue
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            given, wanted = (f"{shortened(str(tuple(t.shape)))} {t.dtype}" for t in (tensor, expected[name]))
            raise ArtifactError(f"{folder} is not of a {type(model).__name__}: {name!r} is {given}, the network has {wanted}")
    fill(network, state)
    check_state(network)
    return network


def note_export(folder: str | Path, name: str, measured: dict[str, Any]) -> None:
    """Add to an artifact's description what was measured of a file exported into it. Raises ArtifactError and StorageError."""
    path = Path(folder) / DESCRIPTION
    try:
        with storage.alone(Path(folder)):
            described = describe(folder)
            text = described.model_copy(update={"exports": described.exports | {name: measured}}).text()
            storage.replace(path, lambda file: file.write(text.encode()))
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"cannot write {path}: {said}. Free space or choose another folder") from error


def _load_exported(written: dict[str, Any], state: dict[str, Tensor], folder: str | Path) -> nn.Module:
    try:
        return exported.from_dict(written, state)
    except StructureError as error:
        raise ArtifactError(f"{folder}: {error}") from None


def snapshot(folder: str | Path) -> Snapshot:
    """An artifact's edits and state, not yet tried on any network. Raises ArtifactError."""
    described, state = _read(Path(folder), _whole)
    return Snapshot(described.edits, state)


def _state(inside: int, folder: Path) -> dict[str, Tensor]:
    try:
        with storage.opened(WEIGHTS, folder=inside) as file:
            return tensors.load_safetensors(file)
    except (OSError, tensors.Damaged) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"{folder / WEIGHTS} is missing or damaged: {said}") from None


def file_sizes(folder: str | Path) -> dict[str, int]:
    """Bytes of each file of an artifact; links, pipes and the like are none of it."""
    files = [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]
    return {file.name: file.stat(follow_symlinks=False).st_size for file in sorted(files, key=lambda file: file.name)}
