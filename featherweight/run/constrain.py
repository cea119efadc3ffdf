"""A stage that constrains: train towards sets, project, cut what the projection left dead, train on inside the sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from featherweight import structure
from featherweight.errors import shortened
from featherweight.recipe.plan import chosen, resolve
from featherweight.recipe.schema import Constrain
from featherweight.recipe.selection import said
from featherweight.run import layerwise
from featherweight.run.ground import Ground
from featherweight.run.stage import Running, begin
from featherweight.run.state import Result
from featherweight.run.watch import Monitor
from featherweight.structure.errors import StructureError
from featherweight.task import Task
from featherweight.training.fit import squared_gradients
from featherweight.training.shards import whole
from featherweight.weights.constrained import Constrained, freeze
from featherweight.weights.drivers import Driver
from featherweight.weights.parameters import parameters_of
from featherweight.weights.parametrized import coded, decoded, detach, layouts_kept
from featherweight.weights.sets import TopRows
from featherweight.weights.targets import Target


def constrain(stage: Constrain, start: Result, ground: Ground, monitor: Monitor) -> Result:
    """Run the stage from `start`. Its plan is that of the network at its start, also where it is taken up in its middle."""
    running = begin(stage, start, ground, monitor)
    for name in _meant(stage, running.network, ground.task) & coded(running.network).keys():
        detach(running.network, name)
    engine = running.engine
    squares = _squares(stage, running) if stage.fisher else None
    weighed = whole(squares, engine.is_main) if engine.shard else squares
    plan = engine.decided(lambda: resolve(stage, running.network, decoded(ground.original), weighed, ground.task.example_inputs))
    running.said += said(plan.left_out)
    running.resume()
    running.prepare()
    driver = _paced(stage, running)
    running.said.append(_late(stage, driver, running))
    left, loss = running.unfinished, float("inf")
    if stage.layerwise is not None:
        if left is None:
            asked, network, task = stage.layerwise, running.network, running.task
            running.said += engine.decided(lambda: layerwise.fit(asked, network, task, plan.targets, running.epoch))
            running.agree()
            _swept(stage, running, plan.targets)
    elif left is None or left.phase == "train":
        with running.in_shards(stage.train):
            optimizer = running.optimizer()
            imposed = Constrained(
                driver,
                running.network,
                optimizer,
                plan.targets,
                squares=squares,
                spread=plan.spread,
                agree=engine.same,
                gather=True,
            )
            if left is not None and left.guide is not None:
                imposed.load_state_dict(left.guide)
            with imposed:
                loss = running.train(optimizer, imposed)
        running.watch.residuals = imposed.residuals()
        targets = imposed.targets
        if engine.shard and stage.train.epochs:
            targets = frozen(running.network, targets)
        _swept(stage, running, targets)
    if stage.retrain.epochs:
        loss = running.retrain(stage.retrain)
    return running.finish(loss, stage.keep)


def _squares(stage: Constrain, running: Running) -> dict[str, Tensor]:
    """E[g^2] of each entry, in shards where the stage trains in them."""
    with running.in_shards(stage.train):
        return squared_gradients(running.network, running.ground.task, running.epoch, engine=running.engine)


def frozen(network: nn.Module, targets: Mapping[str, Target]) -> dict[str, Target]:
    """Put codes on what was projected in shards, which is whole by now and in its sets. The targets of its whole weights."""
    weights, found = dict(network.named_parameters()), {}
    for name, target in targets.items():
        smaller = target.set.shrunk(target.view.to_matrix(weights[name].detach()))
        found[name] = Target(smaller, target.view, target.masked)
        freeze(network, name, found[name])
    return found


def _swept(stage: Constrain, running: Running, targets: Mapping[str, Target]) -> None:
    """Cut what the projection left dead, where the stage asks for that."""
    if stage.sweep:
        edits, unswept = running.engine.decided(lambda: _sweep(running.network, running.ground.task, targets))
        running.cut(edits)
        running.said.append(unswept)


def _paced(stage: Constrain, running: Running) -> Driver | None:
    """The stage's driver, paced for as long as it trains."""
    epochs = stage.train.epochs
    return stage.driver.paced(epochs * running.steps_an_epoch, epochs) if stage.driver and epochs else None


def _late(stage: Constrain, driver: Driver | None, running: Running) -> str:
    """A sentence where the driver cannot project once before the training is over, else ""."""
    steps = stage.train.epochs * running.steps_an_epoch
    if driver is None or driver.every is None or driver.every <= steps:
        return ""
    return (
        f"nothing was projected before the end: every is {driver.every} and the stage trains {steps} steps. Leave every out, "
        "or make it less"
    )


def _meant(stage: Constrain, network: nn.Module, task: Task) -> set[str]:
    """The parameters that the stage's rules name."""
    held = parameters_of(network)
    return {name for rule in stage.rules for name in chosen(rule, held, task.example_inputs).names}


def _sweep(network: nn.Module, task: Task, targets: Mapping[str, Target]) -> tuple[list[structure.Edit], str]:
    """Cut the units that the projection left dead, in place, and code the smaller weights again; nothing if the class cannot.
    The edits, and a sentence where the network cannot be looked through, else "".

    Filters that a set of rows gave up go with the constant that their batch norm leaves: `recalibrate` follows.
    """
    for name in targets:
        detach(network, name)
    results, why = [], ""
    with layouts_kept(network):
        try:
            results.append(structure.sweep(network, structure.trace(network, task.example_inputs)))
            filters = [name for name, target in targets.items() if isinstance(target.set, TopRows)]
            if filters and structure.silence(network, graph := structure.trace(network, task.example_inputs), filters):
                results.append(structure.sweep(network, graph))
        except StructureError as error:
            why = f"units of zeros stay in the network: {shortened(str(error))}"
    weights = dict(network.named_parameters())
    for name, target in targets.items():
        freeze(network, name, replace(target, set=target.set.shrunk(target.view.to_matrix(weights[name].detach()))))
    return [result.edit for result in results if result.edit is not None], why
