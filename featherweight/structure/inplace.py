"""Surgery in place: which numbers the user's modules hold must change so that their own code computes the cut network.

The tensors are sliced and the numbers of torch's own layers corrected; if that does not run or is not exact, whole-number
attributes that equal a number the cut changes, in the modules where it changes, are tried, as far as the cut explains them (see
`numbers`). Nothing is believed without the comparison: a network can run and be silently wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from featherweight.network.copies import copied_whole
from featherweight.structure.edit import Attribute, Edit, all_tensors, apply, attribute_tensor
from featherweight.structure.entries import Cut
from featherweight.structure.gate import Check, Reference
from featherweight.structure.graph import Graph
from featherweight.structure.numbers import Numbers, as_number
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
        candidate = copied_whole(reference.model)
        apply(candidate, edit)
        return edit, reference.compare(candidate)

    def passes(check: Check) -> bool:
        return check.passed or (soft and check.error is not None and check.error != float("inf"))

    stock = stock_attributes(model, cuts)
    edit, first = attempt(stock)
    if passes(first):
        return edit, first
    left = guesses(model, cuts, stock, changes)
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


def stock_attributes(model: nn.Module, cuts: Sequence[Cut]) -> tuple[Attribute, ...]:
    """The numbers that torch's own layers hold about the tensors that are cut."""
    numbers = Numbers(all_tensors(model), cuts)
    result: list[Attribute] = []
    for path, module in model.named_modules():
        for name, after in numbers.of_torch(path, module).items():
            before = as_number(vars(module).get(name))
            if before is not None and after is not None and before != after:
                result.append(Attribute(path, name, before, after))
    return tuple(result)


def guesses(
    model: nn.Module, cuts: Sequence[Cut], stock: tuple[Attribute, ...], changes: Sequence[Change]
) -> list[list[Attribute]]:
    """Attributes equal to a number that changes, in a module around the change, as families: the same attribute of all like
    layers together. Those that the cuts do not explain are left out: no edit may set them.
    """
    explained = Numbers(all_tensors(model), cuts)
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): path for path, module in model.named_modules()}
    taken = {(a.module, a.name) for a in stock}
    found: dict[tuple[str, str], dict[int, int]] = {}
    for change in changes:
        for path in change.modules:
            owner = modules.get(path)
            if owner is None:
                continue
            path = first[id(owner)]
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
        if not explained.allows(path, modules[path], name, before, after):
            continue
        families.setdefault((re.sub(r"\d+", "*", path), name), []).append(Attribute(path, name, before, after))
    return list(families.values())
