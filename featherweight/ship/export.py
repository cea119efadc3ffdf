"""Export: a compressed network as an ONNX model or a `torch.export` program, run again from the file and compared.

Codes are made plain first, in a copy: low-rank ones two thin layers where these are cheaper, others the weight they decode to.
Units that do nothing are cut.
ONNX needs `pip install "featherweight[onnx]"`.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from featherweight.errors import InputError, StorageError
from featherweight.files import storage
from featherweight.lowrank.factor import materialise
from featherweight.network.calls import Example, Inputs, plain_outputs, tensors_of
from featherweight.network.calls import plain as plain_output
from featherweight.network.copies import copied
from featherweight.network.devices import device_of, placed
from featherweight.ship.activations import FromFile, Integers, quantise
from featherweight.ship.dead import cut_codes, without_dead
from featherweight.ship.integers import FORMS, Form, Stored, as_initializers, as_inputs, plain, put, stored
from featherweight.ship.runtimes import ExportError, compare, onnx_runner, pt2_runner, require, resized
from featherweight.structure.capture import batch_shapes, first_line, packs_sequences, quiet, whole_attention
from featherweight.structure.lengths import lengths_taken
from featherweight.structure.observe import RUN_FAILURES, readable, seeded
from featherweight.task import Task
from featherweight.weights.parametrized import coded, detach

Format = Literal["onnx", "pt2"]
FORMATS: tuple[Format, ...] = ("onnx", "pt2")
LEAST_OPSET = 18
LARGEST_SINGLE_FILE = 2**31 - 2**26  # bytes of weights; a protobuf ends at 2 GiB, and the graph needs room too
TOLERANCE = 1e-3  # of the largest output, that a float32 model in another runtime may differ by
BATCHES = (1, 2, 5)  # batch sizes that the file is run with


@dataclass(frozen=True)
class Exported:
    """What was written.

    bytes       of all its files
    difference  largest absolute difference from PyTorch over `batches`, and `relative` to the largest output; of whole numbers
                and truth values the share that differs
    integers    of activations: the samples calibrated on, the layers, those left in float32, and the error on these samples
    score       of the file, by the task
    any_length  does it take inputs of other lengths than the example's?
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
    integers: dict[str, Any] | None = None
    score: float | None = None
    any_length: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON and for a report."""
        return asdict(self)


def export(
    model: nn.Module,
    example: Example | Inputs,
    path: str | Path,
    format: Format = "onnx",
    *,
    opset: int = LEAST_OPSET,
    dynamic_batch: bool = True,
    any_length: bool = False,
    tolerance: float = TOLERANCE,
    weights: Form = "packed",
    integers: Integers | None = None,
) -> Exported:
    """Write `model` to `path` in eval mode, run the file, and compare it with PyTorch. `model` itself is not changed.

    `example`: the inputs of the network, a tuple by position or a dict by name, batch first. The file is for the CPU, wherever
    the network is. With `dynamic_batch` it takes any batch size, in those inputs whose first size is that of the first one; the
    others (a time step, None, a number) are fixed as they are. With `any_length` it also takes inputs of other lengths, as the
    network does: it is run at two of them besides the example's. Outputs come as dicts, lists and tuples. ONNX weights above 2 GB
    go into a file `path`.xxxxxxxx.data beside it, in float32; below, coded ones are held as `weights` says (see `integers`), and
    come out of the file bit for bit. With `integers` activations are 8-bit integers too, and what is held against
    `activations.NEAR` is the root mean square of the difference on the calibration data. The file appears only when it computes
    what the network computes, to `tolerance` of its largest output, and in all but that share of whole numbers. Raises
    RuntimeMissing, ExportError, StorageError, and InputError for options out of range.
    """
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, given {format!r}")
    if opset < LEAST_OPSET:
        raise InputError(f"opset must be at least {LEAST_OPSET}, given {opset}")
    inputs = placed(Inputs.of(example), "cpu")
    if not inputs.tensors():
        raise InputError("the example holds no tensor; give the network's inputs as a tuple by position or as a dict by name")
    if weights not in FORMS:
        raise InputError(f"weights must be one of {', '.join(FORMS)}, given {weights!r}")
    if integers is not None and format != "onnx":
        raise InputError("activations become integers in ONNX files only: export with format='onnx'")
    network, held = _decoded(model, inputs)
    network = network.cpu()
    if format == "onnx":
        _check_types(network, inputs)
    others = lengths_taken(network, inputs) if any_length else ()
    if any_length and not others:
        raise ExportError(f"the network takes no other length than that of the example ({inputs}): export it without any_length")
    write, run = (
        (_onnx_writer(opset, held, "float" if integers else weights), onnx_runner)
        if format == "onnx"
        else (_write_pt2, pt2_runner)
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.free(path)
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:100]}.", dir=path.parent) as folder:
            # The name of the weights beside a graph stands in the graph: were it always the same, a kill between the two files
            # would leave an old graph with new weights.
            part = Path(folder) / f"{path.name}.{secrets.token_hex(4)}"
            with quiet():
                write(network, inputs, part, dynamic_batch, others)
                quantised = None
                if integers is not None:
                    source = part.rename(part.with_name("float"))
                    quantised = quantise(source, part, held, integers, dynamic_batch, weights=network.state_dict())
                    source.unlink()
                batches = BATCHES if dynamic_batch else (inputs.batch,)
                several = [resized(inputs, batch) for batch in batches]
                several += [resized(other, batches[-1]) for other in others]
                difference, relative = compare(network, run(part), several)
            if quantised is None and not relative <= tolerance:
                raise ExportError(
                    f"the {format} model differs from the network by {relative:.2e} of its largest output, more than "
                    f"{tolerance:g}: it is not written. {_cause(network, several[0])}"
                )
            files = _placed(part, path, format)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}. Free space or choose another place") from error
    size = sum((path.parent / name).stat().st_size for name in files)
    return Exported(
        str(path), format, tuple(files), size, opset if format == "onnx" else None, dynamic_batch, batches, difference, relative,
        asdict(quantised) if quantised else None, None, any_length,
    )  # fmt: skip


def for_lengths(
    network: nn.Module, example: Example | Inputs, path: str | Path, *options: Any, **named: Any
) -> tuple[Exported, str | None]:
    """`export` for inputs of any length where the network can, else for the example's alone, and then why."""
    try:
        return export(network, example, path, *options, any_length=True, **named), None
    except ExportError as error:
        return export(network, example, path, *options, **named), str(error)


def scored(done: Exported, network: nn.Module, task: Task) -> Exported:
    """With the score that the task gives the file, run by its runtime in place of the network."""
    run = (onnx_runner if done.format == "onnx" else pt2_runner)(Path(done.path))
    return replace(done, score=task.evaluate(FromFile(run, network, Inputs.of(task.example_inputs))))


def _placed(part: Path, path: Path, format: Format) -> list[str]:
    """Give the graph its name, after its weights beside it theirs, and remove those of an earlier export; the names of both."""
    beside = [file for file in part.parent.iterdir() if file.name != part.name]
    for file in (*beside, part):
        os.chmod(file, 0o644)
        storage.sync(file)
    for file in beside:
        os.replace(file, path.parent / file.name)
    os.replace(part, path)
    earlier = re.compile(re.escape(path.name) + r"(\.[0-9a-f]{8})?\.data")
    for name in os.listdir(path.parent) if format == "onnx" else ():
        if earlier.fullmatch(name) and name not in {file.name for file in beside}:
            (path.parent / name).unlink(missing_ok=True)
    storage.sync_folder(path.parent)
    return [path.name, *sorted(file.name for file in beside)]


def _check_types(network: nn.Module, inputs: Inputs) -> None:
    """bfloat16 is refused before anything is written: ONNX Runtime has few operations in it on the processor."""
    held = [*network.named_parameters(), *network.named_buffers(), *(("an input", tensor) for tensor in inputs.tensors())]
    name = next((name for name, tensor in held if tensor.dtype == torch.bfloat16), None)
    if name is not None:
        raise ExportError(
            f"{name} is in bfloat16, which ONNX Runtime does not compute in on the processor: export network.float() with inputs "
            "in float32, or export it as pt2"
        )


def _cause(network: nn.Module, inputs: Inputs) -> str:
    """Why a file may compute something else."""
    with torch.no_grad():
        runs = []
        for seed in (1, 2):
            with seeded(seed):
                runs.append(tensors_of(inputs.call(network)))
    alike = all(torch.equal(readable(one), readable(other)) for one, other in zip(*runs, strict=True))
    if not alike:
        return (
            "The network draws random numbers in eval mode: two runs of it differ, so that nothing can be compared. Switch that "
            "off in eval mode, or give what is drawn as an input"
        )
    return (
        "An operation computes otherwise there; look for one that depends on the batch, or raise the tolerance if the network is "
        "in half precision"
    )


def shippable(model: nn.Module, example: Example | Inputs | None = None) -> nn.Module:
    """A copy of `model` in eval mode without codes, which computes the same. Given an example, low-rank codes become thin layers
    where it pays, and units that do nothing are cut."""
    return _decoded(model, example)[0]


def _decoded(model: nn.Module, example: Example | Inputs | None) -> tuple[nn.Module, dict[str, Stored]]:
    """`shippable`, and how the weights that were coded are stored."""
    network = copied(model).eval()
    inputs = placed(Inputs.of(example), device_of(network)) if example is not None else None
    if coded(network):
        materialise(network, example=inputs)
    held = stored(network)
    for name in coded(network):
        detach(network, name)
    masks = without_dead(network, inputs) if inputs is not None else {}
    return network, cut_codes(held, network, masks) if masks else held


# --- ONNX ----------------------------------------------------------------------------------------------------------------


Writer = Callable[[nn.Module, Inputs, Path, bool, Sequence[Inputs]], None]


def _onnx_writer(opset: int, held: Mapping[str, Stored], form: Form) -> Writer:
    def write(network: nn.Module, example: Inputs, path: Path, dynamic: bool, others: Sequence[Inputs]) -> None:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            require(name, "to export to ONNX and to check the file")
        program = _program(network, example, dynamic, others)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        names = _names(network, example, program)
        try:
            beside = weights > LARGEST_SINGLE_FILE
            if beside:
                torch.onnx.export(
                    program,
                    (),
                    str(path),
                    output_names=names,
                    dynamo=True,
                    opset_version=opset,
                    verbose=False,
                    external_data=True,
                )
                return
            made = torch.onnx.export(
                program, (), output_names=names, dynamo=True, opset_version=opset, verbose=False, optimize=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(_why(error)) from error
        assert made is not None
        path.write_bytes(_optimised(made.model_proto, held if form != "float" else {}, form, opset).SerializeToString())

    return write


def _names(network: nn.Module, example: Inputs, program: torch.export.ExportedProgram) -> list[str] | None:
    """Of the outputs, where the network gives them by name; None where it does not, or a name may be that of something else."""
    with torch.no_grad():
        output = plain_output(example.call(network))
    if not isinstance(output, dict) or not all(isinstance(part, torch.Tensor | None) for part in output.values()):
        return None
    names = [str(name) for name, part in output.items() if part is not None]
    taken = {*program.state_dict, *program.graph_signature.user_inputs}
    return names if all(name.isidentifier() and name not in taken for name in names) else None


def _optimised(model: Any, held: Mapping[str, Stored], form: Form, opset: int) -> Any:
    """An ONNX model without what is superfluous, its coded weights as they are stored. (Batch norms stay where a coded weight is
    in front: with one folded into it, it would be another weight. A runtime folds them when it loads the file.)"""
    taken = as_inputs(model, held)
    model = require("onnxscript", "to export to ONNX").optimizer.optimize(model)
    as_initializers(model, taken)
    plain(model)
    put(model, held, form, opset)
    return model


def _why(error: BaseException) -> str:
    """The exporter's nested errors in one sentence: what the innermost says first."""
    text = first = ""
    cause: BaseException | None = error
    while cause is not None:
        text += f"{cause}\n"
        first = first_line(cause)
        cause = cause.__cause__
    lacking = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)))
    if lacking:
        return (
            f"ONNX has no form of {', '.join(lacking)}: write this part of the network with other operations, or export it as "
            "pt2, which holds any PyTorch operation"
        )
    return f"the ONNX exporter failed: {first}"


# --- torch.export --------------------------------------------------------------------------------------------------------


def _program(network: nn.Module, example: Inputs, dynamic: bool, others: Sequence[Inputs] = ()) -> torch.export.ExportedProgram:
    """`others`: inputs of other lengths, which the program is to take, too."""
    given = resized(example, 2) if dynamic else example  # a batch of 1 would be taken for a constant
    try:
        with torch.no_grad(), whole_attention(), plain_outputs(network):  # the fast path's operation is one no other runtime has
            batch = torch.export.Dim.DYNAMIC if dynamic else torch.export.Dim.STATIC
            shapes = batch_shapes(network, example, batch, others) if dynamic or others else None
            return torch.export.export(network, given.args, given.kwargs or None, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export lets through whatever the traced code raises
        raise ExportError(_refusal(network, example, dynamic, error)) from error


def _refusal(network: nn.Module, example: Inputs, dynamic: bool, error: Exception) -> str:
    """Why a network cannot be captured, in a sentence, and the way out."""
    try:
        with torch.no_grad():
            example.call(network)
    except RUN_FAILURES as plainly:
        return (
            f"the network does not run on the example ({example}): {type(plainly).__name__}: {first_line(plainly)}; give an "
            "example like the inputs it was made for"
        )
    if packs_sequences(error):
        return (
            "the network packs sequences by their lengths (torch.nn.utils.rnn.pack_padded_sequence), which torch.export cannot "
            "follow: run the recurrent layer on the padded sequences, and mask what lies beyond the lengths"
        )
    way_out = "Rewrite what depends on the values of the data"
    way_out += ", or export with dynamic_batch=False if it is the batch size that its code depends on" if dynamic else ""
    return f"torch.export cannot capture the network: {type(error).__name__}: {first_line(error)} {way_out}"


def _write_pt2(network: nn.Module, example: Inputs, path: Path, dynamic: bool, others: Sequence[Inputs]) -> None:
    # Given a path, torch's zip writer ends the process when the disk is full.
    written = io.BytesIO()
    torch.export.save(_program(network, example, dynamic, others), written)
    path.write_bytes(written.getbuffer())
