"""A stage's residual blocks taken out whole: the loss without each says which, the network's own class goes on without them.

A block costs its time whatever its width, so that a network with half of its blocks runs twice as fast where one with half of its
channels may gain nothing (benchmarks/ship). Judged by the loss without each: Shortened LLaMA (Kim et al. 2024), sec. 3.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from featherweight.budget.choices import Infeasible
from featherweight.budget.costs import CLOSE, Spent, What
from featherweight.budget.units import rounded_up
from featherweight.errors import InputError
from featherweight.network.evaluating import evaluating
from featherweight.recipe.patterns import matches
from featherweight.recipe.schema import DropBlocks
from featherweight.recipe.units import Blocks
from featherweight.run.ground import Ground
from featherweight.run.stage import begin, without_codes
from featherweight.run.state import Result
from featherweight.run.watch import Monitor
from featherweight.structure import Edit, Graph, drop, removable, trace
from featherweight.structure.edit import apply
from featherweight.structure.errors import NotExact
from featherweight.task import Batch, Task, first_batches, loss_in_eval

ROUNDS = 4  # in each of which a share of what is too much goes, and all that is left is judged anew
WHOLE = "blocks go whole, and with one more it would be above it"


def drop_blocks(stage: DropBlocks, start: Result, ground: Ground, monitor: Monitor) -> Result:
    """Run a stage that takes blocks out and trains what is left."""
    running = begin(stage, start, ground, monitor)
    if running.unfinished is None:
        done = ground.engine.decided(lambda: dropped(running.network, ground.task, stage.blocks, running.epoch))
        running.spent = done.spent
        running.cut(done.edits)
        running.agree()
    return running.trained(stage.blocks.share)


@dataclass(frozen=True)
class Dropped:
    """What was taken out, and what was made of the budget."""

    edits: list[Edit]
    spent: Spent


def dropped(network: nn.Module, task: Task, asked: Blocks, epoch: int) -> Dropped:
    """Take blocks out of `network` in place until the budget holds, by the loss on the first batches of `epoch`.

    In each of `ROUNDS` rounds those go that cost least loss for what they save. Raises InputError where none can go, and
    Infeasible for a budget below what is left without all that can.
    """
    without_codes(network, "blocks go", "the stage that drops")
    what, share = asked.budget
    graph = trace(network, task.example_inputs)
    before = now = _cost(what, graph)
    limit, edits = share * before, list[Edit]()
    batches = list(first_batches(task, epoch, asked.samples))
    for left in itertools.chain(range(ROUNDS, 0, -1), itertools.repeat(1)):
        if now <= limit:
            break
        found = may_go(network, graph, asked)
        if not found:
            raise _refused(network, asked, graph, before, now)
        saved = {path: _saved(what, graph, gone) for path, gone in found.items()}
        harm = {path: _loss(_without(network, path, gone), task, batches) for path, gone in found.items()}
        whole = _loss(network, task, batches)
        order = sorted(found, key=lambda path: (harm[path] - whole) / max(1, saved[path]))
        edits.append(_drop(network, graph, [found[path] for path in _enough(order, saved, (now - limit) / left)]))
        graph = trace(network, task.example_inputs)
        now = _cost(what, graph)
    note = "" if now >= (1 - CLOSE) * limit else WHOLE
    return Dropped(edits, Spent(what, limit, before, now, note=note))


def may_go(network: nn.Module, graph: Graph, asked: Blocks) -> dict[str, tuple[str, ...]]:
    """Module that can go whole -> the blocks in it."""
    return {path: gone for path, gone in removable(network, graph).items() if matches(asked.blocks, path)}


def _cost(what: What, graph: Graph) -> int:
    return graph.parameters() if what == "parameters" else graph.macs()


def _saved(what: What, graph: Graph, gone: Sequence[str]) -> int:
    """By blocks that go together, of which one may lie in another."""
    if what == "macs":
        return sum(graph.blocks[name].macs for name in gone)
    entries = graph.entries()
    return sum(entries[name] for name in {name for block in gone for name in graph.blocks[block].parameters})


def _loss(network: nn.Module, task: Task, batches: Sequence[Batch]) -> float:
    with evaluating(network):  # with gradients: a loss may differentiate inside
        return sum(loss_in_eval(task, network, batch).item() for batch in batches) / len(batches)


def _without(network: nn.Module, path: str, gone: Sequence[str]) -> nn.Module:
    thin = copy.deepcopy(network)
    apply(thin, Edit("drop", tuple((name, 0) for name in gone), (), (), (path,)))
    return thin


def _enough(order: Sequence[str], saved: Mapping[str, int], part: float) -> Iterator[str]:
    """The first of `order` that save as much as `part` together."""
    together = 0
    for path in order:
        yield path
        together += saved[path]
        if together >= part:
            return


def _drop(network: nn.Module, graph: Graph, groups: Sequence[Sequence[str]]) -> Edit:
    """All of them, or the first alone where the class cannot be without all at once."""
    try:
        edit = drop(network, graph, [name for gone in groups for name in gone], where="class").edit
    except NotExact:
        edit = drop(network, graph, list(groups[0]), where="class").edit
    assert edit is not None
    return edit


def _refused(network: nn.Module, asked: Blocks, graph: Graph, before: int, now: int) -> InputError:
    what, share = asked.budget
    if now < before:
        return Infeasible(
            f"{100 * share:g} % of {before:,} {what} cannot be met: without every block that can go it has {now:,}. Ask "
            f"for {rounded_up(100 * now / before)} % or more, or let units go (l1_filters)"
        )
    can = ", ".join(removable(network, graph))
    if not graph.blocks:
        why = "the network has no residual block"
    elif can:
        why = f"{asked.blocks!r} matches none of those that can, {can}"
    else:
        why = f"no module around {', '.join(list(graph.blocks)[:3])} can become the identity in the network's own class"
    return InputError(f"no block can go: {why}. Let units go instead (l1_filters), or make the weights smaller (decompose)")
