"""One network traced, cut and compared, and timed at half of its size; each in a process of its own."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.coverage.suites import SUITES


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
