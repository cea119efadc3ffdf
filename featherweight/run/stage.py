"""One stage of a recipe, run from one partial network: cut, train under a guide, freeze, train on inside the sets, measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight import structure
from featherweight.budget.costs import Spent
from featherweight.criteria.auxiliary import new_heads, with_auxiliary
from featherweight.errors import FeatherweightError, TrainingError, shortened
from featherweight.files.edits import Edit, Snapshot, structure_edit
from featherweight.lowrank.factor import materialise
from featherweight.measurement import measure
from featherweight.network import generators
from featherweight.recipe.plan import chosen, resolve
from featherweight.recipe.schema import Stage
from featherweight.recipe.selection import said
from featherweight.run.cut_units import cut_units
from featherweight.run.learn_units import Proportions
from featherweight.run.report import Row
from featherweight.run.state import Guide, Memory, Monitor, Partial, Watch
from featherweight.structure.errors import StructureError
from featherweight.task import Batch, Task, steps_of
from featherweight.training.distillation import settled
from featherweight.training.fit import fit, recalibrate, squared_gradients
from featherweight.weights import optimizers
from featherweight.weights.drivers import Driver, Imposed, Target, freeze
from featherweight.weights.parametrized import coded, decoded, detach, layouts_kept
from featherweight.weights.sets import TopRows


class StageRun:
    """What a stage needs while it runs: made anew, or from what an interrupted run left of it in `memory`."""

    def __init__(self, stage: Stage, start: Partial, original: nn.Module, task: Task, memory: Memory, monitor: Monitor) -> None:
        generators.restore(memory.random)
        self.stage, self.start, self.original, self.memory = stage, start, original, memory
        self.task = replace(task, loss=self._loss(task))
        self.work = memory.work
        self.network, self.structural = start.snapshot.build(original), start.snapshot.structural()
        self.spent: Spent | None = None
        self.unswept = ""
        for name in _meant(stage, self.network, task) & coded(self.network).keys():
            detach(self.network, name)
        if stage.units and self.work is None:
            done = cut_units(self.network, task, stage.units, memory.epochs, stage.auxiliary)
            self.spent = done.spent
            if done.edit is not None:
                self.structural = [*self.structural, structure_edit(done.edit)]
        self.squares = squared_gradients(self.network, task, memory.epochs) if stage.fisher else None
        self.plan = resolve(stage, self.network, decoded(original), self.squares, task.example)
        if self.work is not None:
            self.network, self.structural = self.work.snapshot.build(original), self.work.snapshot.structural()
            self.spent = Spent.from_dict(self.work.spent) if self.work.spent else None
        self.heads = self._auxiliary_heads()
        self.teacher = memory.baseline.build(original).eval() if stage.distill and stage.epochs else None
        self.distill, self.distilled = None, ""
        if self.teacher is not None:
            self.distill, self.distilled = settled(stage.distill, task, self.teacher, memory.epochs)
        self.watch = Watch(memory, monitor, stage, start, steps_of(task, memory.epochs), self.spent, self.heads)

    def finish(self) -> Partial:
        """Run what is left of the stage; the network that comes of it, with its row."""
        loss = math.inf
        if self.work is None or self.work.phase == "train":
            loss = self._train_guided()
        if self.stage.retrain.epochs:
            loss = self._train("retrain", self._optimizer())
        if self.stage.imposes or self.stage.epochs:  # a network that is only measured stays as it was given
            recalibrate(self.network, self.task, self.memory.epochs)
        snapshot = Snapshot.of(self.network, self.structural)
        return Partial(snapshot, [*self.start.rows, self._row(snapshot, loss).to_dict()], loss)

    def _train_guided(self) -> float:
        """The phase in which something is imposed or learned, and what is cut or frozen at its end."""
        optimizer, stage = self._optimizer(), self.stage
        guide: Imposed | Proportions
        if stage.adaptive:
            steps = stage.train.epochs * self.watch.steps_an_epoch
            guide = Proportions(stage.adaptive, self.network, self.task.example, optimizer, steps)
        else:
            guide = Imposed(
                self._driver(), self.network, optimizer, self.plan.targets, squares=self.squares, spread=self.plan.spread
            )  # fmt: skip
        if self.work is not None and self.work.imposed is not None:
            guide.load_state_dict(self.work.imposed)
        with guide:
            loss = self._train("train", optimizer, guide)
        self.watch.residuals = guide.residuals()
        if isinstance(guide, Proportions):
            with layouts_kept(self.network):
                self.structural = [*self.structural, *(structure_edit(edit) for edit in guide.cut())]
        elif stage.sweep:
            edits, self.unswept = _sweep(self.network, self.task, guide.targets)
            self.structural = [*self.structural, *edits]
        return loss

    def _train(self, phase: str, optimizer: Optimizer, guide: Guide | None = None) -> float:
        """`fit` for one phase, from where an interrupted run left it."""
        training, first_epoch = self.stage.train, self.memory.epochs
        if phase == "retrain":
            training, first_epoch = self.stage.retrain, self.memory.epochs + self.stage.train.epochs
        steps, earlier, random, began = 0, list[float](), None, None
        if self.work is not None and self.work.phase == phase:
            optimizer.load_state_dict(self.work.optimizer)
            steps, earlier, random, began = self.work.steps, self.work.losses, self.work.random, self.work.began
        return fit(
            self.network,
            optimizer,
            with_auxiliary(self.task, self.heads, most=1.0) if self.heads else self.task,
            training,
            first_epoch=first_epoch,
            start=steps,
            earlier=earlier,
            random=random,
            began=began,
            teacher=self.teacher,
            distill=self.distill,
            after_step=self.watch.over(phase, self.network, self.structural, optimizer, guide),
        )

    def _loss(self, task: Task) -> Callable[[nn.Module, Batch], Tensor]:
        """The task's loss, whose failures on a network that has been changed are told as such."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            try:
                return task.loss(model, batch)
            except FeatherweightError:
                raise
            except Exception as error:
                if not (self.structural or coded(self.network)):
                    raise
                raise TrainingError(
                    f"stage {self.stage.name!r}: the task's `loss` fails on the compressed network "
                    f"({type(error).__name__}: {shortened(str(error).strip())}): units of it are gone, or weights have become "
                    "values of codes. What the loss holds of the network, such as an average or a copy of its parameters, must "
                    "be made of the network that it is given"
                ) from error

        return loss

    def _driver(self) -> Driver | None:
        """The stage's driver, paced for as long as it trains."""
        epochs = self.stage.train.epochs
        return self.stage.driver.paced(epochs * self.watch.steps_an_epoch, epochs) if self.stage.driver and epochs else None

    def _late(self) -> str:
        """A sentence where the driver cannot project once before the training is over, else ""."""
        driver, steps = self._driver(), self.stage.train.epochs * self.watch.steps_an_epoch
        if driver is None or driver.every is None or driver.every <= steps:
            return ""
        return (
            f"nothing was projected before the end: every is {driver.every} and the stage trains {steps} steps. Leave every out, "
            "or make it less"
        )

    def _optimizer(self) -> Optimizer:
        heads = [p for head in self.heads.values() for p in head.parameters()]
        return optimizers.build(self.task.optimizer, self.network, heads)

    def _auxiliary_heads(self) -> dict[str, nn.Module]:
        """Those that train along, at the pivots and in the state of the interrupted run if there was one."""
        if not self.stage.auxiliary or self.stage.epochs == 0:
            return {}
        if self.work is None:
            heads = new_heads(self.network, self.task, self.memory.epochs)
        else:
            heads = new_heads(self.network, self.task, self.memory.epochs, list(self.work.heads), rounds=0)
        for pivot, head in heads.items():
            head.train().requires_grad_(True)
            if self.work is not None:
                head.load_state_dict(self.work.heads[pivot])
        return heads

    def _row(self, snapshot: Snapshot, loss: float) -> Row:
        stage, rows = self.stage, self.start.rows
        thin = snapshot.build(self.original)
        materialise(thin, example=self.task.example)  # what this stage would be shipped as: thin factors are two plain layers
        imposing = stage.units or stage.adaptive
        return Row(
            stage.name,
            measure(thin, self.task.example, self.task.score),
            imposing.share if imposing else stage.keep,
            _left(self.network, self.original),
            stage.epochs + (rows[-1]["epochs"] if rows else 0),
            self.watch.seconds(),
            loss if math.isfinite(loss) else None,
            self.watch.residuals,
            self.spent,
            (*said(self.plan.left_out), *filter(None, (self.distilled, self._late(), self.unswept))),
        )


def _sweep(network: nn.Module, task: Task, targets: Mapping[str, Target]) -> tuple[list[Edit], str]:
    """Cut the units that the projection left dead, in place, and code the smaller weights again; nothing if the class cannot.
    The edits, and a sentence where the network cannot be looked through, else "".

    Filters that a set of rows gave up go with the constant that their batch norm leaves: `recalibrate` follows.
    """
    for name in targets:
        detach(network, name)
    results, why = [], ""
    with layouts_kept(network):
        try:
            results.append(structure.sweep(network, structure.trace(network, task.example)))
            filters = [name for name, target in targets.items() if isinstance(target.set, TopRows)]
            if filters and structure.silence(network, graph := structure.trace(network, task.example), filters):
                results.append(structure.sweep(network, graph))
        except StructureError as error:
            why = f"units of zeros stay in the network: {shortened(str(error))}"
    weights = dict(network.named_parameters())
    for name, target in targets.items():
        freeze(network, name, replace(target, set=target.set.shrunk(target.view.to_matrix(weights[name].detach()))))
    return [structure_edit(result.edit) for result in results if result.edit is not None], why


def _meant(stage: Stage, network: nn.Module, task: Task) -> set[str]:
    """The parameters that the stage's rules name."""
    return {name for rule in stage.rules for name in chosen(rule, network, task.example).names}


def _left(network: nn.Module, original: nn.Module) -> dict[str, tuple[int, int]]:
    """Coded parameter -> (its non-zero weights, its weights in the original network)."""
    now, before = decoded(network), decoded(original)
    return {name: (int(now[name].count_nonzero()), before[name].numel()) for name in sorted(coded(network))}
