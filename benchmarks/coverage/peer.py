"""The same networks by torch-pruning, and what of it this library cuts too."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.coverage.measure import apart, floating, randomise
from benchmarks.coverage.suites import SUITES

LEAST = 0.47  # of the outputs of a layer, which few units round down: a site that keeps fewer has not lost half
Left = dict[tuple[str, bool], np.ndarray]  # (layer, of its inputs?) -> numbers of the channels that are left


def torch_pruning(suite: str, name: str) -> dict[str, Any]:
    """Torch-Pruning on the same network: half of all channels, output layer left alone; is what it cut what it should be?"""
    try:
        import torch_pruning as tp
    except ImportError:
        return {"tp": "not installed"}
    import copy

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = SUITES[suite](name)
    randomise(model)
    model.double()
    example = tuple(t.double() if t.is_floating_point() else t for t in example)
    total = sum(p.numel() for p in model.parameters())
    reference = copy.deepcopy(model)
    names = {module: path for path, module in model.named_modules()}
    left: Left = {}
    with torch.no_grad():
        first = model(*example)
    tensors = [o for o in torch.utils._pytree.tree_leaves(first) if isinstance(o, Tensor)]
    classes = {int(t.shape[-1]) for t in tensors} | {int(t.shape[1]) for t in tensors if t.dim() > 1}
    ignored = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv1d)) and m.weight.shape[0] in classes][
        -1:
    ]
    heads = {
        m.qkv: m.num_heads for m in model.modules() if hasattr(m, "num_heads") and isinstance(getattr(m, "qkv", None), nn.Linear)
    }
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.RandomImportance(), pruning_ratio=0.5, ignored_layers=ignored, num_heads=heads
    )
    checked = True
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            module = dependency.target.module
            path = names.get(module)
            if path is None:
                checked = False
                continue
            inward = "in_channels" in dependency.handler.__name__
            checked &= zero_like_tp(reference.get_submodule(path), inward, np.asarray(indices), left, path)
        group.prune()
    with torch.no_grad():
        result = model(*example)
        expected = reference(*example)
    cut = round(1 - sum(p.numel() for p in model.parameters()) / total, 4)
    error = apart(floating(expected), floating(result))
    row: dict[str, Any] = {
        "tp": "exact" if error <= 1e-9 else "runs, not checked" if not checked and error < float("inf") else "different",
        "tp_error": error,
        "tp_cut": cut,
    }
    shares = [len(alive) / (channels(reference.get_submodule(path), False) or 1) for path, alive in outputs(left)]
    row["tp_fewest"] = round(min(shares, default=1.0), 4)
    return row | (same_units(*SUITES[suite](name), left) if row["tp"] == "exact" and row["tp_fewest"] < LEAST else {})


def outputs(left: Left) -> list[tuple[str, np.ndarray]]:
    """(layer, which of its outputs are left)."""
    return [(path, alive) for (path, inward), alive in left.items() if not inward]


def same_units(model: nn.Module, example: tuple[Tensor, ...], left: Left) -> dict[str, Any]:
    """The very units that torch-pruning took, taken by this library: a unit goes where one of its channels went."""
    from featherweight import FeatherweightError
    from featherweight.structure import prune, trace

    randomise(model)
    total = sum(p.numel() for p in model.parameters())
    graph = trace(model, example)
    gone: set[int] = set()
    for path, alive in outputs(left):
        for plane in graph.planes.get((f"{path}.weight", 0), ()):
            gone.update(np.delete(plane, alive).tolist())
    keep = {n: [i for i, label in enumerate(site.labels.tolist()) if label not in gone] for n, site in graph.sites.items()}
    keep = {n: units for n, units in keep.items() if len(units) < graph.sites[n].size}
    try:
        done = prune(model, graph, keep, where="graph", any_batch=False)
    except FeatherweightError as error:
        return {"same": f"{type(error).__name__}: {error}"[:200]}
    cut = round(1 - sum(p.numel() for p in done.model.parameters()) / total, 4)
    return {"same": "exact" if (done.check.error or 0) <= 1e-9 else "wrong", "same_cut": cut}


def channels(module: nn.Module, inward: bool) -> int | None:
    """Of a layer's inputs or outputs; None for layers that this check does not know."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return module.in_channels if inward else module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features if inward else module.out_features
    return module.num_features if isinstance(module, nn.modules.batchnorm._BatchNorm) else None


def zero_like_tp(module: nn.Module, inward: bool, indices: np.ndarray, left: Left, path: str) -> bool:
    """Set to 0 in the reference what Torch-Pruning is about to remove; False for layers that this check does not know."""
    grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    size = channels(module, inward)
    if size is None:
        return isinstance(module, nn.PReLU) or type(module).__module__.startswith("torch_pruning")
    alive = left.setdefault((path, inward), np.arange(size))
    gone = torch.from_numpy(alive[indices])
    left[path, inward] = np.delete(alive, indices)
    with torch.no_grad():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                module.weight[gone] = 0
                module.bias[gone] = 0
        else:
            weight = module.weight
            dim = 1 if inward else 0
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                dim = 1 - dim
            if grouped and inward:
                per_in, per_out = module.in_channels // module.groups, module.out_channels // module.groups
                for i in gone.tolist():
                    weight[i // per_in * per_out : (i // per_in + 1) * per_out, i % per_in] = 0
            else:
                weight.index_fill_(dim, gone, 0)
            if not inward and module.bias is not None:
                module.bias[gone] = 0
    return True
