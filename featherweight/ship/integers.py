"""Weights in an ONNX file as their codes hold them: integers and tables in place of float32.

Two forms, both decoded by standard operations of the file itself, to the bits of the decoded weight:

packed    bits of indices into a table of values, a bit a weight for what is zero, scales apart. A runtime folds these constants
          when it loads the file, so that the file is small and as fast as in float32. Any code but low rank.
integers  int8, or int4 from opset 21 on, behind DequantizeLinear, a scale a channel: for levels that are whole numbers; the
          others are packed. What other tools look for. ONNX Runtime 1.31 dequantises at every run where the activations are
          float32: ResNet-20 took 2.5 times as long.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.weights import codes
from featherweight.weights.parametrized import Viewed, coded, owner

Form = Literal["packed", "integers", "float"]
FORMS: tuple[Form, ...] = ("packed", "integers", "float")
INT4_OPSET = 21
OVERHEAD = 400  # bytes of the nodes that decode a weight, about: a weight that saves less stays as it is
Array = np.ndarray[Any, Any]


class IntegerError(FeatherweightError):
    """A weight that does not come out of the file as it went in, or activations that integers cannot hold."""


@dataclass(frozen=True)
class Stored:
    """How one weight is stored, in the layout of the parameter: `values`, or `table[index]`, times `scale`, where `support` says.

    support   bool, of the weight's shape; None: every entry is stored
    index     uint8, of the stored entries in order; None: they are `values`
    table     float32 (count,)
    values    float32, of the stored entries
    scale     float32, broadcast against the weight; None: 1
    """

    weight: Tensor
    support: Tensor | None = None
    index: Tensor | None = None
    table: Tensor | None = None
    values: Tensor | None = None
    scale: Tensor | None = None

    def bits(self) -> int:
        """Of all that has to be stored."""
        held = 0 if self.support is None else self.support.numel()
        held += 0 if self.index is None or self.table is None else self.index.numel() * _width(self.table.numel())
        floats = (self.table, self.values, self.scale)
        return held + 32 * sum(tensor.numel() for tensor in floats if tensor is not None)

    def whole(self) -> tuple[Tensor, Tensor] | None:
        """(integers in int8 of the weight's shape, float32 scale of its channels (n,) or ()) whose product is the weight, bit for
        bit; None where there are none."""
        if self.scale is None or self.table is None or self.index is None:
            return None
        if any(size > 1 for size in self.scale.shape[1:]) or not bool((self.table == self.table.round()).all()):
            return None
        used = self.table[self.index.long()]  # the table may hold +-128, which no entry has
        if not used.numel() or int(used.min()) < -128 or int(used.max()) > 127 or not bool((self.scale > 0).all()):
            return None
        levels = used.to(torch.int8)
        if self.support is not None:
            levels = torch.zeros(self.weight.shape, dtype=torch.int8).masked_scatter_(self.support, levels)
        return levels.reshape(self.weight.shape), self.scale.reshape(-1) if self.scale.numel() > 1 else self.scale.reshape(())


@torch.no_grad()
def stored(model: nn.Module) -> dict[str, Stored]:
    """Coded parameter -> how it is stored, for all whose code is no product of factors and whose weights are in float32."""
    found = {}
    for name, viewed in sorted(coded(model).items()):
        module, attribute = owner(model, name)
        weight = getattr(module, attribute).detach().cpu()
        free = [part.detach().cpu() for part in module.parametrizations[attribute].parameters(recurse=False)]  # type: ignore[union-attr, index]
        held = _stored(viewed, weight, free) if weight.dtype == torch.float32 and weight.numel() else None
        if held is not None and held.bits() / 8 + OVERHEAD < 4 * weight.numel():
            found[name] = held
    return found


def _stored(viewed: Viewed, weight: Tensor, free: list[Tensor]) -> Stored | None:
    code, shape = viewed.code, tuple(weight.shape)

    def laid(matrix: Tensor) -> Tensor:
        """(rows, cols) -> the parameter's own layout."""
        return viewed.view.to_weight(matrix, shape).contiguous()

    def scales() -> Tensor:
        return _narrow(laid(free[0].expand(code.rows, code.cols)))

    def spread(places: Tensor, entries: Tensor, otherwise: int) -> Tensor:
        flat = torch.full((code.rows * code.cols,), otherwise, dtype=entries.dtype)
        flat[places.cpu().long()] = entries
        return laid(flat.view(code.rows, code.cols))

    if isinstance(code, (codes.Sparse, codes.Rows)):
        support = weight != 0
        return Stored(weight, support=support, values=weight[support])
    if isinstance(code, codes.Scaled):
        return Stored(weight, index=laid(code.index.cpu()).reshape(-1), table=code.levels.cpu(), scale=scales())
    if isinstance(code, codes.Shared):
        return Stored(weight, index=laid(code.index.cpu()).reshape(-1), table=free[0]) if code.count <= 256 else None
    if isinstance(code, (codes.SparseScaled, codes.SparseShared)):
        scaled = isinstance(code, codes.SparseScaled)
        table: Tensor = code.get_buffer("levels").cpu() if scaled else free[0]
        if not 0 < table.numel() <= 255:
            return None
        scale = scales() if scaled else None
        zero = table.numel()  # one more value, for the entries that are not stored
        index = spread(code.position, code.index.cpu().to(torch.uint8), zero)
        dense = Stored(weight, index=index.reshape(-1), table=torch.cat([table, table.new_zeros(1)]), scale=scale)
        support = index != zero
        sparse = Stored(weight, support=support, index=index[support], table=table, scale=scale)
        return sparse if sparse.bits() < dense.bits() else dense
    return None


def _narrow(scale: Tensor) -> Tensor:
    """The same to broadcast, of size 1 wherever it is constant."""
    for dim in range(scale.dim()):
        if bool((scale == scale.narrow(dim, 0, 1)).all()):
            scale = scale.narrow(dim, 0, 1)
    return scale.contiguous()


def _width(count: int) -> int:
    return max(1, math.ceil(math.log2(count)))


# --- into a graph --------------------------------------------------------------------------------------------------------


def put(model: Any, held: Mapping[str, Stored], form: Form, opset: int) -> list[str]:
    """Put the weights in `held` into an ONNX model, in place, where an initializer of their name and bits is; the names of those
    that were. Raises IntegerError if ONNX Runtime decodes anything else from it."""
    graph = _Graph(model)
    there = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = {name: one for name, one in held.items() if name in there and _same(there[name], one.weight)}
    for name in chosen:
        model.graph.initializer.remove(there[name])
    packed = dict(chosen)
    if form == "integers":
        for name, one in chosen.items():
            whole = one.whole()
            if whole is not None:
                graph.dequantised(name, *whole, opset)
                del packed[name]
    graph.unpacked(packed)
    if chosen:
        graph.norms()
    graph.finish()
    if chosen:
        _check(graph, {name: one.weight for name, one in chosen.items()}, model)
    return sorted(chosen)


def _same(tensor: Any, weight: Tensor) -> bool:
    onnx = importlib.import_module("onnx")
    array = onnx.numpy_helper.to_array(tensor)
    return array.dtype == np.float32 and bool(np.array_equal(array, weight.numpy()))


class _Graph:
    """Nodes and initializers in front of a model's own."""

    def __init__(self, model: Any) -> None:
        self.onnx = importlib.import_module("onnx")
        self.model, self.nodes, self.initializers = model, [], []  # type: ignore[var-annotated]
        self.named = {value.name for value in (*model.graph.initializer, *model.graph.input)}
        self.named |= {output for node in model.graph.node for output in node.output}
        self.constants: dict[tuple[Any, ...], str] = {}
        self.count = 0

    def name(self) -> str:
        """One that nothing has."""
        while f"w{self.count}" in self.named:
            self.count += 1
        self.count += 1
        return f"w{self.count - 1}"

    def constant(self, array: Array) -> str:
        """An initializer, one of what is equal."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.name()
            self.initializers.append(self.onnx.numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def node(self, kind: str, *inputs: str, to: str | None = None, **attributes: Any) -> str:
        output = to or self.name()
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def finish(self) -> None:
        for node in reversed(self.nodes):
            self.model.graph.node.insert(0, node)
        self.model.graph.initializer.extend(self.initializers)

    def norms(self) -> None:
        """Batch norms as a factor and a term a channel: two vectors of the four, the others are shared ones and zeros."""
        numpy = self.onnx.numpy_helper
        held = {tensor.name: tensor for tensor in self.model.graph.initializer}
        done: list[str] = []
        for node in self.model.graph.node:
            if node.op_type != "BatchNormalization" or not all(name in held for name in node.input[1:]):
                continue
            scale, bias, mean, var = (numpy.to_array(held[name]).astype(np.float64) for name in node.input[1:])
            eps = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
            factor = scale / np.sqrt(var + eps)
            done += node.input[1:]
            kind = numpy.to_array(held[node.input[1]]).dtype
            vectors = (factor, bias - mean * factor, np.zeros_like(mean), np.ones_like(mean))
            node.input[1:] = [self.constant(vector.astype(kind)) for vector in vectors]
            kept = [attribute for attribute in node.attribute if attribute.name != "epsilon"]
            del node.attribute[:]
            node.attribute.extend([*kept, self.onnx.helper.make_attribute("epsilon", 0.0)])
        used = {name for node in self.model.graph.node for name in node.input}
        for name in set(done) - used:
            self.model.graph.initializer.remove(held[name])

    def dequantised(self, name: str, levels: Tensor, scale: Tensor, opset: int) -> None:
        small = opset >= INT4_OPSET and int(levels.min()) >= -8 and int(levels.max()) <= 7
        helper, kinds = self.onnx.helper, self.onnx.TensorProto
        packed = self.name()
        kind = kinds.INT4 if small else kinds.INT8
        if small:
            flat = levels.numpy().reshape(-1).astype(np.uint8) & 15
            flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
            raw = (flat[0::2] | flat[1::2] << 4).tobytes()
        else:
            raw = levels.numpy().tobytes()
        self.initializers.append(helper.make_tensor(packed, kind, list(levels.shape), raw, raw=True))
        self.node("DequantizeLinear", packed, self.constant(scale.numpy()), to=name, **({"axis": 0} if scale.dim() else {}))

    def unpacked(self, held: Mapping[str, Stored]) -> None:
        """All indices of one width are unpacked together, and split."""
        for width in sorted({_width(one.table.numel()) for one in held.values() if one.table is not None}):
            group = [n for n, one in held.items() if one.table is not None and _width(one.table.numel()) == width]
            indices: list[Array] = [held[n].index.numpy().astype(np.uint8) for n in group]  # type: ignore[union-attr]
            for n, output in zip(group, self.split(self.bits(np.concatenate(indices), width), indices), strict=True):
                self.decoded(n, held[n], output)
        for n, one in held.items():
            if one.table is None:
                self.decoded(n, one, None)

    def split(self, whole: str, parts: list[Array]) -> list[str]:
        whole = self.cast(whole, self.onnx.TensorProto.INT32)
        if len(parts) == 1:
            return [whole]
        outputs = [self.name() for _ in parts]
        sizes = self.constant(np.array([part.size for part in parts], np.int64))
        self.nodes.append(self.onnx.helper.make_node("Split", [whole, sizes], outputs, axis=0))
        return outputs

    def cast(self, value: str, kind: int) -> str:
        output = self.name()
        self.nodes.append(self.onnx.helper.make_node("Cast", [value], [output], to=kind))
        return output

    def decoded(self, name: str, one: Stored, index: str | None) -> None:
        shape = np.array(one.weight.shape, np.int64)
        if index is not None:
            assert one.table is not None
            entries = self.node("Gather", self.constant(one.table.numpy()), index)
        else:
            assert one.values is not None
            entries = self.constant(one.values.numpy())
        if one.support is not None:
            # entry i is number (how many bits are set up to i); NonZero would say it more simply, and is not folded at load
            bits = self.cast(self.bits(one.support.reshape(-1).numpy().astype(np.uint8), 1), self.onnx.TensorProto.INT32)
            number = self.node("Mul", self.node("CumSum", bits, self.constant(np.array(0, np.int64))), bits)
            entries = self.node("Concat", self.constant(np.zeros(1, np.float32)), entries, axis=0)
            entries = self.node("Gather", entries, number)
        if one.scale is None:
            self.node("Reshape", entries, self.constant(shape), to=name)
        else:
            scale = self.constant(one.scale.numpy())
            self.node("Mul", self.node("Reshape", entries, self.constant(shape)), scale, to=name)

    def bits(self, numbers: Array, width: int) -> str:
        """uint8 numbers (n,) below 2^width -> the name of what holds them, from fields of 4, 2 and 1 bits, which fill bytes."""
        if width == 8:
            return self.constant(numbers)
        result, low = "", 0
        for field in (4, 2, 1):
            if not width & field:
                continue
            part = self.field((numbers >> low) & (2**field - 1), field)
            if low:
                shifted = self.node("BitShift", part, self.constant(np.array([low], np.uint8)), direction="LEFT")
                part = self.node("BitwiseOr", result, shifted)
            result, low = part, low + field
        return result

    def field(self, numbers: Array, field: int) -> str:
        each = 8 // field
        padded = np.zeros(-(-numbers.size // each) * each, np.uint8)
        padded[: numbers.size] = numbers
        shifts = (np.arange(each) * field).astype(np.uint8)
        held = np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1)[:, None].astype(np.uint8)
        apart = self.node("BitShift", self.constant(held), self.constant(shifts), direction="RIGHT")
        apart = self.node("BitwiseAnd", apart, self.constant(np.array([2**field - 1], np.uint8)))
        flat = self.node("Reshape", apart, self.constant(np.array([-1], np.int64)))
        if padded.size == numbers.size:
            return flat
        ends = (self.constant(np.array([0], np.int64)), self.constant(np.array([numbers.size], np.int64)))
        return self.node("Slice", flat, *ends)


def _check(graph: _Graph, weights: Mapping[str, Tensor], model: Any) -> None:
    """Run the nodes that decode, alone, and compare every weight; a zero may have either sign."""
    onnx, runtime = graph.onnx, importlib.import_module("onnxruntime")
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(w.shape)) for name, w in weights.items()]
    alone = onnx.helper.make_graph(graph.nodes, "weights", [], outputs, graph.initializers)
    alone = onnx.helper.make_model(alone, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for (name, weight), got in zip(weights.items(), session.run(None, {}), strict=True):
        if not np.array_equal(got, weight.numpy()):
            raise IntegerError(f"{name} comes out of the ONNX file with other values than it has: the file is not written")


def plain(model: Any) -> None:
    """Take out of an ONNX model, in place, what the exporter notes for itself: lines of code and paths of this machine."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]


def as_inputs(model: Any, names: Iterable[str]) -> dict[str, Any]:
    """Turn initializers into inputs of the graph, so that no optimiser computes with their values; name -> the initializer."""
    onnx = importlib.import_module("onnx")
    taken = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in set(names)}
    for name, tensor in taken.items():
        model.graph.initializer.remove(tensor)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return taken


def as_initializers(model: Any, taken: Mapping[str, Any]) -> None:
    """The way back."""
    for value in [value for value in model.graph.input if value.name in taken]:
        model.graph.input.remove(value)
    model.graph.initializer.extend(taken.values())
