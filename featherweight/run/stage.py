"""What all stages have in common while they run: a network, its training in phases, and the row that is measured at the end."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from featherweight.budget.costs import Spent
from featherweight.criteria.auxiliary import new_heads, with_auxiliary
from featherweight.errors import FeatherweightError, InputError, TrainingError, shortened
from featherweight.files.edits import Edit, Snapshot, entries_left, graph_edit, structure_edit
from featherweight.lowrank.factor import materialise
from featherweight.measurement import measure
from featherweight.network import generators
from featherweight.network.devices import device_of
from featherweight.recipe.schema import Stage, Train
from featherweight.run.ground import Ground
from featherweight.run.in_shards import load, snapshot_of
from featherweight.run.on_graph import OUTPUTS_ALONE
from featherweight.run.report import Row, left
from featherweight.run.state import Result, Unfinished
from featherweight.run.watch import Guide, Monitor, Watch, silent
from featherweight.structure import Edit as StructureEdit
from featherweight.structure.interpreted import Interpreted
from featherweight.task import Batch, Task, steps_of
from featherweight.training.distillation import settled
from featherweight.training.engine import Engine
from featherweight.training.fit import fit, recalibrate
from featherweight.training.rounding import rounded
from featherweight.training.schedule import Distillation, Training
from featherweight.weights import optimizers
from featherweight.weights.parametrized import coded


@dataclass
class Running:
    """A stage while it runs: made by `begin`, told what it needs by `prepare`, ended by `finish`."""

    stage: Stage
    start: Result
    ground: Ground
    monitor: Monitor
    network: nn.Module
    structural: list[Edit]
    spent: Spent | None = None
    said: list[str] = field(default_factory=list)
    heads: dict[str, nn.Module] = field(default_factory=dict)
    teacher: nn.Module | None = None
    distill: Distillation | None = None
    watch: Watch = field(init=False)

    @property
    def unfinished(self) -> Unfinished | None:
        """What an interrupted run left of this stage."""
        return self.ground.state.unfinished

    @property
    def task(self) -> Task:
        """The user's, whose failures on a network that has been changed are told as such."""
        return replace(self.ground.task, loss=self._loss(self.ground.task))

    @property
    def engine(self) -> Engine:
        return self.ground.engine

    @property
    def epoch(self) -> int:
        """The first of this stage."""
        return self.ground.state.epochs

    @property
    def steps_an_epoch(self) -> int:
        return self.watch.steps_an_epoch

    def cut(self, edits: Iterable[StructureEdit]) -> None:
        """Remember what was cut of the network."""
        self.structural = [*self.structural, *map(structure_edit, edits)]

    def become(self, exported: nn.Module) -> None:
        """Go on with an exported module, as a run that is taken up reads it."""
        self.structural = [graph_edit(exported)]
        self.network = Snapshot.of(exported, self.structural).build(self.ground.original)

    def resume(self) -> None:
        """The network as an interrupted run left it."""
        if self.unfinished is not None:
            self.network = self.unfinished.snapshot.build(self.ground.original)
            self.structural = self.unfinished.snapshot.structural()
            self.spent = Spent.from_dict(self.unfinished.spent) if self.unfinished.spent else None

    def prepare(self, auxiliary: bool = False) -> None:
        """Make what the training needs: auxiliary heads, the teacher, the watch."""
        stage, state = self.stage, self.ground.state
        if auxiliary and stage.epochs:
            self._add_heads()
        if stage.distill and stage.epochs:
            self.teacher = teacher = state.baseline.build(self.ground.original).eval()
            self.distill, said = self.engine.decided(lambda: settled(stage.distill, self.ground.task, teacher, self.epoch))
            self.said.append(said)
            if stage.distill.distance == "blocks" and isinstance(self.network, Interpreted):
                self.said.append(OUTPUTS_ALONE)
            self.engine.share_out(teacher)
        self.watch = Watch(state, self.monitor, stage, self.start, steps_of(self.ground.task, self.epoch), self.engine)

    def agree(self) -> None:
        """The network as process 0 has made it: its edits are replayed, and its state loaded."""
        if self.engine.size > 1:
            snapshot = self.engine.decided(lambda: Snapshot.of(self.network, self.structural))
            self.network, self.structural = snapshot.build(self.ground.original), snapshot.structural()

    @contextlib.contextmanager
    def in_shards(self, training: Training) -> Iterator[None]:
        """Around a training: the network lies in shards where the engine puts it there, and is whole again afterwards."""
        if not (self.engine.shard and training.epochs):
            yield
            return
        original, place = self.ground.original, device_of(self.network)
        self.engine.same([*self.network.parameters(), *self.network.buffers()])
        self.engine.share_out(self.network)
        original.cpu()  # its room is that of the whole
        yield
        original.to(place)
        self.network = snapshot_of(self.network, self.structural).build(original)

    def optimizer(self) -> Optimizer:
        """The task's, over the network and the heads."""
        heads = [p for head in self.heads.values() for p in head.parameters()]
        return optimizers.build(self.ground.task.optimizer, self.network, heads)

    def train(self, optimizer: Optimizer, guide: Guide | None = None, also: Sequence[nn.Parameter] = ()) -> float:
        """The training before anything is projected or cut; the mean loss of its last epoch, inf if there is none to do. `also`:
        what the guide trains."""
        if self.unfinished is not None and self.unfinished.phase != "train":
            return math.inf
        return self._fit("train", self.stage.train, self.epoch, optimizer, guide, also)

    def retrain(self, training: Training) -> float:
        """The training after it."""
        self.agree()
        with self.in_shards(training):
            return self._fit("retrain", training, self.epoch + self.stage.train.epochs, self.optimizer(), None)

    def trained(self, asked: float | None, auxiliary: bool = False) -> Result:
        """The network trained as the stage says, after what it cut if it does, with its row. `asked`: the share to keep."""
        self.resume()
        self.prepare(auxiliary)
        with self.in_shards(self.stage.train):
            loss = self.train(self.optimizer())
        return self.finish(loss, asked)

    def finish(self, loss: float, asked: float | None) -> Result:
        """The network that came of it, with its row. `asked`: the share to keep. One process measures."""
        return self.engine.decided(lambda: self._finished(loss, asked))

    def _finished(self, loss: float, asked: float | None) -> Result:
        if self.stage.imposes or self.stage.epochs:  # a network that is only measured stays as it was given
            recalibrate(self.network, self.task, self.epoch)
        snapshot = Snapshot.of(self.network, self.structural)
        rows, thin = self.start.rows, snapshot.build(self.ground.original)
        materialise(
            thin, example=self.ground.task.example_inputs
        )  # what this would be shipped as: thin factors are two plain layers
        row = Row(
            self.stage.name,
            measure(thin, self.ground.task.example_inputs, self.ground.task.evaluate),
            asked,
            left(self.network, self.ground.original),
            self.stage.epochs + (rows[-1]["epochs"] if rows else 0),
            self.watch.seconds(),
            loss if math.isfinite(loss) else None,
            self.watch.residuals,
            self.spent,
            tuple(filter(None, self.said)),
            tuple(self.watch.course),
        )
        return Result(snapshot, [*rows, row.to_dict()], loss)

    def _fit(
        self,
        phase: str,
        training: Training,
        first: int,
        optimizer: Optimizer,
        guide: Guide | None,
        also: Sequence[nn.Parameter] = (),
    ) -> float:
        """`fit` for one phase, from where an interrupted run left it."""
        resumed: dict[str, Any] = {}
        if self.unfinished is not None and self.unfinished.phase == phase:
            left = self.unfinished
            load(optimizer, left.optimizer)
            resumed = {"start": left.steps, "earlier": left.losses, "random": left.random, "began": left.began}
        engine, bits = self.engine, getattr(self.stage, "activations", None)
        with rounded(self.network, bits, engine.lowest), engine.together(self.network, *self.heads.values()):
            return fit(
                self.network,
                optimizer,
                with_auxiliary(self.task, self.heads, most=1.0, mean=engine.mean) if self.heads else self.task,
                training,
                first_epoch=first,
                teacher=self.teacher,
                distill=self.distill,
                left=entries_left(self.structural),
                after_step=self.watch.over(phase, self.network, self.structural, optimizer, guide, self.spent, self.heads),
                engine=engine,
                also=also,
                **resumed,
            )

    def _add_heads(self) -> None:
        """Those that train along, at the pivots and in the state of the interrupted run if there was one."""
        if self.unfinished is None:
            self.heads = self.engine.decided(lambda: new_heads(self.network, self.ground.task, self.epoch))
        else:
            self.heads = new_heads(self.network, self.ground.task, self.epoch, list(self.unfinished.heads), rounds=0)
        for pivot, head in self.heads.items():
            head.train().requires_grad_(True)
            if self.unfinished is not None:
                head.load_state_dict(self.unfinished.heads[pivot])

    def _loss(self, task: Task) -> Callable[[nn.Module, Batch], Tensor]:
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


def begin(stage: Stage, start: Result, ground: Ground, monitor: Monitor) -> Running:
    """A stage at its beginning: the network of its start, and the random generators where they stood there."""
    generators.restore(ground.state.random)
    if not ground.engine.is_main:
        monitor = silent
    return Running(stage, start, ground, monitor, start.snapshot.build(ground.original), start.snapshot.structural())


def train(stage: Train, start: Result, ground: Ground, monitor: Monitor) -> Result:
    """Run a stage that only trains, or only measures."""
    return begin(stage, start, ground, monitor).trained(None, stage.auxiliary)


def without_codes(network: nn.Module, what: str, stage: str) -> None:
    """Raises InputError where weights have codes. `what` has to come before them, and `stage`, in words, is where it happens."""
    if held := sorted(coded(network)):
        raise InputError(f"{what} before weights are coded: {', '.join(held)} have a code. Put {stage} first")
