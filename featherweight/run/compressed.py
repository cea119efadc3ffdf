"""What comes back: the network, what was done to it as data, what was measured; saved, packed, exported and timed from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from featherweight.errors import InputError
from featherweight.files import artifact, packed, readme
from featherweight.files.description import WRITER
from featherweight.files.edits import Snapshot
from featherweight.files.libraries import Source
from featherweight.network.calls import Example, Inputs
from featherweight.recipe.schema import Recipe
from featherweight.run import report
from featherweight.run.report import Row
from featherweight.ship import bench, formats
from featherweight.ship.activations import Integers
from featherweight.ship.c import ExportedC
from featherweight.ship.export import Exported, Format
from featherweight.structure import exported


@dataclass(frozen=True)
class Report:
    """The rows of a run, one a stage, measured after it. As text: a table, and notes below it."""

    rows: list[Row]

    def __str__(self) -> str:
        return report.text(self.rows)


@dataclass(frozen=True, repr=False)
class Compressed:
    """A compressed network, and what was measured on the way.

    model     the network; weights that have codes are computed from them
    snapshot  the edits and the state, from which `load` makes it again
    recipe    what was done; original: the network as it was given, and example_inputs: what both are called with
    seen      inputs that the activations are calibrated on, where they are to be integers
    """

    model: nn.Module
    snapshot: Snapshot
    recipe: Recipe
    rows: list[Row]
    original: nn.Module
    example_inputs: Example | Inputs
    seen: tuple[Inputs, ...] = ()

    def __repr__(self) -> str:
        """What was done and the table, in place of every weight."""
        return f"{type(self.original).__name__} by {self.recipe.name}\n{self.report}"

    @property
    def report(self) -> Report:
        return Report(self.rows)

    def save(
        self, folder: str | Path, *, model: str | None = None, data: str | None = None, source: Source | None = None
    ) -> dict[str, int]:
        """Write the artifact; its files' sizes in bytes. `model` and `data`: built-in names, for `featherweight inspect`.
        `source`: the library's network that this was, such as `zoo.sources.source_of("timm:resnet50", network)`; `load` then
        needs no model.

        Raises StorageError.
        """
        described = artifact.Description(
            featherweight=WRITER,
            model=model,
            data=data,
            source=source,
            edits=self.snapshot.edits,
            exported=exported.to_dict(self.model) if exported.is_exported(self.model) else None,
            recipe=self.recipe.to_dict(),
            report=[row.to_dict() for row in self.rows],
        )
        opened = readme.Opened(type(self.original).__name__, Inputs.of(self.example_inputs))
        return artifact.save(folder, self.snapshot, described, opened)

    def pack(self, path: str | Path) -> int:
        """Write the network into one entropy-coded file (`.fwz`); its size in bytes. Raises StorageError, and InputError for an
        exported module."""
        if exported.is_exported(self.model):
            raise InputError("a packed file holds no graph of an exported module: save it as a folder, or export it")
        return packed.write(path, self.snapshot, self.original)

    @overload
    def export(self, path: str | Path, format: Literal["c"], **options: Any) -> ExportedC: ...
    @overload
    def export(self, path: str | Path, format: Format = "onnx", **options: Any) -> Exported: ...
    def export(self, path: str | Path, format: Format | Literal["c"] = "onnx", **options: Any) -> Exported | ExportedC:
        """Write an ONNX, .pt2 or C file, run it, and compare it with the network (see `ship.formats.export`). What was calibrated
        becomes integers in ONNX, activations too, without being told."""
        if self.seen and format == "onnx":
            options = {"integers": Integers(self.seen)} | options
        return formats.export(self.model, self.example_inputs, path, format, **options)

    def bench(
        self, *, runtimes: Sequence[bench.Runtime] = ("eager",), batches: Sequence[int] = (1,), rounds: int = 30
    ) -> bench.Bench:
        """Time the network beside the original, in turns (see `ship.bench`)."""
        variants = {"dense": self.original, "compressed": self.model}
        return bench.bench(variants, self.example_inputs, runtimes=runtimes, batches=batches, rounds=rounds)


def pack(source: Compressed | str | Path, path: str | Path, model: nn.Module | None = None) -> int:
    """Write a compressed network into one entropy-coded file (`.fwz`), which `load` reads; its size in bytes.

    source  what `compress` or `prune` gave back; or an artifact's folder, and `model`, a network of the class that it is of
    Raises InputError for a folder without a model, ArtifactError and StorageError.
    """
    if isinstance(source, Compressed):
        return source.pack(path)
    if not isinstance(source, str | Path):
        raise InputError(
            f"pack takes what `compress` or `prune` gave back, or an artifact's folder and a network of its class, not "
            f"a {type(source).__name__}: of a network that was loaded, pack the folder that it is from, pack(DIR, path, model)"
        )
    if model is None:
        raise InputError(f"to pack {source}, give the network that it was made of: pack(source, path, model)")
    return packed.write(path, artifact.snapshot(source), model)
