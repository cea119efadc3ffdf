"""Makes trained PyTorch networks small and fast, and measures what came out."""

from featherweight import recipes, structure
from featherweight.compression import Compressed, compress
from featherweight.errors import FeatherweightError
from featherweight.files.artifact import load, save_cut
from featherweight.recipe.schema import Constrain, CutUnits, LearnUnits, Recipe, Rule, Train
from featherweight.task import Steps, Task
from featherweight.training.schedule import Distillation, Training
from featherweight.version import __version__
from featherweight.weights.drivers import ADMM, Imposed, Periodic, Target
from featherweight.weights.sets import Codebook, Levels, LowRank, SparseCodebook, TopK, TopRows
from featherweight.weights.views import View

__all__ = [
    "ADMM",
    "Codebook",
    "Compressed",
    "Constrain",
    "CutUnits",
    "Distillation",
    "FeatherweightError",
    "Imposed",
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
    "View",
    "__version__",
    "compress",
    "load",
    "recipes",
    "save_cut",
    "structure",
]
