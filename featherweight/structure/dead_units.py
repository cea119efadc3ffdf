"""Sweep: remove units that already do nothing, which pruning weight by weight leaves behind, without changing what the network
computes.

A unit is dead when at every sum that reads it one of these holds: what it gives is proved 0 (the slices that make it are 0),
the weights that
read it are 0, or what it gives is proved constant and the reader has a bias to take the constant (a filter of zeros leaves its
bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from featherweight.network.copies import copied_whole, unwrapped
from featherweight.structure.cut import Result, check_fresh, prune
from featherweight.structure.edit import all_tensors, apply
from featherweight.structure.entries import clear, entry_rows
from featherweight.structure.gate import Check, Expected, exercises
from featherweight.structure.graph import Graph
from featherweight.structure.labels import FIRST
from featherweight.structure.observe import Runner, in_eval
from featherweight.structure.precision import Precision, float64, to_float64
from featherweight.structure.running import placed, sliced
from featherweight.structure.values import Proof, Reading


def sweep(model: nn.Module, graph: Graph, *, fold: bool = True) -> Result:
    """Cut every unit that is dead, in place if the class can express it.

    fold  also cut units that are constant, adding the constant to the bias of the layer that reads them (linear layers,
          and convolutions
          without padding or groups)

    The result's `masks` say what went; `where` is "nothing" where no unit is dead. A site keeps at least one unit. What the
    whole network
    computes is compared in float64 before and after. Dead units of sites that are soft stay: their cut would change a statistic.
    """
    model = unwrapped(model)
    check_fresh(model, graph)
    tensors = {name: to_float64(t.detach()).clone() for name, t in graph.captured.tensors.items()}
    biases: dict[str, Tensor] = {}
    gone = np.zeros(graph.walk.labels.used, dtype=bool)
    while True:
        found, folds = _dead(graph, tensors, gone, fold)
        new = found & ~gone
        if not new.any():
            break
        _fold(graph, tensors, new, folds, biases)
        gone |= new
        for (name, dim), mask in graph.keep_masks(gone).items():
            if graph.kinds[name] == "parameter":
                clear(tensors[name], dim, len(mask), np.flatnonzero(~mask).tolist())
    keep: dict[str, Sequence[int]] = {
        name: np.flatnonzero(~gone[site.labels]).tolist() for name, site in graph.sites.items() if gone[site.labels].any()
    }
    if not keep:
        return Result(model, "nothing", None, Check(0.0, 0.0), (), {}, {})
    return _carry_out(model, graph, keep, biases)


def _dead(
    graph: Graph, tensors: dict[str, Tensor], gone: NDArray[np.bool_], fold: bool
) -> tuple[NDArray[np.bool_], list[tuple[Reading, NDArray[np.int64]]]]:
    """Which labels are dead, and the (reading, labels) whose constants must be folded."""
    zero_entries: dict[tuple[str, int], NDArray[np.bool_]] = {}

    def zeros(name: str, dim: int) -> NDArray[np.bool_]:
        """Per entry along dim: is all of the slice 0?"""
        if (name, dim) not in zero_entries:
            planes = graph.planes.get((name, dim))
            rows = entry_rows(tensors[name], dim, len(planes[0]) if planes else tensors[name].shape[dim])
            live = (rows != 0).any(1)
            zero_entries[name, dim] = ~live.cpu().numpy()
        return zero_entries[name, dim]

    used = len(gone)

    def proved(proof: Proof) -> NDArray[np.bool_]:
        """Per label: does some alternative of the proof hold, all its slices being 0?"""
        result = np.zeros(used, dtype=bool)
        for alternative in proof:
            holds = np.ones(used, dtype=bool)
            for name, dim in alternative:
                holds &= every(name, dim)
            result |= holds
        return result

    def every(name: str, dim: int) -> NDArray[np.bool_]:
        """Per label: are all entries of this dimension that it owns 0?"""
        result = np.ones(used, dtype=bool)
        bad = ~zeros(name, dim)
        for plane in graph.planes.get((name, dim), []):
            result[plane[bad]] = False
        return result

    dead = np.zeros(used, dtype=bool)
    for site in graph.sites.values():
        if not site.soft:
            dead[site.labels] = True
    wanted: list[tuple[Reading, NDArray[np.int64]]] = []
    training = graph.walk.training.readings if graph.walk.training is not None else []
    # a constant is folded for eval mode, whose values are known; what reads it in training only is not looked at
    for reading in [*graph.walk.readings, *(replace(reading, foldable=False) for reading in training)]:
        planes = graph.walk.labels.resolve(reading.planes)
        labels = np.unique(np.concatenate(planes)) if planes else np.zeros(0, dtype=np.int64)
        labels = labels[labels >= FIRST]
        if not len(labels):
            continue
        fine = proved(reading.zero)[labels]
        if reading.weight:
            fine |= every(reading.weight, reading.weight_dim)[labels]
        if fold and reading.foldable:
            constant = proved(reading.constant)[labels] & ~fine
            wanted.append((reading, labels[constant]))
            fine |= constant
        dead[labels[~fine]] = False
    # a site keeps one unit
    for site in graph.sites.values():
        if dead[site.labels].all():
            kept = np.flatnonzero(~gone[site.labels])
            dead[site.labels[kept[0] if len(kept) else 0]] = False
    # labels that lie on one dimension with others must not empty it together
    for planes in graph.planes.values():
        lost = np.zeros(len(planes[0]), dtype=bool)
        for plane in planes:
            lost |= dead[plane]
        if lost.all():
            dead[planes[0][0]] = False
            for plane in planes[1:]:
                dead[plane[0]] = False
    return dead, wanted


def _fold(
    graph: Graph,
    tensors: dict[str, Tensor],
    new: NDArray[np.bool_],
    folds: list[tuple[Reading, NDArray[np.int64]]],
    biases: dict[str, Tensor],
) -> None:
    """Add to each reader's bias what the units that go now give it."""
    work = [(reading, labels[new[labels]]) for reading, labels in folds]
    work = [(reading, labels) for reading, labels in work if len(labels)]
    if not work:
        return
    values = _values_at(graph, tensors, {reading.source for reading, _ in work if reading.source is not None})
    for reading, labels in work:
        assert reading.source is not None
        chosen = np.zeros(len(new), dtype=bool)
        chosen[labels] = True
        entries = np.zeros(tensors[reading.weight].shape[reading.weight_dim], dtype=bool)
        for plane in graph.walk.labels.resolve(reading.planes):
            entries |= chosen[plane]
        index = torch.from_numpy(np.flatnonzero(entries))
        source = values[reading.source].movedim(reading.source_dim, 0).flatten(1)
        constant = source[index, 0]
        weight = tensors[reading.weight].movedim(reading.weight_dim, 0)[index]  # (units, out, kernel...)
        added = torch.einsum("i,iok->o", constant, weight.reshape(weight.shape[0], weight.shape[1], -1))
        tensors[reading.bias] += added
        biases[reading.bias] = tensors[reading.bias].clone()


def _values_at(graph: Graph, tensors: dict[str, Tensor], nodes: set[fx.Node]) -> dict[fx.Node, Tensor]:
    """What these nodes compute on the example, in float64."""
    kept: dict[fx.Node, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in nodes:
                kept[n] = result.clone()
            return result

    given = [to_float64(value) for value in placed(graph, tensors, graph.captured.inputs)]
    with float64():
        Recorder(graph.captured.module).run(*given, enable_io_processing=False)
    return kept


def _carry_out(model: nn.Module, graph: Graph, keep: dict[str, Sequence[int]], biases: dict[str, Tensor]) -> Result:
    """Cut a copy, compare it with the untouched network, then cut the network itself."""

    def make(precision: Precision) -> Runner:
        return in_eval(precision.copy(model))

    expected = Expected(make, exercises(graph.captured), graph.captured.decides())
    twin = copied_whole(model)
    exact = expected.precision.copy(model)
    for target in (twin, exact):
        _set(target, biases)
    result = prune(twin, graph, keep)
    if result.where == "nothing":
        return replace(result, model=model)
    if result.refused and biases:
        # what a refused site gives was folded already: begin again without folding
        return sweep(model, graph, fold=False)
    if result.where == "class":
        assert result.edit is not None
        apply(exact, result.edit)
        check = expected.compare(in_eval(exact))
    else:
        # the exported module was made of the tensors as they were
        _set(result.model, sliced(biases, {key: mask for key, mask in result.masks.items() if key[0] in biases}))
        check = expected.compare(in_eval(expected.precision.copy(result.model)))
        check = replace(check, tolerance=max(check.tolerance, 1e-5 if biases else 0.0))  # biases in the network's own type
    check = replace(check, seconds=result.check.seconds + check.seconds, reason="" if check.passed else check.reason)
    if not check.passed:
        return Result(model, "nothing", None, check, (), {}, dict.fromkeys(keep, check.reason))
    if result.where == "graph":
        return replace(result, check=check)
    assert result.edit is not None
    _set(model, biases)
    return Result(model, "class", result.edit, check, apply(model, result.edit), result.masks, result.refused)


def _set(model: nn.Module, values: dict[str, Tensor]) -> None:
    tensors = all_tensors(model)
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)
