"""A network as a list of simple steps over float32 arrays, for a batch of one: what the C writer works from.

Every value is contiguous. Batch norms are folded into the layer in front, ReLUs into whatever makes their input; views cost
nothing; what depends on weights alone is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from featherweight.errors import FeatherweightError, shortened
from featherweight.network.calls import Inputs
from featherweight.structure.capture import quiet


class CError(FeatherweightError):
    """A network that cannot be written as C, or C that computes something else."""


@dataclass(frozen=True)
class Value:
    """`shape`, of array number `array`."""

    array: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Step:
    """`reads` and `writes`: numbers of arrays."""

    name: str
    reads: list[int]
    writes: list[int]
    relu: bool = False


@dataclass
class Conv(Step):
    """weight (outputs, inputs / groups, kernel height, width); of one row where it is one-dimensional; bias (outputs,), float64
    while it is folded."""

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: Tensor = field(default_factory=lambda: torch.empty(0))
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)  # above, to the left; what is read below and to the right of the input is 0 too
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int, int] = (0, 0, 0)  # of the input: channels, height, width
    out: tuple[int, int] = (0, 0)


@dataclass
class Linear(Step):
    """weight (outputs, inputs), bias (outputs,): applied to each of `rows`."""

    weight: Tensor = field(default_factory=lambda: torch.empty(0))
    bias: Tensor = field(default_factory=lambda: torch.empty(0))
    rows: int = 1


@dataclass
class Map(Step):
    """An expression of C over `shape`, whose operands {0}, {1} .. are the arrays read (with their strides, 0 where broadcast) and
    the constants."""

    expression: str = ""
    shape: tuple[int, ...] = ()
    strides: list[tuple[int, ...]] = field(default_factory=list)
    constants: list[tuple[Tensor, tuple[int, ...]]] = field(default_factory=list)


@dataclass
class Copy(Step):
    """Entries at `source` + strides go to `target` + strides."""

    shape: tuple[int, ...] = ()
    source: tuple[int, tuple[int, ...]] = (0, ())
    target: tuple[int, tuple[int, ...]] = (0, ())


@dataclass
class Fill(Step):
    count: int = 0
    value: float = 0.0


@dataclass
class Pool(Step):
    """kind: max; mean over the entries inside or over `divisor`; `adaptive`: the windows of torch's adaptive pooling."""

    kind: str = "max"
    size: tuple[int, int, int] = (0, 0, 0)
    out: tuple[int, int] = (0, 0)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    divide: str = "inside"  # inside, padded, or a number
    adaptive: bool = False


@dataclass
class Reduce(Step):
    """Over the middle of (outer, count, inner): sum, mean, max or softmax, logsoftmax, norm (layer norm without weights)."""

    kind: str = "mean"
    outer: int = 1
    count: int = 1
    inner: int = 1
    eps: float = 0.0


@dataclass
class Recurrent(Step):
    """One direction of one layer. weights: (gates, inputs), (gates, hidden), of which the biases are (gates,)."""

    kind: str = "lstm"
    weights: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
    biases: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
    steps: int = 1
    backward: bool = False
    offset: int = 0  # of this direction in a row of the output
    width: int = 1  # of a row of the output


@dataclass
class Program:
    sizes: list[int]  # of the arrays, in floats
    steps: list[Step]
    inputs: list[Value]
    outputs: list[Value]

    def layers(self) -> dict[str, int]:
        """Layer -> its weights that are not zero."""
        found: dict[str, int] = {}
        for step in self.steps:
            weights = step.weights if isinstance(step, Recurrent) else (step.weight,) if isinstance(step, (Conv, Linear)) else ()
            for weight in weights:
                found[step.name] = found.get(step.name, 0) + int(weight.count_nonzero())
        return found


EXPRESSIONS = {
    "relu": "({0} < 0.0f ? 0.0f : {0})",
    "relu6": "({0} < 0.0f ? 0.0f : {0} > 6.0f ? 6.0f : {0})",
    "sigmoid": "(1.0f / (1.0f + expf(-{0})))",
    "tanh": "tanhf({0})",
    "silu": "({0} / (1.0f + expf(-{0})))",
    "hardswish": "({0} <= -3.0f ? 0.0f : {0} >= 3.0f ? {0} : {0} * ({0} + 3.0f) / 6.0f)",
    "hardsigmoid": "({0} <= -3.0f ? 0.0f : {0} >= 3.0f ? 1.0f : ({0} + 3.0f) / 6.0f)",
    "exp": "expf({0})",
    "log": "logf({0})",
    "sqrt": "sqrtf({0})",
    "rsqrt": "(1.0f / sqrtf({0}))",
    "neg": "(-{0})",
    "abs": "fabsf({0})",
    "reciprocal": "(1.0f / {0})",
    "maximum": "({0} > {1} ? {0} : {1})",
    "minimum": "({0} < {1} ? {0} : {1})",
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
}
SAME = (
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "clone", "contiguous", "dropout"),
    *("detach", "alias", "feature_dropout", "alpha_dropout", "lift_fresh_copy", "_to_copy", "to"),
)


def lower(network: nn.Module, example: Inputs) -> Program:
    """Raises CError where the network cannot be exported or has an operation that is not known here, which it names."""
    try:
        with torch.no_grad(), quiet():
            exported = torch.export.export(network, example.args, example.kwargs or None, strict=False).run_decompositions({})
    except Exception as error:  # torch.export lets through whatever the traced code raises
        said = shortened(str(error).strip().splitlines()[0] if str(error).strip() else "")
        raise CError(f"torch.export cannot capture the network: {type(error).__name__}: {said}") from error
    return _Lowering(exported).program()


class _Lowering:
    def __init__(self, exported: Any) -> None:
        self.exported = exported
        self.sizes: list[int] = []
        self.steps: list[Step] = []
        self.values: dict[fx.Node, Any] = {}  # Value, Tensor (known now), or a tuple of these
        self.made: dict[fx.Node, Step] = {}

    @torch.no_grad()
    def program(self) -> Program:
        exported, inputs = self.exported, []
        nodes = list(exported.graph.nodes)
        places = iter(node for node in nodes if node.op == "placeholder")
        for spec, node in zip(exported.graph_signature.input_specs, places, strict=True):
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
                held = exported.state_dict if spec.target in exported.state_dict else exported.constants
                self.values[node] = held[spec.target].detach().cpu()
            elif isinstance(node.meta.get("val"), Tensor):
                kind = node.meta["val"].dtype
                if kind != torch.float32:
                    raise CError(f"input {node.name} is of {kind}: C is written for inputs in float32")
                self.values[node] = self.value(tuple(node.meta["val"].shape))
                inputs.append(self.values[node])
            else:
                self.values[node] = node.meta.get("val")
        for node in nodes:
            if node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "get_attr":
                self.values[node] = getattr(exported.graph_module, str(node.target)).detach().cpu()
        outputs = []
        for node in nodes[-1].args[0]:
            value = self.values.get(node)
            if isinstance(value, Tensor):
                raise CError("an output of the network does not depend on its inputs")
            if not isinstance(value, Value):
                raise CError("an output of the network is no tensor")
            outputs.append(value)
        if not inputs or not outputs:
            raise CError("the network has no input or no output")
        return Program(self.sizes, self.steps, inputs, outputs)

    # --- what the rules below use ---

    def value(self, shape: Sequence[int]) -> Value:
        """A new array."""
        self.sizes.append(math.prod(shape))
        return Value(len(self.sizes) - 1, tuple(shape))

    def of(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self.values[argument]
        if isinstance(argument, (list, tuple)):
            return [self.of(part) for part in argument]
        return argument

    def step(self, node: fx.Node | None, step: Step) -> None:
        self.steps.append(step)
        if node is not None:
            self.made[node] = step

    def alone(self, node: Any) -> Step | None:
        """The step that made this node's value, where nothing else reads it."""
        return self.made.get(node) if isinstance(node, fx.Node) and len(node.users) == 1 else None

    def call(self, node: fx.Node) -> Any:
        target = node.target
        if getattr(target, "__name__", "") == "getitem":
            value = self.of(node.args[0])[node.args[1]]
            if value is None:
                raise CError(f"{_where(node)}: this output of the operation (of several layers, the last state) has no form in C")
            return value
        kind = getattr(target, "overloadpacket", None)
        name = str(kind).rpartition(".")[2] if kind is not None else str(target)
        arguments = [self.of(argument) for argument in node.args]
        named = {key: self.of(argument) for key, argument in node.kwargs.items()}
        if not _depends(arguments) and not _depends(list(named.values())):
            return _plain(target(*arguments, **named))  # type: ignore[operator]
        shape = tuple(node.meta["val"].shape) if isinstance(node.meta.get("val"), Tensor) else ()
        if isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dtype != torch.float32:
            raise CError(f"{_where(node)}: {name} gives {node.meta['val'].dtype}; C is written for float32")
        if name in SAME:
            value = arguments[0]
            if value.size != math.prod(shape):
                raise CError(f"{_where(node)}: {name} changes the number of entries")
            step = self.alone(node.args[0])
            if step is not None and name in ("clone", "contiguous", "dropout", "detach", "alias"):
                self.made[node] = step
            return Value(value.array, shape)
        rule: Callable[..., Any] | None = getattr(self, f"op_{name}", None)
        if rule is not None:
            return rule(node, shape, *arguments, **named)
        if name in EXPRESSIONS:
            return self.mapped(node, EXPRESSIONS[name], shape, arguments)
        raise CError(f"{_where(node)}: C has no form of {shortened(str(target))}")

    def mapped(self, node: fx.Node, expression: str, shape: tuple[int, ...], operands: Sequence[Any]) -> Value:
        made, step = self.value(shape), Map(_where(node), [], [], expression=expression, shape=shape)
        texts = []
        for operand in operands:
            if isinstance(operand, Value):
                texts.append(f"{{a{len(step.reads)}}}")
                step.reads.append(operand.array)
                step.strides.append(_broadcast(operand.shape, shape))
            elif isinstance(operand, Tensor) and operand.numel() > 1:
                texts.append(f"{{c{len(step.constants)}}}")
                step.constants.append((operand.float().contiguous(), _broadcast(tuple(operand.shape), shape)))
            else:
                texts.append(number(float(operand)))
        step.expression = expression.format(*texts) if texts else expression
        step.writes.append(made.array)
        self.step(node, step)
        return made

    def copied(
        self, node: fx.Node, value: Value, shape: Sequence[int], source: tuple[int, tuple[int, ...]],
        target: tuple[int, tuple[int, ...]] | None = None, into: Value | None = None,
    ) -> Value:  # fmt: skip
        into = into or self.value(shape)
        self.step(
            None,
            Copy(_where(node), [value.array], [into.array], shape=tuple(shape), source=source,
                 target=target or (0, _strides(shape))),
        )  # fmt: skip
        return into

    # --- layers ---

    def op_conv2d(self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
                  dilation: Any = 1, groups: int = 1) -> Value:  # fmt: skip
        flat = weight.dim() == 3  # one-dimensional: one row
        if not isinstance(weight, Tensor) or weight.dim() not in (3, 4):
            raise CError(f"{_where(node)}: only convolutions of one and two dimensions, with weights that are known")
        pair = (lambda v, other: (other, _one(v))) if flat else (lambda v, other: _two(v))
        stride, dilation = pair(stride, 1), pair(dilation, 1)
        weight = weight[:, :, None] if flat else weight
        channels, height, width = (x.shape[-2], 1, x.shape[-1]) if flat else x.shape[-3:]
        if isinstance(padding, str):
            total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            pad = (total[0] // 2, total[1] // 2) if padding == "same" else (0, 0)
        else:
            pad = pair(padding, 0)
        made = self.value(shape)
        out = (1, shape[-1]) if flat else (shape[-2], shape[-1])
        bias = torch.zeros(len(weight)) if bias is None else bias
        step = Conv(_where(node), [x.array], [made.array], weight=weight.double(), bias=bias.double(), stride=stride, pad=pad,
                    dilation=dilation, groups=groups, size=(channels, height, width), out=out)  # fmt: skip
        self.step(node, step)
        return made

    op_conv1d = op_conv2d

    def op_convolution(self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any, stride: Any, padding: Any,
                       dilation: Any, transposed: bool, output_padding: Any, groups: int) -> Value:  # fmt: skip
        if transposed:
            return self.op_conv_transpose2d(node, shape, x, weight, bias, stride, padding, output_padding, groups, dilation)
        return self.op_conv2d(node, shape, x, weight, bias, stride, padding, dilation, groups)

    def op_conv_transpose2d(self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any = None, stride: Any = 1,
                            padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Value:  # fmt: skip
        """The input with zeros between its entries, through a convolution with the kernel turned round."""
        flat = weight.dim() == 3
        pair = (lambda v, other: (other, _one(v))) if flat else (lambda v, other: _two(v))
        stride, padding, dilation = pair(stride, 1), pair(padding, 0), pair(dilation, 1)
        weight = weight[:, :, None] if flat else weight
        channels, height, width = (x.shape[-2], 1, x.shape[-1]) if flat else x.shape[-3:]
        apart = ((height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1)
        if stride != (1, 1):
            wide = self.value((channels, *apart))
            self.step(None, Fill(_where(node), [], [wide.array], count=wide.size))
            strides = (apart[0] * apart[1], stride[0] * apart[1], stride[1])
            into = (0, strides)
            x = self.copied(node, x, (channels, height, width), (0, _strides((channels, height, width))), into, wide)
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        turned = weight.reshape(groups, inputs, outputs, *weight.shape[2:]).transpose(1, 2).flip(-1, -2)
        turned = turned.reshape(groups * outputs, inputs, *weight.shape[2:])
        pad = (dilation[0] * (weight.shape[2] - 1) - padding[0], dilation[1] * (weight.shape[3] - 1) - padding[1])
        made = self.value(shape)
        bias = torch.zeros(len(turned)) if bias is None else bias
        out = (1, shape[-1]) if flat else (shape[-2], shape[-1])
        step = Conv(_where(node), [x.array], [made.array], weight=turned.double(), bias=bias.double(), pad=pad, dilation=dilation,
                    groups=groups, size=(channels, *apart), out=out)  # fmt: skip
        self.step(node, step)
        return made

    op_conv_transpose1d = op_conv_transpose2d

    def op_linear(self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any = None) -> Value:
        if not isinstance(weight, Tensor):
            raise CError(f"{_where(node)}: a product of two computed matrices")
        made = self.value(shape)
        bias = torch.zeros(len(weight)) if bias is None else bias
        rows = math.prod(x.shape[:-1])
        self.step(node, Linear(_where(node), [x.array], [made.array], weight=weight.double(), bias=bias.double(), rows=rows))
        return made

    def op_addmm(self, node: fx.Node, shape: Any, bias: Any, x: Value, weight: Any) -> Value:
        return self.op_linear(node, shape, x, weight.T if isinstance(weight, Tensor) else weight, bias)

    def op_matmul(self, node: fx.Node, shape: Any, x: Any, weight: Any) -> Value:
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not isinstance(x, Value):
            raise CError(f"{_where(node)}: a product of two computed matrices, as in attention, has no form in C yet")
        return self.op_linear(node, shape, x, weight.T)

    op_mm = op_matmul

    def op_batch_norm(
        self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any
    ) -> Value:
        eps = float(rest[-2] if len(rest) == 4 else rest[-1])
        scale = (weight.double() if weight is not None else 1.0) / torch.sqrt(var.double() + eps)
        shift = (bias.double() if bias is not None else 0.0) - mean.double() * scale
        before = self.alone(node.args[0])
        if isinstance(before, (Conv, Linear)) and not before.relu and (isinstance(before, Conv) or len(x.shape) == 2):
            before.weight = before.weight * scale.reshape(-1, *[1] * (before.weight.dim() - 1))
            before.bias = before.bias * scale + shift
            self.made[node] = before
            return Value(x.array, shape or x.shape)
        inner = [1] * (len(x.shape) - 2)
        return self.mapped(node, "({0} * {1} + {2})", x.shape, [x, scale.reshape(-1, *inner), shift.reshape(-1, *inner)])

    def op__native_batch_norm_legit_no_training(self, node: fx.Node, shape: Any, x: Value, *rest: Any) -> tuple[Any, ...]:
        made = self.op_batch_norm(node, x.shape, x, *rest)
        # its first entry is what is read on
        for user in node.users:
            if node in self.made and user.args[1] == 0:
                self.made[user] = self.made[node]
        return (made, None, None)

    def op_layer_norm(self, node: fx.Node, shape: Any, x: Value, size: Any, weight: Any = None, bias: Any = None,
                      eps: float = 1e-5, *rest: Any) -> Value:  # fmt: skip
        made = self.value(shape)
        count = math.prod(size)
        self.step(None, Reduce(_where(node), [x.array], [made.array], kind="norm", outer=x.size // count, count=count, eps=eps))
        if weight is None and bias is None:
            return made
        one, zero = torch.ones(tuple(size)), torch.zeros(tuple(size))
        operands = [made, one if weight is None else weight, zero if bias is None else bias]
        return self.mapped(node, "({0} * {1} + {2})", shape, operands)

    def op_relu(self, node: fx.Node, shape: Any, x: Value) -> Value:
        before = self.alone(node.args[0])
        if before is not None and isinstance(before, (Conv, Linear, Map)) and not before.relu:
            before.relu = True
            return Value(x.array, shape)
        inner = self.alone(node.args[0].args[0]) if isinstance(before, Pool) and before.kind == "max" else None  # type: ignore[union-attr]
        if isinstance(inner, Conv):  # the largest of what is cut off at 0 is the largest, cut off at 0
            inner.relu = True
            return Value(x.array, shape)
        return self.mapped(node, EXPRESSIONS["relu"], shape, [x])

    def op_hardtanh(self, node: fx.Node, shape: Any, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
        return self.op_clamp(node, shape, x, low, high)

    def op_clamp(self, node: fx.Node, shape: Any, x: Value, low: Any = None, high: Any = None) -> Value:
        text = "{0}"
        text = f"({{0}} < {number(low)} ? {number(low)} : {{0}})" if low is not None else text
        text = f"({{0}} > {number(high)} ? {number(high)} : {text})" if high is not None else text
        return self.mapped(node, text, shape, [x])

    def op_leaky_relu(self, node: fx.Node, shape: Any, x: Value, slope: float = 0.01) -> Value:
        return self.mapped(node, "({0} < 0.0f ? {1} * {0} : {0})", shape, [x, slope])

    def op_prelu(self, node: fx.Node, shape: Any, x: Value, slope: Any) -> Value:
        slope = slope.reshape(-1, *[1] * (len(x.shape) - 2)) if slope.numel() > 1 else slope
        return self.mapped(node, "({0} < 0.0f ? {1} * {0} : {0})", shape, [x, slope])

    def op_elu(self, node: fx.Node, shape: Any, x: Value, alpha: float = 1.0, *rest: Any) -> Value:
        if any(value != 1 for value in rest):
            raise CError(f"{_where(node)}: an ELU with scales has no form in C")
        return self.mapped(node, "({0} < 0.0f ? {1} * expm1f({0}) : {0})", shape, [x, alpha])

    def op_gelu(self, node: fx.Node, shape: Any, x: Value, approximate: str = "none") -> Value:
        if approximate == "tanh":
            text = "(0.5f * {0} * (1.0f + tanhf(0.7978845608f * ({0} + 0.044715f * {0} * {0} * {0}))))"
        else:
            text = "(0.5f * {0} * (1.0f + erff({0} * 0.7071067812f)))"
        return self.mapped(node, text, shape, [x])

    def op_softplus(self, node: fx.Node, shape: Any, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
        return self.mapped(node, "({0} * {1} > {2} ? {0} : log1pf(expf({0} * {1})) / {1})", shape, [x, beta, threshold])

    def op_add(self, node: fx.Node, shape: Any, one: Any, other: Any, alpha: float = 1) -> Value:
        return self.mapped(
            node, "({0} + {1})" if alpha == 1 else "({0} + {2} * {1})", shape, [one, other, alpha][: 2 + (alpha != 1)]
        )

    def op_sub(self, node: fx.Node, shape: Any, one: Any, other: Any, alpha: float = 1) -> Value:
        return self.mapped(
            node, "({0} - {1})" if alpha == 1 else "({0} - {2} * {1})", shape, [one, other, alpha][: 2 + (alpha != 1)]
        )

    def op_rsub(self, node: fx.Node, shape: Any, one: Any, other: Any, alpha: float = 1) -> Value:
        return self.op_sub(node, shape, other, one, alpha)

    def op_pow(self, node: fx.Node, shape: Any, x: Any, exponent: Any) -> Value:
        known = {2: "({0} * {0})", 0.5: "sqrtf({0})", -0.5: "(1.0f / sqrtf({0}))", 3: "({0} * {0} * {0})"}
        text = known.get(exponent) if isinstance(exponent, (int, float)) else None
        return self.mapped(node, text or "powf({0}, {1})", shape, [x] if text else [x, exponent])

    def op_div(self, node: fx.Node, shape: Any, one: Any, other: Any, rounding_mode: Any = None) -> Value:
        if rounding_mode is not None:
            raise CError(f"{_where(node)}: division with rounding has no form in C")
        return self.mapped(node, EXPRESSIONS["div"], shape, [one, other])

    # --- pooling and reductions ---

    def pooled(self, node: fx.Node, shape: Any, x: Value, **fields: Any) -> Value:
        made, flat = self.value(shape), fields.pop("flat")
        channels = math.prod(x.shape[:-1]) if flat else math.prod(x.shape[:-2])
        size = (channels, 1, x.shape[-1]) if flat else (channels, x.shape[-2], x.shape[-1])
        out = (1, shape[-1]) if flat else (shape[-2], shape[-1])
        self.step(node, Pool(_where(node), [x.array], [made.array], size=size, out=out, **fields))
        return made

    def op_max_pool2d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      dilation: Any = 1, ceil_mode: bool = False) -> Value:  # fmt: skip
        return self.pooled(node, shape, x, flat=False, kernel=_two(kernel), stride=_two(stride or kernel), pad=_two(padding),
                           dilation=_two(dilation))  # fmt: skip

    def op_max_pool1d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      dilation: Any = 1, ceil_mode: bool = False) -> Value:  # fmt: skip
        return self.pooled(node, shape, x, flat=True, kernel=(1, _one(kernel)), stride=(1, _one(stride or kernel)),
                           pad=(0, _one(padding)), dilation=(1, _one(dilation)))  # fmt: skip

    def op_avg_pool2d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      ceil_mode: bool = False, count_include_pad: bool = True, divisor: Any = None) -> Value:  # fmt: skip
        divide = str(int(divisor)) if divisor else "padded" if count_include_pad else "inside"
        return self.pooled(node, shape, x, flat=False, kind="mean", kernel=_two(kernel), stride=_two(stride or kernel),
                           pad=_two(padding), divide=divide)  # fmt: skip

    def op_avg_pool1d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      ceil_mode: bool = False, count_include_pad: bool = True) -> Value:  # fmt: skip
        return self.pooled(node, shape, x, flat=True, kind="mean", kernel=(1, _one(kernel)), stride=(1, _one(stride or kernel)),
                           pad=(0, _one(padding)), divide="padded" if count_include_pad else "inside")  # fmt: skip

    def op_adaptive_avg_pool2d(self, node: fx.Node, shape: Any, x: Value, size: Any) -> Value:
        return self.pooled(node, shape, x, flat=False, kind="mean", adaptive=True)

    def op_adaptive_avg_pool1d(self, node: fx.Node, shape: Any, x: Value, size: Any) -> Value:
        return self.pooled(node, shape, x, flat=True, kind="mean", adaptive=True)

    def reduced(self, node: fx.Node, shape: Any, x: Value, dims: Any, kind: str) -> Value:
        dims = (
            sorted(d % len(x.shape) for d in (dims if isinstance(dims, (list, tuple)) else [dims]))
            if dims not in (None, [])
            else []
        )
        dims = dims or list(range(len(x.shape)))
        if dims != list(range(dims[0], dims[-1] + 1)):
            raise CError(f"{_where(node)}: a reduction over dimensions that do not follow each other has no form in C")
        made = self.value(shape)
        outer, inner = math.prod(x.shape[: dims[0]]), math.prod(x.shape[dims[-1] + 1 :])
        count = math.prod(x.shape[d] for d in dims)
        self.step(node, Reduce(_where(node), [x.array], [made.array], kind=kind, outer=outer, count=count, inner=inner))
        return made

    def op_mean(self, node: fx.Node, shape: Any, x: Value, dims: Any = None, keepdim: bool = False, **rest: Any) -> Value:
        return self.reduced(node, shape, x, dims, "mean")

    def op_sum(self, node: fx.Node, shape: Any, x: Value, dims: Any = None, keepdim: bool = False, **rest: Any) -> Value:
        return self.reduced(node, shape, x, dims, "sum")

    def op_amax(self, node: fx.Node, shape: Any, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
        return self.reduced(node, shape, x, dims, "max")

    def op_softmax(self, node: fx.Node, shape: Any, x: Value, dim: int, *rest: Any) -> Value:
        return self.reduced(node, shape, x, dim, "softmax")

    def op_log_softmax(self, node: fx.Node, shape: Any, x: Value, dim: int, *rest: Any) -> Value:
        return self.reduced(node, shape, x, dim, "logsoftmax")

    op__softmax, op__log_softmax = op_softmax, op_log_softmax

    # --- what moves entries ---

    def op_permute(self, node: fx.Node, shape: Any, x: Value, order: Any) -> Value:
        strides = _strides(x.shape)
        return self.copied(node, x, shape, (0, tuple(strides[d] for d in order)))

    def op_transpose(self, node: fx.Node, shape: Any, x: Value, one: int, other: int) -> Value:
        order = list(range(len(x.shape)))
        order[one], order[other] = order[other], order[one]
        return self.op_permute(node, shape, x, order)

    def op_t(self, node: fx.Node, shape: Any, x: Value) -> Value:
        return self.op_permute(node, shape, x, list(range(len(x.shape)))[::-1])

    def op_slice(
        self, node: fx.Node, shape: Any, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> Value:
        dim, size, strides = dim % len(x.shape), x.shape[dim], list(_strides(x.shape))
        start = 0 if start is None else max(0, start + size) if start < 0 else min(start, size)
        offset = start * strides[dim]
        strides[dim] *= step
        if tuple(shape) == x.shape and step == 1:
            return x
        return self.copied(node, x, shape, (offset, tuple(strides)))

    def op_select(self, node: fx.Node, shape: Any, x: Value, dim: int, index: int) -> Value:
        dim, strides = dim % len(x.shape), list(_strides(x.shape))
        offset = (index % x.shape[dim]) * strides.pop(dim)
        return self.copied(node, x, shape, (offset, tuple(strides)))

    def op_split(self, node: fx.Node, shape: Any, x: Value, size: Any, dim: int = 0) -> list[Value]:
        dim = dim % len(x.shape)
        if isinstance(size, int):
            size = [min(size, x.shape[dim] - at) for at in range(0, x.shape[dim], size)]
        found, at, strides = [], 0, _strides(x.shape)
        for count in size:
            part = (*x.shape[:dim], count, *x.shape[dim + 1 :])
            found.append(self.copied(node, x, part, (at * strides[dim], strides)))
            at += count
        return found

    op_split_with_sizes = op_split

    def op_chunk(self, node: fx.Node, shape: Any, x: Value, chunks: int, dim: int = 0) -> list[Value]:
        return self.op_split(node, shape, x, -(-x.shape[dim] // chunks), dim)

    def op_expand(self, node: fx.Node, shape: Any, x: Value, *rest: Any, **named: Any) -> Value:
        return x if x.size == math.prod(shape) else self.copied(node, x, shape, (0, _broadcast(x.shape, shape)))

    def op_flip(self, node: fx.Node, shape: Any, x: Value, dims: Any) -> Value:
        strides, offset = list(_strides(x.shape)), 0
        for dim in dims:
            offset += (x.shape[dim] - 1) * strides[dim]
            strides[dim] = -strides[dim]
        return self.copied(node, x, shape, (offset, tuple(strides)))

    def op_cat(self, node: fx.Node, shape: Any, parts: Any, dim: int = 0) -> Value:
        made, strides, at = self.value(shape), _strides(shape), 0
        dim = dim % len(shape)
        for part in parts:
            if isinstance(part, Tensor):
                part = self.mapped(node, "{0}", tuple(part.shape), [part])
            self.copied(node, part, part.shape, (0, _strides(part.shape)), (at * strides[dim], strides), made)
            at += part.shape[dim]
        return made

    def op_stack(self, node: fx.Node, shape: Any, parts: Any, dim: int = 0) -> Value:
        dim = dim % len(shape)
        wide = [Value(part.array, (*part.shape[:dim], 1, *part.shape[dim:])) for part in parts]
        return self.op_cat(node, shape, wide, dim)

    def op_pad(self, node: fx.Node, shape: Any, x: Value, sizes: Any, mode: str = "constant", value: Any = None) -> Value:
        if mode != "constant" or min(sizes) < 0:
            raise CError(f"{_where(node)}: padding of this kind ({mode}, {list(sizes)}) has no form in C")
        made, strides = self.value(shape), _strides(shape)
        self.step(None, Fill(_where(node), [], [made.array], count=made.size, value=float(value or 0.0)))
        offset = sum(low * strides[-1 - i] for i, low in enumerate(sizes[0::2]))
        return self.copied(node, x, x.shape, (0, _strides(x.shape)), (offset, strides), made)

    op_constant_pad_nd = op_pad

    # --- recurrent ---

    def recurrent(self, node: fx.Node, kind: str, x: Value, first: Any, weights: Any, biased: bool, layers: int, dropout: float,
                  train: bool, both: bool, batch_first: bool) -> tuple[Any, ...]:  # fmt: skip
        for state in first if isinstance(first, list) else [first]:
            if not isinstance(state, Tensor) or bool(state.any()):
                raise CError(f"{_where(node)}: a recurrent layer whose first state is not zero has no form in C")
        batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
        if batch != 1 or len(x.shape) != 3:
            raise CError(f"{_where(node)}: a recurrent layer over {batch} sequences at once; C is written for one")
        each, directions = 4 if biased else 2, 2 if both else 1
        if len(weights) != each * layers * directions:
            raise CError(f"{_where(node)}: a recurrent layer with projections has no form in C")
        for layer in range(layers):
            hidden = weights[each * layer * directions + 1].shape[1]
            made = self.value((steps, directions * hidden))
            for direction in range(directions):
                own = weights[each * (layer * directions + direction) :][:each]
                biases = (own[2], own[3]) if biased else (torch.zeros(len(own[0])), torch.zeros(len(own[0])))
                self.step(
                    None,
                    Recurrent(_where(node), [x.array], [made.array], kind=kind, weights=(own[0].double(), own[1].double()),
                              biases=(biases[0].double(), biases[1].double()), steps=steps, backward=bool(direction),
                              offset=direction * hidden, width=directions * hidden),
                )  # fmt: skip
            x = made
        out = Value(x.array, (1, steps, x.shape[1]) if batch_first else (steps, 1, x.shape[1]))
        last = None
        if layers == 1:
            last = self.value((directions, 1, hidden))
            for direction in range(directions):
                offset = (0 if direction else steps - 1) * x.shape[1] + direction * hidden
                self.copied(node, x, (hidden,), (offset, (1,)), (direction * hidden, (1,)), last)
        return (out, last, None)

    def op_lstm(self, node: fx.Node, shape: Any, x: Value, *rest: Any) -> tuple[Any, ...]:
        return self.recurrent(node, "lstm", x, *rest)

    def op_gru(self, node: fx.Node, shape: Any, x: Value, *rest: Any) -> tuple[Any, ...]:
        return self.recurrent(node, "gru", x, *rest)


def number(value: float) -> str:
    """A float32 as a constant of C, to the bit. Raises CError where it is none."""
    single = float(torch.tensor(value, dtype=torch.float32))
    if not math.isfinite(single):
        raise CError(f"a constant of the network is {single}, which C has no constant for")
    for digits in range(6, 10):
        text = f"{single:.{digits}g}"
        if float(torch.tensor(float(text), dtype=torch.float32)) == single:
            break
    return (text if "." in text or "e" in text else f"{text}.0") + "f"


def _depends(value: Any) -> bool:
    return any(map(_depends, value)) if isinstance(value, (list, tuple)) else isinstance(value, Value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _where(node: fx.Node) -> str:
    """The module that an operation is of, for messages and comments."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return f"{path or node.name}"


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _broadcast(shape: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    lacking = len(wanted) - len(shape)
    held = _strides(shape)
    return tuple(0 if i < lacking or shape[i - lacking] == 1 else held[i - lacking] for i in range(len(wanted)))


def _one(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def _two(value: Any) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))
