"""One network traced, cut and compared; the same by torch-pruning; each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.coverage.suites import SUITES, stand_in_for_torchvision

SECONDS, GIGABYTES = {"one": 300, "peer": 120, "half": 120}, 10  # of processor time: the machine has other work
SECONDS_DRAWN = 120  # each part of a network drawn from timm's list


def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters that are not the identity, and no branch that a zero initialisation hides."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
        for parameter in model.parameters():
            if parameter.dim() <= 1 or not bool(parameter.any()):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


# ---------------------------------------------------------------- one row


def measure(suite: str, name: str) -> dict[str, Any]:
    from featherweight.structure import expressible, prune
    from featherweight.structure.capture import capture
    from featherweight.structure.errors import NotExact, NotExportable
    from featherweight.structure.tracing import analyse

    torch.set_num_threads(1)
    torch.manual_seed(0)
    row: dict[str, Any] = {"suite": suite, "name": name}
    model, example = SUITES[suite](name)
    randomise(model)
    total = sum(p.numel() for p in model.parameters())
    row |= {"parameters": total, "input": [list(t.shape) for t in example if isinstance(t, Tensor)]}
    start = time.process_time()
    try:
        captured = capture(model, example)
    except NotExportable as error:
        return row | {"traced": False, "why": str(error)[:300]}
    row["export_seconds"] = round(time.process_time() - start, 2)
    start = time.process_time()
    graph = analyse(captured, model)
    row["analysis_seconds"] = round(time.process_time() - start, 2)
    row |= {
        "traced": True,
        "sites": len(graph.sites),
        "frozen": len(graph.frozen),
        "uncounted": graph.uncounted,
        "macs": graph.macs(),
    }
    reasons: dict[str, int] = {}
    for reason in graph.frozen.values():
        key = reason.split(" (")[0]
        reasons[key] = reasons.get(key, 0) + 1
    row["reasons"] = reasons
    accounted = set(graph.frozen) | {captured.tied.get(t, t) for s in graph.sites.values() for t, _ in s.parameters}
    row["unaccounted"] = sum(captured.tied.get(n, n) not in accounted and n not in accounted for n, _ in model.named_parameters())
    row["prunable"] = round(
        sum(
            np.prod(graph.tensors[t])
            for t in {t for s in graph.sites.values() for t, _ in s.parameters}
            if graph.kinds[t] == "parameter"
        )
        / total,
        4,
    )
    if suite == "timm":
        softly = analyse(captured, model, soft=True)
        row["soft_cut"] = round(1 - softly.parameters({n: max(1, s.size // 2) for n, s in softly.sites.items()}) / total, 4)
    rng = np.random.default_rng(0)
    half = {n: np.sort(rng.permutation(s.size)[: max(1, s.size // 2)]).tolist() for n, s in graph.sites.items()}
    half = {n: keep for n, keep in half.items() if len(keep) < graph.sites[n].size}
    if not half:
        return row | {"graph": "frozen", "class": "frozen", **memory()}
    before = plain_outputs(model, captured.inputs)
    start = time.process_time()
    result = prune(model, graph, half, where="graph", any_batch=False)
    row["graph_seconds"] = round(time.process_time() - start, 2)
    row |= {"graph": result.where, "graph_error": result.check.error, "refused": result.refused}
    if result.where == "graph":
        row["graph_cut"] = round(1 - sum(p.numel() for p in result.model.parameters()) / total, 4)
        row["changed"] = apart(before, plain_outputs(result.model, captured.inputs))
    start = time.process_time()
    chosen = {n: half[n] for n in half if n in graph.sites}
    try:
        result = prune(model, graph, chosen, where="class")
    except NotExact as error:
        row["class_why"] = str(error)[:300]
        able = expressible(model, graph, chosen)
        row["class_sites"] = [len(able), len(chosen)]
        chosen = {n: half[n] for n in able}
        result = prune(model, graph, chosen, where="class")
    else:
        row["class_sites"] = [len(chosen), len(chosen)]
    row |= {
        "class": result.where,
        "class_error": result.check.error,
        "class_cut": round(1 - sum(p.numel() for p in model.parameters()) / total, 4),
    }
    row["sizes_predicted"] = sum(p.numel() for p in model.parameters()) == graph.parameters(
        {n: len(k) for n, k in chosen.items()}
    )
    row["class_seconds"] = round(time.process_time() - start, 2)
    return row | memory()


def plain_outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """In single precision: only to show that the cut was not vacuous."""
    from featherweight.structure.observe import run_in_eval
    from featherweight.structure.precision import PRECISIONS

    return floating(run_in_eval(model, inputs, PRECISIONS[-1]).outputs)


def floating(output: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def apart(wanted: list[Tensor], got: list[Tensor]) -> float:
    """Largest difference over the largest output; infinite where they cannot be compared."""
    from featherweight.structure.gate import difference
    from featherweight.structure.observe import Observed

    error = difference(Observed(outputs=wanted), Observed(outputs=got)).error
    return float("inf") if error is None else error


def memory() -> dict[str, int]:
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


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
    left: dict[tuple[str, bool], np.ndarray] = {}
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
    return {
        "tp": "exact" if error <= 1e-9 else "runs, not checked" if not checked and error < float("inf") else "different",
        "tp_error": error,
        "tp_cut": cut,
    }


def zero_like_tp(
    module: nn.Module, inward: bool, indices: np.ndarray, left: dict[tuple[str, bool], np.ndarray], path: str
) -> bool:
    """Set to 0 in the reference what Torch-Pruning is about to remove; False for layers that this check does not know."""
    grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    if isinstance(module, nn.modules.conv._ConvNd):
        size = module.in_channels if inward else module.out_channels
    elif isinstance(module, nn.Linear):
        size = module.in_features if inward else module.out_features
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        size = module.num_features
    elif isinstance(module, nn.PReLU):
        return True
    else:
        return type(module).__module__.startswith("torch_pruning")
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


def half_size(suite: str, name: str) -> dict[str, Any]:
    """Half of the MACs by `prune` as a user calls it (three quarters where that is refused), both networks in ONNX Runtime, timed
    in turns on one thread."""
    import tempfile

    import featherweight as fw
    from featherweight.ship.export import export
    from featherweight.ship.runtimes import onnx_caller

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = SUITES[suite](name)
    randomise(model)
    row: dict[str, Any] = {"half": "refused"}
    done = None
    for share in (0.5, 0.75):
        try:
            done = fw.prune(model, example, macs=share)
            break
        except fw.FeatherweightError as error:
            row.setdefault("half_why", f"{type(error).__name__}: {error}"[:300])
    if done is None:
        return row
    dense, small = done.rows[0].measured.macs, done.rows[-1].measured.macs
    row |= {"half": "class", "asked": share, "macs_ratio": round(dense / small, 3)}
    timed = example
    if suite == "timm":  # at a usual size, where the network takes any
        with contextlib.suppress(Exception), torch.no_grad():
            large = (torch.randn(1, 3, 160, 160),)
            done.model(*large)
            timed = large
    row["timed"] = [list(tensor.shape) for tensor in timed]
    with tempfile.TemporaryDirectory() as folder:
        callers = []
        for kind, network in (("dense", model), ("small", done.model)):
            try:
                export(network, timed, f"{folder}/{kind}.onnx", dynamic_batch=False)
            except fw.FeatherweightError as error:
                return row | {"half": "not exported", "half_why": f"{kind}: {type(error).__name__}: {error}"[:300]}
            callers.append(onnx_caller(Path(folder, f"{kind}.onnx"), timed, 1))
        ratios, best = [], [float("inf"), float("inf")]
        for turn in range(26):
            times = []
            for place, call in enumerate(callers):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
                best[place] = min(best[place], times[-1])
            if turn:  # the first is a warm-up
                ratios.append(times[0] / times[1])
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    row |= {"faster": round(float(median), 3), "spread": round(float((high - low) / median), 3)}
    return row | {"dense_ms": round(1e3 * best[0], 2), "small_ms": round(1e3 * best[1], 2)}


# ---------------------------------------------------------------- many rows


PARTS = {"one": measure, "peer": torch_pruning, "half": half_size}


def in_process(part: str, suite: str, name: str) -> dict[str, Any]:
    """Measure in a forked process with limits of time and memory, so that a crash costs a row and nothing else."""
    reader, writer = os.pipe()
    seconds = SECONDS_DRAWN if suite == "timm" else SECONDS[part]
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            row = PARTS[part](suite, name)
        except BaseException as error:  # noqa: BLE001 - whatever happens is the row
            row = {"crash": f"{type(error).__name__}: {error}"[:300]}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(row))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"crash": f"more than {seconds} s"}
    return dict(json.loads(answer)) if answer else {"crash": "killed (memory)"}


def warm_up() -> None:
    """Import once what every child needs."""
    from featherweight.structure import prune, trace

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    prune(model, trace(model, (torch.randn(1, 3, 8, 8),)), "0", [0, 1])
    import transformers

    transformers.utils.is_torchvision_available()  # asked once, before there is a stand-in
    stand_in_for_torchvision()
    with contextlib.suppress(ImportError):
        import pytorchcv.model_provider  # noqa: F401
    with contextlib.suppress(ImportError):
        import timm  # noqa: F401
