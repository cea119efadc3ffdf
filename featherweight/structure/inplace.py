"""Surgery in place: which numbers the user's modules hold must change so that their own code computes the cut network.

The tensors are sliced and the numbers of torch's own layers corrected; if that does not run or is not exact, whole-number
attributes that equal a
number the cut changes, in the modules where it changes, are tried. Nothing is believed without the comparison: a network can
run and be silently wrong.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from featherweight.structure.edit import Attribute, Cut, Edit, Number, all_tensors, apply, as_number, attribute_tensor
from featherweight.structure.gate import Check, Reference
from featherweight.structure.graph import Graph
from featherweight.structure.observe import RUN_FAILURES
from featherweight.structure.rewrite import Change

Masks = Mapping[tuple[str, int], NDArray[np.bool_]]


def cuts_of(masks: Masks, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Cut, ...]:
    """The masks as data; `shapes` are those before the cut."""
    return tuple(
        Cut(name, dim, shapes[name][dim], tuple(np.flatnonzero(mask).tolist()), len(mask) // shapes[name][dim])
        for (name, dim), mask in masks.items()
    )


def trial(
    model: nn.Module, graph: Graph, masks: Masks, kept: tuple[tuple[str, int], ...], changes: Sequence[Change], soft: bool
) -> tuple[Edit | None, Check]:
    """Try edits on float64 copies: one that is exact, or None and why the plain one did not do. `model` is not changed."""
    cuts = cuts_of(masks, graph.tensors)
    held = all_tensors(model)
    for cut in cuts:
        if cut.tensor not in held and attribute_tensor(model, cut.tensor) is None:
            return None, Check(None, 0.0, f"the code makes a tensor of its own that would have to be cut ({cut.tensor})")
    try:
        reference = Reference(model, masks, [n for n, kind in graph.kinds.items() if kind == "parameter"], graph.captured)
    except RUN_FAILURES as error:
        return None, Check(None, 0.0, f"the network cannot be checked in float64: {error}")

    def attempt(attributes: Iterable[Attribute]) -> tuple[Edit, Check]:
        edit = Edit("cut", kept, cuts, tuple(attributes))
        candidate = copy.deepcopy(reference.model)
        apply(candidate, edit)
        return edit, reference.compare(candidate)

    def passes(check: Check) -> bool:
        return check.passed or (soft and check.error is not None and check.error != float("inf"))

    stock = stock_attributes(model, cuts, graph, changes)
    edit, first = attempt(stock)
    if passes(first):
        return edit, first
    left = guesses(model, stock, changes)
    if len(left) > 1:
        edit, check = attempt([*stock, *(a for family in left for a in family)])
        if passes(check):
            return edit, check
    # families of guesses are added one by one while they let the network run further
    chosen: list[Attribute] = list(stock)
    best = first
    while left:
        tried = [(attempt([*chosen, *family]), family) for family in left]
        for (edit, check), _ in tried:
            if passes(check):
                return edit, check
        (edit, check), family = max(tried, key=lambda item: item[0][1].operations)
        if check.operations <= best.operations:
            break
        chosen, best = [*chosen, *family], check
        taken = {(a.module, a.name) for a in chosen}
        left = [rest for rest in ([a for a in f if (a.module, a.name) not in taken] for f in left) if rest]
    return None, first


def stock_attributes(model: nn.Module, cuts: Iterable[Cut], graph: Graph, changes: Sequence[Change]) -> tuple[Attribute, ...]:
    """The numbers that torch's own layers hold about the tensors that are cut."""
    left = {(cut.tensor, cut.dim): cut.left for cut in cuts}
    shapes = {name: tuple(t.shape) for name, t in all_tensors(model).items()}
    grouped = {c.modules[-1]: c for c in changes if c.modules and (c.operation.startswith("conv") or c.operation == "group_norm")}
    result: list[Attribute] = []

    def size(module: str, leaf: str, dim: int) -> int | None:
        """The size after the cut; under a parametrization the tensor is the original behind it."""
        for name in (
            f"{module}.{leaf}" if module else leaf,
            f"{module}.parametrizations.{leaf}.original".lstrip("."),
            f"{module}.{leaf}_v".lstrip("."),
        ):
            first = graph.captured.tied.get(name, name)
            if first in shapes:
                return left.get((first, dim), shapes[first][dim])
        return None

    for path, module in model.named_modules():
        numbers: dict[str, Number | None] = {}
        if isinstance(module, _ConvNd):
            change = grouped.get(path)
            groups = change.after if change else module.groups
            a, b = size(path, "weight", 0), size(path, "weight", 1)
            if a is not None and b is not None:
                transposed = isinstance(module, _ConvTransposeNd)
                numbers = {
                    "groups": groups,
                    "in_channels": a if transposed else b * groups,
                    "out_channels": b * groups if transposed else a,
                }
        elif isinstance(module, nn.Linear):
            numbers = {"out_features": size(path, "weight", 0), "in_features": size(path, "weight", 1)}
        elif isinstance(module, nn.Embedding):
            numbers = {"num_embeddings": size(path, "weight", 0), "embedding_dim": size(path, "weight", 1)}
        elif isinstance(module, _NormBase):
            numbers = {"num_features": size(path, "weight", 0) or size(path, "running_mean", 0)}
        elif isinstance(module, nn.GroupNorm):
            change = grouped.get(path)
            numbers = {"num_channels": size(path, "weight", 0), "num_groups": change.after if change else module.num_groups}
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            own = [size(path, "weight", d) for d in range(len(module.normalized_shape))] if module.weight is not None else None
            numbers = {"normalized_shape": tuple(n for n in own if n is not None)} if own else {}
        elif isinstance(module, nn.RNNBase):
            hidden = size(path, "weight_hh_l0", 1) if not module.proj_size else size(path, "weight_hr_l0", 1)
            numbers = {"input_size": size(path, "weight_ih_l0", 1), "hidden_size": hidden}
            if module.proj_size:
                numbers["proj_size"] = size(path, "weight_hr_l0", 0)
        elif isinstance(module, nn.PReLU):
            numbers = {"num_parameters": size(path, "weight", 0)}
        for name, after in numbers.items():
            before = as_number(vars(module).get(name))
            if before is not None and after is not None and before != after:
                result.append(Attribute(path, name, before, after))
    return tuple(result)


def guesses(model: nn.Module, stock: tuple[Attribute, ...], changes: Sequence[Change]) -> list[list[Attribute]]:
    """Attributes equal to a number that changes, in a module around the change, as families: the same attribute of all like
    layers together.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    taken = {(a.module, a.name) for a in stock}
    found: dict[tuple[str, str], dict[int, int]] = {}
    for change in changes:
        for path in change.modules:
            owner = modules.get(path)
            if owner is None:
                continue
            for name, held in vars(owner).items():
                number = as_number(held)
                if number is None or (path, name) in taken or name.startswith("_"):
                    continue
                if number == change.before or (isinstance(number, tuple) and change.before in number):
                    found.setdefault((path, name), {}).setdefault(change.before, change.after)
    families: dict[tuple[str, str], list[Attribute]] = {}
    for (path, name), numbers in found.items():
        before = as_number(vars(modules[path])[name])
        assert before is not None
        after = numbers[before] if isinstance(before, int) else tuple(numbers.get(n, n) for n in before)
        families.setdefault((re.sub(r"\d+", "*", path), name), []).append(Attribute(path, name, before, after))
    return list(families.values())
