"""Remove units from a network: in place on the user's own modules where their code allows it, else as the exported module."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.structure.capture import capture, run_graph, to_float64
from featherweight.structure.edit import Edit, Moved, all_tensors, apply
from featherweight.structure.entries import Cut, pick
from featherweight.structure.errors import BadSelection, NotExact, StaleGraph, StructureError
from featherweight.structure.gate import RUN_FAILURES, TOLERANCE, Check, difference, double_copy, run, zero_slices
from featherweight.structure.graph import Graph, analyse
from featherweight.structure.inplace import Masks, cuts_of, stock_attributes, trial
from featherweight.structure.rewrite import Rewritten, rewrite
from featherweight.structure.unlift import module_of
from featherweight.structure.walk import Value, operation


@dataclass(frozen=True)
class Result:
    """What a cut did.

    model      the smaller network: the user's own object, changed in place, or the exported module
    where      "class" (in place), "graph" (the exported module: the class cannot express the cut; the user's object
               is untouched) or
               "nothing" (no unit could go; the user's object is untouched)
    edit       data to replay on a fresh instance of the class; None unless `where` is "class"
    check      the exactness gate's findings
    moved      what became of each tensor of the user's network that changed; `carry` uses it for the optimizer
    refused    site -> why it was not cut (it is frozen in the graph from now on)
    reason     why the class could not express the cut, where it could not
    """

    model: nn.Module
    where: Literal["class", "graph", "nothing"]
    edit: Edit | None
    check: Check
    moved: tuple[Moved, ...]
    masks: Masks
    refused: dict[str, str]
    reason: str = ""


def check_fresh(model: nn.Module, graph: Graph) -> None:
    """The graph must describe the network's shapes as they are now; its tensors become those the network holds now."""
    held = all_tensors(model)
    for name, shape in graph.tensors.items():
        now = held.get(name)
        if now is None and graph.kinds[name] != "constant":
            raise StaleGraph(f"the network has no tensor {name!r}, which it had when the graph was made; call trace again")
        if now is None:
            continue
        if tuple(now.shape) != shape:
            raise StaleGraph(
                f"{name!r} has shape {tuple(now.shape)} but had {shape} when the graph was made; call trace again after each cut"
            )
        graph.captured.tensors[name] = now


def prune(
    model: nn.Module,
    graph: Graph,
    site: str | Mapping[str, Sequence[int]],
    keep: Sequence[int] | None = None,
    *,
    where: Literal["any", "class", "graph"] = "any",
    check: bool = True,
    any_batch: bool = True,
) -> Result:
    """Keep only these units of a site, or of several at once: `prune(model, graph, {"conv1": [0, 3], "conv2": [1]})`.

    where  "any": in place if the class can express it, else the exported module; "class": in place or not at all;
           "graph": the exported module
    check  the exactness gate; without it a cut is believed (needed on the meta device, where nothing can be run)
    any_batch  export again so that an exported module takes any batch size, where the network allows it; else it
               takes the example's, doubled

    A site whose cut is not exact is refused: it is frozen in `graph` with what differed, and the others are cut. Raises
    UnknownSite, BadSelection, StaleGraph; NotExact when `where="class"` and the class cannot express the cut.
    """
    selection: dict[str, Sequence[int]] = dict(site) if not isinstance(site, str) else {site: keep if keep is not None else []}
    check_fresh(model, graph)
    on_meta = any(t.device.type == "meta" for t in graph.captured.tensors.values())
    refused: dict[str, str] = {}
    while True:
        gone = graph.gone(selection)
        masks = graph.keep_masks(gone)
        check_nodes(graph, gone)
        if not masks:
            return Result(model, "nothing", None, Check(0.0, 0.0), (), masks, refused)
        kept = tuple((name, len(units)) for name, units in selection.items())
        rewritten = rewrite(graph, gone)
        if not check or on_meta:
            return _unchecked(model, graph, masks, kept, rewritten, where)
        result = _attempt(model, graph, masks, selection, rewritten, where, soft=any(graph.site(n).soft for n in selection))
        if any_batch and isinstance(result, Result) and result.where == "graph":
            result = _any_batch(model, graph, selection, result) or result
        if isinstance(result, Check):
            found = result
        else:
            return Result(result.model, result.where, result.edit, result.check, result.moved, masks, refused, result.reason)
        # the analysis itself was wrong somewhere: find the sites to blame and go on without them
        for name in _blame(model, graph, selection):
            refused[name] = graph.freeze_site(name, f"a cut here could not be shown to be exact: {found.reason}")
            selection.pop(name)
        if not selection:
            return Result(model, "nothing", None, Check(None, 0.0, "no cut was exact"), (), {}, refused)


def check_nodes(graph: Graph, gone: NDArray[np.bool_]) -> None:
    """Every tensor inside the network keeps an entry along every dimension."""
    mask_of = graph.node_masks(gone)
    seen: set[tuple[int, ...]] = set()
    for node, value in graph.walk.values.items():
        for part in [value] if isinstance(value, Value) else value if isinstance(value, list) else []:
            if not isinstance(part, Value):
                continue
            for d in range(len(part.shape)):
                key = tuple(id(p) for p in part.planes[d])
                if not key or key in seen:
                    continue
                seen.add(key)
                mask = mask_of(part, d)
                if mask is not None and not mask.any():
                    raise BadSelection(f"nothing would be left of {node.name} ({operation(node)}); keep more units")


def _attempt(
    model: nn.Module,
    graph: Graph,
    masks: Masks,
    selection: Mapping[str, Sequence[int]],
    rewritten: Rewritten,
    where: str,
    soft: bool,
) -> Result | Check:
    """Cut in place, else as the graph; what the check of the graph found where neither is exact."""
    reason = "the exported module was asked for"
    if where != "graph":
        kept = tuple((name, len(units)) for name, units in selection.items())
        edit, found = trial(model, graph, masks, kept, rewritten.changes, soft)
        if edit is not None:
            return Result(model, "class", edit, found, apply(model, edit), masks, {})
        reason = found.reason
        if where == "class":
            raise NotExact(
                f"the network's own class cannot express this cut ({reason}); cut other units, or let the exported module be "
                f"made (where='any')"
            )
    check = _check_graph(graph, masks, rewritten)
    if not check.passed and not (soft and check.error is not None):
        return check
    return as_module(model, graph, masks, rewritten, check, reason)


def _any_batch(model: nn.Module, graph: Graph, selection: Mapping[str, Sequence[int]], fixed: Result) -> Result | None:
    """The same cut of an export that takes any batch size; None where the network cannot be exported so or the cut comes out
    differently.
    """
    if graph.captured.copies == 1:
        return None
    try:
        again = analyse(capture(model, graph.captured.inputs, dynamic_batch=True), model, graph.walk.soft)
        gone = again.gone(selection)
        masks = again.keep_masks(gone)
        if {k: m.tobytes() for k, m in masks.items()} != {
            k: m.tobytes() for k, m in fixed.masks.items() if graph.kinds[k[0]] != "constant"
        }:
            return None
        result = as_module(model, again, masks, rewrite(again, gone), fixed.check, fixed.reason)
        same = difference(
            run(double_copy(fixed.model), graph.captured.inputs), run(double_copy(result.model), graph.captured.inputs)
        )
        larger = [torch.cat([v, v[:1]]) if isinstance(v, Tensor) else v for v in graph.captured.inputs]
        run(double_copy(result.model), larger)
    except (StructureError, *RUN_FAILURES):
        return None
    return result if same <= TOLERANCE else None


def as_module(model: nn.Module, graph: Graph, masks: Masks, rewritten: Rewritten, check: Check, reason: str = "") -> Result:
    """The cut as a module of its own; the user's network stays as it is."""
    module = module_of(graph.captured, rewritten.module, sliced(graph.captured.tensors, masks))
    mine = all_tensors(module)
    cuts: dict[str, list[Cut]] = {}
    for cut in cuts_of(masks, graph.tensors):
        cuts.setdefault(cut.tensor, []).append(cut)
    held = all_tensors(model)
    moved = tuple(Moved(held[name], mine.get(name), tuple(cuts.get(name, ()))) for name in graph.captured.tensors if name in held)
    return Result(module, "graph", None, check, moved, masks, {}, reason)


def sliced(tensors: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    result = dict(tensors)
    for (name, dim), mask in masks.items():
        result[name] = pick(result[name].detach(), dim, len(mask), np.flatnonzero(mask).tolist())
    return result


def placed(graph: Graph, tensors: Mapping[str, Tensor], given: Sequence[object] | None = None) -> list[object]:
    """What the exported graph is called with; `given`: other inputs than the example's."""
    inputs = iter(torch.utils._pytree.tree_leaves((tuple(given) if given is not None else graph.captured.inputs, {})))
    return [
        tensors[name] if kind in ("parameter", "buffer", "constant") else next(inputs) for kind, name in graph.captured.sources
    ]


def _check_graph(graph: Graph, masks: Masks, rewritten: Rewritten) -> Check:
    """The same comparison on the exported graph: zeroed and whole against cut."""
    start = time.perf_counter()
    whole = {name: to_float64(t.detach()) for name, t in graph.captured.tensors.items()}
    whole = {name: t.clone() if t is graph.captured.tensors[name] else t for name, t in whole.items()}
    zero_slices(whole, masks, [n for n, kind in graph.kinds.items() if kind == "parameter"])
    try:
        reference = [
            t for t in run_graph(graph.captured.module, placed(graph, whole)) if isinstance(t, Tensor) and t.is_floating_point()
        ]
    except RUN_FAILURES as error:
        return Check(None, time.perf_counter() - start, f"the network cannot be checked in float64: {error}")
    try:
        result = run_graph(rewritten.module, placed(graph, sliced(whole, masks)))
    except RUN_FAILURES as error:
        return Check(None, time.perf_counter() - start, f"the cut graph does not run: {str(error).strip().splitlines()[0]}")
    size = difference(reference, [t for t in result if isinstance(t, Tensor) and t.is_floating_point()])
    return Check(size, time.perf_counter() - start, "" if size <= TOLERANCE else f"its output differs by {size:.1e}")


def expressible(
    model: nn.Module, graph: Graph, sites: Sequence[str] | Mapping[str, Sequence[int]] | None = None, *, seed: int = 0
) -> tuple[str, ...]:
    """The sites that the network's own class can express, cut all at once; `model` is not changed.

    sites  site -> units to keep, to ask about a plan; or names (default: all), to ask about a random half of their units

    Found by cutting float64 copies and comparing, first all sites together, then halves of those that fail. Whether a class can
    express a cut
    may depend on which units go (every second channel of a slice `[:, ::2]`), so ask about the plan where there is one.
    """
    check_fresh(model, graph)
    if isinstance(sites, Mapping):
        half = {name: list(keep) for name, keep in sites.items()}
    else:
        rng = np.random.default_rng(seed)
        every = [n for n in (sites if sites is not None else graph.sites) if not graph.site(n).soft]
        half = {n: np.sort(rng.permutation(graph.site(n).size)[: (graph.site(n).size + 1) // 2]).tolist() for n in every}
    names = list(half)

    def fine(group: Sequence[str]) -> bool:
        gone = graph.gone({n: half[n] for n in group})
        masks = graph.keep_masks(gone)
        return trial(model, graph, masks, (), rewrite(graph, gone).changes, False)[0] is not None

    def solve(group: list[str]) -> list[str]:
        if not group or fine(group):
            return group
        if len(group) == 1:
            return []
        left, right = solve(group[: len(group) // 2]), solve(group[len(group) // 2 :])
        if not left or not right or fine(left + right):
            return left + right
        return max(left, right, key=len)

    return tuple(solve(names))


def _unchecked(
    model: nn.Module, graph: Graph, masks: Masks, kept: tuple[tuple[str, int], ...], rewritten: Rewritten, where: str
) -> Result:
    unchecked = Check(None, 0.0, "not checked")
    if where == "graph":
        return as_module(model, graph, masks, rewritten, unchecked)
    cuts = cuts_of(masks, graph.tensors)
    edit = Edit("cut", kept, cuts, stock_attributes(model, cuts))
    return Result(model, "class", edit, unchecked, apply(model, edit), masks, {})


def _blame(model: nn.Module, graph: Graph, selection: Mapping[str, Sequence[int]]) -> list[str]:
    """The sites whose cut alone is not exact as a graph; all of them if each alone is exact."""
    wrong = []
    for name, units in selection.items():
        gone = graph.gone({name: units})
        masks = graph.keep_masks(gone)
        if masks and not _check_graph(graph, masks, rewrite(graph, gone)).passed:
            wrong.append(name)
    return wrong or list(selection)
