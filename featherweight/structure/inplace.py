"""Surgery in place: which numbers the user's modules hold must change so that their own code computes the cut network.

The tensors are sliced and the numbers of torch's own layers corrected; if that does not run or is not exact, whole-number
attributes that equal a number the cut changes, in the modules where it changes, are tried, as far as the cut explains them (see
`numbers`). Nothing is believed without the comparison: a network can run and be silently wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from featherweight.network.copies import copied_whole
from featherweight.structure.edit import Attribute, Edit, all_tensors, apply, attribute_tensor
from featherweight.structure.entries import Cut
from featherweight.structure.gate import Check, Expected, Reference, exercises, fill_zeros, zero_slices
from featherweight.structure.graph import Graph
from featherweight.structure.numbers import Numbers, as_number
from featherweight.structure.observe import RUN_FAILURES, in_eval
from featherweight.structure.rewrite import Change, Rewritten
from featherweight.structure.running import Masks, graph_runner, sliced


def cuts_of(masks: Masks, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Cut, ...]:
    """The masks as data; `shapes` are those before the cut."""
    return tuple(
        Cut(name, dim, shapes[name][dim], tuple(np.flatnonzero(mask).tolist()), len(mask) // shapes[name][dim])
        for (name, dim), mask in masks.items()
    )


def trial(
    model: nn.Module,
    graph: Graph,
    masks: Masks,
    kept: tuple[tuple[str, int], ...],
    rewritten: Rewritten,
    soft: bool,
    quick: bool = False,
) -> tuple[Edit | None, Check]:
    """Try edits on float64 copies: one that is exact, or None and why the plain one did not do. `model` is not changed.

    soft   the cut changes what the network computes: it must compute what the exported graph computes that is cut so, and the
           check says how far that is from the network without the units
    quick  compare on one sample of the example only
    """
    cuts = cuts_of(masks, graph.tensors)
    held = all_tensors(model)
    for cut in cuts:
        if cut.tensor not in held and attribute_tensor(model, cut.tensor) is None:
            return None, Check(None, 0.0, f"the code makes a tensor of its own that would have to be cut ({cut.tensor})")
    try:
        parameters = [n for n, kind in graph.kinds.items() if kind == "parameter"]
        given = [graph.captured.sample()] if quick else [*exercises(graph.captured), *graph.others]
        reference = Reference(model, graph.zeroed(masks), parameters, graph.captured, given)
    except RUN_FAILURES as error:
        return None, Check(None, 0.0, f"the network cannot be checked in float64: {error}")

    def attempt(attributes: Iterable[Attribute]) -> tuple[Edit, Check]:
        edit = Edit("cut", kept, cuts, tuple(attributes))
        candidate = copied_whole(reference.model, share=True)
        apply(candidate, edit)
        check = reference.compare(candidate)
        return edit, same_as_graph(candidate, check) if soft and check.error is not None and not check.passed else check

    def same_as_graph(candidate: nn.Module, check: Check) -> Check:
        precision = reference.expected.precision
        tensors = {name: precision.cast(t.detach()) for name, t in graph.captured.tensors.items()}
        filled = {name: tensors[name].clone() for name in parameters}
        fill_zeros(filled, parameters)
        zero_slices(filled, graph.zeroed(masks), parameters)
        cut = sliced({**tensors, **filled}, masks)
        given = [graph.captured.inputs] if quick else exercises(graph.captured)
        same = Expected(lambda _: graph_runner(graph, rewritten.module, cut), given, False).compare(in_eval(candidate))
        if not same.passed:
            return replace(same, reason=f"it is not what the exported graph computes that is cut so: {same.reason}")
        return replace(check, tolerance=float("inf"), reason="")

    stock = stock_attributes(model, cuts)
    edit, first = attempt(stock)
    if first.passed:
        return edit, first
    left = guesses(model, cuts, stock, rewritten.changes)
    if len(left) > 1:
        each = {(a.module, a.name): a for family in reversed(left) for a in family}  # the first value of each
        edit, check = attempt([*stock, *each.values()])
        if check.passed:
            return edit, check
    # families of guesses are added one by one while they let the network run further
    chosen: list[Attribute] = list(stock)
    best = first
    while left:
        tried = [(attempt([*chosen, *family]), family) for family in left]
        for (edit, check), _ in tried:
            if check.passed:
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


MOST_TIMES = 8  # the code may hold this many times a number that changes: `self.channels // 2`


def touched(model: nn.Module, changes: Sequence[Change], multiples: bool = True) -> dict[tuple[str, str, int], list[int]]:
    """(module, attribute, a number in it) -> what the changes would make of it, each once: numbers of the modules around a change
    that equal what changes, or else (`multiples`) are a multiple of it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): path for path, module in model.named_modules()}
    found: dict[tuple[str, str, int], list[int]] = {}
    times: dict[tuple[str, str, int], list[int]] = {}
    for change in dict.fromkeys((change.modules, change.before, change.after) for change in changes):
        around, before, after = change
        for path in around:
            owner = modules.get(path)
            if owner is None:
                continue
            path = first[id(owner)]
            for name, held in vars(owner).items():
                number = as_number(held)
                if number is None or name.startswith("_"):
                    continue
                for one in {number} if isinstance(number, int) else set(number):
                    many = one // before if before > 1 and one % before == 0 else 0
                    place = found if many == 1 or one == before else times if multiples and 1 < many <= MOST_TIMES else None
                    if place is not None and many * after not in place.setdefault((path, name, one), []):
                        place[path, name, one].append(max(many, 1) * after)
    return {**{number: after for number, after in times.items() if number not in found}, **found}


def guesses(
    model: nn.Module, cuts: Sequence[Cut], stock: tuple[Attribute, ...], changes: Sequence[Change]
) -> list[list[Attribute]]:
    """Attributes that hold a number that changes, or a multiple of it, in a module around the change, as families: the same
    attribute of all like layers together, a family for each value it may get. Those that the cuts do not explain are left out: no
    edit may set them.
    """
    explained = Numbers(all_tensors(model), cuts)
    modules = dict(model.named_modules(remove_duplicate=False))
    taken = {(a.module, a.name) for a in stock}
    numbers: dict[tuple[str, str], dict[int, list[int]]] = {}
    for (path, name, one), after in touched(model, changes).items():
        if (path, name) not in taken:
            numbers.setdefault((path, name), {})[one] = after
    families: dict[tuple[str, str, int], list[Attribute]] = {}
    for (path, name), found in numbers.items():
        before = as_number(vars(modules[path])[name])
        assert before is not None
        for choice in range(max(map(len, found.values()))):
            now = {one: after[min(choice, len(after) - 1)] for one, after in found.items()}
            after_all = now[before] if isinstance(before, int) else tuple(now.get(n, n) for n in before)
            if explained.allows(path, modules[path], name, before, after_all):
                pattern = re.sub(r"\d+", "*", path)
                families.setdefault((pattern, name, choice), []).append(Attribute(path, name, before, after_all))
    return list(families.values())
