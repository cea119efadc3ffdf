"""Remove units from a network: in place on the user's own modules where their code allows it, else as the exported module."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featherweight.network.calls import Inputs
from featherweight.network.copies import copied_whole, unwrapped
from featherweight.structure.capture import capture, first_line
from featherweight.structure.edit import Edit, Moved, all_tensors, apply
from featherweight.structure.entries import Cut
from featherweight.structure.errors import BadSelection, NotExact, StaleGraph, StructureError
from featherweight.structure.gate import (
    Check,
    Expected,
    Reference,
    difference,
    exercises,
    fill_zeros,
    trains_otherwise,
    zero_slices,
)
from featherweight.structure.graph import Graph
from featherweight.structure.graph_module import module_of
from featherweight.structure.inplace import Masks, cuts_of, stock_attributes, trial
from featherweight.structure.lengths import renamed
from featherweight.structure.nodes import operation
from featherweight.structure.observe import RUN_FAILURES, Runner, in_eval, run_in_eval, run_in_training
from featherweight.structure.precision import PRECISIONS, Precision
from featherweight.structure.rewrite import Rewritten, rewrite
from featherweight.structure.running import graph_runner, sliced
from featherweight.structure.tracing import analyse
from featherweight.structure.values import Value


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
    own: Masks | None = None,
) -> Result:
    """Keep only these units of a site, or of several at once: `prune(model, graph, {"conv1": [0, 3], "conv2": [1]})`.

    where  "any": in place if the class can express it, else the exported module; "class": in place or not at all;
           "graph": the exported module
    check  the exactness gate; without it a cut is believed (needed on the meta device, where nothing can be run)
    any_batch  export again so that an exported module takes any batch size, and inputs of other sizes, where the network does
               and can be exported so; else it takes the example's, doubled (the note of its check says so)
    own    what stays of some tensors, in place of what the selection says and as much of it: inner layers of a recurrent module
           share the site of the last, though each can keep units of its own

    A site whose cut is not exact is refused: it is frozen in `graph` with what differed, and the others are cut. Raises
    UnknownSite, BadSelection, StaleGraph; NotExact when `where="class"` and the class cannot express the cut, or a name of the
    network has no place in an exported module.
    """
    selection: dict[str, Sequence[int]] = dict(site) if not isinstance(site, str) else {site: keep if keep is not None else []}
    model = unwrapped(model)
    check_fresh(model, graph)
    on_meta = any(t.device.type == "meta" for t in graph.captured.tensors.values())
    refused: dict[str, str] = {}
    while True:
        gone = graph.gone(selection)
        masks = graph.keep_masks(gone)
        masks |= {key: mask for key, mask in (own or {}).items() if key in masks and mask.sum() == masks[key].sum()}
        check_nodes(graph, gone)
        if not masks:
            return Result(model, "nothing", None, Check(0.0, 0.0), (), masks, refused)
        kept = tuple((name, len(units)) for name, units in selection.items())
        rewritten = rewrite(graph, gone)
        if not check or on_meta:
            return _unchecked(model, graph, masks, kept, rewritten, where)
        result = _attempt(model, graph, masks, selection, rewritten, where, soft=any(graph.site(n).soft for n in selection))
        if any_batch and isinstance(result, Result) and result.where == "graph":
            result = _any_size(model, graph, selection, result)
        if isinstance(result, Check):
            found = result
        else:
            return Result(result.model, result.where, result.edit, result.check, result.moved, masks, refused, result.reason)
        # the analysis itself was wrong somewhere: find the sites to blame and go on without them
        for name in _blame(model, graph, selection, found):
            refused[name] = graph.freeze_site(name, f"a cut here could not be shown to be exact: {found.reason}")
            selection.pop(name)
        if not selection:
            return Result(model, "nothing", None, Check(None, 0.0, "no cut was exact"), (), {}, refused)


def check_nodes(graph: Graph, gone: NDArray[np.bool_]) -> None:
    """Every tensor inside the network keeps an entry along every dimension."""
    mask_of = graph.node_masks(gone)
    seen: set[tuple[int, ...]] = set()
    training = graph.walk.training.values if graph.walk.training is not None else {}
    for node, value in [*graph.walk.values.items(), *training.items()]:
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
        edit, found = trial(model, graph, masks, kept, rewritten, soft)
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
    same = _check_export(model, graph)
    if not same.passed:
        return replace(same, error=None, reason=f"the exported graph does not compute what the network does: {same.reason}")
    lost = training_lost(model, graph) if where != "graph" else ""
    if lost:
        return replace(check, error=None, mode="training", reason=f"{reason}, and the exported module {lost}")
    return as_module(model, graph, masks, rewritten, check, reason)


def training_lost(model: nn.Module, graph: Graph) -> str:
    """What the exported module, which has the graph of eval mode only, would lose of the network's training; "" for nothing."""
    only = graph.captured.read_in_training_only()
    if only:
        more = ", ..." if len(only) > 4 else ""
        return f"has no training mode of its own, which reads {', '.join(only[:4])}{more} besides (where='graph' makes it still)"
    if not trains_otherwise(model, graph.captured):
        return ""
    own, twin = PRECISIONS[-1], copied_whole(model)
    trained, evaluated = (run(twin, graph.captured.inputs, own) for run in (run_in_training, run_in_eval))
    shapes = [[tuple(tensor.shape) for tensor in side.outputs] for side in (trained, evaluated)]
    if trained.failure is not None or evaluated.failure is not None or shapes[0] == shapes[1]:
        return ""
    return (
        f"has no training mode of its own, where the network gives {shapes[0]} and not {shapes[1]} (where='graph' makes it still)"
    )


def _any_size(model: nn.Module, graph: Graph, selection: Mapping[str, Sequence[int]], fixed: Result) -> Result:
    """The same cut of an export that takes any batch size, and inputs of other sizes where the network does; what it does not
    take is said in the note of its check."""
    for others in [graph.others, ()] if graph.others else [()]:
        found = _exported_again(model, graph, selection, fixed, others)
        if found is not None:
            break
    if graph.others and (found is None or not others):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in graph.captured.inputs.tensors())
        said = f"the exported module takes inputs of the example's sizes only ({shapes}), the network takes others too"
        result = found or fixed
        return replace(result, check=replace(result.check, note="; ".join(filter(None, (result.check.note, said)))))
    return found or fixed


def _exported_again(
    model: nn.Module, graph: Graph, selection: Mapping[str, Sequence[int]], fixed: Result, others: Sequence[Inputs]
) -> Result | None:
    """None where the network cannot be exported so or the cut comes out differently, at the example's sizes or at others."""
    if graph.captured.copies == 1 and not others:
        return None
    inputs = graph.captured.inputs
    precision = next(p for p in PRECISIONS if p.name == fixed.check.precision)
    try:
        captured = capture(model, inputs, dynamic_batch=True, others=others)
        again = analyse(captured, model, graph.walk.soft, renamed(graph.varying, graph.captured, captured))
        gone = again.gone(selection)
        masks = again.keep_masks(gone)
        if {k: m.tobytes() for k, m in masks.items()} != {
            k: m.tobytes() for k, m in fixed.masks.items() if graph.kinds[k[0]] != "constant"
        }:
            return None
        result = as_module(model, again, masks, rewrite(again, gone), fixed.check, fixed.reason)
        cut = precision.copy(result.model)
        same = difference(run_in_eval(precision.copy(fixed.model), inputs, precision), run_in_eval(cut, inputs, precision)).error
        larger = run_in_eval(cut, _one_more(inputs), precision)
        if larger.failure is not None or same is None or same > precision.tolerance:
            return None
        if others and not any(graph.site(name).soft for name in selection):
            parameters = [name for name, kind in graph.kinds.items() if kind == "parameter"]
            reference = Reference(model, graph.zeroed(fixed.masks), parameters, graph.captured, [inputs, *others])
            cut = reference.expected.precision.copy(result.model)  # the class may need another than its export, as experts do
            mine, filled = all_tensors(cut), sliced(all_tensors(reference.model), fixed.masks)
            with torch.no_grad():
                for name in (name for name in parameters if name in mine):  # where all are 0 the reference has other values
                    mine[name].copy_(filled[name])
            if not reference.expected.compare(in_eval(cut)).passed:
                return None
    except (StructureError, *RUN_FAILURES):
        return None
    return result


def _one_more(inputs: Inputs) -> Inputs:
    """A batch with one row more."""
    return inputs.map(lambda tensor: torch.cat([tensor, tensor[:1]]) if inputs.has_batch(tensor) else tensor)


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


def _check_graph(graph: Graph, masks: Masks, rewritten: Rewritten) -> Check:
    """The same comparison on the exported graph: zeroed and whole against cut."""
    start = time.perf_counter()
    whole: dict[str, Tensor] = {}

    def make(precision: Precision) -> Runner:
        parameters = [name for name, kind in graph.kinds.items() if kind == "parameter"]
        whole.update({name: precision.cast(t.detach()) for name, t in graph.captured.tensors.items()})
        whole.update({name: whole[name].clone() for name in parameters})
        fill_zeros(whole, parameters)
        zero_slices(whole, graph.zeroed(masks), parameters)
        return graph_runner(graph, graph.captured.module, whole)

    try:
        expected = Expected(make, exercises(graph.captured), graph.captured.decides())
    except RUN_FAILURES as error:
        return Check(None, time.perf_counter() - start, f"the network cannot be run to be compared: {first_line(error)}")
    check = expected.compare(graph_runner(graph, rewritten.module, sliced(whole, masks)))
    return replace(check, seconds=time.perf_counter() - start)


def _check_export(model: nn.Module, graph: Graph) -> Check:
    """Does the exported graph compute what the network does? Not where its code draws numbers or reads values by itself."""
    parameters = [name for name, kind in graph.kinds.items() if kind == "parameter"]

    def make(precision: Precision) -> Runner:
        twin = precision.copy(model)
        fill_zeros(all_tensors(twin), parameters)
        return in_eval(twin)

    try:
        expected = Expected(make, exercises(graph.captured), graph.captured.decides())
    except RUN_FAILURES as error:
        return Check(None, 0.0, f"the network cannot be run to be compared: {first_line(error)}")
    tensors = {name: expected.precision.cast(t.detach()) for name, t in graph.captured.tensors.items()}
    tensors.update({name: tensors[name].clone() for name in parameters})
    fill_zeros(tensors, parameters)
    return expected.compare(graph_runner(graph, graph.captured.module, tensors))


def _unchecked(
    model: nn.Module, graph: Graph, masks: Masks, kept: tuple[tuple[str, int], ...], rewritten: Rewritten, where: str
) -> Result:
    unchecked = Check(None, 0.0, "not checked")
    if where == "graph":
        return as_module(model, graph, masks, rewritten, unchecked)
    cuts = cuts_of(masks, graph.tensors)
    edit = Edit("cut", kept, cuts, stock_attributes(model, cuts))
    return Result(model, "class", edit, unchecked, apply(model, edit), masks, {})


def _blame(model: nn.Module, graph: Graph, selection: Mapping[str, Sequence[int]], found: Check) -> list[str]:
    """The sites whose cut alone is not exact as a graph, or alone breaks training; all of them if each alone is exact."""
    wrong = []
    for name, units in selection.items():
        gone = graph.gone({name: units})
        masks = graph.keep_masks(gone)
        if not masks:
            continue
        rewritten = rewrite(graph, gone)
        if found.mode == "training":
            fine = trial(model, graph, masks, (), rewritten, bool(graph.site(name).soft))[0] is not None
        else:
            fine = _check_graph(graph, masks, rewritten).passed
        if not fine:
            wrong.append(name)
    return wrong or list(selection)
