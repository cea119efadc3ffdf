"""The layers of a recurrent module where units go: which units each does without, and its weights fitted anew.

A module such as nn.LSTM has one size for all its layers, but a unit of one layer has nothing to do with the unit of the same
number in the next: each layer of a stack keeps units of its own, as many as the site keeps. Units go one by one, each the one
whose going changes least what the matrices that read it put out, once those make up for it by the other units (optimal brain
surgeon for whole units; Kurtic et al., ZipLM, NeurIPS 2023, equations 3 and 4). With C the covariance of what a matrix W reads
and P = (C + ridge)^-1, of W the columns j that read a unit:

    unit  = argmin_j tr W_j (P_jj)^-1 W_j^T,     then   W <- W - W_j (P_jj)^-1 P_j,     P <- P - P_j^T (P_jj)^-1 P_j.

The matrices that are left are the least squares fit of `refitting`, from moments of the dense network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.criteria.readers import places
from featherweight.network.evaluating import evaluating
from featherweight.network.stacked import by_layer, is_stacked, tensors_of_layer
from featherweight.structure import Graph
from featherweight.task import Task, first_batches, loss_in_eval

Masks = dict[tuple[str, int], Any]  # (tensor, dimension) -> (entries,) which stay

RIDGE = 1e-3  # of the mean variance, for the choice of units; that of the fit is found on samples held back


@dataclass
class Seen:
    """Moments of what a recurrent module's matrices read, for each half of the samples: mean sums of [x 1][x 1]^T."""

    module: nn.RNNBase
    inputs: list[Tensor] = field(default_factory=list)  # of what the module reads; two
    hidden: list[list[Tensor]] = field(default_factory=list)  # of every layer's units; two each

    def add(self, x: Tensor, outputs: list[Tensor]) -> None:
        """x and outputs: (batch, steps, features), where the module is batch_first; else (steps, batch, features)."""
        moments = [self._moments(rows) for rows in (x, *outputs)]
        if not self.inputs:
            self.inputs, self.hidden = moments[0], moments[1:]
            return
        for held, new in zip([self.inputs, *self.hidden], moments, strict=True):
            for half in range(2):
                held[half] += new[half]

    def _moments(self, x: Tensor) -> list[Tensor]:
        along = x if self.module.batch_first else x.transpose(0, 1)
        halves = (along[0::2], along[1::2])
        rows = (torch.cat([half.flatten(0, 1), half.new_ones(half.shape[0] * half.shape[1], 1)], 1).double() for half in halves)
        return [(part.T @ part).cpu() for part in rows]

    def of(self, weight: str) -> list[Tensor]:
        """What the matrix of this name, such as weight_hh_l0, reads."""
        kind, layer = weight.rsplit("_l", 1)
        if kind == "weight_hh":
            return self.hidden[int(layer)]
        return self.hidden[int(layer) - 1] if int(layer) else self.inputs


def entries(module: nn.Module) -> int:
    """How many numbers `Seen` holds of a module."""
    stack = cast(nn.RNNBase, module)
    return 2 * ((stack.input_size + 1) ** 2 + stack.num_layers * (stack.hidden_size + 1) ** 2)


def stacks(model: nn.Module, graph: Graph, keep: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """Path of each recurrent module that reads a site in `keep` -> the site of its own hidden units, where that is among them and
    unit i is column i; else ""."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if not is_stacked(module):
            continue
        stack = cast(nn.RNNBase, module)
        names = [name for layer in range(stack.num_layers) for name in tensors_of_layer(stack, layer) if "weight" in name]
        if all(
            bool(columns_left(graph, named(graph, path, name), getattr(stack, name).shape[1], keep, {}).all()) for name in names
        ):
            continue
        planes = graph.planes.get((named(graph, path, "weight_hh_l0"), 1), [])
        units = {site: [one.tolist() for one in places(graph, site, planes)] for site in keep}
        own = [site for site, vectors in units.items() if vectors == [list(range(graph.site(site).size))]]
        found[path] = own[0] if own and len(planes) == 1 and graph.site(own[0]).size == stack.hidden_size else ""
    return found


def named(graph: Graph, path: str, tensor: str) -> str:
    """The name that the graph has for a module's tensor."""
    name = f"{path}.{tensor}" if path else tensor
    return graph.captured.tied.get(name, name)


@contextmanager
def seeing(model: nn.Module, modules: Iterable[str], found: dict[str, Seen]) -> Iterator[None]:
    """Inside, moments at these recurrent modules are added to `found` each time they run on whole sequences in a batch."""

    def look(path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...], by_name: dict[str, Any]) -> None:
            x = given[0] if given else by_name.get("input")
            state = given[1] if len(given) > 1 else by_name.get("hx")
            if isinstance(x, Tensor) and x.ndim == 3:
                stack = cast(nn.RNNBase, module)
                with torch.no_grad():
                    outputs = by_layer(stack, x, state)[2]
                found.setdefault(path, Seen(stack)).add(x.detach(), outputs)

        return hook

    with ExitStack() as stack:
        for path in modules:
            handle = model.get_submodule(path).register_forward_pre_hook(look(path), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def seen_by(model: nn.Module, task: Task, modules: Iterable[str], samples: int, epoch: int) -> dict[str, Seen]:
    """Moments at these recurrent modules over the first batches of `epoch` that hold `samples` samples, in eval mode."""
    found: dict[str, Seen] = {}
    with evaluating(model), seeing(model, modules, found):
        for batch in first_batches(task, epoch, samples):
            loss_in_eval(task, model, batch)
    return found


def inner_units(seen: Seen, count: int) -> dict[int, Tensor]:
    """Inner layer -> (hidden,) which `count` units it keeps: those whose readers can do best without the others."""
    found: dict[int, Tensor] = {}
    for layer in range(seen.module.num_layers - 1):
        read = [f"weight_hh_l{layer}", f"weight_ih_l{layer + 1}"]
        weight = torch.cat([getattr(seen.module, name).detach().double().cpu() for name in read])
        moments = seen.hidden[layer][0] + seen.hidden[layer][1]
        found[layer] = units_left(weight, covariance(moments), count)
    return found


def covariance(moments: Tensor) -> Tensor:
    """(d, d), from sums of [x 1][x 1]^T."""
    mean = moments / moments[-1, -1].clamp_min(1)
    return mean[:-1, :-1] - torch.outer(mean[:-1, -1], mean[:-1, -1])


def units_left(weight: Tensor, spread: Tensor, count: int) -> Tensor:
    """(d,) which `count` of the d columns of `weight` (out, d) stay, for inputs of covariance `spread` (d, d)."""
    gone = list(itertools.islice(going([Columns(weight, spread, torch.arange(len(spread))[:, None])]), len(spread) - count))
    left = torch.ones(len(spread), dtype=torch.bool)
    left[[unit for unit, _ in gone]] = False
    return left


@dataclass
class Columns:
    """A matrix that reads units.

    weight   (out, d), changed as units go
    spread   (d, d) covariance of what it reads
    columns  (units, k) the columns that read each unit
    """

    weight: Tensor
    spread: Tensor
    columns: Tensor

    def __post_init__(self) -> None:
        self.power = float(((self.weight @ self.spread) * self.weight).sum()) or 1.0
        size = float(self.spread.diagonal().mean()) or 1.0
        self.inverse = torch.linalg.inv(self.spread + RIDGE * size * torch.eye(len(self.spread), dtype=self.spread.dtype))
        self.weight = self.weight.clone()

    def costs(self, units: Tensor) -> Tensor:
        """(units,) what the output loses of its power as each of these goes."""
        at = self.columns[units]
        blocks = torch.linalg.inv(self.inverse[at[:, :, None], at[:, None, :]])  # (units, k, k)
        read = self.weight[:, at]  # (out, units, k)
        return torch.einsum("oui,uij,ouj->u", read, blocks, read) / self.power

    def take(self, unit: int) -> None:
        at = self.columns[unit]
        rows = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])  # (k, d)
        self.weight -= self.weight[:, at] @ rows
        self.inverse -= self.inverse[:, at] @ rows
        self.weight[:, at] = 0
        self.inverse[at], self.inverse[:, at] = 0, 0
        self.inverse[at, at] = 1


def going(readers: list[Columns]) -> Iterator[tuple[int, float]]:
    """Units of a site in the order in which they go, and what all that have gone cost: shares of the readers' power, summed."""
    left = torch.arange(len(readers[0].columns))
    total = 0.0
    while len(left):
        costs = torch.stack([reader.costs(left) for reader in readers]).sum(0)
        place = int(costs.argmin())
        unit, total = int(left[place]), total + float(costs[place])
        for reader in readers:
            reader.take(unit)
        left = torch.cat([left[:place], left[place + 1 :]])
        yield unit, total


def kept_in(graph: Graph, path: str, module: nn.RNNBase, inner: Mapping[int, Tensor]) -> Masks:
    """The masks of the tensors of inner layers that keep units of their own: layer -> which stay."""
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    masks: Masks = {}
    for layer, stays in inner.items():
        rows = stays.repeat(gates).numpy()
        masks |= {(named(graph, path, name), 0): rows for name in tensors_of_layer(module, layer)}
        readers = (f"weight_hh_l{layer}", f"weight_ih_l{layer + 1}")
        masks |= {(named(graph, path, name), 1): stays.numpy() for name in readers}
    return masks


def columns_left(graph: Graph, name: str, width: int, keep: Mapping[str, Iterable[int]], own: Masks) -> Tensor:
    """(width,) which columns of a weight stay: those of units in `keep`, or as `own` says."""
    if (mask := own.get((name, 1))) is not None:
        return torch.from_numpy(mask)
    stays = torch.ones(width, dtype=torch.bool)
    for site, units in keep.items():
        kept = set(units)
        for numbers in places(graph, site, graph.planes.get((name, 1), [])):
            stays &= torch.tensor([unit < 0 or unit in kept for unit in numbers.tolist()])
    return stays
