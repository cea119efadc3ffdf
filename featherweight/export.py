"""Export: a compressed network as an ONNX model or a `torch.export` program, run again from the file and compared.

Codes are made plain first, in a copy: low-rank ones two thin layers where these are cheaper, others the weight they decode to.
ONNX needs `pip install "featherweight[onnx]"`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from featherweight.coding import coded, detach
from featherweight.devices import device_of, placed
from featherweight.errors import FeatherweightError, InputError, StorageError
from featherweight.factor import materialise

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
LEAST_OPSET = 18
LARGEST_SINGLE_FILE = 2**31 - 2**26  # bytes of weights; a protobuf ends at 2 GiB, and the graph needs room too
TOLERANCE = 1e-3  # of the largest output, that a float32 model in another runtime may differ by
INSTALL = 'pip install "featherweight[onnx]"'
BATCHES = (1, 2, 5)  # batch sizes that the file is run with


class ExportError(FeatherweightError):
    """A network that cannot be exported, or whose exported form computes something else."""


class RuntimeMissing(ExportError, ImportError):
    """A package of an optional extra that is not installed."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    bytes       of all its files
    difference  largest absolute difference from PyTorch over `batches`, and `relative` to the largest output
    """

    path: str
    format: str
    files: tuple[str, ...]
    bytes: int
    opset: int | None
    dynamic_batch: bool
    batches: tuple[int, ...]
    difference: float
    relative: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON and for a report."""
        return asdict(self)


def export(
    model: nn.Module,
    example: tuple[Tensor, ...],
    path: str | Path,
    format: Format = "onnx",
    *,
    opset: int = LEAST_OPSET,
    dynamic_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write `model` to `path` in eval mode, run the file, and compare it with PyTorch. `model` itself is not changed.

    `example`: the inputs of the network, batch first. The file is for the CPU, wherever the network is.
    With `dynamic_batch` the file takes any batch size. ONNX weights above 2 GB
    go into `path` + ".data" beside it. The file appears only when it computes what the network computes, to `tolerance` of its
    largest output. Raises RuntimeMissing, ExportError, StorageError, and InputError for options out of range.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, given {format!r}")
    if opset < LEAST_OPSET:
        raise InputError(f"opset must be at least {LEAST_OPSET}, given {opset}")
    network, example = shippable(model, example).cpu(), placed(example, "cpu")
    write, run = (_onnx_writer(opset), onnx_runner) if format == "onnx" else (_write_pt2, _pt2_runner)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = Path(folder) / path.name
            with _quiet():
                write(network, example, part, dynamic_batch)
                batches = BATCHES if dynamic_batch else (example[0].shape[0],)
                difference, relative = compare(network, run(part), [resized(example, batch) for batch in batches])
            if not relative <= tolerance:
                raise ExportError(
                    f"the {format} model differs from the network by {relative:.2e} of its largest output, more than "
                    f"{tolerance:g}: it is not written. An operation computes otherwise there; look for one that draws random "
                    "numbers or depends on the batch, or raise the tolerance if the network is in half precision"
                )
            files = sorted(file.name for file in Path(folder).iterdir())
            if format == "onnx":
                (path.parent / f"{path.name}.data").unlink(missing_ok=True)  # of an earlier, larger export
            for name in files:
                os.replace(Path(folder) / name, path.parent / name)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}. Free space or choose another place") from error
    size = sum((path.parent / name).stat().st_size for name in files)
    return Exported(
        str(path), format, tuple(files), size, opset if format == "onnx" else None, dynamic_batch, batches, difference, relative
    )


def shippable(model: nn.Module, example: tuple[Tensor, ...] | None = None) -> nn.Module:
    """A copy of `model` in eval mode without codes, which computes the same. Low-rank codes become thin layers where it pays."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.RNNBase):  # it caches its decoded weights, and a cached gradient cannot be copied
                module.to(next(module.parameters()).device)
    network = copy.deepcopy(model).eval()
    if coded(network):
        materialise(network, example=placed(example, device_of(network)))
    for name in coded(network):
        detach(network, name)
    return network


def resized(example: tuple[Tensor, ...], batch: int) -> tuple[Tensor, ...]:
    """`example` with `batch` rows, none like another: its rows repeated, those of floating point with noise of their own size."""
    generator = torch.Generator().manual_seed(batch)

    def row(tensor: Tensor) -> Tensor:
        repeated = tensor[torch.arange(batch) % tensor.shape[0]]
        if not tensor.is_floating_point():
            return repeated
        noise = torch.randn(repeated.shape, generator=generator).to(repeated)
        return repeated + noise * float(tensor.float().std(correction=0).nan_to_num().clamp_min(0.1))

    return tuple(row(tensor) for tensor in example)


Runner = Callable[[tuple[Tensor, ...]], list[Tensor]]


@torch.no_grad()
def compare(network: nn.Module, run: Runner, inputs: list[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Largest absolute difference of the outputs, and the same over the largest output; NaN where only one of two is NaN."""
    difference, largest = 0.0, 0.0
    for given in inputs:
        wanted, got = tensors(network(*given)), run(given)
        if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
            shapes = [[tuple(tensor.shape) for tensor in side] for side in (got, wanted)]
            raise ExportError(f"the exported model's outputs have shapes {shapes[0]}, the network's {shapes[1]}")
        for one, other in zip(wanted, got, strict=True):
            if one.numel() == 0:
                continue
            gap = (one.cpu().double() - other.cpu().double()).abs()
            gap = gap.masked_fill(one.cpu().double() == other.cpu().double(), 0.0)  # two infinities of one sign
            difference = max(difference, float(gap.max().nan_to_num(math.inf, math.inf)))
            largest = max(largest, float(one.cpu().double().abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return difference, difference / largest if largest else difference


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors of a network's outputs, whatever they are nested in, in order."""
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


# --- ONNX ----------------------------------------------------------------------------------------------------------------


def onnx_runner(path: Path, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> Runner:
    """Runs an ONNX file in ONNX Runtime. Raises RuntimeMissing."""
    runtime = require("onnxruntime", "to run ONNX models")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = runtime.InferenceSession(str(path), options, providers=list(providers))
    if providers[0] not in session.get_providers():  # it falls back to the processor without a word
        raise RuntimeMissing(f"ONNX Runtime could not start its {providers[0]} and would run on the processor: {INSTALL}")
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        given = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, given)]

    return run


def require(name: str, purpose: str) -> Any:
    """The module of an optional extra. Raises RuntimeMissing, which says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeMissing(f"{name} is needed {purpose} and cannot be imported ({error}): {INSTALL}") from None


Writer = Callable[[nn.Module, tuple[Tensor, ...], Path, bool], None]


def _onnx_writer(opset: int) -> Writer:
    def write(network: nn.Module, example: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            require(name, "to export to ONNX and to check the file")
        program = _program(network, example, dynamic)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        try:
            beside = weights > LARGEST_SINGLE_FILE
            torch.onnx.export(program, (), str(path), dynamo=True, opset_version=opset, verbose=False, external_data=beside)
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(_why(error)) from error

    return write


def _why(error: BaseException) -> str:
    """The exporter's nested errors in one sentence."""
    text = ""
    cause: BaseException | None = error
    while cause is not None:
        text += f"{cause}\n"
        cause = cause.__cause__
    lacking = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)))
    if lacking:
        return (
            f"ONNX has no form of {', '.join(lacking)}: write this part of the network with other operations, or export it as "
            "pt2, which holds any PyTorch operation"
        )
    return f"the ONNX exporter failed: {text.strip().splitlines()[-1]}"


# --- torch.export --------------------------------------------------------------------------------------------------------


def _program(network: nn.Module, example: tuple[Tensor, ...], dynamic: bool) -> torch.export.ExportedProgram:
    dimension = torch.export.Dim.DYNAMIC
    shapes = tuple({0: dimension} for _ in example) if dynamic else None
    given = resized(example, 2) if dynamic else example  # a batch of 1 would be taken for a constant
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operation is one that no other runtime has
    try:
        with torch.no_grad():
            return torch.export.export(network, given, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export lets through whatever the traced code raises
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        way_out = "Rewrite what depends on the values of the data"
        way_out += ", or export with dynamic_batch=False if it is the batch size that its code depends on" if dynamic else ""
        raise ExportError(f"torch.export cannot capture the network: {type(error).__name__}: {first} {way_out}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _write_pt2(network: nn.Module, example: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    torch.export.save(_program(network, example, dynamic), path)


def _pt2_runner(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        with torch.no_grad():
            return tensors(module(*inputs))

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' chatter kept from the terminal; errors pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
