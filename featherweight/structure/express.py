"""What a network's own class can express: which sites can be cut in place, and which of them must keep equal shares.

A class has one number for many layers' sizes, or for the heads of query, key and value: such sites are cut together. Asked by
cutting copies and comparing, a family of sites at once: layers of one kind at the same place of repeated blocks do the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import gcd

import numpy as np
from torch import nn

from featherweight.network.copies import unwrapped
from featherweight.structure.cut import check_fresh
from featherweight.structure.graph import Graph
from featherweight.structure.inplace import touched, trial
from featherweight.structure.rewrite import Change, rewrite

Selection = Mapping[str, Sequence[int]]  # site -> the units that stay
Place = tuple[str, str, int]  # module, attribute, a number in it
DRAWS = 3  # of sizes, to see which of them a class cannot hold apart
Group = tuple[str, ...]  # sites that keep the same share of their units


@dataclass(frozen=True)
class _Asking:
    """Questions about one network: can its class express a cut of these sites?"""

    model: nn.Module
    graph: Graph
    keep: Selection

    def fine(self, sites: Sequence[str], quick: bool = False) -> bool:
        """`quick`: compared on one sample of the example only; what passes is asked again."""
        if not sites:
            return True
        gone = self.graph.gone({name: self.keep[name] for name in sites})
        masks = self.graph.keep_masks(gone)
        soft = any(self.graph.site(name).soft for name in sites)
        return trial(self.model, self.graph, masks, (), rewrite(self.graph, gone), soft, quick)[0] is not None

    def changes(self, sites: Sequence[str]) -> tuple[Change, ...]:
        return rewrite(self.graph, self.graph.gone({name: self.keep[name] for name in sites})).changes

    def most(self, groups: Sequence[Group], all_at_once: bool = True) -> list[Group]:
        """Groups that can be cut all at once, as many as are found: all; else whole families, then their members.

        all_at_once  False: it is known that all cannot be
        """
        if all_at_once and self.fine(_flat(groups)):
            return list(groups)
        for quick in (True, False):
            found = _parts(_families(self.graph, groups), partial(self.fine, quick=quick))
            if not found or not quick or self.fine(_flat(found)):
                break
        order = {group: place for place, group in enumerate(groups)}
        return sorted(found, key=order.__getitem__)


def _flat(groups: Sequence[Group]) -> list[str]:
    return [name for group in groups for name in group]


def _solve(families: Sequence[Sequence[Group]], fine: Callable[[list[str]], bool]) -> list[Group]:
    """All groups of these families, else what `_parts` finds."""
    groups = [group for family in families for group in family]
    return groups if fine(_flat(groups)) else _parts(families, fine)


def _parts(families: Sequence[Sequence[Group]], fine: Callable[[list[str]], bool]) -> list[Group]:
    """Of families that are not fine together: by halves, and of a single one by halves of its members, where the first can be cut
    alone: like members do alike."""
    if len(families) == 1:
        (family,) = families
        if len(family) == 1 or not fine(list(family[0])):
            return []
        families = [[group] for group in family]
    middle = len(families) // 2
    left, right = _solve(families[:middle], fine), _solve(families[middle:], fine)
    if not left or not right or fine(_flat([*left, *right])):
        return [*left, *right]
    return max(left, right, key=len)


def _families(graph: Graph, groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of like sites: the same names but for the numbers of blocks, and the same tensors."""
    found: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        kind = tuple((_pattern(t), d) for name in group for t, d in graph.site(name).parameters)
        found.setdefault((tuple(_pattern(name) for name in group), kind), []).append(group)
    return list(found.values())


def _pattern(name: str) -> str:
    """A name with the numbers of blocks left open: `blocks.*.attn.qkv`."""
    return re.sub(r"(?<![^.])\d+(?![^.\[#])", "*", name)


def expressible(
    model: nn.Module, graph: Graph, sites: Sequence[str] | Selection | None = None, *, seed: int = 0, soft: bool = False
) -> tuple[str, ...]:
    """The sites that the network's own class can express, cut all at once; `model` is not changed.

    sites  site -> units to keep, to ask about a plan; or names (default: all), to ask about a random half of their units, and
           where that does not do, about shares of which sites that are tied have the same
    soft   also sites whose cut changes what the network computes

    Whether a class can express a cut may depend on which units go (every second channel of a slice `[:, ::2]`) and on how many
    of each site (see `free_sizes`), so ask about the plan where there is one.
    """
    model = unwrapped(model)
    check_fresh(model, graph)
    if isinstance(sites, Mapping):
        plan = {name: list(units) for name, units in sites.items()}
        return tuple(_flat(_Asking(model, graph, plan).most([(name,) for name in plan])))
    rng = np.random.default_rng(seed)
    every = [n for n in (sites if sites is not None else graph.sites) if soft or not graph.site(n).soft]
    half = {n: _some(rng, graph.site(n).size, (graph.site(n).size + 1) // 2) for n in every}
    if _Asking(model, graph, half).fine(every):
        return tuple(every)
    found = {name for group in free_sizes(model, graph, every, seed=seed) for name in group}
    return tuple(name for name in every if name in found)


def _some(rng: np.random.Generator, size: int, count: int) -> list[int]:
    found: list[int] = np.sort(rng.permutation(size)[:count]).tolist()
    return found


def free_sizes(model: nn.Module, graph: Graph, sites: Sequence[str], *, seed: int = 0) -> tuple[Group, ...]:
    """The sites that the network's own class can express, in groups whose sizes are free, each group's of the others': sites that
    one number of the class ties keep the same share of their units. `model` is not changed.
    """
    model = unwrapped(model)
    check_fresh(model, graph)
    groups: list[Group] = [(name,) for name in sites]
    draws = [_Asking(model, graph, _uneven(graph, groups, seed + draw)) for draw in range(DRAWS)]
    clashes = [_clashes(asking, sites) for asking in draws]
    # sizes that happen to agree would hide a tie, and one order of two sizes may do where the other does not
    doubtful = [asking for asking, places in zip(draws, clashes, strict=True) if places]
    if all(asking.fine(sites) for asking in doubtful or draws[:1]):
        return tuple(groups)
    if not doubtful:
        return tuple(draws[0].most(groups, all_at_once=False))
    tied = _tied(draws[0], set[Place]().union(*clashes), sites)
    tied = [group for group in tied if levels(graph, group) > 1 or len(group) == 1]
    found = _Asking(model, graph, _uneven(graph, tied, seed)).most(tied)
    # what is tied to a site that cannot go may go without it
    broken = [group for group in tied if len(group) > 1 and group not in found]
    if broken:
        apart = [*found, *((name,) for group in broken for name in group)]
        found = max(found, _Asking(model, graph, _uneven(graph, apart, seed)).most(apart), key=lambda groups: len(_flat(groups)))
    return tuple(found)


def levels(graph: Graph, group: Group) -> int:
    """How many shares a group can keep: each site keeps k / levels of its units."""
    return gcd(*(graph.site(name).size for name in group))


def _uneven(graph: Graph, groups: Sequence[Group], seed: int) -> dict[str, list[int]]:
    """Another share for each group, from a quarter to all but one unit."""
    rng = np.random.default_rng(seed)
    keep: dict[str, list[int]] = {}
    for group in groups:
        most = levels(graph, group)
        level = int(rng.integers(max(1, most // 4), most)) if most > 1 else 1
        for name in group:
            size = graph.site(name).size
            keep[name] = _some(rng, size, size // most * level)
    return keep


def _clashes(asking: _Asking, sites: Sequence[str]) -> set[Place]:
    """The numbers of the class of which a cut of all sites would make several different ones."""
    return {place for place, after in touched(asking.model, asking.changes(sites)).items() if len(after) > 1}


def _tied(asking: _Asking, clashes: set[Place], sites: Sequence[str]) -> list[Group]:
    """The sites that change one of these numbers are tied, in the order of the sites."""
    parent = {name: name for name in sites}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    at = {name: number for number, name in enumerate(sites)}
    exact = touched(asking.model, asking.changes(sites), multiples=False)
    holder: dict[Place, str] = {}
    for name in sites if clashes else ():
        changes = asking.changes([name])
        mine, multiples = (touched(asking.model, changes, multiples=also) for also in (False, True))
        for place in clashes & (mine.keys() | (multiples.keys() - exact.keys())):
            first, last = sorted((root(holder.setdefault(place, name)), root(name)), key=at.__getitem__)
            parent[last] = first
    groups: dict[str, list[str]] = {}
    for name in sites:
        groups.setdefault(root(name), []).append(name)
    return [tuple(group) for group in groups.values()]
