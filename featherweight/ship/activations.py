"""Integers all the way: an ONNX model whose activations are 8-bit integers too, calibrated on a task's training batches.

`onnxruntime.quantization` finds the ranges and writes the QuantizeLinear and DequantizeLinear pairs; weights that a code already
holds as whole numbers keep these very numbers. What comes out is compared with the network on the calibration data, and layers
whose error alone is largest are left in float32 until the whole is near enough; they are named.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from featherweight.errors import InputError, did_you_mean
from featherweight.network.calls import Example, Inputs
from featherweight.network.calls import plain as plain_output
from featherweight.network.devices import placed
from featherweight.network.evaluating import evaluating
from featherweight.ship.integers import IntegerError, Stored
from featherweight.task import Task, loss_in_eval

Method = Literal["minmax", "percentile", "entropy"]
METHODS: dict[Method, str] = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
SAMPLES = 256  # of the training data, to calibrate on
PIECE = 64  # samples in a run of the calibration
NEAR = 0.1  # root mean square of the outputs' differences over that of the outputs, on the calibration data
MOST_LEFT = 0.25  # of the layers, that may be left in float32
FILL = 1e9  # of this size or infinite are no activations but what a mask writes over them, such as the least float32
QUANTISED = (  # operations that ONNX Runtime has in integers, or that move integers about
    *(
        "Conv",
        "Gemm",
        "MatMul",
        "Add",
        "Mul",
        "Concat",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Relu",
        "Clip",
        "LeakyRelu",
    ),
    *("Pad", "Slice", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Resize"),
)
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Integers:
    """How activations become integers.

    inputs   what the network is called with, to find the ranges of its activations
    method   of the ranges: their extremes, a percentile, or the least loss of information
    float32  layers to be left in float32, by name
    ends     are the first and the last layer, often the most sensitive, integers too?
    """

    inputs: Sequence[Example | Inputs]
    method: Method = "minmax"
    float32: tuple[str, ...] = ()
    ends: bool = True


@dataclass(frozen=True)
class Quantised:
    """samples  calibrated on; layers: all with weights; left: those in float32, and why; error: see NEAR; rounded: those in
    integers whose weights a code holds, as values that are rounded once more since they are no whole numbers of int8"""

    samples: int
    layers: tuple[str, ...]
    left: dict[str, str]
    error: float
    rounded: tuple[str, ...] = ()


@torch.no_grad()
def calibration(network: nn.Module, task: Task, samples: int = SAMPLES) -> list[Inputs]:
    """What the task calls the network with on its first training batches, until there are `samples`; fewer where it has fewer.

    Raises InputError where the loss never calls the network.
    """
    if samples < 1:
        raise InputError(f"samples must be at least 1, given {samples}")
    seen: list[Inputs] = []

    def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(placed(Inputs(args, kwargs), "cpu").map(lambda tensor: tensor.detach().clone()))

    handle = network.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with evaluating(network):
            for batch in task.batches(0):
                loss_in_eval(task, network, batch)
                if sum(one.batch for one in seen) >= samples:
                    break
    finally:
        handle.remove()
    if not seen:
        raise InputError("the task's batches never call the network, so that nothing is known of its activations")
    excess = sum(one.batch for one in seen) - samples
    if excess > 0:
        last = seen[-1]
        seen[-1] = last.map(lambda tensor: tensor[: last.batch - excess] if last.has_batch(tensor) else tensor)
    return seen


def quantise(
    source: Path,
    path: Path,
    held: Mapping[str, Stored],
    asked: Integers,
    dynamic: bool,
    tolerance: float = NEAR,
    weights: Mapping[str, Tensor] = {},
) -> Quantised:
    """Write the float32 ONNX model `source` to `path` with integers. `weights`: the network's, for their names.

    Raises InputError for a layer that is not there or a method that is none, and IntegerError where even with some layers in
    float32 it stays further from the network than `tolerance`."""
    onnx = importlib.import_module("onnx")
    if asked.method not in METHODS:
        raise InputError(f"the calibration must be one of {', '.join(METHODS)}, given {asked.method!r}")
    model = onnx.load(source)
    turned = _named(model, {**weights, **{name: one.weight for name, one in held.items()}})
    batches = _pieces(model, asked.inputs, dynamic)
    nodes = _layers(model)
    left: dict[str, str] = {}
    for name in asked.float32:
        if name not in nodes:
            raise InputError(f"no layer with weights is named {name!r}.{did_you_mean(name, nodes)} There are: {', '.join(nodes)}")
        left[name] = "as asked"
    if not asked.ends:
        left |= dict.fromkeys((next(iter(nodes)), list(nodes)[-1]), "first or last")
    with tempfile.TemporaryDirectory(prefix="featherweight-integers-") as folder:
        kept = _kept(model, held, turned)
        writer = _Writer(model, Path(folder), asked.method, batches, kept, nodes)
        left |= {name: "its values reach what a mask fills in" for name in writer.beyond() if name not in left}
        if nodes and len(left) == len(nodes):
            raise IntegerError(
                f"all {len(nodes)} layers would be left in float32: {next(iter(left.values()))}. Is the network trained, and are "
                "its outputs of a usual size? Give other inputs to calibrate on, or ship the weights alone as integers"
            )
        error = writer.write(path, left)
        if error > tolerance:
            alone = {n: writer.write(Path(folder) / "alone.onnx", [m for m in nodes if m != n]) for n in nodes if n not in left}
            for name in sorted(alone, key=lambda n: -alone[n])[: int(MOST_LEFT * len(nodes))]:
                left[name] = f"alone it moves the outputs by {alone[name]:.1%}"
                error = writer.write(path, left)
                if error <= tolerance:
                    break
        if not error <= tolerance:
            raise IntegerError(
                f"in integers the outputs differ from the network's by {error:.1%} (root mean square, on the calibration data), "
                f"more than {tolerance:.0%}, with {len(left)} of {len(nodes)} layers in float32: {', '.join(left)}. Calibrate by "
                "percentile or entropy, name further layers to be left in float32, or ship the weights alone as integers"
            )
    again = {name.removesuffix(".weight") for name in held if name not in kept}
    rounded = tuple(name for name in nodes if name in again and name not in left)
    return Quantised(sum(len(next(iter(one.values()))) for one in batches), tuple(nodes), left, error, rounded)


def _pieces(model: Any, given: Sequence[Example | Inputs], dynamic: bool) -> list[Arrays]:
    """The calibration data as runs of one size, which percentiles need, by the names of the model's inputs."""
    names, inputs = [value.name for value in model.graph.input], [Inputs.of(one) for one in given]
    batched = [next((i for i, tensor in enumerate(one.tensors()) if one.has_batch(tensor)), None) for one in inputs]
    if not inputs or any(place is None for place in batched):
        raise InputError("integers need calibration data: inputs with a batch")
    size = min(PIECE, min(one.batch for one in inputs)) if dynamic else _fixed(model)
    found = []
    for one in inputs:
        for start in range(0, one.batch - size + 1, size):
            rows = one.map(lambda t: t[start : start + size] if one.has_batch(t) else t)  # noqa: B023
            found.append({name: tensor.numpy() for name, tensor in zip(names, rows.tensors(), strict=True)})
    if not found:
        raise InputError(f"the calibration data holds no {size} samples, the batch size of the file")
    return found


def _fixed(model: Any) -> int:
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value) or 1


def _layers(model: Any) -> dict[str, list[str]]:
    """Layer -> the names of its nodes, in order. A layer goes by its weight: `conv1` has `conv1.weight`."""
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    found: dict[str, list[str]] = {}
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node{number}"
        weight = next((name for name in node.input if name in weights), None)
        if node.op_type in ("Conv", "Gemm", "MatMul") and weight is not None:
            found.setdefault(weight.removesuffix(".weight"), []).append(node.name)
    if not found:
        raise IntegerError("the network has no convolution or linear layer that could compute in integers")
    return found


def _named(model: Any, weights: Mapping[str, Tensor]) -> frozenset[str]:
    """Give the matrices that the exporter turned, for inputs of more than two dimensions, the names of the weights that they are;
    the names."""
    onnx = importlib.import_module("onnx")
    there = {tensor.name for tensor in model.graph.initializer}
    names = {
        (weight.dtype, *reversed(weight.shape), weight.t().contiguous().numpy().tobytes()): name
        for name, weight in weights.items()
        if name not in there and weight.dim() == 2 and weight.dtype == torch.float32
    }
    new: dict[str, str] = {}
    for tensor in model.graph.initializer if names else ():
        if len(tensor.dims) == 2 and tensor.name not in weights and tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor)
            name = names.pop((torch.float32, *array.shape, array.tobytes()), None)
            if name is not None:
                new[tensor.name] = tensor.name = name
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = new.get(name, name)
    return frozenset(new.values())


def _kept(model: Any, held: Mapping[str, Stored], turned: frozenset[str]) -> dict[str, list[dict[str, Any]]]:
    """Weight -> the scale of each channel at which its code's whole numbers are the file's. A batch norm that the exporter folded
    into a weight is a factor of a channel, and goes into the scale."""
    onnx = importlib.import_module("onnx")
    kind = {"quant_type": importlib.import_module("onnxruntime.quantization").QuantType.QInt8, "zero_point": 0}
    there = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for name, one in held.items():
        whole = one.whole()
        if whole is None or name not in there:
            continue
        array = onnx.numpy_helper.to_array(there[name])
        array = array.T if name in turned else array
        if array.shape != tuple(one.weight.shape):
            continue
        single = torch.from_numpy(array.copy()).flatten(1)
        weight, levels = single.double(), whole[0].double().flatten(1)
        scale = (weight * levels).sum(1) / (levels * levels).sum(1).clamp_min(1)
        near = (weight - levels * scale[:, None]).abs().amax(1) <= 1e-5 * weight.abs().amax(1)
        own = whole[1].expand(len(scale))
        if torch.equal(single, whole[0].flatten(1) * own[:, None]):  # no batch norm is in it: the very bits
            scale = own
        if not bool(near.all()) or not bool((scale != 0).all()) or int(whole[0].min()) < -127:
            continue
        axis = int(name in turned)
        found[name] = [kind | {"axis": axis, "scale": np.float32(abs(float(value)))} for value in scale]
    return found


def _masked(model: Any, run: Callable[[Path], list[np.ndarray[Any, Any]]], folder: Path) -> list[str]:
    """The nodes that take or give what a mask fills in, as attention does: the range of such a tensor leaves no level for the
    others. Constants are seen in what they are added to."""
    onnx = importlib.import_module("onnx")
    seen, copy = [one.name for one in model.graph.output], onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.op_type in QUANTISED]
    made = {name for node in model.graph.node for name in node.output}
    names = list(
        dict.fromkeys(name for node in nodes for name in (*node.input, *node.output) if name in made and name not in seen)
    )
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    path = folder / "watched.onnx"
    onnx.save(copy, path)
    arrays = dict(zip([*seen, *names], run(path), strict=True))
    arrays |= {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    filled = {n for n, one in arrays.items() if np.issubdtype(one.dtype, np.floating) and one.size and np.abs(one).max() >= FILL}
    return [node.name for node in nodes if not filled.isdisjoint((*node.input, *node.output))]


class _Writer:
    """Writes a model with some layers in float32, and measures how far it is from the whole one."""

    def __init__(
        self,
        model: Any,
        folder: Path,
        method: Method,
        batches: list[Arrays],
        kept: Mapping[str, Any],
        nodes: dict[str, list[str]],
    ) -> None:
        self.source, self.batches, self.nodes = folder / "float.onnx", batches, nodes
        importlib.import_module("onnx").save(model, self.source)
        self.folder, self.method, self.kept = folder, method, kept
        self.wanted = self.outputs(self.source)
        self.masked = _masked(model, lambda path: self.outputs(path, 1), folder)

    def beyond(self) -> list[str]:
        """The layers that are masked as a whole, and so in float32."""
        return [layer for layer, names in self.nodes.items() if set(names) <= set(self.masked)]

    def outputs(self, path: Path, most: int | None = None) -> list[np.ndarray[Any, Any]]:
        """Of all calibration batches, or the first so many."""
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [array for batch in self.batches[:most] for array in session.run(None, batch)]

    def write(self, path: Path, left: Sequence[str] | Mapping[str, str]) -> float:
        """The error; infinite where the outputs are no numbers."""
        ort = importlib.import_module("onnxruntime.quantization")
        left = list(left)
        weights = {node: layer for layer, names in self.nodes.items() for node in names}
        kept = {name: scales for name, scales in self.kept.items() if name.removesuffix(".weight") not in left}
        with _silent():
            ort.quantize_static(
                self.source,
                path,
                _Reader(self.batches),
                quant_format=ort.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                nodes_to_exclude=[*self.masked, *(node for node, layer in weights.items() if layer in left)],
                calibrate_method=getattr(ort.CalibrationMethod, METHODS[self.method]),
                extra_options={"WeightSymmetric": True, "TensorQuantOverrides": kept},
            )
        difference = size = 0.0
        for one, other in zip(self.wanted, self.outputs(path), strict=True):
            if np.issubdtype(one.dtype, np.floating):
                difference += float(np.square(one.astype(np.float64) - other).sum())
                size += float(np.square(one.astype(np.float64)).sum())
        error = float(np.sqrt(difference / size)) if size else 0.0
        return error if np.isfinite(error) else float("inf")


class _Reader:
    """What the calibration asks for the next batch."""

    def __init__(self, batches: list[Arrays]) -> None:
        self.left: Iterator[Arrays] = iter(batches)

    def get_next(self) -> Arrays | None:
        return next(self.left, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """It is asked of every reader, for data in parts."""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)


class FromFile(nn.Module):
    """An exported file in place of the network, for a task to score: called and giving outputs as `network` does."""

    def __init__(self, run: Any, network: nn.Module, example: Example | Inputs) -> None:
        super().__init__()
        self.run = run
        with torch.no_grad(), evaluating(network):
            output = plain_output(Inputs.of(example).call(network))
        self.places, self.form = _pytree.tree_flatten(output)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        got = iter(self.run(placed(Inputs(args, kwargs), "cpu")))
        leaves = [next(got) if isinstance(leaf, Tensor) else leaf for leaf in self.places]
        return _pytree.tree_unflatten(leaves, self.form)
