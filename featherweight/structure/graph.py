"""The graph of a network's structure: which units can go, what each owns, what cannot go and why, and what any choice costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from featherweight.network.calls import Inputs
from featherweight.structure.blocks import Block
from featherweight.structure.capture import Captured
from featherweight.structure.errors import BadSelection, unknown
from featherweight.structure.labels import FIRST, Planes, Vector
from featherweight.structure.macs import Size, Term, size_of
from featherweight.structure.values import Value
from featherweight.structure.walk import Walk


@dataclass(frozen=True)
class Slice:
    """What a unit owns of one tensor: the entries `index` along dimension `dim` of the parameter or buffer named.

    rows  only in these rows (first, one past the last) of dimension 0: the columns of one group of a grouped convolution
    """

    parameter: str
    dim: int
    index: tuple[int, ...]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Site:
    """A set of units that play the same part: the channels of a layer, the heads of an attention.

    name        the first layer that makes the units, e.g. `layer1.0.conv1`
    size        how many units there are, numbered from 0
    parameters  (tensor, dimension) of everything that is cut when a unit goes
    soft        the reason why cutting here changes what the network computes; "" where a cut is exact
    """

    name: str
    size: int
    parameters: tuple[tuple[str, int], ...]
    soft: str
    labels: Vector = field(repr=False, compare=False)
    _graph: Graph = field(repr=False, compare=False)

    @property
    def units(self) -> tuple[tuple[Slice, ...], ...]:
        """What each unit owns; for many units prefer `unit`."""
        return tuple(self.unit(i) for i in range(self.size))

    def unit(self, number: int) -> tuple[Slice, ...]:
        """What one unit owns."""
        return self._graph.slices_of(int(self.labels[number]))


class Reasons(dict[str, str]):
    """Parameter -> why nothing of it can go; "" for one of which something can."""

    def __missing__(self, name: str) -> str:
        return ""


class Graph:
    """What can be removed from a network. Made by `trace`; describes the network as it was then.

    sites      name -> Site
    blocks     name -> Block
    frozen     parameter -> why nothing of it can go (see `Reasons`)
    uncounted  operation without a rule -> how often it occurs; these are in no MACs
    others     inputs of other sizes that the network takes too: cuts are compared on them as well
    """

    def __init__(self, walk: Walk, names: Iterable[str]) -> None:
        self.captured: Captured = walk.captured
        self.walk = walk
        self.uncounted: dict[str, int] = dict(walk.uncounted)
        self.blocks: dict[str, Block] = {}
        self.others: tuple[Inputs, ...] = ()
        self.varying: dict[str, frozenset[int]] = dict(walk.varying)
        self.tensors: dict[str, tuple[int, ...]] = {name: value.shape for name, value in walk.tensors.items()}
        modes = [walk.captured] + ([walk.captured.training] if walk.captured.training is not None else [])
        self.kinds: dict[str, str] = {name: kind for mode in modes for kind, name in mode.sources if name in self.tensors}
        self.planes: dict[tuple[str, int], Planes] = {}
        for name, value in walk.tensors.items():
            for d in range(len(value.shape)):
                planes = walk.labels.resolve(value.planes[d])
                if planes:
                    self.planes[name, d] = planes
        self._index()
        self.sites: dict[str, Site] = self._make_sites()
        self._site_numbers = {name: i for i, name in enumerate(self.sites)}
        self.frozen: Reasons = self._reasons(names)
        self._count()

    # ---- units

    def _index(self) -> None:
        """label -> its slices, as a sorted table (label, slot, position); a slot is a (tensor, dimension)."""
        self._slots: list[tuple[str, int]] = list(self.planes)
        labels, slots, positions = [], [], []
        self._vectors: list[Vector] = []
        for k, key in enumerate(self._slots):
            for plane in self.planes[key]:
                self._vectors.append(plane)
                labels.append(plane)
                slots.append(np.full(len(plane), k))
                positions.append(np.arange(len(plane)))
        empty = np.zeros(0, dtype=np.int64)
        label = np.concatenate(labels) if labels else empty
        slot = np.concatenate(slots) if slots else empty
        position = np.concatenate(positions) if positions else empty
        live = label >= FIRST
        label, slot, position = label[live], slot[live], position[live]
        order = np.lexsort((position, slot, label))
        self._label, self._slot, self._position = label[order], slot[order], position[order]
        self._units, self._starts = np.unique(self._label, return_index=True)

    def slices_of(self, label: int) -> tuple[Slice, ...]:
        """Everything that goes with a label."""
        start, stop = np.searchsorted(self._label, [label, label + 1])
        slots, positions = self._slot[start:stop], self._position[start:stop]
        result: list[Slice] = []
        for slot in dict.fromkeys(slots.tolist()):
            name, dim = self._slots[slot]
            shape, index = self.tensors[name], np.unique(positions[slots == slot])
            blocks = len(self.planes[name, dim][0]) // shape[dim]
            for block in np.unique(index // shape[dim]).tolist():
                own = tuple((index[index // shape[dim] == block] - block * shape[dim]).tolist())
                height = shape[0] // blocks
                result.append(Slice(name, dim, own, (block * height, (block + 1) * height) if blocks > 1 else None))
        return tuple(result)

    def _make_sites(self) -> dict[str, Site]:
        """Labels that occur together and own the same number of entries of the same dimensions are one site."""
        # the sizes of products that are not parameters (heads of an attention) must be even over a site too
        seen = {plane.tobytes() for plane in self._vectors}
        others = []
        for planes in {id(f.planes): f.planes for c in self.walk.counts for f in c.factors if f.planes}.values():
            for plane in self.walk.labels.resolve(planes):
                if plane.tobytes() not in seen:
                    seen.add(plane.tobytes())
                    others.append(plane)
        weights = np.random.default_rng(0).integers(1, 1 << 62, size=len(self._slots) + len(others) + 1)
        signature = np.zeros(len(self._units), dtype=np.int64)
        number = np.full(self.walk.labels.used, -1, dtype=np.int64)
        number[self._units] = np.arange(len(self._units))
        unit_of = number[self._label]
        np.add.at(signature, unit_of, weights[self._slot] if len(self._slot) else np.zeros(0, dtype=np.int64))
        for k, plane in enumerate(others):
            live = number[plane][number[plane] >= 0]
            np.add.at(signature, live, weights[len(self._slots) + k])
        component = self.walk.labels.components(self._vectors)[self._units] if len(self._units) else self._units
        first_slot = self._slot[self._starts] if len(self._units) else self._units
        _, group = np.unique(np.stack([component, signature]), axis=1, return_inverse=True)
        group = group.reshape(-1)
        # one pass per site would be slow for thousands: sort once
        order = np.argsort(group, kind="stable")
        bounds = np.flatnonzero(np.diff(group[order], prepend=-1)) if len(order) else np.zeros(0, dtype=np.int64)
        chunks = np.split(order, bounds[1:]) if len(order) else []
        chunks.sort(key=lambda chunk: (int(first_slot[chunk[0]]), int(self._position[self._starts[chunk].min()])))
        soft = self._soft_labels()
        sites: dict[str, Site] = {}
        self._alone: set[int] = set()
        self.site_of = np.full(self.walk.labels.used, -1, dtype=np.int64)
        for chunk in chunks:
            labels = self._units[chunk]
            if len(labels) == 1:
                self._alone.add(int(labels[0]))
                continue
            start, stop = np.searchsorted(self._label, [labels[0], labels[0] + 1])
            slots = [self._slots[s] for s in dict.fromkeys(self._slot[start:stop].tolist())]
            # number the units as they lie in the first tensor
            lead = self._position[self._starts[chunk]]
            labels = labels[np.argsort(lead, kind="stable")]
            name = self._site_name(slots, sites)
            reason = next((soft[int(v)] for v in labels if int(v) in soft), "")
            self.site_of[labels] = len(sites)
            sites[name] = Site(name, len(labels), tuple(slots), reason, labels, self)
        return sites

    def _site_name(self, slots: Sequence[tuple[str, int]], taken: Mapping[str, Site]) -> str:
        tensor, dim = next((slot for slot in slots if slot[1] == 0 and self.kinds.get(slot[0]) == "parameter"), slots[0])
        head, _, last = tensor.rpartition(".")
        name = head if head and last == "weight" else tensor
        weights = (f"{head}.weight", f"{head}.parametrizations.weight.")
        if head and last == "bias" and any(other.startswith(weights) for other, _ in slots):
            name = head  # a layer that keeps its outputs in dimension 1, or makes its weight of others
        elif dim != 0:
            name = f"{name}[{dim}]"
        if name not in taken:
            return name
        return next(f"{name}#{k}" for k in range(2, len(taken) + 3) if f"{name}#{k}" not in taken)

    def _soft_labels(self) -> dict[int, str]:
        result: dict[int, str] = {}
        for reason, planes in self.walk.softened:
            for plane in self.walk.labels.resolve(planes):
                for label in np.unique(plane[plane >= FIRST]):
                    result.setdefault(int(label), reason)
        return result

    def _reasons(self, names: Iterable[str]) -> Reasons:
        """Every parameter that is in no site, with why."""
        walks = [self.walk] + ([self.walk.training] if self.walk.training is not None else [])
        read = {name for walk in walks for node, name in walk.owner.items() if node.users}
        live = {tensor for site in self.sites.values() for tensor, _ in site.parameters}
        frozen = Reasons()
        for name in names:
            first = self.captured.tied.get(name, name)
            if first in live:
                continue
            value = self.walk.tensors.get(first)
            if value is None or first not in read:
                frozen[name] = "the network never reads it"
                continue
            reasons = [reason for d in range(len(value.shape)) for reason in self.walk.labels.reasons(value.planes[d])]
            if first in {tensor for tensor, _ in self.planes}:
                reasons.append("its entries could only go all together")
            if reasons:
                frozen[name] = "; ".join(dict.fromkeys(reasons))
            elif all(size <= 1 for size in value.shape):
                frozen[name] = "it has a single entry"
            else:
                frozen[name] = "it shares memory with another tensor"
        return frozen

    def doubtful(self) -> bool:
        """Is there a unit of which the walk cannot tell whether it follows the size of the input?"""
        walks = [self.walk] + ([self.walk.training] if self.walk.training is not None else [])
        return any(
            bool((self.site_of[plane] >= 0).any())
            for walk in walks
            for _, planes in walk.doubtful
            for plane in self.walk.labels.resolve(planes)
        )

    # ---- sizes

    def _count(self) -> None:
        units = self._unit_counts = [site.size for site in self.sites.values()]
        known: dict[tuple[int, tuple[bytes, ...]], Size] = {}

        def size(planes: Planes, number: int) -> Size:
            resolved = self.walk.labels.resolve(planes)
            if not resolved:
                return Size((Term(number, ()),))
            key = number, tuple(p.tobytes() for p in resolved)
            if key not in known:
                known[key] = size_of(resolved, number, self.site_of, units)
            return known[key]

        self._operations = [
            (c.module, c.times, tuple(size(f.planes, f.size) for f in c.factors), (c.per_batch and self.captured.copies) or 1)
            for c in self.walk.counts
        ]
        self._shapes = {
            name: tuple(size(self.planes.get((name, d), []), n) for d, n in enumerate(shape))
            for name, shape in self.tensors.items()
        }

    def _kept(self, sizes: Mapping[str, int]) -> list[int]:
        kept = list(self._unit_counts)
        for name, number in sizes.items():
            site = self.site(name)
            if not 1 <= number <= site.size:
                raise BadSelection(f"site {name!r} has {site.size} units; it can keep 1 to {site.size}, not {number}")
            kept[self._site_numbers[name]] = int(number)
        return kept

    def macs(self, sizes: Mapping[str, int] | None = None) -> int:
        """Multiply-accumulates of the network for the example given to `trace`, when each site named keeps so many units."""
        return sum(self.macs_by_module(sizes).values())

    def macs_by_node(self) -> dict[str, int]:
        """Multiply-accumulates of each operation of the exported graph, uncut."""
        result: dict[str, int] = {}
        for count, (_, times, factors, copies) in zip(self.walk.counts, self._operations, strict=True):
            number = times
            for factor in factors:
                number *= factor.at(self._unit_counts)
            result[count.node] = result.get(count.node, 0) + number // copies
        return result

    def macs_by_module(self, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """The same by the module that does them."""
        kept = self._kept(sizes or {})
        result: dict[str, int] = {}
        for module, times, factors, copies in self._operations:
            number = times
            for factor in factors:
                number *= factor.at(kept)
            result[module] = result.get(module, 0) + number // copies
        return result

    def parameters(self, sizes: Mapping[str, int] | None = None) -> int:
        """Entries of all parameters, tied ones once, when each site named keeps so many units."""
        return sum(number for name, number in self.entries(sizes).items() if self.kinds.get(name) == "parameter")

    def entries(self, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """The same of each parameter, buffer and constant by itself."""
        kept = self._kept(sizes or {})
        return {name: prod(size.at(kept) for size in shape) for name, shape in self._shapes.items()}

    def parameter_sizes(self) -> dict[str, tuple[Size, ...]]:
        """Parameter -> its dimensions, as polynomials in how many units each site, numbered as in `sites`, keeps."""
        return {name: shape for name, shape in self._shapes.items() if self.kinds.get(name) == "parameter"}

    def removable(self) -> int:
        """Entries of parameters that go when every site keeps one unit."""
        return self.parameters() - self.parameters(dict.fromkeys(self.sites, 1))

    # ---- selection

    def freeze_site(self, name: str, reason: str) -> str:
        """Take a site out of the graph, with the reason; its parameters are frozen unless another site holds them. Returns the
        reason.
        """
        site = self.sites.pop(name)
        elsewhere = {tensor for other in self.sites.values() for tensor, _ in other.parameters}
        for tensor, _ in site.parameters:
            if tensor not in elsewhere and self.kinds.get(tensor) == "parameter":
                self.frozen[tensor] = reason
        return reason

    def site(self, name: str) -> Site:
        """The site of this name, or an error with the nearest names."""
        if name not in self.sites:
            raise unknown("site", name, self.sites)
        return self.sites[name]

    def gone(self, keep: Mapping[str, Sequence[int]]) -> NDArray[np.bool_]:
        """Which labels go when each site named keeps these units; raises BadSelection for a choice that leaves a tensor empty."""
        gone = np.zeros(self.walk.labels.used, dtype=bool)
        for name, units in keep.items():
            site = self.site(name)
            numbers = [int(u) for u in units]
            if not numbers:
                raise BadSelection(
                    f"nothing is kept of site {name!r}; keep at least 1 of its {site.size} units, or drop the block it is in"
                )
            wrong = [u for u in numbers if not 0 <= u < site.size]
            if wrong:
                raise BadSelection(
                    f"site {name!r} has units 0 to {site.size - 1}; {wrong[:5]} {'are' if len(wrong) > 1 else 'is'} out of range"
                )
            if len(set(numbers)) < len(numbers):
                raise BadSelection(f"site {name!r} is asked to keep a unit twice; name each unit once")
            stays = np.zeros(site.size, dtype=bool)
            stays[numbers] = True
            gone[site.labels[~stays]] = True
        return gone

    def keep_masks(self, gone: NDArray[np.bool_]) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """(tensor, dimension) -> which entries (see `entries`) stay, for the dimensions that lose some."""
        result = {}
        for key, planes in self.planes.items():
            lost = np.zeros(len(planes[0]), dtype=bool)
            for plane in planes:
                lost |= gone[plane]
            if lost.any():
                if lost.all():
                    raise BadSelection(f"nothing would be left of {key[0]!r} along dimension {key[1]}; keep more units")
                result[key] = ~lost
        return result

    def zeroed(self, masks: Mapping[tuple[str, int], NDArray[np.bool_]]) -> dict[tuple[str, int], NDArray[np.bool_]]:
        """Those of the masks whose entries are 0 where a cut is compared: not what the network divides by."""
        return {key: mask for key, mask in masks.items() if key not in self.walk.divided}

    def node_masks(self, gone: NDArray[np.bool_]) -> Callable[[Value, int], NDArray[np.bool_] | None]:
        """A function (value, dimension) -> which entries stay, None where all do."""

        def mask(value: Value, dim: int) -> NDArray[np.bool_] | None:
            lost = None
            for plane in self.walk.live(value, dim):
                part = gone[plane]
                if part.any():
                    lost = part if lost is None else lost | part
            return None if lost is None else ~lost

        return mask
