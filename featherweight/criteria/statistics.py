"""Statistics of a network's units over calibration batches: one pass for all sites, in memory that does not grow with the data.

A unit is watched where it is read (see `readers`): x_i is what its readers get of it, and with a gate g_i = 1 there, for a
loss L_n of one sample,

    u_i(n) = dL_n / dg_i = sum over readers and positions of x_i dL_n/dx_i,

the first-order change of L_n were the unit scaled. All u of all sites come from one backward pass a batch.

    zeros      share of exact zeros among the x_i                                                           (units,)
    gradients  mean_n u_i(n) and mean_n |u_i(n)|                                                            (units,) each
    pairs      S_ij = mean_n of the curvature between gates i and j                                         (units, units)
    weights    mean over batches of (sum over the weights w that make unit i of w dL/dw)^2                  (units,)
    gram       of each reader: mean of [x 1][x 1]^T over sampled patches x of its input                     (d + 1, d + 1)
    responses  of the last reader: mean of [x 1][x 1]^T over sampled positions, x its input channels        (c + 1, c + 1)
    recurrent  of each recurrent module: sums of [x 1][x 1]^T over all steps, of its inputs and each layer's units

with d = input channels times kernel positions. Sums are held on the CPU, wherever the network is, in float64: 8 bytes an entry,
`memory` says how many in all before anything runs. Beside them lives one batch with its activations, and the patches of one
reader.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from featherweight.criteria import readers as gates
from featherweight.criteria import recurrent
from featherweight.criteria.calibration import Curvature, Run
from featherweight.criteria.patches import drawn, patches
from featherweight.criteria.readers import (
    Layer,
    Reader,
    Readers,
    Unobservable,
    differentiable,
    find_readers,
    producers,
    unit_sums,
)
from featherweight.errors import InputError, did_you_mean
from featherweight.network.evaluating import evaluating
from featherweight.structure import Graph
from featherweight.task import Batch, Task, loss_in_eval

STATISTICS = ("zeros", "gradients", "pairs", "weights", "gram", "responses", "recurrent")


class TooFewSamples(InputError):
    """Calibration data without a sample."""


@dataclass(frozen=True)
class Moments:
    """Mean of [x 1][x 1]^T over `rows` vectors x: means of products, and in the last row the means."""

    matrix: Tensor  # (d + 1, d + 1) float64
    rows: int


@dataclass(frozen=True)
class Stats:
    """What `collect` found. Dictionaries are empty where a statistic was not asked for.

    sites         those that were asked about and can be watched, in the order of the graph
    samples       how many were seen, in `count` batches: fewer than `asked` where the epoch holds no more
    """

    task: Task
    epoch: int
    samples: int
    count: int
    sites: tuple[str, ...]
    readers: Readers
    curvature: Curvature = "loss"  # what `pairs` is the curvature of
    asked: int = 0
    zeros: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)
    pairs: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    gram: dict[str, Moments] = field(default_factory=dict)  # by the reader's module
    responses: dict[str, Moments] = field(default_factory=dict)  # of the last reader, by its module
    recurrent: dict[str, recurrent.Seen] = field(default_factory=dict)  # by the module

    @property
    def unobservable(self) -> dict[str, str]:
        """Site -> why it cannot be watched."""
        return self.readers.unobservable

    def batches(self) -> Iterator[Batch]:
        """The batches that these statistics are of."""
        return itertools.islice(iter(self.task.batches(self.epoch)), self.count)

    def caveat(self) -> str:
        """What is to be said of the samples; "" where there were as many as asked for."""
        told = f"judged by the {self.samples:,} samples that an epoch holds, where {self.asked:,} were asked for"
        return told if self.samples < self.asked else ""

    def require(self, statistic: str) -> None:
        """Raise InputError if this statistic was not collected."""
        if self.sites and not getattr(self, statistic):
            raise InputError(
                f"the statistic {statistic!r} was not collected: name it in collect(..., statistics=[{statistic!r}]); "
                "featherweight.criteria.NEEDS says what each criterion needs"
            )


def memory(model: nn.Module, graph: Graph, statistics: Iterable[str], sites: Iterable[str] | None = None) -> int:
    """Bytes of the sums that `collect` holds for these statistics and sites, whatever the number of samples."""
    asked, found = set(_known(statistics)), _watched(model, graph, sites, statistics)
    chosen = [name for name in (graph.sites if sites is None else sites) if name not in found.unobservable]
    units = [graph.site(name).size for name in chosen]
    entries = sum(units) * (("zeros" in asked) + 2 * ("gradients" in asked) + ("weights" in asked))
    entries += sum(size**2 for size in units) if "pairs" in asked else 0
    if "gram" in asked:
        entries += sum(_width(model, reader) ** 2 for reader in found.readers)
    if "responses" in asked:
        entries += _width(model, last_layer(model, graph), kernel=False) ** 2
    for module in {module for site in chosen for module, _ in found.recurrent.get(site, ())}:
        entries += recurrent.entries(model.get_submodule(module))
    return 8 * entries


def unobservable(model: nn.Module, graph: Graph, statistics: Iterable[str], sites: Iterable[str] | None = None) -> dict[str, str]:
    """Site -> why it cannot be watched for these statistics, without a look at data: what `collect` would leave out."""
    asked = _known(statistics)
    return _watched(model, graph, sites, asked).unobservable if asked else {}


def collect(
    model: nn.Module,
    graph: Graph,
    task: Task,
    statistics: Iterable[str],
    *,
    sites: Iterable[str] | None = None,
    samples: int = 1024,
    epoch: int = 0,
    positions: int = 10,
    curvature: Curvature = "loss",
    limit: int = 2 << 30,
    seed: int = 0,
) -> Stats:
    """Statistics over the first batches of `task.batches(epoch)` that hold `samples` samples. The network runs in eval mode.

    `task.loss` is to be the mean over the samples of the batch of a loss of each, and to call the network once.

    statistics     some of STATISTICS; none: no data is read, and `sites` are those asked for
    samples        where the epoch holds fewer, all of them; `Stats.caveat` says so
    sites          names; default: all. Those that cannot be watched are left out: `Stats.unobservable` says why
    positions      patches drawn for each sample at each reader, for "gram" and "responses"
    curvature      what "pairs" is the curvature of.
                   "loss": S = mean_n u(n) u(n)^T, which for a cross-entropy with one right class is the empirical Fisher
                   matrix, the Hessian of CCP (ICML 2019). One backward pass with the gradients.
                   "least_squares": the Gauss-Newton matrix of a loss quadratic in the outputs; a pass for each output.
                   "outputs": of 1/2 |f - f_0|^2, f_0 what the network puts out now, so what is kept is the function and not the
                   labels: mean_n J^T J, J = df/dg, estimated without bias by J^T v, v random signs (Hutchinson). One pass
                   more; the gradient of this loss is 0
    limit          bytes that the sums may take

    Raises UnknownSite; Unobservable where none of the sites named can be watched, TooFewSamples where the epoch is empty;
    InputError where the sums would not fit in `limit` or the loss is not what it has to be.
    """
    asked = _known(statistics)
    if curvature not in get_args(Curvature):
        raise InputError(f"curvature is one of {', '.join(get_args(Curvature))}, not {curvature!r}")
    sites = None if sites is None else list(sites)
    found = _watched(model, graph, sites, asked)
    if not asked:
        return Stats(task, epoch, 0, 0, tuple(graph.sites if sites is None else sites), found)
    needed = memory(model, graph, asked, sites)
    if needed > limit:
        raise InputError(
            f"the statistics {', '.join(asked)} take {needed:,} bytes, more than the limit of {limit:,}: ask about fewer sites "
            "at a time, or raise `limit`"
        )
    chosen = [name for name in graph.sites if name not in found.unobservable and (sites is None or name in sites)]
    if sites and not chosen:
        told = "; ".join(f"{name!r}: {reason}" for name, reason in found.unobservable.items())
        raise Unobservable(f"none of the sites can be watched: {told}. Rank them by their weights (l1, l2): that needs no data")
    if not chosen:
        return Stats(task, epoch, 0, 0, (), found, curvature)
    sums = _Sums(model, graph, found, chosen, asked, positions, seed, curvature)
    with evaluating(model):
        for batch in task.batches(epoch):
            sums.add(task, batch)
            if sums.samples >= samples:
                break
    if not sums.samples:
        raise TooFewSamples(f"batches({epoch}) of the task gave no sample to look at: is the data set empty?")
    return Stats(task, epoch, sums.samples, sums.count, tuple(chosen), found, curvature, samples, **sums.means())


def _known(statistics: Iterable[str]) -> list[str]:
    asked = list(dict.fromkeys(statistics))
    for name in asked:
        if name not in STATISTICS:
            raise InputError(
                f"no statistic is named {name!r}; there are {', '.join(STATISTICS)}.{did_you_mean(name, STATISTICS)}"
            )
    return asked


def _watched(model: nn.Module, graph: Graph, sites: Iterable[str] | None, statistics: Iterable[str]) -> Readers:
    """The readers of the sites, of which those are out that a statistic cannot be taken of."""
    asked = set(statistics)
    found = find_readers(model, graph, sites, recurrent="recurrent" in asked)
    if "gram" not in asked:
        return found
    reasons: dict[str, str] = {}
    for reader in found.readers:
        layer = model.get_submodule(reader.module)
        if isinstance(layer, _ConvNd) and (layer.transposed or layer.groups > 1):
            kind = "a transposed convolution" if layer.transposed else f"a convolution in {layer.groups} groups"
            reasons |= dict.fromkeys(reader.units, f"it is read by {reader.module}, {kind}, whose patches are not sampled")
    return found.without(reasons)


def last_layer(model: nn.Module, graph: Graph) -> Reader:
    """The last convolution or linear layer that the network runs. Raises Unobservable where no module does the last product."""
    path = graph.walk.counts[-1].module if graph.walk.counts else ""
    layer = model.get_submodule(path)
    if not isinstance(layer, Layer):
        raise Unobservable(
            f"the last product of the network is done in {path or 'its own code'}, which is no Conv or Linear module: leave out "
            "the statistic 'responses' (nisp) for this network"
        )
    dim = 0 if isinstance(layer, _ConvNd) and layer.transposed else 1
    return Reader(path, f"{path}.weight", dim, -1 if isinstance(layer, nn.Linear) else 1, {})


def _width(model: nn.Module, reader: Reader, kernel: bool = True) -> int:
    weight = model.get_submodule(reader.module).weight
    assert isinstance(weight, Tensor)
    return 1 + weight.shape[reader.dim] * (prod(weight.shape[2:]) if kernel else 1)


# --- the sums ------------------------------------------------------------------------------------------------------------


class _Sums:
    """Running sums over batches."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        readers: Readers,
        sites: list[str],
        statistics: list[str],
        positions: int,
        seed: int,
        curvature: Curvature,
    ) -> None:
        self.model, self.graph, self.readers, self.sites = model, graph, readers.readers, sites
        self.statistics, self.positions = set(statistics), positions
        self.curvature = curvature if "pairs" in self.statistics else None
        self.last = last_layer(model, graph) if "responses" in self.statistics else None
        if self.last is not None and all(reader.module != self.last.module for reader in self.readers):
            self.readers = (*self.readers, self.last)
        self.generator = Generator().manual_seed(seed)
        self.samples = self.count = 0
        self.sums: dict[str, dict[str, Tensor]] = {name: {} for name in (*STATISTICS, "magnitudes")}
        self.entries: dict[str, int] = {}  # of "zeros", "gram" and "responses", by site or module
        self.makers = {site: producers(graph, site) for site in sites} if "weights" in self.statistics else {}
        self.parameters = {name: model.get_parameter(name) for made in self.makers.values() for name, _ in made}
        self.modules = {module for site in sites for module, _ in readers.recurrent.get(site, ())}
        self.seen: dict[str, recurrent.Seen] = {}

    def add(self, task: Task, batch: Batch) -> None:
        """One batch: one run of the network, and the passes back that `collect` says."""
        backward = bool(self.statistics & {"gradients", "pairs", "weights"})
        run = Run(self.model, self.graph, self.sites if backward else [], self.curvature, task)
        self.watching, watched = True, gates.gated(self.model, self.readers, run.gates, self._watch)
        seeing = recurrent.seeing(self.model, self.modules, self.seen)
        able = torch.enable_grad()  # losses may differentiate
        with able, differentiable(self.parameters.values()), watched, seeing, run.listening():
            try:
                run.check(loss := loss_in_eval(task, self.model, batch))
                self.watching = False  # checkpointed parts run a second time in the pass back
                if backward:
                    self._gradients(run, loss)
            except RuntimeError as error:
                raise gates.unfollowed(error) from error
        self.samples, self.count = self.samples + run.samples, self.count + 1

    def _watch(self, reader: Reader, layer: nn.Module, x: Tensor) -> None:
        if not self.watching:
            return
        x = x.detach()
        if "zeros" in self.statistics:
            zero = (x == 0).movedim(reader.axis, 0).flatten(1)
            for site, vectors in reader.units.items():
                for numbers in vectors:
                    owned = numbers >= 0
                    counts = torch.zeros(self.graph.sites[site].size, dtype=torch.float64)
                    counts.index_add_(0, numbers[owned], zero.sum(1).double().cpu()[owned])
                    self._add("zeros", site, counts, int(owned.sum()) * zero.shape[1] // self.graph.sites[site].size)
        assert isinstance(layer, Layer)
        if "gram" in self.statistics and reader.units:
            self._moments("gram", reader.module, patches(layer, x, self.positions, self.generator))
        if self.last is not None and reader.module == self.last.module:
            rows = x.movedim(reader.axis, -1).flatten(1, -2) if x.ndim > 2 else x[:, None]
            self._moments("responses", reader.module, drawn(rows, self.positions, self.generator).flatten(0, 1))

    def _moments(self, statistic: str, module: str, rows: Tensor) -> None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1).double()
        self._add(statistic, module, rows.T @ rows, len(rows))

    def _add(self, statistic: str, key: str, values: Tensor, entries: int = 0) -> None:
        held = self.sums[statistic]
        values = values.double().cpu()  # summed where the network is, and held on the CPU, as all that is decided with it
        held[key] = held[key].add_(values) if key in held else values
        self.entries[statistic + key] = self.entries.get(statistic + key, 0) + entries

    def _gradients(self, run: Run, loss: Tensor) -> None:
        gates = [run.gates[site] for site in self.sites]
        if self.curvature == "least_squares":
            columns = run.outputs.flatten(1).T
            self._pairs([column.sum() for column in columns], gates, run.curvature * run.samples)
        elif self.curvature == "outputs":
            signs = torch.randint(0, 2, run.outputs.shape, generator=self.generator).to(run.outputs) * 2 - 1
            self._pairs([(run.outputs * signs).sum()], gates, 1.0)
        if not self.statistics & {"gradients", "weights"} and self.curvature != "loss":
            return
        wanted = [*gates, *self.parameters.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        full = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
        for site, gradient in zip(self.sites, full[: len(gates)], strict=True):
            u = gradient.double() * run.samples  # of the loss of each sample, since the batch's is their mean
            if "gradients" in self.statistics:
                self._add("gradients", site, u.sum(0))
                self._add("magnitudes", site, u.abs().sum(0))
            if self.curvature == "loss":
                self._add("pairs", site, u.T @ u)
        by_name = dict(zip(self.parameters, full[len(gates) :], strict=True))
        for site, made in self.makers.items():
            parts = [unit_sums(self.graph, site, n, d, (by_name[n] * self.parameters[n]).detach().double()) for n, d in made]
            self._add("weights", site, torch.stack(parts).sum(0) ** 2 if parts else torch.zeros(self.graph.sites[site].size))

    def _pairs(self, values: list[Tensor], gates: list[Tensor], scale: float) -> None:
        """S += scale * sum over `values` of J^T J, J the derivatives with respect to the gates of every sample."""
        for value in values:
            found = torch.autograd.grad(value, gates, retain_graph=True, allow_unused=True)
            for site, gate, jacobian in zip(self.sites, gates, found, strict=True):
                each = torch.zeros_like(gate) if jacobian is None else jacobian
                self._add("pairs", site, scale * each.double().T @ each.double())

    def means(self) -> dict[str, Any]:
        """The fields of `Stats`."""
        result: dict[str, Any] = {}
        for statistic in ("gradients", "magnitudes", "pairs"):
            result[statistic] = {site: total / self.samples for site, total in self.sums[statistic].items()}
        result["weights"] = {site: total / self.count for site, total in self.sums["weights"].items()}
        result["zeros"] = {site: total / self.entries["zeros" + site] for site, total in self.sums["zeros"].items()}
        for statistic in ("gram", "responses"):
            rows = {module: self.entries[statistic + module] for module in self.sums[statistic]}
            result[statistic] = {m: Moments(total / rows[m], rows[m]) for m, total in self.sums[statistic].items()}
        return result | {"recurrent": self.seen}
