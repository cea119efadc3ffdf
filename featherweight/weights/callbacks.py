"""`constrain` around the loops of others: one line for the Trainer of transformers, one for that of Lightning.

Both libraries are optional and imported when a callback is made. Entered when the training begins, since the optimizer is made
then; left when it ends, where the targets are projected and re-parametrized. A training that fails leaves the network as it is.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from featherweight.errors import InputError
from featherweight.weights.constrained import Constrained, constrain
from featherweight.weights.drivers import Driver, Target
from featherweight.weights.sets import Set

Targets = Mapping[str, Target | Set]


class _Around:
    """What both callbacks do. `imposed`: the context, from the beginning of the training on."""

    def __init__(self, targets: Targets, driver: Driver | None) -> None:
        self.targets, self.driver = targets, driver
        self.imposed: Constrained | None = None
        self.is_open = False

    def begin(self, model: nn.Module, optimizer: Optimizer | None, steps: int, epochs: int) -> None:
        """Raises InputError for targets that the model or the optimizer lacks."""
        self.abandon()  # a training before this one that failed
        if optimizer is None:
            raise InputError("the loop has no optimizer when its training begins, and constrain needs it: write your own loop")
        driver = self.driver.paced(max(1, steps), max(1, epochs)) if self.driver is not None else None
        self.imposed = constrain(model, optimizer, self.targets, driver)
        self.imposed.__enter__()
        self.is_open = True

    def end(self) -> None:
        if self.imposed is not None and self.is_open:
            self.is_open = False
            self.imposed.__exit__(None, None, None)

    def abandon(self) -> None:
        if self.imposed is not None and self.is_open:
            self.is_open = False
            error = RuntimeError("the training failed")
            self.imposed.__exit__(RuntimeError, error, None)


def trainer_callback(targets: Targets, driver: Driver | None = None) -> Any:
    """`constrain` as a callback of transformers' Trainer: `Trainer(..., callbacks=[fw.trainer_callback(targets, driver)])`.

    targets, driver   as of `constrain`; a driver may leave its pace open, which the training's steps and epochs then decide

    Afterwards the Trainer's optimizer is of parameters that are gone: to train on, make a new Trainer. Raises InputError
    without transformers, and what `constrain` raises when the training begins.
    """
    base = _optional(("transformers",), "TrainerCallback")

    class Constraining(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.around = _Around(targets, driver)

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.around.begin(given["model"], given.get("optimizer"), state.max_steps, math.ceil(args.num_train_epochs))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.around.end()

    return Constraining()


def lightning_callback(targets: Targets, driver: Driver | None = None) -> Any:
    """`constrain` as a callback of Lightning: `Trainer(..., callbacks=[fw.lightning_callback(targets, driver)])`.

    Targets are named as in the LightningModule (`net.fc.weight`), which has one optimizer. Else as `trainer_callback`.
    """
    base = _optional(("lightning.pytorch", "pytorch_lightning"), "Callback")

    class Constraining(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.around = _Around(targets, driver)

        def on_train_start(self, trainer: Any, module: nn.Module) -> None:
            if len(trainer.optimizers) != 1:
                raise InputError(f"constrain takes one optimizer, and the LightningModule has {len(trainer.optimizers)}")
            steps = trainer.estimated_stepping_batches
            epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
            if not math.isfinite(steps):
                raise InputError("the training has no end: give the Lightning Trainer max_epochs or max_steps")
            self.around.begin(module, trainer.optimizers[0], int(steps), epochs)

        def on_train_end(self, trainer: Any, module: nn.Module) -> None:
            self.around.end()

        def on_exception(self, trainer: Any, module: nn.Module, exception: BaseException) -> None:
            self.around.abandon()

    return Constraining()


def _optional(packages: tuple[str, ...], name: str) -> Any:
    """`name` of the first package that is installed. Raises InputError."""
    for package in packages:
        try:
            return getattr(importlib.import_module(package), name)
        except ImportError:
            continue
    wanted = packages[0].partition(".")[0]
    raise InputError(f"this callback is of {wanted}, which is not installed here: pip install {wanted}")
