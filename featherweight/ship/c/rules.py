"""What each operation that computes becomes: a rule `op_NAME` makes steps of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from featherweight.ship.c.moves import Moves, strides_of, where
from featherweight.ship.c.steps import CError, Conv, Fill, Linear, Map, Pool, Recurrent, Reduce, Value, number

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


class Rules(Moves):
    """Layers, pointwise operations, pooling and recurrent layers."""

    # --- layers ---

    def op_conv2d(self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0,
                  dilation: Any = 1, groups: int = 1) -> Value:  # fmt: skip
        flat = weight.dim() == 3  # one-dimensional: one row
        if not isinstance(weight, Tensor) or weight.dim() not in (3, 4):
            raise CError(f"{where(node)}: only convolutions of one and two dimensions, with weights that are known")
        pair = (lambda v, other: (other, one(v))) if flat else (lambda v, other: two(v))
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
        step = Conv(where(node), [x.array], [made.array], weight=weight.double(), bias=bias.double(), stride=stride, pad=pad,
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
        pair = (lambda v, other: (other, one(v))) if flat else (lambda v, other: two(v))
        stride, padding, dilation = pair(stride, 1), pair(padding, 0), pair(dilation, 1)
        weight = weight[:, :, None] if flat else weight
        channels, height, width = (x.shape[-2], 1, x.shape[-1]) if flat else x.shape[-3:]
        apart = ((height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1)
        if stride != (1, 1):
            wide = self.value((channels, *apart))
            self.step(None, Fill(where(node), [], [wide.array], count=wide.size))
            strides = (apart[0] * apart[1], stride[0] * apart[1], stride[1])
            into = (0, strides)
            x = self.copied(node, x, (channels, height, width), (0, strides_of((channels, height, width))), into, wide)
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        turned = weight.reshape(groups, inputs, outputs, *weight.shape[2:]).transpose(1, 2).flip(-1, -2)
        turned = turned.reshape(groups * outputs, inputs, *weight.shape[2:])
        pad = (dilation[0] * (weight.shape[2] - 1) - padding[0], dilation[1] * (weight.shape[3] - 1) - padding[1])
        made = self.value(shape)
        bias = torch.zeros(len(turned)) if bias is None else bias
        out = (1, shape[-1]) if flat else (shape[-2], shape[-1])
        step = Conv(where(node), [x.array], [made.array], weight=turned.double(), bias=bias.double(), pad=pad, dilation=dilation,
                    groups=groups, size=(channels, *apart), out=out)  # fmt: skip
        self.step(node, step)
        return made

    op_conv_transpose1d = op_conv_transpose2d

    def op_linear(self, node: fx.Node, shape: Any, x: Value, weight: Any, bias: Any = None) -> Value:
        if not isinstance(weight, Tensor):
            raise CError(f"{where(node)}: a product of two computed matrices")
        made = self.value(shape)
        bias = torch.zeros(len(weight)) if bias is None else bias
        rows = math.prod(x.shape[:-1])
        self.step(node, Linear(where(node), [x.array], [made.array], weight=weight.double(), bias=bias.double(), rows=rows))
        return made

    def op_addmm(self, node: fx.Node, shape: Any, bias: Any, x: Value, weight: Any) -> Value:
        return self.op_linear(node, shape, x, weight.T if isinstance(weight, Tensor) else weight, bias)

    def op_matmul(self, node: fx.Node, shape: Any, x: Any, weight: Any) -> Value:
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not isinstance(x, Value):
            raise CError(f"{where(node)}: a product of two computed matrices, as in attention, has no form in C yet")
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
        self.step(None, Reduce(where(node), [x.array], [made.array], kind="norm", outer=x.size // count, count=count, eps=eps))
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
            raise CError(f"{where(node)}: an ELU with scales has no form in C")
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
            raise CError(f"{where(node)}: division with rounding has no form in C")
        return self.mapped(node, EXPRESSIONS["div"], shape, [one, other])

    # --- pooling and reductions ---

    def pooled(self, node: fx.Node, shape: Any, x: Value, **fields: Any) -> Value:
        made, flat = self.value(shape), fields.pop("flat")
        channels = math.prod(x.shape[:-1]) if flat else math.prod(x.shape[:-2])
        size = (channels, 1, x.shape[-1]) if flat else (channels, x.shape[-2], x.shape[-1])
        out = (1, shape[-1]) if flat else (shape[-2], shape[-1])
        self.step(node, Pool(where(node), [x.array], [made.array], size=size, out=out, **fields))
        return made

    def op_max_pool2d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      dilation: Any = 1, ceil_mode: bool = False) -> Value:  # fmt: skip
        return self.pooled(node, shape, x, flat=False, kernel=two(kernel), stride=two(stride or kernel), pad=two(padding),
                           dilation=two(dilation))  # fmt: skip

    def op_max_pool1d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      dilation: Any = 1, ceil_mode: bool = False) -> Value:  # fmt: skip
        return self.pooled(node, shape, x, flat=True, kernel=(1, one(kernel)), stride=(1, one(stride or kernel)),
                           pad=(0, one(padding)), dilation=(1, one(dilation)))  # fmt: skip

    def op_avg_pool2d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      ceil_mode: bool = False, count_include_pad: bool = True, divisor: Any = None) -> Value:  # fmt: skip
        divide = str(int(divisor)) if divisor else "padded" if count_include_pad else "inside"
        return self.pooled(node, shape, x, flat=False, kind="mean", kernel=two(kernel), stride=two(stride or kernel),
                           pad=two(padding), divide=divide)  # fmt: skip

    def op_avg_pool1d(self, node: fx.Node, shape: Any, x: Value, kernel: Any, stride: Any = (), padding: Any = 0,
                      ceil_mode: bool = False, count_include_pad: bool = True) -> Value:  # fmt: skip
        return self.pooled(node, shape, x, flat=True, kind="mean", kernel=(1, one(kernel)), stride=(1, one(stride or kernel)),
                           pad=(0, one(padding)), divide="padded" if count_include_pad else "inside")  # fmt: skip

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
            raise CError(f"{where(node)}: a reduction over dimensions that do not follow each other has no form in C")
        made = self.value(shape)
        outer, inner = math.prod(x.shape[: dims[0]]), math.prod(x.shape[dims[-1] + 1 :])
        count = math.prod(x.shape[d] for d in dims)
        self.step(node, Reduce(where(node), [x.array], [made.array], kind=kind, outer=outer, count=count, inner=inner))
        return made

    def op_mean(self, node: fx.Node, shape: Any, x: Value, dims: Any = None, keepdim: bool = False, **rest: Any) -> Value:
        return self.reduced(node, shape, x, dims, "mean")

    def op_sum(self, node: fx.Node, shape: Any, x: Value, dims: Any = None, keepdim: bool = False, **rest: Any) -> Value:
        return self.reduced(node, shape, x, dims, "sum")

    def op_amax(self, node: fx.Node, shape: Any, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
        return self.reduced(node, shape, x, dims, "max")

    def op_linalg_vector_norm(self, node: fx.Node, shape: Any, x: Value, order: Any = 2, dims: Any = None, *rest: Any) -> Value:
        if order not in (1, 2):
            raise CError(f"{where(node)}: a norm of order {order} has no form in C")
        powers = self.mapped(node, "({0} * {0})" if order == 2 else EXPRESSIONS["abs"], x.shape, [x])
        sums = self.reduced(node, shape, powers, dims, "sum")
        return self.mapped(node, EXPRESSIONS["sqrt"], shape, [sums]) if order == 2 else sums

    def op_softmax(self, node: fx.Node, shape: Any, x: Value, dim: int, *rest: Any) -> Value:
        return self.reduced(node, shape, x, dim, "softmax")

    def op_log_softmax(self, node: fx.Node, shape: Any, x: Value, dim: int, *rest: Any) -> Value:
        return self.reduced(node, shape, x, dim, "logsoftmax")

    op__softmax, op__log_softmax = op_softmax, op_log_softmax

    # --- recurrent ---

    def recurrent(self, node: fx.Node, kind: str, x: Value, first: Any, weights: Any, biased: bool, layers: int, dropout: float,
                  train: bool, both: bool, batch_first: bool) -> tuple[Any, ...]:  # fmt: skip
        for state in first if isinstance(first, list) else [first]:
            if not isinstance(state, Tensor) or bool(state.any()):
                raise CError(f"{where(node)}: a recurrent layer whose first state is not zero has no form in C")
        batch, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
        if batch != 1 or len(x.shape) != 3:
            raise CError(f"{where(node)}: a recurrent layer over {batch} sequences at once; C is written for one")
        each, directions = 4 if biased else 2, 2 if both else 1
        if len(weights) != each * layers * directions:
            raise CError(f"{where(node)}: a recurrent layer with projections has no form in C")
        read = any(user.args[1] == 1 for user in node.users)  # the last states; an LSTM's cells have no form in C
        last = self.value((layers * directions, 1, weights[1].shape[1])) if read else None
        for layer in range(layers):
            hidden = weights[each * layer * directions + 1].shape[1]
            made = self.value((steps, directions * hidden))
            for direction in range(directions):
                own = weights[each * (layer * directions + direction) :][:each]
                biases = (own[2], own[3]) if biased else (torch.zeros(len(own[0])), torch.zeros(len(own[0])))
                self.step(
                    None,
                    Recurrent(where(node), [x.array], [made.array], kind=kind, weights=(own[0].double(), own[1].double()),
                              biases=(biases[0].double(), biases[1].double()), steps=steps, backward=bool(direction),
                              offset=direction * hidden, width=directions * hidden),
                )  # fmt: skip
                if last is not None:
                    at = (0 if direction else steps - 1) * directions * hidden + direction * hidden
                    self.copied(node, made, (hidden,), (at, (1,)), ((layer * directions + direction) * hidden, (1,)), last)
            x = made
        out = Value(x.array, (1, steps, x.shape[1]) if batch_first else (steps, 1, x.shape[1]))
        return (out, last, None)

    def op_lstm(self, node: fx.Node, shape: Any, x: Value, *rest: Any) -> tuple[Any, ...]:
        return self.recurrent(node, "lstm", x, *rest)

    def op_gru(self, node: fx.Node, shape: Any, x: Value, *rest: Any) -> tuple[Any, ...]:
        return self.recurrent(node, "gru", x, *rest)


def one(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def two(value: Any) -> tuple[int, int]:
    if isinstance(value, (list, tuple)):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))
