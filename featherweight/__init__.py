"""Makes trained PyTorch networks small and fast, and measures what came out.

Without training: `prune`, `factorize`, `quantize`, `cluster`. With the training of a `Task`: `compress`, and a
recipe of `recipes`. In a training loop of your own: `constrain`.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time each is imported when it is first asked for: `featherweight --help` needs no torch
    from featherweight import recipes, structure
    from featherweight.compression import compress, shrink
    from featherweight.errors import FeatherweightError
    from featherweight.files.artifact import load, save_cut
    from featherweight.measurement import Measurement, measure
    from featherweight.recipe.schema import (
        Constrain,
        CutUnits,
        Distillation,
        DropBlocks,
        LearnUnits,
        Recipe,
        Rule,
        Train,
        Training,
    )
    from featherweight.recipe.units import Adaptive, Blocks, Units
    from featherweight.run.compressed import Compressed, pack
    from featherweight.run.ground import Processes
    from featherweight.run.oneshot import cluster, factorize, prune, quantize
    from featherweight.run.report import Row
    from featherweight.ship.bench import bench
    from featherweight.ship.c import load_c
    from featherweight.ship.formats import export
    from featherweight.ship.semi_structured import semi_structured
    from featherweight.structure import trace
    from featherweight.task import Steps, Task
    from featherweight.version import __version__
    from featherweight.weights.callbacks import lightning_callback, trainer_callback
    from featherweight.weights.constrained import constrain
    from featherweight.weights.drivers import ADMM, Periodic, StraightThrough
    from featherweight.weights.freezing import Freezing
    from featherweight.weights.sets import Codebook, Levels, LowRank, SparseCodebook, TopEach, TopK, TopRows
    from featherweight.weights.targets import Target
    from featherweight.weights.views import View

__all__ = [
    "ADMM",
    "Adaptive",
    "Blocks",
    "Codebook",
    "Compressed",
    "Constrain",
    "CutUnits",
    "Distillation",
    "DropBlocks",
    "FeatherweightError",
    "Freezing",
    "LearnUnits",
    "Levels",
    "LowRank",
    "Measurement",
    "Periodic",
    "Processes",
    "Recipe",
    "Row",
    "Rule",
    "SparseCodebook",
    "Steps",
    "StraightThrough",
    "Target",
    "Task",
    "TopEach",
    "TopK",
    "TopRows",
    "Train",
    "Training",
    "Units",
    "View",
    "__version__",
    "bench",
    "cluster",
    "compress",
    "constrain",
    "export",
    "factorize",
    "lightning_callback",
    "load",
    "load_c",
    "measure",
    "pack",
    "prune",
    "quantize",
    "recipes",
    "save_cut",
    "semi_structured",
    "shrink",
    "structure",
    "trace",
    "trainer_callback",
]


_HOMES = {  # module -> what is asked of it
    "compression": "compress shrink",
    "errors": "FeatherweightError",
    "files.artifact": "load save_cut",
    "measurement": "Measurement measure",
    "recipe.schema": "Constrain CutUnits Distillation DropBlocks LearnUnits Recipe Rule Train Training",
    "recipe.units": "Adaptive Blocks Units",
    "run.compressed": "Compressed pack",
    "run.ground": "Processes",
    "run.oneshot": "cluster factorize prune quantize",
    "run.report": "Row",
    "ship.bench": "bench",
    "ship.c": "load_c",
    "ship.formats": "export",
    "ship.semi_structured": "semi_structured",
    "structure": "trace",
    "task": "Steps Task",
    "version": "__version__",
    "weights.callbacks": "lightning_callback trainer_callback",
    "weights.constrained": "constrain",
    "weights.drivers": "ADMM Periodic StraightThrough",
    "weights.freezing": "Freezing",
    "weights.sets": "Codebook Levels LowRank SparseCodebook TopEach TopK TopRows",
    "weights.targets": "Target",
    "weights.views": "View",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __dir__() -> list[str]:
    return __all__


# --- names of version 0.0, until 0.2 ----------------------------------------------------------------------------------------

_MOVED = {
    "allocate": "weights.counts",
    "allocate.amc": "budget.amc",
    "allocate.choices": "budget.choices",
    "allocate.counts": "weights.counts",
    "allocate.knapsack": "budget.knapsack",
    "artifact": "files.artifact",
    "auxiliary": "criteria.auxiliary",
    "bits": "budget.bits",
    "budgets": "budget.costs",
    "calls": "network.calls",
    "checkout": "cli.benchmarks",
    "checkpoint": "files.checkpoint",
    "codes": "weights.codes",
    "coding": "weights.parametrized",
    "compress": "compression",
    "console": "cli.console",
    "contract": "run.contract",
    "copies": "network.copies",
    "cutting": "run.cut_units",
    "data": "zoo.datasets",
    "description": "files.description",
    "devices": "network.devices",
    "distillation": "training.distillation",
    "distributed": "weights.distributed",
    "drivers": "weights.drivers",
    "edits": "files.edits",
    "export": "ship.export",
    "factor": "lowrank.factor",
    "failures": "cli.failures",
    "fetch": "files.download",
    "fingerprint": "run.fingerprint",
    "freezing": "weights.freezing",
    "gates": "criteria.readers",
    "generators": "network.generators",
    "given": "cli.inputs",
    "job": "cli.jobs",
    "kmeans": "weights.kmeans",
    "latency": "ship.bench",
    "measure": "measurement",
    "menus": "weights.sizes",
    "modes": "network.evaluating",
    "notation": "recipe.notation",
    "optimizers": "weights.optimizers",
    "outline": "cli.outline",
    "pace": "run.latency_budget",
    "packed": "files.packed",
    "packed.bulk": "files.packed.raw_bytes",
    "packed.hazard": "files.packed.sparse_places",
    "packed.large": "files.packed.large_symbols",
    "packed.plain": "files.packed.edit_codes",
    "patches": "criteria.patches",
    "patterns": "recipe.patterns",
    "plan": "recipe.plan",
    "proportions": "run.learn_units",
    "ranks": "lowrank.ranks",
    "report": "run.report",
    "saved": "run.validate",
    "scales": "weights.scales",
    "selection": "recipe.selection",
    "sets": "weights.sets",
    "stage": "run.stage",
    "stats": "criteria.statistics",
    "storage": "files.storage",
    "structure.dead": "structure.dead_units",
    "structure.silent": "structure.constant_units",
    "structure.unlift": "structure.graph_module",
    "subject": "cli.subjects",
    "svd": "weights.svd",
    "targets": "weights.targets",
    "tasks": "zoo.tasks",
    "tensor_files": "files.tensors",
    "units": "budget.units",
    "usercode": "cli.usercode",
    "views": "weights.views",
}


class _Module(types.ModuleType):
    """A module under its old name; called, it is the function that has that name now."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _attribute(self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules under their old names."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if _moved(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        now = importlib.import_module(f"featherweight.{_moved(spec.name)}")
        warnings.warn(f"{spec.name} is {now.__name__} now", DeprecationWarning, stacklevel=2)
        vars(module).update({name: value for name, value in vars(now).items() if not name.startswith("__")})
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """It is there already."""


def _moved(name: str) -> str:
    """The new name of a module, after the package's; "" where it has not moved."""
    package, _, old = name.partition(".")
    known = next((known for known in (old, old.rpartition(".")[0]) if known in _MOVED), "")
    return _MOVED[known] + old[len(known) :] if package == "featherweight" and known else ""


sys.meta_path.append(_Moved())


def _attribute(name: str) -> Any:
    return getattr(importlib.import_module(f"featherweight.{_HOME_OF[name]}"), name)


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        globals()[name] = _attribute(name)
        return globals()[name]
    if name in ("recipes", "structure"):
        return importlib.import_module(f"featherweight.{name}")
    if name == "Imposed":
        warnings.warn("Imposed(driver, model, ...) is constrain(model, optimizer, targets, driver) now", stacklevel=2)
        return importlib.import_module("featherweight.weights.constrained").Constrained
    if name in _MOVED:
        return importlib.import_module(f"featherweight.{name}")
    raise AttributeError(f"module 'featherweight' has no attribute {name!r}")
