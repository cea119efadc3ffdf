"""The operations that a stored graph may hold, and the check of their arguments.

A graph in a file is data from a stranger. Of torch's 3,700 ATen operations this table takes those that `torch.export` writes for
networks in eval mode and that check their own arguments: no memory beyond a tensor, no files, no global state, no sizes that
depend on values. `exported` writes and reads by the same table, so what can be saved can be loaded.

An argument is checked against the schema of its operation: its kind, finite numbers, known types, short texts, short lists.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from featherweight.errors import short

LONGEST_LIST = 4096  # entries of an argument that is a list
LONGEST_TEXT = 200  # characters of an argument that is text, such as an einsum equation
LARGEST_INTEGER = 2**63 - 1

_NAMES = (
    # one entry at a time; a trailing _ marks the form that writes into its first operand
    "abs abs_ acos acosh add add_ addcdiv addcdiv_ addcmul addcmul_ angle asin asinh atan atan2 atanh bitwise_and bitwise_not "
    "bitwise_or bitwise_xor ceil ceil_ celu celu_ clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip clip_ complex "
    "conj_physical copysign cos cos_ cosh div div_ divide elu elu_ eq erf erf_ erfc exp exp2 exp_ expm1 fill fill_ floor floor_ "
    "floor_divide fmax fmin fmod frac ge gelu gelu_ glu gt hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh "
    "hardtanh_ hypot imag isfinite isinf isnan le leaky_relu leaky_relu_ lerp lerp_ log log10 log1p log2 log_ log_sigmoid "
    "log_sigmoid_forward logaddexp logical_and logical_not logical_or logical_xor logit lt masked_fill masked_fill_ maximum "
    "minimum mish mish_ mul mul_ multiply nan_to_num ne neg neg_ polar positive pow pow_ prelu _prelu_kernel real reciprocal "
    "relu relu6 relu6_ relu_ remainder round rrelu rsqrt rsqrt_ rsub selu selu_ sgn sigmoid sigmoid_ sign silu silu_ sin sin_ "
    "sinc sinh softplus softshrink special_expit special_erf sqrt sqrt_ square sub sub_ subtract tan tanh tanh_ threshold "
    "threshold_ true_divide trunc where zero zero_ __and__ __or__ __xor__ "
    # sums, maxima, norms and orders
    "all amax amin any argmax argmin argsort cummax cummin cumprod cumsum kthvalue linalg_vector_norm log_softmax _log_softmax "
    "logcumsumexp logsumexp max mean median min msort nanmean norm prod softmax _softmax sort std std_mean sum topk var "
    "var_mean aminmax count_nonzero histc "
    # products
    "addbmm addmm addmv baddbmm bilinear bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "diff dot einsum embedding linear matmul mm mv outer scaled_dot_product_attention cdist "
    # normalisation and recurrence
    "batch_norm group_norm instance_norm layer_norm rms_norm _weight_norm lstm gru rnn_tanh rnn_relu dropout dropout_ "
    "alpha_dropout feature_dropout feature_alpha_dropout "
    # places
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "alias avg_pool1d avg_pool2d avg_pool3d broadcast_tensors broadcast_to cat channel_shuffle chunk clone concat concatenate "
    "constant_pad_nd contiguous copy_ detach detach_ diag_embed diagonal expand expand_as fft_fft fft_fft2 fft_fftn fft_ifft "
    "fft_ifft2 fft_ifftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftn flatten flip fliplr flipud gather "
    "grid_sampler grid_sampler_2d grid_sampler_3d affine_grid_generator im2col col2im index index_add index_select lift_fresh "
    "index_add_ lift_fresh_copy mT max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d "
    "max_pool3d_with_indices meshgrid moveaxis movedim narrow native_channel_shuffle numpy_T pad permute pixel_shuffle "
    "pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d "
    "replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg roll rot90 scatter scatter_ scatter_add "
    "scatter_add_ select select_copy slice slice_copy slice_scatter split split_with_sizes squeeze squeeze_ stack swapaxes "
    "swapdims t t_ take_along_dim tensor_split tile to _to_copy transpose transpose_ tril triu type_as unbind unflatten unfold "
    "unsafe_chunk unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze unsqueeze_ upsample_bicubic2d upsample_bilinear2d "
    "upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa "
    "_upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d view view_as view_as_complex view_as_real "
    "index_put index_put_ one_hot "
    # checks, and sizes as numbers
    "_assert_async _assert_tensor_metadata _assert_scalar requires_grad_ sym_constrain_range_for_size sym_numel sym_size "
    "sym_stride"
)
_FACTORIES = (
    *("arange", "eye", "full", "hann_window", "linspace", "ones", "scalar_tensor", "tril_indices", "triu_indices", "zeros"),
)
_FROM_A_TENSOR = "full_like new_full new_ones new_zeros ones_like zeros_like"
# their memory is not set: what is read from it is somebody else's. Zeros are as good where the network overwrites them
_NOT_SET = {
    "aten.empty.memory_format": "aten.zeros.default",
    "aten.empty_like.default": "aten.zeros_like.default",
    "aten.new_empty.default": "aten.new_zeros.default",
}
# sizes that depend on values, memory read as another type, forms that TorchScript has for plain numbers
_REFUSED_OVERLOADS = {
    "where.default",
    "tensor_split.tensor_indices_or_sections",
    "view.dtype",
    "repeat_interleave.Tensor",
    "repeat_interleave.self_Tensor",
}
_ALLOWED = {*_NAMES.split(), *_FACTORIES, *_FROM_A_TENSOR.split()}
_NUMBERS_ONLY = ("sym_constrain_range_for_size", "_assert_scalar")

ARITHMETIC: dict[str, Callable[..., Any]] = {  # on sizes, and picking one of several results
    name: getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
_KINDS: dict[str, dict[str, Any]] = {
    "dtype": {
        str(dtype).removeprefix("torch."): dtype
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        )
    },
    "memory_format": {
        str(form).removeprefix("torch."): form
        for form in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
    },
    "layout": {"strided": torch.strided},
}
_MODES = {"approximate": ("none", "tanh"), "mode": ("constant", "reflect", "replicate", "circular")}
_MODES |= {
    "rounding_mode": ("floor", "trunc"),
    "indexing": ("ij", "xy"),
    "padding": ("same", "valid"),
    "reduce": ("add", "multiply"),
}


class BadArgument(ValueError):
    """An operation or an argument that a stored graph may not hold."""


class Slot:
    """Where an argument is the result of an earlier operation: its number."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Device:
    """Where an argument says on which device a tensor is made: on that of the network's inputs."""


DEVICE = Device()


def type_name(value: Any) -> str:
    """`float32` of torch.float32."""
    return str(value).removeprefix("torch.")


def named(kind: str, name: Any) -> Any:
    """The dtype, memory format or layout of that name. Raises BadArgument."""
    found = _KINDS[kind].get(name) if isinstance(name, str) else None
    if found is None:
        raise BadArgument(f"{short(name)} is not a {kind} that a stored graph may hold")
    return found


def kind_of(value: Any) -> str | None:
    """Under which kind of name (`dtype`, `memory_format`, `layout`) a value is written; None where it has none."""
    kinds = {torch.dtype: "dtype", torch.memory_format: "memory_format", torch.layout: "layout"}
    return kinds.get(type(value))


def written_name(target: Any) -> str | None:
    """The name under which an operation is stored; None where it may not be."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = f"aten.{target.overloadpacket.__name__}.{target._overloadname}"
        name = _NOT_SET.get(name, name)
        try:
            find(name)
        except BadArgument:
            return None
        return name
    return next((word for word, known in ARITHMETIC.items() if known is target), None)


@cache
def find(name: str) -> Any:
    """The operation of that name, from the table alone. Raises BadArgument."""
    if name in ARITHMETIC:
        return ARITHMETIC[name]
    name = _NOT_SET.get(name, name)
    parts = name.split(".")
    if len(parts) == 3 and parts[0] == "aten" and parts[1] in _ALLOWED and ".".join(parts[1:]) not in _REFUSED_OVERLOADS:
        found = getattr(getattr(torch.ops.aten, parts[1], None), parts[2], None)
        if isinstance(found, torch._ops.OpOverload) and _is_plain(found):
            return found
    raise BadArgument(f"{short(name)} is not an operation that a stored graph may hold")


def _is_plain(operation: torch._ops.OpOverload) -> bool:
    """Does it take a tensor, or make one from sizes, and write nowhere else than into its first operand?"""
    name, arguments = operation.overloadpacket.__name__, operation._schema.arguments
    kinds = [_kind(argument) for argument in arguments]
    takes = any(kind in ("Tensor", "List[Tensor]", "Optional[Tensor]") for kind in kinds)
    free = name in _FACTORIES or name in _NUMBERS_ONLY
    return (
        all(kind in _CHECKS for kind in kinds)
        and (takes or free)
        and not any(argument.is_out for argument in arguments)
        and "hacked_twin" not in operation._overloadname
        and _has_kernel(operation)
    )


def _has_kernel(operation: torch._ops.OpOverload) -> bool:
    """Some overloads belong to TorchScript's interpreter alone; called from here, they may never return."""
    try:
        return bool(torch._C._dispatch_has_computed_kernel_for_dispatch_key(operation.name(), "CPU"))
    except RuntimeError:
        return False


def _kind(argument: Any) -> str:
    return str(argument.real_type)


def makes_tensors(operation: Any) -> bool:
    """Does it make a tensor from sizes alone, on a device that it is told?"""
    return isinstance(operation, torch._ops.OpOverload) and operation.overloadpacket.__name__ in _FACTORIES


def bound(operation: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, checked: `args` and `kwargs` as they are to be given. Results of earlier operations are `Slot`s.

    Raises BadArgument for one that the schema has not, that is missing or given twice, or that is not of its kind.
    """
    if not isinstance(operation, torch._ops.OpOverload):
        return _arithmetic(operation, args, kwargs), {}
    arguments = operation._schema.arguments
    if len(args) > sum(not argument.kwarg_only for argument in arguments):
        raise BadArgument(f"{operation} is given {len(args)} arguments")
    unknown = kwargs.keys() - {argument.name for argument in arguments[len(args) :]}
    if unknown:
        raise BadArgument(f"{operation} has no argument {short(min(unknown))} or has it twice")
    positional = tuple(_checked(operation, argument, value) for argument, value in zip(arguments, args, strict=False))
    by_name = {a.name: _checked(operation, a, kwargs[a.name]) for a in arguments[len(args) :] if a.name in kwargs}
    for argument in arguments[len(args) :]:
        if argument.name not in by_name and not argument.has_default_value():
            raise BadArgument(f"{operation} lacks its argument {argument.name!r}")
    return positional, by_name


def _arithmetic(operation: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Two numbers, one for `neg`; for `getitem` an earlier result and a whole number."""
    if kwargs or len(args) != (1 if operation is operator.neg else 2):
        raise BadArgument(f"{operation.__name__} is given {len(args)} arguments and {len(kwargs)} by name")
    if operation is operator.getitem:
        if not isinstance(args[0], Slot):
            raise BadArgument("getitem picks from a result of an earlier operation")
        return args[0], _whole(args[1])
    return tuple(_number(value) for value in args)


def _checked(operation: Any, argument: Any, value: Any) -> Any:
    try:
        if isinstance(value, str) and argument.name in _MODES and value not in _MODES[argument.name]:
            raise BadArgument(f"is {short(value)}, which is none of {', '.join(_MODES[argument.name])}")
        if argument.name == "n" and operation is torch.ops.aten.diff.default and value != 1:
            raise BadArgument(f"is {short(value)}, and differences are taken once")  # else the time hangs on a number
        return _CHECKS[_kind(argument)](value)
    except BadArgument as error:
        raise BadArgument(f"{operation}: {argument.name} {error}") from None


def _tensor(value: Any) -> Any:
    """An earlier result, or a number, which torch takes where a tensor without dimensions is meant."""
    if value is None or isinstance(value, str):
        raise BadArgument(f"is {short(value)} and not a tensor")
    return _number(value)


def _whole(value: Any) -> Any:
    if isinstance(value, Slot) or (type(value) is int and -LARGEST_INTEGER <= value <= LARGEST_INTEGER):
        return value
    raise BadArgument(f"is {short(value)} and not a whole number of 64 bits")


def _number(value: Any) -> Any:
    if isinstance(value, (bool, Slot)):
        return value
    if type(value) is float and not math.isnan(value):
        return value
    return _whole(value)


def _real(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        raise BadArgument(f"is {value} and not a finite number")
    return _number(value)


def _flag(value: Any) -> Any:
    if not isinstance(value, (bool, Slot)):
        raise BadArgument(f"is {short(value)} and neither true nor false")
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT or not value.isprintable():
        raise BadArgument(f"is {short(value)} and not a short text")
    return value


def _of_kind(kind: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if kind_of(value) != kind:
            raise BadArgument(f"is {short(value)} and not a {kind}")
        return value

    return check


def _device(value: Any) -> Any:
    if value is not DEVICE:
        raise BadArgument(f"is {short(value)} and not a device")
    return value


def _nothing(value: Any) -> Any:
    if value is not None:
        raise BadArgument(f"is {short(value)}, and nothing may be given")
    return value


def _list(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        if isinstance(value, Slot):
            return value
        if not isinstance(value, list) or len(value) > LONGEST_LIST:
            raise BadArgument(f"is {short(value)} and not a list of at most {LONGEST_LIST}")
        return [check(entry) for entry in value]

    return checked


def _one_or_list(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """torch takes one number where a list of sizes of a known length is meant."""
    several = _list(check)
    return lambda value: several(value) if isinstance(value, list) else check(value)


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


_BASE: dict[str, Callable[[Any], Any]] = {
    "Tensor": _tensor,
    "int": _whole,
    "number": _number,
    "float": _real,
    "bool": _flag,
    "str": _text,
    "ScalarType": _of_kind("dtype"),
    "MemoryFormat": _of_kind("memory_format"),
    "Layout": _of_kind("layout"),
    "Device": _device,
    "Generator": _nothing,
    "List[Tensor]": _list(_tensor),
    "List[Optional[Tensor]]": _list(_optional(_tensor)),
    "List[int]": _one_or_list(_whole),
    "List[float]": _one_or_list(_real),
    "List[bool]": _list(_flag),
}
_CHECKS = {**_BASE, **{f"Optional[{kind}]": _optional(check) for kind, check in _BASE.items()}}
