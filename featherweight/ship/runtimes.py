"""Files run again: ONNX Runtime and torch.export's own, on inputs of any batch, and held against the network."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.network.calls import Example, Inputs, tensors_of
from featherweight.structure.capture import first_line
from featherweight.structure.observe import readable

INSTALL = 'pip install "featherweight[onnx]"'


class ExportError(FeatherweightError):
    """A network that cannot be exported, or whose exported form computes something else."""


class RuntimeMissing(ExportError, ImportError):
    """A package of an optional extra that is not installed."""


def resized(example: Example | Inputs, batch: int) -> Inputs:
    """`example` with `batch` rows, none like another: its rows repeated, those of floating point with noise of their own size.
    Inputs without a batch stay as they are."""
    generator = torch.Generator().manual_seed(batch)
    inputs = Inputs.of(example)

    def row(tensor: Tensor) -> Tensor:
        if not inputs.has_batch(tensor):
            return tensor
        repeated = tensor[torch.arange(batch) % tensor.shape[0]]
        if not tensor.is_floating_point():
            return repeated
        noise = torch.randn(repeated.shape, generator=generator).to(repeated)
        return repeated + noise * float(tensor.float().std(correction=0).nan_to_num().clamp_min(0.1))

    return inputs.map(row)


Runner = Callable[[Example | Inputs], list[Tensor]]


@torch.no_grad()
def compare(network: nn.Module, run: Runner, inputs: Sequence[Example | Inputs]) -> tuple[float, float]:
    """Largest absolute difference of all outputs, and the same over the largest of its output; of whole numbers and truth values
    the share that differs; infinite where only one of two is NaN. Raises ExportError where there is nothing to compare."""
    difference, relative, numbers = 0.0, 0.0, False
    for given in map(Inputs.of, inputs):
        wanted, got = [readable(tensor) for tensor in tensors_of(given.call(network))], run(given)
        if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in got]:
            shapes = [[tuple(tensor.shape) for tensor in side] for side in (got, wanted)]
            raise ExportError(f"the exported model's outputs have shapes {shapes[0]}, the network's {shapes[1]}")
        for place, (one, other) in enumerate(zip(wanted, got, strict=True)):
            if one.numel() == 0:
                continue
            exact = not (one.is_floating_point() or one.is_complex())
            if not exact and bool(one.isnan().all()):
                raise ExportError(
                    f"output {place} of the network is NaN throughout: there is no number to compare, and the file is not written"
                )
            gap, largest = _gap(one.cpu(), other.cpu(), exact)
            difference = max(difference, gap)
            relative = max(relative, gap / largest)
            numbers |= exact or bool(one.nan_to_num(0, 1, 1).any())
    if not numbers:
        raise ExportError(
            "every output of the network is 0 on the example, or it has none: there is nothing to compare, and the file is not "
            "written. Give an example on which it gives something"
        )
    return difference, relative


def _gap(one: Tensor, other: Tensor, exact: bool) -> tuple[float, float]:
    """The largest difference of two outputs, and the largest of the first to hold it against; 1 for whole numbers."""
    if exact:
        return float((one != other).double().mean()), 1.0
    kind = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.to(kind), other.to(kind)
    gap = (one - other).abs()
    gap = gap.masked_fill((one == other) | (one.isnan() & other.isnan()), 0.0)  # two infinities of one sign, no number in both
    size = one.abs()
    largest = float(size.masked_fill(~size.isfinite(), 0.0).max())
    return float(gap.max().nan_to_num(math.inf, math.inf)), largest or 1.0


def onnx_runner(path: Path, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)) -> Runner:
    """Runs an ONNX file in ONNX Runtime. Raises RuntimeMissing."""
    session = _session(path, threads, providers)

    def run(inputs: Example | Inputs) -> list[Tensor]:
        given = _fed(session, Inputs.of(inputs))
        return [torch.from_numpy(array) for array in _checked(lambda: session.run(None, given))]

    return run


def onnx_caller(
    path: Path, inputs: Example | Inputs, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)
) -> Any:
    """A function without arguments that runs an ONNX file on these inputs, with no more of Python than the call: to be timed."""
    session = _session(path, threads, providers)
    given = _fed(session, Inputs.of(inputs))
    _checked(lambda: session.run(None, given))
    return lambda: session.run(None, given)


def _checked(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # the runtime's errors have no base of their own
        raise ExportError(
            f"ONNX Runtime cannot run the model: {first_line(error)}; export it as pt2, or in float32 (network.float())"
        ) from error


def _session(path: Path, threads: int, providers: tuple[str, ...]) -> Any:
    runtime = require("onnxruntime", "to run ONNX models")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = _checked(lambda: runtime.InferenceSession(str(path), options, providers=list(providers)))
    if providers[0] not in session.get_providers():  # it falls back to the processor without a word
        raise RuntimeMissing(f"ONNX Runtime could not start its {providers[0]} and would run on the processor: {INSTALL}")
    return session


def _fed(session: Any, inputs: Inputs) -> dict[str, Any]:
    """The name of each input -> its values."""
    names = [entry.name for entry in session.get_inputs()]
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs.tensors(), strict=True)}


def require(name: str, purpose: str) -> Any:
    """The module of an optional extra. Raises RuntimeMissing, which says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RuntimeMissing(f"{name} is needed {purpose} and cannot be imported ({error}): {INSTALL}") from None


def pt2_runner(path: Path) -> Runner:
    module = torch.export.load(path).module()

    def run(inputs: Example | Inputs) -> list[Tensor]:
        with torch.no_grad():
            return [readable(tensor) for tensor in tensors_of(Inputs.of(inputs).call(module))]

    return run
