"""Reductions, softmax and pooling: what is reduced over stays, unless the removed entries add nothing to a sum; all else
passes.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from featherweight.structure.nodes import operation
from featherweight.structure.rules.names import table
from featherweight.structure.rules.normalisation import soften
from featherweight.structure.values import NEVER, Reading, Value
from featherweight.structure.walk import Walk

_KEEPS_ZERO = {"mean", "sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm", "var", "std", "cumsum", "logsumexp"} - {
    "logsumexp"
}


_STATISTICS = {"mean", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm"}


def _adds(name: str, bound: dict[str, Any]) -> bool:
    """Does an entry of 0 leave the result as it is? Of sums, and of norms of a positive order."""
    order = bound.get("ord", bound.get("p"))
    return name == "sum" or (name in ("norm", "linalg_vector_norm") and (order is None or (_is_number(order) and order > 0)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _reduce(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """mean, sum, amax, var, ...: the remaining dimensions pass."""
    value: Value = bound["self"]
    n = len(value.shape)
    given = bound.get("dim")
    dims = list(range(n)) if given is None or given == [] else [d % n for d in (given if isinstance(given, list) else [given])]
    name = operation(node)
    for d in dims:
        if not walk.live(value, d):
            continue
        if _adds(name, bound) and value.zero[d]:
            # the entries that go are 0
            walk.readings.append(Reading(node, list(value.planes[d]), value.zero[d], "", 0, "", NEVER, None, 0, False))
            continue
        if name not in _STATISTICS:
            walk.freeze(value, [d], node, f"a {name} is taken over it")
        else:
            soften(walk, node, value, d, f"a {name} is taken over it, which would change")
    outputs = walk.fresh_outputs(node)
    keep = bool(bound.get("keepdim"))
    left = [(d, d) for d in range(n) if d not in dims] if keep else list(enumerate(d for d in range(n) if d not in dims))
    for out in outputs if isinstance(outputs, list) else [outputs]:
        for e, d in left:
            out.planes[e] = value.planes[d]
            out.zero[e] = value.zero[d] if name in _KEEPS_ZERO else NEVER
            out.constant[e] = value.constant[d] if name in ("mean", "amax", "amin", "max", "min") else NEVER
    return outputs


def _along(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """softmax, cumsum, sort, ...: the dimension stays, the others pass."""
    value: Value = bound["self"]
    n = len(value.shape)
    if n == 0:
        return walk.fresh_outputs(node)
    dim = int(bound["dim"] if bound.get("dim") is not None else -1) % n
    walk.freeze(value, [dim], node, f"a {operation(node)} is taken over it")
    outputs = walk.fresh_outputs(node)
    for out in outputs if isinstance(outputs, list) else [outputs]:
        for d in range(n):
            if d != dim:
                out.planes[d] = value.planes[d]
                out.zero[d] = value.zero[d] if operation(node) == "cumsum" else NEVER
    return outputs


_LAST = {"1d": 1, "2d": 2, "3d": 3}


def _pool(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Pooling and upsampling: the trailing dimensions stay, channels and batch pass, on all outputs."""
    value: Value = bound["self"] if "self" in bound else bound["input"]
    name = operation(node)
    last = next((n for key, n in _LAST.items() if key in name), 1)
    n = len(value.shape)
    walk.freeze(value, range(n - last, n), node, "positions that are pooled or resampled")
    outputs = walk.fresh_outputs(node)
    padding = bound.get("padding")
    padded = name.startswith("avg") and any(int(p) for p in (padding if isinstance(padding, list) else [padding or 0]))
    for i, out in enumerate(outputs if isinstance(outputs, list) else [outputs]):
        for d in range(n - last):
            out.planes[d] = value.planes[d]
            if i == 0:
                out.zero[d] = value.zero[d]
                out.constant[d] = NEVER if padded else value.constant[d]
    return outputs


def _grid_sample(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """Channels pass; the grid says where to read."""
    value, grid = bound["input"], bound["grid"]
    walk.freeze(value, range(2, len(value.shape)), node, "positions that are resampled")
    walk.freeze(grid, range(len(grid.shape)), node, "positions that are resampled")
    result = walk.fresh_outputs(node)
    result.planes[:2], result.zero[1] = list(value.planes[:2]), value.zero[1]
    return result


def _einops_free(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """Unary operations that change positions along trailing dimensions by padding: reflection, replication."""
    value: Value = bound["self"]
    n = len(value.shape)
    last = len(bound["padding"]) // 2
    walk.freeze(value, range(n - last, n), node, "positions that are padded")
    result = walk.fresh_outputs(node)
    for d in range(n - last):
        result.planes[d], result.zero[d], result.constant[d] = value.planes[d], value.zero[d], value.constant[d]
    return result


def _normalize_scalar(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """A single number from the whole tensor (all, any, item, equal): freeze all of it."""
    return walk.opaque(node, "one number is made of the whole tensor")


RULES = {
    **table(
        _reduce,
        "mean sum amax amin max min var std norm linalg_vector_norm argmax argmin var_mean std_mean prod logsumexp median "
        "nanmean any all",
    ),
    **table(_along, "softmax log_softmax _softmax cumsum cumprod sort argsort softmin msort cummax logcumsumexp topk kthvalue"),
    **table(
        _pool,
        "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d "
        "avg_pool2d "
        "avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "adaptive_max_pool3d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d upsample_linear1d "
        "upsample_trilinear3d "
        "_upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d lp_pool2d lp_pool1d",
    ),
    **table(_grid_sample, "grid_sampler grid_sampler_2d grid_sampler_3d"),
    **table(
        _einops_free, "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
    ),
}
