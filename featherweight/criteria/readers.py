"""Gates: where in the user's own modules the units of a site are read, and a factor on each unit there.

To cut a unit is to take it out of every sum that reads it, so a unit is watched where it is read: at the input of each
convolution and linear layer that sums over it. A gate multiplies the unit there. At 1 the network is unchanged; at 0 it computes
what the cut network computes. Residual, concatenated and grouped sites need no case of their own: all their readers share the
gates, however many layers feed them. Heads of an attention are read by its output projection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.errors import InputError, shortened
from featherweight.network.stacked import is_stacked
from featherweight.structure import Graph
from featherweight.structure.cut import check_fresh
from featherweight.structure.labels import FIRST, Planes
from featherweight.structure.nodes import shape_of
from featherweight.structure.values import Reading

Layer = nn.Linear | _ConvNd


class Unobservable(InputError):
    """A site whose units are read where no module of the network's can be watched."""


BY_WEIGHTS = "Rank by l1 or l2, which look at weights alone"


def unfollowed(error: Exception) -> Unobservable:
    """The error for a loss that fails where the network's units are watched, though it runs without."""
    said = shortened(str(error).strip())
    return Unobservable(f"the task's loss runs the network in a way that cannot be watched ({said}). {BY_WEIGHTS}")


@dataclass(frozen=True)
class Reader:
    """A convolution or linear layer that sums over the units of one or more sites.

    module  its path in the network
    weight  the name of its weight in the graph (the first name, where it is tied)
    dim     the dimension of the weight that is summed over
    axis    the dimension of the layer's input along which the units lie
    units   site -> per position of that dimension the number of the unit that lies there, -1 where none does; several vectors
            where units of one site lie there in several ways
    """

    module: str
    weight: str
    dim: int
    axis: int
    units: dict[str, tuple[Tensor, ...]] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Readers:
    """All readers of some sites, in the order in which the network runs them, and the sites that cannot be watched, with why.

    recurrent  site -> (module, its weight) of the recurrent modules that read it, where those were asked for
    """

    readers: tuple[Reader, ...]
    unobservable: dict[str, str]
    recurrent: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)

    def of(self, site: str) -> tuple[Reader, ...]:
        """The readers of one site."""
        return tuple(reader for reader in self.readers if site in reader.units)

    def without(self, reasons: Mapping[str, str]) -> Readers:
        """The same without these sites, which cannot be watched for the reasons given."""
        left = (
            Reader(r.module, r.weight, r.dim, r.axis, {site: units for site, units in r.units.items() if site not in reasons})
            for r in self.readers
        )
        recurrent = {site: read for site, read in self.recurrent.items() if site not in reasons}
        return Readers(tuple(reader for reader in left if reader.units), {**self.unobservable, **reasons}, recurrent)


def places(graph: Graph, site: str, planes: Planes) -> tuple[Tensor, ...]:
    """Per plane that holds units of `site`: the number of the unit at each position, -1 where there is none of this site."""
    labels = graph.site(site).labels
    number = {int(label): i for i, label in enumerate(labels)}
    found = (torch.tensor([number.get(int(label), -1) for label in plane]) for plane in planes)
    return tuple(vector for vector in found if bool((vector >= 0).any()))


def find_readers(model: nn.Module, graph: Graph, sites: Iterable[str] | None = None, recurrent: bool = False) -> Readers:
    """Where the units of these sites (default: all) are read. Sites without such a place are listed with the reason.

    recurrent  also by the matrices of recurrent modules (see `network.stacked`), which have no gates

    Raises UnknownSite, StaleGraph.
    """
    names = list(graph.sites) if sites is None else [graph.site(name).name for name in sites]
    check_fresh(model, graph)
    wanted = {name: set(graph.sites[name].labels.tolist()) for name in names}
    reasons: dict[str, str] = {}
    found: dict[str, Reader] = {}
    inside: dict[str, tuple[tuple[str, str], ...]] = {}
    read: set[str] = set()
    for reading in graph.walk.readings:
        planes = graph.walk.labels.resolve(reading.planes)
        here = {int(label) for plane in planes for label in plane[plane >= FIRST]}
        for site in (name for name, labels in wanted.items() if not labels.isdisjoint(here)):
            read.add(site)
            if recurrent and reading.weight and is_stacked(model.get_submodule(graph.walk.module_of(reading.node))):
                inside[site] = (*inside.get(site, ()), (graph.walk.module_of(reading.node), reading.weight.rpartition(".")[2]))
                continue
            layer = _layer(model, graph, reading)
            if isinstance(layer, str):
                reasons.setdefault(site, layer)
                continue
            path = graph.walk.module_of(reading.node)
            axis = -1 if isinstance(layer, nn.Linear) else 1
            reader = found.setdefault(path, Reader(path, reading.weight, reading.weight_dim, axis, {}))
            reader.units[site] = places(graph, site, planes)
    reasons |= {name: "no sum of the network reads its units" for name in names if name not in read}
    return Readers(tuple(found.values()), {}, inside).without(reasons)


@contextmanager
def differentiable(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, gradients with respect to these parameters can be asked for, frozen ones too."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _layer(model: nn.Module, graph: Graph, reading: Reading) -> Layer | str:
    """The layer that does this sum, if its input can be multiplied before it; else why not."""
    where = graph.walk.where(reading.node)
    if not reading.weight:
        return f"its units are multiplied with other activations ({where}), which no layer with a weight of its own does"
    layer = model.get_submodule(graph.walk.module_of(reading.node))
    if not isinstance(layer, (nn.Linear, _ConvNd)):
        return f"its units are read by {where}, and only what Conv and Linear modules read can be looked at"
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    if weight is None or weight is not graph.captured.tensors.get(reading.weight):
        return f"its units are read by {where}, which does not hold the weight {reading.weight!r} as its own parameter"
    shape = shape_of(reading.source) if reading.source is not None else None
    if shape is None or shape[0] != graph.captured.inputs.batch:
        return f"its units are read by {where} where the first dimension is not the batch, so samples cannot be told apart"
    return layer


# --- what makes units -----------------------------------------------------------------------------------------------------


def producers(graph: Graph, site: str) -> list[tuple[str, int]]:
    """(parameter, dimension) of the weights whose slices make the units: not vectors beside them, nor what reads the units."""
    training = graph.walk.training.readings if graph.walk.training is not None else []
    read = {(reading.weight, reading.weight_dim) for reading in [*graph.walk.readings, *training]}
    return [
        (name, dim)
        for name, dim in graph.site(site).parameters
        if graph.kinds[name] == "parameter" and len(graph.tensors[name]) > 1 and (name, dim) not in read
    ]


def unit_sums(graph: Graph, site: str, name: str, dim: int, values: Tensor) -> Tensor:
    """(units,) sums of `values`, which has the shape of tensor `name`, over what each unit owns of it along `dim`; on the CPU."""
    entries = (values.movedim(dim, 0).flatten(1).sum(1) if values.ndim > 1 else values).cpu()
    sums = entries.new_zeros(graph.site(site).size)
    for numbers in places(graph, site, graph.planes[name, dim]):
        owned = numbers >= 0
        sums.index_add_(0, numbers[owned], entries[owned])
    return sums


# --- gates ---------------------------------------------------------------------------------------------------------------

Watch = Callable[[Reader, nn.Module, Tensor], None]


@contextmanager
def gated(
    model: nn.Module,
    readers: Iterable[Reader],
    gates: Mapping[str, Tensor],
    watch: Watch | None = None,
    *,
    cast: bool = False,
) -> Iterator[None]:
    """Inside, the units of every site in `gates` are multiplied where they are read.

    gates  site -> (units,), or (batch, units) for a factor of its own for each sample
    cast   multiply in the activations' precision: under autocast a float32 gate makes every activation float32, at twice the time
    watch  is given each reader, its module and its input, gates applied, each time it runs

    The network is not changed otherwise; the hooks are gone afterwards, also after an error.
    """
    handles = []

    Called = tuple[tuple[Any, ...], dict[str, Any]]

    def hook(reader: Reader) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Called]:
        def apply(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Called:
            x = inputs[0] if inputs else named["input"]
            for site, vectors in reader.units.items():
                if site in gates:
                    for numbers in vectors:
                        gate = gates[site].to(x.dtype) if cast else gates[site]
                        x = x * _spread(gate, numbers, x, reader)
            if watch is not None:
                watch(reader, module, x)
            return ((x, *inputs[1:]), named) if inputs else ((), named | {"input": x})

        return apply

    try:
        for reader in readers:
            handles.append(model.get_submodule(reader.module).register_forward_pre_hook(hook(reader), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _spread(gate: Tensor, numbers: Tensor, x: Tensor, reader: Reader) -> Tensor:
    """The factors of a gate in the shape of the activation: 1 where no unit of the site lies."""
    if gate.ndim == 2 and gate.shape[0] != x.shape[0]:
        raise Unobservable(
            f"{reader.module} reads {x.shape[0]} rows where the batch has {gate.shape[0]} samples: its first dimension is not "
            "the batch. Leave out the sites it reads"
        )
    if not bool((numbers < 0).any()):
        factors = gate[..., numbers]
    else:
        factors = torch.cat([gate, gate.new_ones(*gate.shape[:-1], 1)], -1)[..., numbers]
    shape = [1] * x.ndim
    shape[reader.axis] = len(numbers)
    if gate.ndim == 2:
        shape[0] = x.shape[0]
    return factors.reshape(shape)


def masks(graph: Graph, keep: Mapping[str, Iterable[int]], like: Tensor) -> dict[str, Tensor]:
    """Gates that are 1 for the units kept and 0 for all others: inside them the network computes what the cut one will."""
    result = {}
    for site, units in keep.items():
        gate = like.new_zeros(graph.site(site).size)
        gate[list(units)] = 1
        result[site] = gate
    return result
