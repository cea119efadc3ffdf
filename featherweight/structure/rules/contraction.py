"""Sums of products, written as einsum letters: linear, convolutions, matrix products, attention.

A letter names a dimension of every operand that has it, and these lose the same entries. A letter that is summed over may only
lose entries where one factor is proved 0 there. The network's own tensors are ordinary operands.
"""

from __future__ import annotations

import string
from math import prod
from typing import Any

import numpy as np
from torch import fx

from featherweight.structure.balance import Even
from featherweight.structure.nodes import shape_of
from featherweight.structure.rules.names import table
from featherweight.structure.values import ALWAYS, NEVER, Factor, Proof, Reading, Value, both, either
from featherweight.structure.walk import Walk

_TIE = "dimensions that are multiplied with each other, where nothing of one can go"


def contract(
    walk: Walk, node: fx.Node, operands: list[Value], letters: list[str], out: str, bias: Value | None = None, times: int = 1
) -> Value:
    """Apply the rule for einsum `letters -> out`, count the products, record what is summed. `bias` lies along the last letter
    of out.
    """
    order = list(dict.fromkeys("".join(letters)))
    sizes = {
        letter: max(v.shape[s.index(letter)] for v, s in zip(operands, letters, strict=True) if letter in s) for letter in order
    }
    result = Value.plain(tuple(sizes[letter] for letter in out))
    factors = []
    for letter in order:
        holders = [(v, s.index(letter)) for v, s in zip(operands, letters, strict=True) if letter in s]
        full = [(v, d) for v, d in holders if v.shape[d] == sizes[letter]]
        planes = walk.equal(holders, node, _TIE)
        proof: Proof = NEVER
        for v, d in full:
            proof = either(proof, v.zero[d])
        if letter in out:
            e = out.index(letter)
            result.planes[e], result.zero[e] = planes, proof
            if len(full) == 1 and len(holders) == 1:
                # nothing but this factor depends on the letter: its entries give constants where all of it is 0
                result.constant[e] = proof
        elif walk.labels.resolve(planes):
            if not proof:
                walk.freeze(full[0][0], [full[0][1]], node, "it is summed over and its entries are not proved to be 0")
            else:
                walk.readings += _readings(walk, node, full, planes)
        factors.append(Factor(planes, sizes[letter]))
    walk.count(node, factors, times)
    if bias is not None:
        e = len(out) - 1
        result.planes[e] = walk.equal([(result, e), (bias, 0)], node, _TIE)
        result.zero[e] = both(result.zero[e], bias.zero[0])
        result.constant[e] = both(result.constant[e], bias.constant[0]) if result.constant[e] else NEVER
        for d in range(e):
            result.zero[d] = NEVER
    return result


def _readings(walk: Walk, node: fx.Node, full: list[tuple[Value, int]], planes: Any, padded: bool = False) -> list[Reading]:
    """One record per activation side of a sum, with the network's own tensor on the other side if there is one."""
    nodes = {id(walk.values[n]): n for n in node.all_input_nodes if isinstance(walk.values.get(n), Value)}
    own = [(v, d) for v, d in full if nodes.get(id(v)) in walk.owner]
    rest = [(v, d) for v, d in full if nodes.get(id(v)) not in walk.owner]
    weight, weight_dim = (walk.owner[nodes[id(own[0][0])]], own[0][1]) if own else ("", 0)
    proof: Proof = NEVER
    for v, d in rest:
        proof = either(proof, v.zero[d])
    bias = _bias_name(walk, node)
    source, source_dim = (nodes.get(id(rest[0][0])), rest[0][1]) if len(rest) == 1 else (None, 0)
    constant = rest[0][0].constant[source_dim] if source is not None else NEVER
    return [
        Reading(
            node,
            planes,
            proof,
            weight,
            weight_dim,
            bias,
            constant,
            source,
            source_dim,
            bool(weight and bias and source) and not padded,
        )
    ]


def _bias_name(walk: Walk, node: fx.Node) -> str:
    """The tensor of the network that is this operation's bias."""
    target: Any = node.target
    for i, argument in enumerate(target._schema.arguments):
        if argument.name == "bias":
            given = node.args[i] if i < len(node.args) else node.kwargs.get("bias")
            return walk.owner.get(given, "") if isinstance(given, fx.Node) else ""
    return ""


def _linear(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    x, weight, bias = bound["input"], bound["weight"], bound["bias"]
    lead = _letters(len(x.shape) - 1)
    out = lead + ("Z" if len(weight.shape) == 2 else "")
    return contract(walk, node, [x, weight], [lead + "Y", ("Z" if len(weight.shape) == 2 else "") + "Y"], out, bias)


def _stacked(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Rows (rows, K) times one matrix each of a stack (experts, K, M), the rows of each expert beside each other: experts are
    picked by number and stay, and their matrices lose the same entries."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    rows, stack = bound[names[0]], bound[names[1]]
    if len(rows.shape) != 2 or len(stack.shape) != 3 or bound.get("bias") is not None:
        return walk.opaque(node, "the operation has no rule")
    walk.freeze(stack, [0], node, "experts are picked by number")
    one = Value(stack.shape[1:], stack.planes[1:], stack.zero[1:], stack.constant[1:])
    return contract(walk, node, [rows, one], ["aK", "KM"], "aM")


def _letters(n: int) -> str:
    return "abcdefghijklm"[:n]


def _matmul(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    a = bound["self"]
    b = bound.get("other") or bound.get("mat2") or bound.get("vec") or bound.get("tensor")
    assert isinstance(b, Value)
    return product(walk, node, a, b)


def product(walk: Walk, node: fx.Node, a: Value, b: Value, bias: Value | None = None) -> Value:
    """Batched matrix product with broadcasting, as `torch.matmul`."""
    na, nb = len(a.shape), len(b.shape)
    batch = _letters(max(na, nb, 2) - 2)
    first = "K" if na == 1 else batch[len(batch) - (na - 2) :] + "MK" if na > 2 else "MK"
    second = "K" if nb == 1 else batch[len(batch) - (nb - 2) :] + "KN" if nb > 2 else "KN"
    out = batch + ("M" if na > 1 else "") + ("N" if nb > 1 else "")
    return contract(walk, node, [a, b], [first, second], out, bias)


def _addmm(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    a, b = bound.get("mat1") or bound.get("batch1"), bound.get("mat2") or bound.get("batch2")
    added: Value = bound["self"]
    assert isinstance(a, Value) and isinstance(b, Value)
    if len(added.shape) == 1:
        return product(walk, node, a, b, added)
    result = product(walk, node, a, b)
    lead = len(result.shape) - len(added.shape)
    for e in range(len(result.shape)):
        if e - lead >= 0 and added.shape[e - lead] == result.shape[e] and result.shape[e] > 1:
            result.planes[e] = walk.equal([(result, e), (added, e - lead)], node, _TIE)
            result.zero[e] = both(result.zero[e], added.zero[e - lead])
        else:
            result.zero[e] = NEVER
        result.constant[e] = NEVER
    return result


def _einsum(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    equation, operands = str(bound["equation"]).replace(" ", ""), bound["tensors"]
    if "..." in equation:
        equation = _spelt_out(equation, [len(v.shape) for v in operands])
    left, arrow, out = equation.partition("->")
    letters = left.split(",")
    if any(len(set(s)) < len(s) for s in letters):
        return walk.opaque(node, "an einsum with repeated letters")
    if not arrow:
        joined = left.replace(",", "")
        out = "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    return contract(walk, node, operands, letters, out)


def _spelt_out(equation: str, dims: list[int]) -> str:
    """The equation with letters in place of `...`, which stands for the same last dimensions in each operand that has it."""
    left, arrow, out = equation.partition("->")
    parts = left.split(",")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [n - len(part.replace("...", "")) if "..." in part else 0 for n, part in zip(dims, parts, strict=True)]
    names = free[: max(hidden)]
    spelt = [part.replace("...", "".join(names[len(names) - n :])) for part, n in zip(parts, hidden, strict=True)]
    if not arrow:
        joined = left.replace(",", "").replace("...", "")
        out = "..." + "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    return ",".join(spelt) + "->" + out.replace("...", "".join(names))


def _conv(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    x, weight, bias = bound["input"], bound["weight"], bound["bias"]
    transposed = bool(bound.get("transposed", False)) or "transpose" in str(node.target)
    groups = int(bound.get("groups") or 1)
    shape = shape_of(node)
    spatial = len(weight.shape) - 2
    if shape is None or len(x.shape) != spatial + 2:
        return walk.opaque(node, "a convolution without a batch dimension")
    walk.freeze(x, range(2, len(x.shape)), node, "positions that a kernel slides over")
    walk.freeze(weight, range(2, len(weight.shape)), node, "positions of a kernel")
    result = Value.plain(shape)
    result.planes[0], result.zero[0] = x.planes[0], NEVER if bias is not None else x.zero[0]
    # weight: (out, in/groups, k...) or, transposed, (in, out/groups, k...)
    padded = transposed or groups > 1 or any(int(p) != 0 for p in _as_list(bound.get("padding")))
    if groups == 1:
        inner, outer = (0, 1) if transposed else (1, 0)
        summed = walk.equal([(x, 1), (weight, inner)], node, _TIE)
        _summed(walk, node, x, weight, inner, summed, padded)
        result.planes[1], result.zero[1] = weight.planes[outer], weight.zero[outer]
    elif node.name in walk.counted:
        _counted(walk, node, x, weight, groups, result)
    else:
        _boxed(walk, node, x, weight, groups, transposed, result)
    result.constant[1] = result.zero[1]
    if bias is not None:
        result.planes[1] = walk.equal([(result, 1), (bias, 0)], node, _TIE)
        result.constant[1] = both(result.constant[1], bias.constant[0]) if result.constant[1] else NEVER
        result.zero[1] = both(result.zero[1], bias.zero[0])
    positions = prod(x.shape[2:]) if transposed else prod(shape[2:])
    walk.count(
        node, [walk.factor(x, 0), walk.factor(weight, 0), walk.factor(weight, 1)], positions * prod(weight.shape[2:])
    )  # fmt: skip
    return result


def _boxed(walk: Walk, node: fx.Node, x: Value, weight: Value, groups: int, transposed: bool, result: Value) -> None:
    """Whole groups may go, and the same place of every group."""
    per_in, per_out = x.shape[1] // groups, result.shape[1] // groups
    why = _group_reason(walk, node, groups)
    x_group, x_place = _grouped(walk, x.planes[1], groups, per_in, why)
    own = weight.planes[0]
    if transposed:
        w_group, w_place = _grouped(walk, own, groups, per_in, why)
        walk.labels.equal(x_place, w_place, why)
    else:
        w_group, w_out = _grouped(walk, own, groups, per_out, why)
        walk.labels.equal(x_place, weight.planes[1], why)
    walk.labels.equal(x_group, w_group, why)
    places = walk.labels.resolve([np.tile(p, groups) for p in x_place])
    _summed(walk, node, x, weight, 0 if transposed else 1, places, True)
    if transposed:
        planes = [np.repeat(p, per_out) for p in w_group] + [np.tile(p, groups) for p in weight.planes[1]]
        result.planes[1] = walk.labels.resolve(planes)
        result.zero[1] = both(weight.zero[0], weight.zero[1])
    else:
        result.planes[1] = walk.labels.resolve([np.repeat(p, per_out) for p in w_group] + [np.tile(p, groups) for p in w_out])
        result.zero[1] = weight.zero[0]
    source = node.args[1]
    if not transposed and per_in > 1 and isinstance(source, fx.Node) and source in walk.owner and len(source.users) == 1:
        walk.grouped[node.name] = x.planes[1], weight.planes[0]


def _counted(walk: Walk, node: fx.Node, x: Value, weight: Value, groups: int, result: Value) -> None:
    """Any channels may go, equally many of every group: each group's rows of the weight have columns of their own."""
    why = _group_reason(walk, node, groups)
    source = node.args[1]
    assert isinstance(source, fx.Node)
    weight.planes[1] = walk.tensors[walk.owner[source]].planes[1] = x.planes[1]
    walk.even += [Even(x.planes[1], groups, why), Even(weight.planes[0], groups, why)]
    _summed(walk, node, x, weight, 1, x.planes[1], True)
    result.planes[1], result.zero[1] = weight.planes[0], weight.zero[0]


def _group_reason(walk: Walk, node: fx.Node, groups: int) -> str:
    return f"channels of a convolution in {groups} groups ({walk.where(node)})"


def _grouped(walk: Walk, planes: Any, groups: int, size: int, why: str) -> tuple[Any, Any]:
    """A channel dimension as (group, place in the group)."""
    group: list[Any] = []
    place: list[Any] = []
    for plane in walk.labels.resolve(planes):
        found = walk.labels.normal(plane.reshape(groups, size), why)
        group, place = group + found[0], place + found[1]
    return walk.labels.resolve(group), walk.labels.resolve(place)


def _summed(walk: Walk, node: fx.Node, x: Value, weight: Value, inner: int, planes: Any, padded: bool) -> None:
    """The channels of a convolution's input are summed: one factor must be 0 where they go."""
    if not walk.labels.resolve(planes):
        return
    if not either(x.zero[1], weight.zero[inner]):
        walk.freeze(x, [1], node, "it is summed over and its entries are not proved to be 0")
        return
    walk.readings += _readings(walk, node, [(x, 1), (weight, inner)], planes, padded)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [0 if value in (None, "valid") else 1 if isinstance(value, str) else value]


def _attention(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Two contractions with a softmax over the keys between them; heads may go, and places in a head."""
    query, key, value, mask = bound["query"], bound["key"], bound["value"], bound["attn_mask"]
    n = len(query.shape)
    grouped = bool(bound.get("enable_gqa"))
    for v in (query, key, value):
        walk.freeze(v, [n - 2], node, "positions that attend to each other")
    if mask is not None:
        walk.freeze(mask, range(max(0, len(mask.shape) - 2), len(mask.shape)), node, "positions that attend to each other")
    why = "heads of attention"
    shape = (*query.shape[:-1], value.shape[-1])
    result = Value.plain(shape)
    for d in range(n - 2):
        parts = [(v, d) for v in (query, key, value)]
        if mask is not None and d - (n - len(mask.shape)) >= 0:
            parts.append((mask, d - (n - len(mask.shape))))
        if grouped and d == n - 3 and key.shape[d] != query.shape[d]:
            # head h of the query reads key and value head h // repeats
            walk.equal([(key, d), (value, d)], node, why)
            repeats = query.shape[d] // key.shape[d]
            group, place = _grouped(walk, query.planes[d], key.shape[d], repeats, f"{why} ({walk.where(node)})")
            walk.labels.equal(group, key.planes[d], f"{why} ({walk.where(node)})")
            result.planes[d] = walk.labels.resolve(
                [np.repeat(p, repeats) for p in group] + [np.tile(p, key.shape[d]) for p in place]
            )
            result.zero[d] = value.zero[d] if not place else NEVER
        else:
            result.planes[d] = walk.equal(parts, node, why)
            result.zero[d] = value.zero[d]
    summed = walk.labels.resolve(walk.equal([(query, n - 1), (key, n - 1)], node, _TIE))
    if summed and not either(query.zero[n - 1], key.zero[n - 1]):
        walk.freeze(query, [n - 1], node, "it is summed over and its entries are not proved to be 0")
        summed = []
    if summed:
        walk.readings += _readings(walk, node, [(query, n - 1), (key, n - 1)], summed)
    result.planes[-1], result.zero[-1] = value.planes[n - 1], value.zero[n - 1]
    heads = [Factor(result.planes[d], shape[d]) for d in range(n - 2)]
    walk.count(node, [*heads, Factor(summed, query.shape[-1])], query.shape[-2] * key.shape[-2])
    walk.count(node, [*heads, walk.factor(value, n - 1)], query.shape[-2] * key.shape[-2])
    return result


def _bilinear(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    return walk.opaque(node, "the operation has no rule")


RULES: dict[Any, Any] = {
    **table(_stacked, "_grouped_mm grouped_mm"),
    "grouped_mm_fallback": _stacked,  # an operation of the transformers package, in place of the other where that has no kernel
    **table(_linear, "linear"),
    **table(_matmul, "matmul mm bmm mv dot"),
    **table(_addmm, "addmm baddbmm"),
    **table(_einsum, "einsum"),
    **table(_conv, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution"),
    **table(_attention, "scaled_dot_product_attention"),
    **table(_bilinear, "bilinear"),
}
__all__ = ["ALWAYS", "RULES", "contract", "product"]
