"""Makes trained PyTorch networks small and fast, and measures what came out.

Without training: `prune`, `factorize`, `quantize`, `cluster`. With the training of a `Task`: `compress`, and a
recipe of `recipes`. In a training loop of your own: `constrain`.
"""

from featherweight import recipes, structure
from featherweight.compression import compress
from featherweight.errors import FeatherweightError
from featherweight.files.artifact import load, save_cut
from featherweight.measurement import measure
from featherweight.recipe.schema import Adaptive, Constrain, CutUnits, LearnUnits, Recipe, Rule, Train, Units
from featherweight.run.compressed import Compressed, pack
from featherweight.run.oneshot import cluster, factorize, prune, quantize
from featherweight.ship.bench import bench
from featherweight.ship.export import export
from featherweight.structure import trace
from featherweight.task import Steps, Task
from featherweight.training.schedule import Distillation, Training
from featherweight.version import __version__
from featherweight.weights.drivers import ADMM, Periodic, Target, constrain
from featherweight.weights.freezing import Freezing
from featherweight.weights.sets import Codebook, Levels, LowRank, SparseCodebook, TopK, TopRows
from featherweight.weights.views import View

__all__ = [
    "ADMM",
    "Adaptive",
    "Codebook",
    "Compressed",
    "Constrain",
    "CutUnits",
    "Distillation",
    "FeatherweightError",
    "Freezing",
    "LearnUnits",
    "Levels",
    "LowRank",
    "Periodic",
    "Recipe",
    "Rule",
    "SparseCodebook",
    "Steps",
    "Target",
    "Task",
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
    "load",
    "measure",
    "pack",
    "prune",
    "quantize",
    "recipes",
    "save_cut",
    "structure",
    "trace",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    if name == "Imposed":  # until version 0.1
        import warnings

        from featherweight.weights.drivers import Imposed

        warnings.warn(
            "featherweight.Imposed(driver, model, ...) is constrain(model, optimizer, targets, driver) now", stacklevel=2
        )
        return Imposed
    raise AttributeError(f"module 'featherweight' has no attribute {name!r}")
