"""One door to every file that runs elsewhere: ONNX and `torch.export` programs by `export`, C by `c`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from featherweight.network.calls import Example, Inputs
from featherweight.ship import c
from featherweight.ship import export as exporting
from featherweight.ship.export import Exported, Format


@overload
def export(
    model: nn.Module, example: Example | Inputs, path: str | Path, format: Literal["c"], **options: Any
) -> c.ExportedC: ...
@overload
def export(
    model: nn.Module, example: Example | Inputs, path: str | Path, format: Format = "onnx", **options: Any
) -> Exported: ...
def export(
    model: nn.Module, example: Example | Inputs, path: str | Path, format: Format | Literal["c"] = "onnx", **options: Any
) -> Exported | c.ExportedC:
    """Write `model` to `path`, run the file, and compare it with PyTorch: the file appears only when it computes the same.

    format   onnx or pt2, with the options of `ship.export.export` (opset, dynamic_batch, tolerance, weights, integers); or c: one
             C99 file over the weights that are left, with those of `ship.c.export_c` (name, small, check, tolerance, target)

    Raises InputError, ExportError (CError for C, with the operation and its layer), RuntimeMissing, CompilerMissing and
    StorageError.
    """
    if format == "c":
        return c.export_c(model, example, path, **options)
    return exporting.export(model, example, path, format, **options)
