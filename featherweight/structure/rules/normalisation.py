"""Batch, instance, group, layer and root-mean-square norms.

Batch and instance norms look at each channel alone. The others take a statistic over channels, which changes when one goes:
such channels are frozen unless the user asked for them (`soft`), whole groups of a group norm excepted, which are exact.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from torch import fx

from featherweight.structure.nodes import operation
from featherweight.structure.rules.names import table
from featherweight.structure.values import NEVER, Value, both
from featherweight.structure.walk import Walk

STATISTIC = "a norm takes a statistic over it, which would change"
_TIE = "channels and their norm's parameters, where nothing of one can go"


def _per_channel(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """batch_norm, instance_norm. Where the statistics are taken here, and not held in buffers, nothing goes along the dimensions
    they are taken over: that is how a weight is standardised, over all the inputs of each output."""
    x = bound.get("input") if "input" in bound else bound["self"]
    assert isinstance(x, Value)
    batches = operation(node) == "batch_norm"
    fresh = bool(bound.get("training") if batches else bound.get("use_input_stats")) or not isinstance(
        bound.get("running_mean"), Value
    )
    over = [d for d in range(len(x.shape)) if d != 1 and (d or batches)] if fresh else []
    for d in over:
        soften(walk, node, x, d, STATISTIC)
    weight, bias = bound.get("weight"), bound.get("bias")
    statistics = [bound.get("running_mean"), bound.get("running_var")]
    parts = [(x, 1)] + [(v, 0) for v in (weight, bias, *statistics) if isinstance(v, Value)]
    result = Value.plain(x.shape)
    result.planes = list(x.planes)
    result.planes[1] = walk.equal(parts, node, _TIE)
    if isinstance(weight, Value) and isinstance(bias, Value):
        result.zero[1] = both(weight.zero[0], bias.zero[0])
    elif fresh and weight is None and bias is None:
        result.zero[1] = x.zero[1]  # what is 0 throughout has the mean 0
    result.constant[1] = x.constant[1]
    return result


def _over_dims(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """layer_norm, rms_norm: a statistic over the last dimensions."""
    x: Value = bound["input"]
    last = len(bound["normalized_shape"])
    n = len(x.shape)
    dims = range(n - last, n)
    result = Value.plain(x.shape)
    result.planes = list(x.planes)
    affine = [v for v in (bound.get("weight"), bound.get("bias")) if isinstance(v, Value)]
    for d in dims:
        if soften(walk, node, x, d, STATISTIC):
            result.planes[d] = walk.equal([(x, d), *((v, d - (n - last)) for v in affine)], node, _TIE)
            result.zero[d] = NEVER if not affine else affine[0].zero[d - (n - last)]
            for v in affine[1:]:
                result.zero[d] = both(result.zero[d], v.zero[d - (n - last)])
            if not affine:
                result.zero[d] = x.zero[d]
        else:
            result.planes[d] = []
            for v in affine:
                walk.freeze(v, [d - (n - last)], node, STATISTIC)
    return result


def soften(walk: Walk, node: fx.Node, value: Value, dim: int, reason: str) -> bool:
    """May this dimension lose entries although a statistic over it changes? Only where the user asked; it is noted then."""
    if not walk.soft:
        walk.freeze(value, [dim], node, reason)
        return False
    if walk.live(value, dim):
        walk.softened.append((f"{reason} ({walk.where(node)})", list(value.planes[dim])))
    return True


def _group_norm(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Value:
    """Whole groups may go, places in a group not."""
    x: Value = bound["input"]
    groups = int(bound["num_groups"])
    affine = [v for v in (bound.get("weight"), bound.get("bias")) if isinstance(v, Value)]
    size = x.shape[1] // groups
    reason = f"a norm takes a statistic over the channels of a group ({walk.where(node)})"
    result = Value.plain(x.shape)
    result.planes = list(x.planes)
    planes = walk.equal([(x, 1), *((v, 0) for v in affine)], node, _TIE)
    group: list[Any] = []
    place: list[Any] = []
    for plane in planes:
        found = walk.labels.normal(plane.reshape(groups, size), reason)
        group, place = group + found[0], place + found[1]
    place = walk.labels.resolve(place)
    if place and walk.soft:
        walk.softened.append((reason, [np.tile(p, groups) for p in place]))
    else:
        walk.labels.freeze(place, reason)
    result.planes[1] = walk.labels.resolve(planes)
    if len(affine) == 2:
        result.zero[1] = both(affine[0].zero[0], affine[1].zero[0])
    elif not affine:
        result.zero[1] = x.zero[1]
    return result


def _weight_norm(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """v g / |v|, the size of v over all dimensions but one. Along that one g alone makes an entry 0: v must not be, for what is
    divided by 0 is no number. Along the others entries of 0 add nothing to the size."""
    v, g, dim = bound["v"], bound["g"], int(bound["dim"])
    own = walk.owner.get(node.args[0])  # type: ignore[arg-type]
    if own is None or dim < 0:
        return walk.opaque(node, "the operation has no rule")
    result = Value.plain(v.shape)
    result.planes = list(v.planes)
    result.planes[dim] = walk.equal([(v, dim), (g, dim)], node, _TIE)
    result.zero = [g.zero[d] if d == dim else v.zero[d] for d in range(len(v.shape))]
    walk.divided.add((own, dim))
    return result


def normalised_size(shape: tuple[int, ...], last: int) -> int:
    return prod(shape[len(shape) - last :])


RULES = {
    **table(_per_channel, "batch_norm instance_norm"),
    **table(_over_dims, "layer_norm rms_norm"),
    **table(_group_norm, "group_norm"),
    **table(_weight_norm, "_weight_norm"),
}
