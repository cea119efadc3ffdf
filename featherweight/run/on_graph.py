"""Stages after which a network is an exported module, since its class cannot express the cut: tried before anything is trained.

Such a module is a graph of operations over the same parameters. It is the network of eval mode: what its class does in training
alone, such as dropout and new statistics of batch norms, it does not. It has no layers, so that sets, further cuts and heads come
before it, which `Recipe` asks for, and a teacher of layers teaches the outputs alone.
"""

from __future__ import annotations

import torch
from torch import nn

from featherweight.errors import InputError, shortened
from featherweight.files.edits import Snapshot, graph_edit
from featherweight.network.calls import Inputs
from featherweight.network.copies import copied
from featherweight.network.evaluating import evaluating
from featherweight.recipe.patterns import matches
from featherweight.recipe.schema import CutUnits
from featherweight.structure import Graph, Result, prune, trace
from featherweight.structure.errors import StructureError
from featherweight.task import Batch, Task
from featherweight.training.fit import rehearsing

TRAINED_SO = "the network is an exported module now: trained on, it drops nothing out and its batch norms keep their statistics"
OUTPUTS_ALONE = "taught by the outputs alone: an exported module has no layers to compare"
OTHERWISE = (
    "Cut with where: class",
    "Cut with where: class, or give an example of the form of the training batches, and a loss that takes plain outputs",
)


def check_graph(stage: CutUnits, task: Task, model: nn.Module, batch: Batch) -> None:
    """Cut half of the units that match, on the graph of a copy; store it, read it, and train and score it once.

    Raises InputError where no unit can go, where the network cannot be exported, cut or stored so, and where the task does not
    run on what comes of it.
    """
    where = f"stage {stage.name!r} cuts on the graph (where: graph)"
    try:
        with torch.random.fork_rng(devices=[]):
            graph = trace(model, task.example_inputs, soft=stage.units.soft)
            sites = {name: site.size for name, site in graph.sites.items() if matches(stage.units.sites, name)}
            keep = {name: range((size + 1) // 2) for name, size in sites.items()}
            done = prune(copied(model), graph, keep, where="graph") if keep else None
        if done is None or done.where != "graph":
            raise InputError(f"{where}, and no unit of {stage.units.sites!r} can go: {_why(graph, done)}")
        made = Snapshot.of(done.model, [graph_edit(done.model)]).build(model)
    except StructureError as error:
        raise InputError(f"{where}, which this network does not allow: {shortened(str(error), 500)}. {OTHERWISE[0]}") from None
    try:
        _tried(made, task, batch)
    except Exception as error:  # whatever the task's own code raises
        raise InputError(
            f"{where}, and the task does not run on the exported module ({type(error).__name__}: {shortened(str(error), 300)}), "
            f"which takes the inputs of the example, in order or by name, and gives plain tuples and dicts. {OTHERWISE[1]}"
        ) from error


def _why(graph: Graph, done: Result | None) -> str:
    """Why nothing could be cut, as far as it is known."""
    told = done.refused if done is not None else dict(graph.frozen)
    return "; ".join(f"{name}: {reason}" for name, reason in list(told.items())[:3]) or "no site has that name"


def _tried(network: nn.Module, task: Task, batch: Batch) -> None:
    """One training batch, a batch of another size and the score."""
    with torch.random.fork_rng(devices=[]):
        with rehearsing(network):
            task.loss(network, batch).backward()
        with rehearsing(network), evaluating(network):
            example = Inputs.of(task.example_inputs)
            with torch.no_grad():
                example.map(lambda tensor: torch.cat([tensor] * 3) if example.has_batch(tensor) else tensor).call(network)
            task.evaluate(network)
