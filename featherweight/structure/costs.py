"""What one operation of a stored graph takes, from shapes alone, and the checks that torch leaves to its caller."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featherweight.structure.operations import BadArgument

MOST_PARTS = 4096  # tensors that one operation may give
MOST_DIMENSIONS = 64  # of a tensor, as in torch's own kernels
WORK_A_TENSOR = 5000  # of looking at one, however few entries it has
SCALES = (1 / 1024, 1024)  # of resampling: beyond, torch computes positions that no integer holds
COUNTERS = 256  # threads, each of which counts for itself
SHORT = (torch.float32, torch.bfloat16, torch.float16)  # types whose fast kernels need no scratch


@dataclass(frozen=True)
class Cost:
    """`work`: multiplications, or entries touched where there are none. `scratch`: bytes that are used and let go."""

    work: float
    scratch: float = 0.0


def cost(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Cost:
    """Of one call, whose tensors may be without memory."""
    if not isinstance(operation, torch._ops.OpOverload):
        return Cost(1)
    call = _arguments(operation, args, kwargs)
    touched = float(sum(_entries(value) for value in (*call.values(), result)))
    special = _COSTS.get(operation.overloadpacket.__name__)
    more = special(call, result) if special is not None else Cost(0)
    looked_at = sum(len(value) for value in (*call.values(), result) if isinstance(value, (list, tuple)))
    return Cost(touched + more.work + 100 + WORK_A_TENSOR * looked_at, more.scratch + _spread_out(call, result))


def foreseen(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The work of a call, before it is tried, of those that take long even on tensors without memory."""
    if not isinstance(operation, torch._ops.OpOverload) or operation.overloadpacket.__name__ not in _RECURRENT:
        return 0.0
    return _recurrent_work(_arguments(operation, args, kwargs), None).work


def _spread_out(call: Mapping[str, Any], result: Any) -> float:
    """Bytes of operands whose entries share memory, as `expand` makes them: many kernels copy them first. None for a view."""
    operands = [t for value in call.values() for t in (value if isinstance(value, (list, tuple)) else [value])]
    spread = [t for t in operands if isinstance(t, Tensor) and t.numel() * t.element_size() > t.untyped_storage().nbytes()]
    first = result[0] if isinstance(result, (list, tuple)) and result else result
    if not spread or (
        isinstance(first, Tensor) and any(first.untyped_storage()._cdata == t.untyped_storage()._cdata for t in spread)
    ):
        return 0.0
    return float(sum(t.numel() * t.element_size() for t in spread))


def check_result(result: Any) -> None:
    """Raises BadArgument for a tensor of more dimensions than torch's kernels take."""
    for value in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(value, Tensor) and value.dim() > MOST_DIMENSIONS:
            raise BadArgument(f"a tensor of {value.dim()} dimensions; at most {MOST_DIMENSIONS} are allowed")


def check_call(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises BadArgument for a call that torch would run beyond the memory of its tensors, or that gives very many results."""
    if not isinstance(operation, torch._ops.OpOverload):
        return
    name = operation.overloadpacket.__name__
    call = _arguments(operation, args, kwargs)
    if (parts := _PARTS.get(name)) is not None and parts(call) > MOST_PARTS:
        raise BadArgument(f"{name} would give {parts(call)} tensors; at most {MOST_PARTS} are allowed")
    if name == "meshgrid" and len(call["tensors"]) > MOST_DIMENSIONS:
        raise BadArgument(f"meshgrid gives a dimension for each of {len(call['tensors'])} tensors; at most {MOST_DIMENSIONS}")
    if name in _RECURRENT:
        _check_recurrent(name, call)
    elif name == "scaled_dot_product_attention":
        _check_attention(call)
    elif "upsample" in name:
        _check_scales(call)
    elif name in _SAMPLERS:
        _check_modes(name, call)
    elif name == "_weight_norm":
        _check_weight_norm(call)
    elif call.get("rounding_mode") == "trunc":
        _check_division(call)


def _arguments(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument by name, defaults too."""
    result = {}
    for place, argument in enumerate(operation._schema.arguments):
        if place < len(args):
            result[argument.name] = args[place]
        elif argument.name in kwargs or argument.has_default_value():
            result[argument.name] = kwargs.get(argument.name, argument.default_value)
    return result


def _entries(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    return sum(_entries(entry) for entry in value) if isinstance(value, (list, tuple)) else 0


# --- work ----------------------------------------------------------------------------------------------------------------


def _inner(first: str, dim: int = -1) -> Callable[[dict[str, Any], Any], Cost]:
    """A product of matrices: each entry of the result is a sum over dimension `dim` of the operand `first`."""

    def work(call: dict[str, Any], result: Any) -> Cost:
        operand = call[first]
        return Cost(float(_entries(result)) * (operand.shape[dim] if operand.dim() else 1))

    return work


def _convolution(call: dict[str, Any], result: Any) -> Cost:
    """Every position of the output (of the input where it is transposed) meets the kernel of each channel."""
    weight, given = call["weight"], call["input"]
    return _kernel_cost(given, weight, result)


def _transposed(call: dict[str, Any], result: Any) -> Cost:
    return _kernel_cost(result, call["weight"], call["input"])


def _kernel_cost(wide: Tensor, weight: Tensor, narrow: Tensor) -> Cost:
    row = weight.numel() / max(weight.shape[0], 1)
    positions = math.prod(narrow.shape[2:])
    scratch = 0.0 if weight.dtype in SHORT else row * positions * wide.element_size() * 2
    return Cost(float(narrow.numel()) * row, scratch)


def _general_convolution(call: dict[str, Any], result: Any) -> Cost:
    return _transposed(call, result) if call.get("transposed") else _convolution(call, result)


def _pool(call: dict[str, Any], result: Any) -> Cost:
    """Every entry of the output looks at a window."""
    window = call["kernel_size"]
    sizes = window if isinstance(window, (list, tuple)) else [window]
    given = call["self"]
    area = math.prod(sizes) ** (1 if len(sizes) > 1 else max(1, given.dim() - 2))
    first = result[0] if isinstance(result, (list, tuple)) else result
    return Cost(float(first.numel()) * area)


def _einsum(call: dict[str, Any], result: Any) -> Cost:
    """At most one product for each combination of all its letters; of three operands and more as much scratch."""
    operands = call["tensors"]
    left = str(call["equation"]).replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for letters, operand in zip(left, operands, strict=True):
        named = re.sub(r"\.\.\.", "", letters)
        extra = list(operand.shape)
        if "..." not in letters and len(named) == operand.dim():
            pairs = list(zip(letters, operand.shape, strict=True))
        else:
            before = letters.split("...")[0]
            ellipsis = operand.dim() - len(named)
            labels = [*before, *(f".{i}" for i in range(ellipsis, 0, -1)), *letters.split("...")[-1]]
            pairs = list(zip(labels, extra, strict=True))
        for label, size in pairs:
            sizes[label] = max(sizes.get(label, 1), size)
    work = float(math.prod(sizes.values()))
    return Cost(work, work * operands[0].element_size() if len(operands) > 2 else 0.0)


def _attention(call: dict[str, Any], result: Any) -> Cost:
    query, key = call["query"], call["key"]
    pairs = float(math.prod(query.shape[:-1])) * key.shape[-2]
    return Cost(2 * pairs * query.shape[-1], 0.0 if query.dtype in SHORT else 2 * pairs * query.element_size())


def _bilinear(call: dict[str, Any], result: Any) -> Cost:
    return Cost(float(result.numel()) * call["input1"].shape[-1] * call["input2"].shape[-1])


def _distances(call: dict[str, Any], result: Any) -> Cost:
    return Cost(float(result.numel()) * call["x1"].shape[-1])


def _recurrent_work(call: dict[str, Any], result: Any) -> Cost:
    """Every step meets every weight for each sample; a step alone has a price."""
    steps, samples = _steps(call)
    return Cost(float(steps) * (samples * _entries(call["params"]) + 10_000 * len(call["params"])))


_SAMPLERS = ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")


def _times(factor: float) -> Callable[[dict[str, Any], Any], Cost]:
    return lambda call, result: Cost(factor * (_entries(list(call.values())) + _entries(result)))


_COSTS: dict[str, Callable[[dict[str, Any], Any], Cost]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "convolution": _general_convolution,
    "linear": _inner("input"),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _inner("self")),
    **dict.fromkeys(("addmm", "addmv"), _inner("mat1")),
    **dict.fromkeys(("baddbmm", "addbmm"), _inner("batch1")),
    "addmv": _inner("mat"),
    "einsum": _einsum,
    "bilinear": _bilinear,
    "cdist": _distances,
    "roll": lambda call, result: Cost(float(_entries(result)) * (len(call["shifts"]) if isinstance(call["shifts"], list) else 1)),
    "scaled_dot_product_attention": _attention,
    "histc": lambda call, result: Cost(0.0, COUNTERS * _entries(result) * result.element_size()),
    **dict.fromkeys(
        [f"{kind}_pool{n}d{more}" for kind, n, more in itertools.product(("max", "avg"), (1, 2, 3), ("", "_with_indices"))], _pool
    ),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent_work),
    **dict.fromkeys(("sort", "msort", "argsort", "topk", "kthvalue", "median"), _times(16)),
    **dict.fromkeys(_SAMPLERS, _times(8)),
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "upsample_bicubic2d"), _times(16)),
    **{f"fft_{way}fft{n}": _times(16) for way, n in itertools.product(("", "i", "r", "ir"), ("", "2", "n"))},
}


# --- what torch does not check -------------------------------------------------------------------------------------------


def _chunks(call: dict[str, Any]) -> int:
    return int(call["chunks"])


def _splits(call: dict[str, Any]) -> int:
    given = next(call[name] for name in ("split_size", "split_sizes", "sections", "indices") if name in call)
    if isinstance(given, (list, tuple)):
        return len(given) + 1
    if not isinstance(given, int) or "sections" in call:
        return given if isinstance(given, int) else 1
    whole = call["self"].shape[call.get("dim", 0)] if call["self"].dim() else 1
    return math.ceil(whole / given) if given > 0 else 1


def _unbound(call: dict[str, Any]) -> int:
    return int(call["self"].shape[call["dim"]]) if call["self"].dim() else 1


_PARTS: dict[str, Callable[[dict[str, Any]], int]] = {
    **dict.fromkeys(("chunk", "unsafe_chunk"), _chunks),
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "tensor_split"), _splits),
    "unbind": _unbound,
}
_RECURRENT = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}  # gates


def _steps(call: dict[str, Any]) -> tuple[int, int]:
    shape = call["input"].shape
    if len(shape) == 2:
        return shape[0], 1
    return (shape[1], shape[0]) if call["batch_first"] else (shape[0], shape[1])


def _check_recurrent(name: str, call: dict[str, Any]) -> None:
    """Shapes of states and weights. The kernels of some processors believe them."""
    given, layers, gates = call["input"], call["num_layers"], _RECURRENT[name]
    directions = 2 if call.get("bidirectional") else 1
    states = call.get("hx")
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    if not isinstance(given, Tensor) or given.dim() not in (2, 3) or len(states) != (2 if name == "lstm" else 1):
        raise BadArgument(f"{name} takes an input of two or three dimensions and {2 if name == 'lstm' else 1} states")
    if not isinstance(layers, int) or not 1 <= layers <= 1000:
        raise BadArgument(f"{name} has 1 to 1000 layers, given {layers}")
    params, biases = call["params"], bool(call["has_biases"])
    each = (4 if biases else 2) + (name == "lstm" and states[0].shape[-1] != states[-1].shape[-1])
    if len(params) != layers * directions * each:
        raise BadArgument(f"{name} of {layers} layers has {layers * directions * each} weights, given {len(params)}")
    _, samples = _steps(call)
    hidden, shown = states[-1].shape[-1], states[0].shape[-1]  # `shown`: what a projection leaves of it
    batch = (samples,) if given.dim() == 3 else ()
    for state, size in zip(states, (shown, hidden)[-len(states) :], strict=True):
        if tuple(state.shape) != (layers * directions, *batch, size):
            raise BadArgument(f"{name}: a state has shape {tuple(state.shape)}")
    for number in range(layers * directions):
        own = params[number * each : (number + 1) * each]
        inputs = given.shape[-1] if number < directions else shown * directions
        wanted = [(gates * hidden, inputs), (gates * hidden, shown), *[(gates * hidden,)] * (2 * biases), (shown, hidden)][:each]
        if [tuple(weight.shape) for weight in own] != wanted:
            raise BadArgument(f"{name}: weights of shapes {[tuple(w.shape) for w in own]}, expected {wanted}")


def _check_attention(call: dict[str, Any]) -> None:
    """Shapes of keys, values and mask beside the query's. torch's fast kernel believes them."""
    query, key, value, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if min(len(shape) for shape in shapes) < 2 or len({len(shape) for shape in shapes}) != 1:
        raise BadArgument(f"attention of shapes {shapes}")
    grouped = bool(call.get("enable_gqa")) and len(shapes[0]) > 2
    if grouped:
        heads, own, values = (shape[-3] for shape in shapes)
        lead = [(*shape[:-3], heads) for shape in shapes] if own and values and not (heads % own or heads % values) else []
    else:
        lead = [shape[:-2] for shape in shapes]
    same = len(set(lead)) == 1 or (not grouped and _broadcasts(lead))
    if not same or shapes[0][-1] != shapes[1][-1] or shapes[1][-2] != shapes[2][-2]:
        raise BadArgument(f"attention of shapes {shapes} that do not fit")
    if isinstance(mask, Tensor):
        pairs = (*torch.broadcast_shapes(*lead), shapes[0][-2], shapes[1][-2])
        if not _broadcasts([tuple(mask.shape), pairs]) or torch.broadcast_shapes(tuple(mask.shape), pairs) != pairs:
            raise BadArgument(f"an attention mask of shape {tuple(mask.shape)} for {pairs}")


def _broadcasts(shapes: Sequence[tuple[int, ...]]) -> bool:
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    return bool(shapes)


def _check_modes(name: str, call: dict[str, Any]) -> None:
    """Where they are none of torch's, the sampler of volumes leaves its result as the memory was."""
    modes = call["interpolation_mode"], call["padding_mode"]
    if any(mode not in (0, 1, 2) for mode in modes):
        raise BadArgument(f"{name} in the modes {modes[0]} and {modes[1]}; there are 0, 1 and 2")


def _check_weight_norm(call: dict[str, Any]) -> None:
    """A length for each row of the weight. torch's fast kernel reads as many as the weight has rows."""
    weight, lengths, dim = call["v"], call["g"], call["dim"]
    wanted = [size if place == dim % max(1, weight.dim()) else 1 for place, size in enumerate(weight.shape)]
    if dim == -1:  # one length for all
        wanted = [1] * weight.dim()
    fits = lengths.numel() == 1 if dim == -1 else list(lengths.shape) == wanted
    if not fits or lengths.dtype != weight.dtype or not weight.dim():
        raise BadArgument(f"lengths of shape {tuple(lengths.shape)} for a weight of shape {tuple(weight.shape)} along {dim}")


def _check_division(call: dict[str, Any]) -> None:
    """The processor ends the process where the least whole number is divided by -1."""
    both = [call[name] for name in ("self", "other")]
    if not any(v.is_floating_point() if isinstance(v, Tensor) else isinstance(v, float) for v in both):
        raise BadArgument("a division of whole numbers rounds down (floor), not towards zero (trunc)")


def _check_scales(call: dict[str, Any]) -> None:
    """A scale goes with the sizes, where both are given: positions and weights are computed from it."""
    for name, value in call.items():
        if "scale" in name and value is not None:
            for scale in value if isinstance(value, (list, tuple)) else [value]:
                if scale is not None and not SCALES[0] <= scale <= SCALES[1]:
                    raise BadArgument(f"a scale of {scale}; between 1/1024 and 1024 is allowed")
    given, wanted = call.get("input", call.get("self")), call.get("output_size")
    scales = [call.get(name) for name in ("scales_d", "scales_h", "scales_w")] if "scales" not in call else [call["scales"]]
    if not isinstance(given, Tensor) or not isinstance(wanted, (list, tuple)):
        return
    for before, after, scale in zip(given.shape[::-1], wanted[::-1], scales[::-1], strict=False):
        if isinstance(scale, (int, float)) and abs(before * scale - after) > 1:
            raise BadArgument(f"a scale of {scale} from {before} to {after}")
