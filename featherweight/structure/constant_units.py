"""Silence: units whose filters are 0 but whose batch norm still gives a constant.

A reader that pads cannot take a constant into its bias, so `sweep` has to leave such units where they are. Where the filters were
given up on purpose (`TopRows`), the constant is no part of what is to be kept: with scale and shift 0 the unit is dead.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from featherweight.structure.cut import check_fresh
from featherweight.structure.graph import Graph


def silence(model: nn.Module, graph: Graph, weights: Iterable[str]) -> bool:
    """Set scale and shift of the batch norms to 0, in place, for units that one of `weights` makes with a row of zeros (along
    dimension 0) and no weight with any other row; True if there were any. It changes what the network computes.
    """
    check_fresh(model, graph)
    zero = np.zeros(graph.walk.labels.used, dtype=bool)
    alive = zero.copy()
    targets = set(weights)
    for (name, dim), planes in graph.planes.items():
        weight = graph.captured.tensors[name]
        if dim or weight.ndim < 2 or graph.kinds[name] != "parameter":
            continue
        empty = (weight.detach().flatten(1) == 0).all(1).cpu().numpy()
        for plane in planes:
            alive[plane[~empty]] = True
            if name in targets:
                zero[plane[empty]] = True
    found = False
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or not module.affine:
            continue
        for plane in graph.planes.get((f"{name}.weight", 0), []):
            silent = torch.from_numpy((zero & ~alive)[plane])
            silent &= ((module.weight != 0) | (module.bias != 0)).cpu()
            found |= bool(silent.any())
            with torch.no_grad():
                module.weight[silent] = 0
                module.bias[silent] = 0
    return found
