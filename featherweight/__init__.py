"""Makes trained PyTorch networks small and fast, and measures what came out."""

from featherweight import recipes, structure
from featherweight.artifact import load, save_cut
from featherweight.compress import Compressed, compress
from featherweight.drivers import ADMM, Imposed, Periodic, Target
from featherweight.errors import FeatherweightError
from featherweight.recipe import Distillation, Recipe, Rule, Stage, Training
from featherweight.sets import Codebook, Levels, LowRank, SparseCodebook, TopK, TopRows
from featherweight.task import Steps, Task
from featherweight.version import __version__
from featherweight.views import View

__all__ = [
    "ADMM",
    "Codebook",
    "Compressed",
    "Distillation",
    "FeatherweightError",
    "Imposed",
    "Levels",
    "LowRank",
    "Periodic",
    "Recipe",
    "Rule",
    "SparseCodebook",
    "Stage",
    "Steps",
    "Target",
    "Task",
    "TopK",
    "TopRows",
    "Training",
    "View",
    "__version__",
    "compress",
    "load",
    "recipes",
    "save_cut",
    "structure",
]
