"""One run of a network on calibration samples, with gates at its sites: counted, and refused where it would mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from featherweight.criteria import readers as gates
from featherweight.errors import InputError
from featherweight.network.calls import Inputs, first_tensor
from featherweight.structure import Graph
from featherweight.task import Task
from featherweight.training.distillation import one_tensor

Curvature = Literal["loss", "least_squares", "outputs"]


class Run:
    """One run of the network: how many samples it was given, gates made to their number, and its outputs."""

    def __init__(self, model: nn.Module, graph: Graph, sites: list[str], curvature: Curvature | None, task: Task) -> None:
        self.model, self.graph, self.sites, self.wanted, self.task = model, graph, sites, curvature, task
        self.gates: dict[str, Tensor] = {}
        self.samples = self.runs = 0
        self.outputs = torch.empty(0)
        self.curvature = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = self.model.register_forward_pre_hook(self._before, with_kwargs=True)
        handles = [before, self.model.register_forward_hook(self._after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = first_tensor((inputs, named))
        if first is None:
            raise InputError(
                f"the network was called without a tensor that has a batch dimension ({Inputs(inputs, named) or 'nothing'}), "
                "so the samples of a batch cannot be counted: give it its inputs as tensors, batch first"
            )
        like = next((p for p in model.parameters() if p.is_floating_point()), first)
        self.samples, self.runs = first.shape[0], self.runs + 1
        for site in self.sites:
            self.gates[site] = like.new_ones(self.samples, self.graph.sites[site].size).requires_grad_()

    def _after(self, model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if self.wanted in ("least_squares", "outputs"):
            self.outputs = one_tensor(self.task, outputs, f"curvature={self.wanted!r} is that of one tensor")

    def check(self, loss: Tensor) -> None:
        """The loss ran the network once and, for least squares, has the same curvature along every output."""
        if self.runs != 1:
            raise InputError(f"the loss runs the network {self.runs} times; statistics need one call a batch. {gates.BY_WEIGHTS}")
        if loss.ndim != 0 or not bool(torch.isfinite(loss)):
            raise InputError(f"the loss of a calibration batch is {loss.detach()}; it has to be one finite number")
        if self.wanted == "least_squares":
            (slope,) = torch.autograd.grad(loss, self.outputs, create_graph=True)
            bent = torch.autograd.grad(slope.sum(), self.outputs)[0] if slope.requires_grad else torch.zeros(1)
            self.curvature = float(bent.mean())
            if self.curvature <= 0 or float((bent - self.curvature).abs().max()) > 1e-4 * self.curvature:
                raise InputError(
                    "curvature='least_squares' is for a loss that is the same multiple of the squared error of every output; "
                    "leave it out for others"
                )
