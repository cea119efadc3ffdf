"""The readers of what is cut, fitted anew: layer after layer, on the inputs that they get in the cut network.

Let x be what a layer reads in the dense network and x' what it reads once units before it are gone and the layers before it are
fitted. Its new weight and bias are

    min over W', b' of  mean_t s_t |W x_t + b - W' x'_t - b'|^2  +  ridge tr(C) / d |W' - W|^2,       W' = 0 where units go,

with C the (d, d) covariance of x' under the weights s_t. The intercept is free: means are taken out before W' is solved for, and
b' takes the rest, or where the layer has no bias the running mean of the batch norm behind it. s_t says how much the network's
outputs move with this layer's output at place t, from one pass back of random signs (Hutchinson): most places of a padded text,
and the background of a picture, move nothing, and a fit to all places alike spends the weights on those. The ridge is the one
whose fit to half of the samples does best on the other half, so few samples hold W' at W, and where no fit helps, W' = W.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from featherweight.criteria import recurrent
from featherweight.criteria.patches import drawn, patches
from featherweight.criteria.readers import Layer, Reader, Readers, differentiable, find_readers, gated, masks
from featherweight.criteria.reconstruct import readers_cut, weight_of
from featherweight.criteria.recurrent import Masks
from featherweight.criteria.statistics import TooFewSamples
from featherweight.criteria.surgeon import inner_units
from featherweight.network.calls import tensors_of
from featherweight.network.copies import copied
from featherweight.network.evaluating import evaluating
from featherweight.structure import Graph
from featherweight.structure.nodes import operation
from featherweight.task import Batch, Task, first_batches, loss_in_eval

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FIRST = 3  # the ridge that is tried first: from it, uphill or downhill as long as that is better
PARTS = 8  # passes over the samples at most: layers that are fitted in one do not see each other's fit
WIDEST = 16_384  # weights of one output: their moments take 4 GB
ALIKE = 0.1  # share of the weight that all places have alike


@dataclass
class Fitted:
    """state: name of a parameter or buffer -> its new values; left: reader -> why it keeps its weights; own: what is to stay of
    tensors whose layers keep units of their own (see `recurrent`)."""

    state: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    own: Masks = field(default_factory=dict)

    @property
    def said(self) -> list[str]:
        """`left` in sentences."""
        return [f"{module} is not fitted anew: {why}" for module, why in self.left.items()]


def refit_in_order(
    model: nn.Module,
    graph: Graph,
    task: Task,
    keep: Mapping[str, Iterable[int]],
    *,
    samples: int = 1024,
    epoch: int = 0,
    positions: int = 10,
    own: bool = True,
) -> Fitted:
    """New weights for the layers that read a site in `keep`, from the first batches of `epoch` that hold `samples` samples.

    keep  site -> its units that stay. `model` is not changed. Set before the cut the weights are part of the network's state
    own   inner layers of a recurrent module keep units of their own, not those of the numbers in `keep`
    """
    found = find_readers(model, graph, keep, recurrent=True)
    fitted = Fitted({}, {reader.module: reason for reader in found.readers if (reason := _unfit(model, reader))})
    fine = Readers(tuple(reader for reader in found.readers if reader.module not in fitted.left), {})
    readers = list(readers_cut(model, fine, keep))
    if next(first_batches(task, epoch, samples), None) is None:
        raise TooFewSamples(f"batches({epoch}) of the task gave no sample to look at: is the data set empty?")
    cut = copied(model)
    state = dict(itertools.chain(cut.named_parameters(), cut.named_buffers()))

    def learnt(new: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, values in new.items():
                state[name].copy_(values)  # what is fitted later sees it
                fitted.state[graph.captured.tied.get(name, name)] = state[name].detach().clone()

    stacks = recurrent.stacks(model, graph, keep)
    for path, seen in recurrent.seen_by(model, task, stacks, samples, epoch).items() if stacks else ():
        inner = inner_units(seen, len(set(keep[stacks[path]]))) if own and stacks[path] else {}
        fitted.own |= recurrent.kept_in(graph, path, seen.module, inner)
        learnt(_fit_recurrent(graph, path, seen, keep, fitted.own))
    gates = masks(graph, keep, next(model.parameters()))
    size = max(1, -(-len(readers) // PARTS))
    for part in (readers[place : place + size] for place in range(0, len(readers), size)):
        sums = {reader.module: _Sums(weight_of(model, reader), stays) for reader, stays in part}
        for number, batch in enumerate(first_batches(task, epoch, samples)):
            dense = _seen(model, task, batch, [reader for reader, _ in part], {}, number)
            small = _seen(cut, task, batch, found.readers, gates, None)
            for reader, _ in part:
                if reader.module in dense and reader.module in small:
                    layer = model.get_submodule(reader.module)
                    x, gradient = dense[reader.module]
                    sums[reader.module].add(layer, x, small[reader.module][0], gradient, positions, number)
        for reader, _ in part:
            learnt(sums[reader.module].solved(_intercept_of(model, graph, reader)))
    return fitted


def _fit_recurrent(
    graph: Graph, path: str, seen: recurrent.Seen, keep: Mapping[str, Iterable[int]], own: Masks
) -> dict[str, Tensor]:
    """The matrices of a recurrent module that read units that go, fitted to what they read in the dense network."""
    found: dict[str, Tensor] = {}
    held = dict(seen.module.named_parameters(recurse=False))
    for name in (name for name in held if name.startswith("weight")):
        weight, whole = held[name].detach(), f"{path}.{name}" if path else name
        stays = recurrent.columns_left(graph, recurrent.named(graph, path, name), weight.shape[1], keep, own)
        if bool(stays.all()) or weight.shape[1] > WIDEST:
            continue
        matrix, columns = weight.double().cpu(), torch.cat([stays, stays.new_ones(1)])
        moments = seen.of(name)
        sums = _Sums(weight, stays, [m[columns][:, columns] for m in moments], [matrix @ m[:-1][:, columns] for m in moments])
        bias = held.get(beside := name.replace("weight", "bias"))
        free = (f"{path}.{beside}" if path else beside, bias.detach()) if bias is not None else ()
        found |= sums.solved(_Intercept(whole, *free))
    return found


def _unfit(model: nn.Module, reader: Reader) -> str:
    layer, width = model.get_submodule(reader.module), weight_of(model, reader)[0].numel()
    if isinstance(layer, _ConvNd) and (layer.transposed or layer.groups > 1):
        kind = "a transposed convolution" if layer.transposed else f"a convolution in {layer.groups} groups"
        return f"it is {kind}, whose patches are not sampled"
    return f"it has {width:,} weights to fit for each output, more than {WIDEST:,}" if width > WIDEST else ""


def _seen(
    model: nn.Module, task: Task, batch: Batch, readers: Iterable[Reader], gates: Mapping[str, Tensor], signs: int | None
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Reader -> its input, and how the network's outputs, under random signs of this seed, move with its output."""
    readers = list(readers)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    ends: list[Tensor] = []

    def watch(reader: Reader, layer: nn.Module, x: Tensor) -> None:
        inputs[reader.module] = x.detach()

    def keep_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, given, output: outputs.update({name: output})

    wanted = signs is not None
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(gated(model, readers, gates, watch))
        stack.enter_context(torch.set_grad_enabled(wanted))
        if wanted:
            stack.enter_context(differentiable([weight_of(model, reader, detached=False) for reader in readers]))
            for reader in readers:
                handle = model.get_submodule(reader.module).register_forward_hook(keep_output(reader.module))
                stack.callback(handle.remove)
        end = model.register_forward_hook(lambda module, given, output: ends.extend(tensors_of(output)))
        stack.callback(end.remove)
        loss_in_eval(task, model, batch)
        gradients = _moved(ends, outputs, signs) if signs is not None else {}
    return {name: (x, gradients.get(name)) for name, x in inputs.items()}


def _moved(ends: list[Tensor], outputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    dice = Generator().manual_seed(seed)
    total: Tensor | None = None
    for end in ends:
        if end.is_floating_point() and end.requires_grad:
            signs = torch.randint(0, 2, end.shape, generator=dice).to(end) * 2 - 1
            total = (end * signs).sum() + (0 if total is None else total)
    names = [name for name, output in outputs.items() if output.requires_grad]
    if total is None or not names:
        return {}
    found = torch.autograd.grad(total, [outputs[name] for name in names], allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@dataclass
class _Sums:
    """Weighted moments of one reader: of x' with itself, and of the dense output with x', for each half of the samples."""

    weight: Tensor  # (out, in, k...)
    stays: Tensor  # (in k,)
    inputs: list[Tensor] = field(default_factory=list)  # two of (d + 1, d + 1)
    crossed: list[Tensor] = field(default_factory=list)  # two of (out, d + 1)

    def add(self, layer: nn.Module, dense: Tensor, small: Tensor, gradient: Tensor | None, positions: int, number: int) -> None:
        assert isinstance(layer, Layer)
        x, kept = (patches(layer, given, positions, Generator().manual_seed(number)).double() for given in (dense, small))
        weights = torch.ones(len(x), dtype=torch.float64, device=x.device)
        if gradient is not None:
            along = gradient.movedim(1, -1) if isinstance(layer, _ConvNd) else gradient
            rows = along.flatten(1, -2) if along.ndim > 2 else along[:, None]
            weights = drawn(rows, positions, Generator().manual_seed(number)).flatten(0, 1).double().square().sum(1)
        mean = float(weights.mean())
        weights = ALIKE + (1 - ALIKE) * weights / mean if mean > 0 else torch.ones_like(weights)
        wanted = x @ self.weight.flatten(1).double().T
        rows = torch.cat([kept[:, self.stays.to(kept.device)], kept.new_ones(len(kept), 1)], 1)
        half = torch.arange(len(rows), device=rows.device) // max(1, len(rows) // len(dense)) % 2
        if not self.inputs:
            width = rows.shape[1]
            self.inputs = [torch.zeros(width, width, dtype=torch.float64) for _ in range(2)]
            self.crossed = [torch.zeros(len(self.weight), width, dtype=torch.float64) for _ in range(2)]
        for one in range(2):
            mine = half == one
            scaled = (rows[mine] * weights[mine, None]).T
            self.inputs[one] += (scaled @ rows[mine]).cpu()
            self.crossed[one] += (scaled @ wanted[mine]).T.cpu()

    def solved(self, intercept: _Intercept) -> dict[str, Tensor]:
        """The new weight, with what takes the intercept."""
        if not self.inputs:
            return {}
        matrix = self.weight.flatten(1).double().cpu()
        held = matrix[:, self.stays]
        halves = [_Fit.of(a, b, held, intercept.free) for a, b in zip(self.inputs, self.crossed, strict=True)]
        whole = _Fit.of(sum(self.inputs), sum(self.crossed), held, intercept.free)  # type: ignore[arg-type]
        change = torch.zeros_like(held)
        if halves[0] is not None and halves[1] is not None and whole is not None:
            ridge = _best_ridge(halves[0], halves[1])
            change = change if ridge is None else whole.change(ridge)
        new = torch.zeros_like(matrix)
        new[:, self.stays] = held + change
        found = {intercept.weight: new.reshape(self.weight.shape)}
        if intercept.free and whole is not None:
            found |= intercept.moved(whole.wanted - (held + change) @ whole.means)
        return found


def _best_ridge(one: _Fit, other: _Fit) -> float | None:
    """None where no fit to the one half is any better on the other than the weights as they are."""
    gains: dict[int, float] = {}

    def gain(place: int) -> float:
        if place not in gains:
            gains[place] = other.gain(one.change(RIDGES[place])) if 0 <= place < len(RIDGES) else float("inf")
        return gains[place]

    at = FIRST
    step = 1 if gain(at + 1) < gain(at) else -1
    while gain(at + step) < gain(at):
        at += step
    return RIDGES[at] if gain(at) < 0 else None


@dataclass(frozen=True)
class _Fit:
    """Moments of one half, or of all: C of the inputs, what is missing of the response crossed with them, and both means."""

    covariance: Tensor  # (d, d)
    missing: Tensor  # (out, d)
    means: Tensor  # (d,)
    wanted: Tensor  # (out,)

    @staticmethod
    def of(inputs: Tensor, crossed: Tensor, held: Tensor, centred: bool) -> _Fit | None:
        total = float(inputs[-1, -1])
        if total <= 0:
            return None
        inputs, crossed = inputs / total, crossed / total
        means, wanted = inputs[-1, :-1], crossed[:, -1]
        covariance, between = inputs[:-1, :-1], crossed[:, :-1]
        if centred:
            covariance, between = covariance - torch.outer(means, means), between - torch.outer(wanted, means)
        return _Fit(covariance, between - held @ covariance, means, wanted)

    def change(self, ridge: float) -> Tensor:
        """(out, d) of the weight."""
        size = float(self.covariance.trace()) / max(1, len(self.covariance))
        if size <= 0:
            return torch.zeros_like(self.missing)
        stiff = self.covariance.clone()
        stiff.diagonal().add_(ridge * size)
        factor, failed = torch.linalg.cholesky_ex(stiff)
        return torch.zeros_like(self.missing) if int(failed) else torch.cholesky_solve(self.missing.T, factor).T

    def gain(self, change: Tensor) -> float:
        """By how much the mean squared error here changes."""
        return float(((change @ self.covariance - 2 * self.missing) * change).sum())


@dataclass(frozen=True)
class _Intercept:
    """What takes the intercept: the layer's bias, or the running mean of the norm behind it. free: is there any?"""

    weight: str
    name: str = ""
    before: Tensor | None = None
    sign: int = 1

    @property
    def free(self) -> bool:
        return self.before is not None

    def moved(self, rest: Tensor) -> dict[str, Tensor]:
        """`rest`: what the output lacks, on average. A bias holds it; a running mean is lower by as much."""
        assert self.before is not None
        return {self.name: self.before.double().cpu() + self.sign * rest}


def _intercept_of(model: nn.Module, graph: Graph, reader: Reader) -> _Intercept:
    """The layer's own bias, else the running mean of a batch norm that alone reads what the layer puts out."""
    weight = f"{reader.module}.weight"
    own = dict(model.get_submodule(reader.module).named_parameters(recurse=False)).get("bias")
    if own is not None:
        return _Intercept(weight, f"{reader.module}.bias", own.detach())
    nodes = [reading.node for reading in graph.walk.readings if graph.walk.module_of(reading.node) == reader.module]
    behind = {graph.walk.module_of(user) if "batch_norm" in operation(user) else "" for node in nodes for user in node.users}
    norm = model.get_submodule(name) if len(behind) == 1 and (name := behind.pop()) else None
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        return _Intercept(weight, f"{name}.running_mean", norm.running_mean.detach(), -1)
    return _Intercept(weight)
