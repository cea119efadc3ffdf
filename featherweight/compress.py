"""The program: recipe -> plan -> edits -> file. `compress` is a straight line; read it and you have read the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from featherweight import artifact, structure
from featherweight.auxiliary import new_heads, with_auxiliary
from featherweight.budgets import Spent
from featherweight.coding import coded, detach, layouts_kept, plain
from featherweight.cutting import cut_units
from featherweight.drivers import Imposed, Target, freeze
from featherweight.edits import Edit, Snapshot, structure_edit
from featherweight.factor import materialise
from featherweight.measure import decoded, measure
from featherweight.plan import matches, resolve
from featherweight.proportions import Proportions
from featherweight.recipe import Recipe, Stage
from featherweight.report import Row
from featherweight.run import Guide, Memory, Monitor, Partial, Watch, silent
from featherweight.training import Task, fit, recalibrate, squared_gradients
from featherweight.version import __version__


@dataclass(frozen=True)
class Compressed:
    """What `compress` gives back. `rows`: one a stage, measured after it."""

    model: nn.Module
    snapshot: Snapshot
    recipe: Recipe
    rows: list[Row]

    def save(self, folder: str | Path, *, model: str | None = None, data: str | None = None) -> dict[str, int]:
        """Write the artifact; its files' sizes in bytes. `model` and `data`: built-in names, for `featherweight inspect`."""
        report = [row.to_dict() for row in self.rows]
        described = artifact.Description(
            featherweight=__version__,
            model=model,
            data=data,
            edits=self.snapshot.edits,
            recipe=self.recipe.to_dict(),
            report=report,
        )
        return artifact.save(folder, self.snapshot, described)


def compress(
    model: nn.Module,
    recipe: Recipe,
    task: Task,
    *,
    workdir: str | Path | None = None,
    monitor: Monitor = silent,
    checkpoint_seconds: float = 30.0,
) -> Compressed:
    """Run every stage of `recipe` on a copy of `model`.

    With `workdir`, a checkpoint is written there every `checkpoint_seconds` and after each stage; the same call takes it up
    again and ends with bit-identical weights. `monitor` is told of every step; a KeyboardInterrupt it raises is saved first.
    Raises RecipeError before anything runs if a rule does not fit the network.
    """
    original = plain(model)
    for stage in recipe.stages:
        resolve(stage, original, example=task.example)
    memory = Memory.open(Path(workdir) if workdir else None, recipe, Snapshot.of(original, []), checkpoint_seconds)
    while memory.stage < len(recipe.stages):
        stage = recipe.stages[memory.stage]
        for start in memory.starts(recipe.candidates):
            memory.finish(_run(stage, start, original, task, memory, monitor))
        memory.advance(
            bool(stage.rules or stage.units or stage.adaptive), stage.train.epochs + stage.retrain.epochs, recipe.candidates
        )
    final = memory.pool[memory.newest]
    network = final.snapshot.build(original)
    thin = materialise(network, example=task.example)
    snapshot = Snapshot.of(network, final.snapshot.structural() + thin.edits)
    return Compressed(network, snapshot, recipe, [Row.from_dict(row) for row in final.rows])


def _run(stage: Stage, start: Partial, original: nn.Module, task: Task, memory: Memory, monitor: Monitor) -> Partial:
    """One stage from one partial network: plan, train under the driver, freeze, train on inside the sets, measure."""
    torch.set_rng_state(memory.random)
    structural = start.snapshot.structural()
    network = start.snapshot.build(original)
    for name in _matched(stage, network) & coded(network).keys():
        detach(network, name)
    spent: Spent | None = None
    if stage.units and memory.work is None:
        done = cut_units(network, task, stage.units, memory.epochs, stage.auxiliary)
        structural, spent = structural + ([structure_edit(done.edit)] if done.edit is not None else []), done.spent
    squares = squared_gradients(network, task, memory.epochs) if stage.fisher else None
    plan = resolve(stage, network, decoded(original), squares, task.example)
    work = memory.work  # what an interrupted run left of this stage
    if work is not None:
        structural, network = work.snapshot.structural(), work.snapshot.build(original)
        spent = Spent(**work.spent) if work.spent else None
    heads: dict[str, nn.Module] = {}
    if stage.auxiliary and stage.train.epochs + stage.retrain.epochs:
        heads = new_heads(network, task, memory.epochs, list(work.heads), 0) if work else new_heads(network, task, memory.epochs)
        for pivot, head in heads.items():
            head.train().requires_grad_(True)
            if work is not None:
                head.load_state_dict(work.heads[pivot])
    taught = with_auxiliary(task, heads, most=1.0) if heads else task
    along = [parameter for head in heads.values() for parameter in head.parameters()]
    teacher = memory.baseline.build(original).eval() if stage.distill else None
    watch = Watch(memory, monitor, stage, start, len(task.batches(memory.epochs)), spent, heads)

    def train(phase: str, optimizer: Optimizer, guide: Guide | None = None) -> float:
        training, first_epoch = stage.train, memory.epochs
        if phase == "retrain":
            training, first_epoch = stage.retrain, memory.epochs + stage.train.epochs
        steps, earlier, random = 0, list[float](), None
        if work is not None and work.phase == phase:
            optimizer.load_state_dict(work.optimizer)
            steps, earlier, random = work.steps, work.losses, work.random
        after_step = watch.over(phase, network, structural, optimizer, guide)
        return fit(
            network,
            optimizer,
            taught,
            training,
            first_epoch=first_epoch,
            start=steps,
            earlier=earlier,
            random=random,
            teacher=teacher,
            distill=stage.distill,
            after_step=after_step,
        )

    loss = math.inf
    if work is None or work.phase == "train":
        optimizer = task.optimizer(_ordered(network) + along)
        guide: Imposed | Proportions
        if stage.adaptive:
            steps = stage.train.epochs * watch.steps_an_epoch
            guide = Proportions(stage.adaptive, network, task.example, optimizer, steps)
        else:
            guide = Imposed(stage.driver, network, optimizer, plan.targets, squares=squares, spread=plan.spread)
        if work is not None and work.imposed is not None:
            guide.load_state_dict(work.imposed)
        with guide:
            loss = train("train", optimizer, guide)
        watch.residuals = guide.residuals()
        if isinstance(guide, Proportions):
            with layouts_kept(network):
                structural = structural + [structure_edit(edit) for edit in guide.cut()]
        elif stage.sweep:
            structural = structural + _sweep(network, task, guide.targets)
    if stage.retrain.epochs:
        loss = train("retrain", task.optimizer(_ordered(network) + along))
    recalibrate(network, task, memory.epochs)
    thin = Snapshot.of(network, structural).build(original)
    materialise(thin, example=task.example)  # what this stage would be shipped as: thin factors are two plain layers
    measured = measure(thin, task.example, task.score)
    epochs = stage.train.epochs + stage.retrain.epochs + (start.rows[-1]["epochs"] if start.rows else 0)
    share = stage.adaptive.parameters if stage.adaptive else stage.keep
    asked = stage.units.share if stage.units else share
    row = Row(
        stage.name, measured, asked, _left(network, original), epochs, watch.seconds(), _finite(loss), watch.residuals, spent
    )  # fmt: skip
    return Partial(Snapshot.of(network, structural), [*start.rows, row.to_dict()], loss)


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _sweep(network: nn.Module, task: Task, targets: Mapping[str, Target]) -> list[Edit]:
    """Cut the units that the projection left dead, in place, and code the smaller weights again; nothing if the class cannot."""
    for name in targets:
        detach(network, name)
    with layouts_kept(network):
        result = structure.sweep(network, structure.trace(network, task.example))
    weights = dict(network.named_parameters())
    for name, target in targets.items():
        freeze(network, name, replace(target, set=target.set.shrunk(target.view.to_matrix(weights[name].detach()))))
    return [structure_edit(result.edit)] if result.edit is not None else []


def _matched(stage: Stage, network: nn.Module) -> set[str]:
    """The parameters that the stage's rules name."""
    return {name for name in decoded(network) for rule in stage.rules if matches(rule.targets, name)}


def _left(network: nn.Module, original: nn.Module) -> dict[str, tuple[int, int]]:
    """Coded parameter -> (its non-zero weights, its weights in the original network)."""
    now, before = decoded(network), decoded(original)
    return {name: (int(now[name].count_nonzero()), before[name].numel()) for name in sorted(coded(network))}


def _ordered(network: nn.Module) -> list[Parameter]:
    """The parameters by name: coding and decoding a weight moves it in the module's own order, which a resumed run would see."""
    return [parameter for _, parameter in sorted(network.named_parameters())]
