"""Operations on each entry alone (torch tags them, and a few that it does not): operands of full size lose the same entries."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from featherweight.structure.nodes import shape_of
from featherweight.structure.rules.names import table
from featherweight.structure.values import ALWAYS, NEVER, Proof, Value, both, either
from featherweight.structure.walk import Walk


def pointwise(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Equal over operands of full size; a size of 1 is a broadcast and says nothing."""
    shape = shape_of(node)
    operands = [v for v in bound.values() if isinstance(v, Value)]
    if shape is None or any(isinstance(v, list) and any(isinstance(i, Value) for i in v) for v in bound.values()):
        return walk.opaque(node, "the operation has no rule")
    result = Value.plain(shape)
    target: Any = node.target
    names = tuple(name for name, v in bound.items() if isinstance(v, Value))
    scalars = tuple((name, _plain(v)) for name, v in bound.items() if not isinstance(v, Value))
    for e in range(len(shape)):
        full: list[tuple[Value, int]] = []
        for value in operands:
            d = e - (len(shape) - len(value.shape))
            if d >= 0 and value.shape[d] == shape[e] and shape[e] > 1:
                full.append((value, d))
        if not full:
            continue
        if not any(value.planes[d] for value, d in full):
            continue
        result.planes[e] = walk.equal(full, node, "operands of one size where nothing of one can go")
        if not result.planes[e]:
            continue
        zeros: list[Proof] = []
        constants: list[Proof] = []
        for value in operands:
            d = e - (len(shape) - len(value.shape))
            inside = d >= 0 and value.shape[d] == shape[e]
            zeros.append(value.zero[d] if inside else NEVER)
            constants.append(value.constant[d] if inside else NEVER)
        result.zero[e] = _zero_proof(target, names, scalars, zeros)
        constant: Proof = ALWAYS
        for proof in constants:
            constant = both(constant, proof)
        result.constant[e] = constant
    return result


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _zero_proof(target: Any, names: tuple[str, ...], scalars: tuple[tuple[str, Any], ...], proofs: list[Proof]) -> Proof:
    """Proof of a zero result: from any single operand that forces it (a product), else from all together (a sum)."""
    result: Proof = NEVER
    single = False
    for i, proof in enumerate(proofs):
        if proof and _gives_zero(target, names, scalars, frozenset([i])):
            result, single = either(result, proof), True
    if single:
        return result
    provable = frozenset(i for i, proof in enumerate(proofs) if proof)
    if provable and _gives_zero(target, names, scalars, provable):
        result = ALWAYS
        for i in provable:
            result = both(result, proofs[i])
    return result


def _gives_zero(target: Any, names: tuple[str, ...], scalars: tuple[tuple[str, Any], ...], zeros: frozenset[int]) -> bool:
    try:
        return _run_zero(target, names, scalars, zeros)
    except TypeError:  # an argument that cannot be hashed
        return False


@cache
def _run_zero(target: Any, names: tuple[str, ...], scalars: tuple[tuple[str, Any], ...], zeros: frozenset[int]) -> bool:
    """Run the operation on a few entries with 0 in the operands named: is the result 0, whatever the others hold?"""
    others = [torch.tensor([-1.7, -0.3, 0.4, 2.2]), torch.tensor([0.9, -2.1, 1.3, -0.6]), torch.tensor([1.1, 0.2, -0.8, 3.0])]
    logic = [torch.tensor([True, False, True, False]), torch.tensor([True, True, False, False])]
    arguments: dict[str, Any] = {}
    for i, name in enumerate(names):
        arguments[name] = torch.zeros(4) if i in zeros else others[i % 3].clone()
        if name in ("mask", "condition") and i not in zeros:
            arguments[name] = logic[i % 2].clone()
    arguments |= {name: list(v) if isinstance(v, tuple) else v for name, v in scalars if name not in ("device", "out", "dtype")}
    try:
        with torch.no_grad():
            out = target(**arguments)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    return isinstance(out, Tensor) and not bool(out.to(torch.float32).ne(0).any())


def _prelu(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """One slope per channel (dimension 1), or one for all."""
    value, weight = bound["self"], bound["weight"]
    result = value.like()
    channel = 1 if len(value.shape) > 1 else 0
    if weight.shape and weight.shape[0] > 1:
        result.planes[channel] = walk.equal(
            [(value, channel), (weight, 0)], node, "operands of one size where nothing of one can go"
        )
    return result


def _glu(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """First half times the sigmoid of the second: both halves lose the same entries."""
    value: Value = bound["self"]
    dim = int(bound["dim"]) % len(value.shape)
    half = value.shape[dim] // 2
    planes = walk.live(value, dim)
    walk.labels.equal([p[:half] for p in planes], [p[half:] for p in planes], f"operands of one size ({walk.where(node)})")
    result = value.like()
    result.shape = tuple(half if d == dim else s for d, s in enumerate(value.shape))
    result.planes[dim] = walk.labels.resolve([p[:half] for p in planes])
    return result


_UNTAGGED = (
    "hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ relu6 relu6_ relu relu_ leaky_relu leaky_relu_ elu elu_ "
    "selu selu_ celu "
    "celu_ gelu gelu_ silu silu_ mish mish_ softplus logsigmoid log_sigmoid threshold threshold_ rrelu sigmoid sigmoid_ tanh "
    "tanh_ "
    "add add_ sub sub_ mul mul_ div div_ pow pow_ where clamp clamp_ clamp_min clamp_max masked_fill masked_fill_ lerp addcmul "
    "addcdiv exp sqrt "
    "rsqrt abs neg square reciprocal erf sin cos floor_divide remainder __and__ __or__ logical_not bitwise_not bitwise_and eq ne "
    "lt le gt ge "
    "maximum minimum true_divide multiply subtract divide rsub softshrink hardshrink tanhshrink softsign nan_to_num clip isnan "
    "logical_and "
    "logical_or __rsub__ atan2 fmod floor ceil round trunc sign log log2 log10 log1p expm1 sinh cosh tan asin acos atan isinf "
    "log_sigmoid_forward"
)

RULES: dict[Any, Any] = {
    **table(pointwise, _UNTAGGED),
    **table(_prelu, "prelu _prelu_kernel"),
    **table(_glu, "glu"),
    "pointwise": pointwise,
}
