"""Recurrent modules whose weights read units that go: what their matrices read, and which units their layers keep.

A module such as nn.LSTM has one size for all its layers, but a unit of one layer has nothing to do with the unit of the same
number in the next. So each layer of a stack may keep units of its own (`surgeon` chooses them), as many as the site keeps; the
matrices that are left are fitted by least squares (`refitting`), from the moments of the dense network that are taken here.
"""

from __future__ import annotations

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
