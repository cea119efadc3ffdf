"""A network as one C99 file that runs what is left of it: zeros are neither stored nor multiplied.

`lower` makes a list of simple steps of the exported graph, `source` writes it, with the kernels in `kernels`, `build` has it
compiled and called, `file` does all of it and compares.
"""

from featherweight.ship.c.build import FAST, WITHOUT_UNWINDING, CompilerMissing, Loaded, Sizes, compiler, sizes
from featherweight.ship.c.file import ExportedC, export_c, load_c, scored, written
from featherweight.ship.c.lower import lower
from featherweight.ship.c.source import Source, source
from featherweight.ship.c.steps import CError
from featherweight.ship.c.targets import Emulated, Target

__all__ = [
    "FAST",
    "WITHOUT_UNWINDING",
    "CError",
    "CompilerMissing",
    "Emulated",
    "ExportedC",
    "Loaded",
    "Sizes",
    "Source",
    "Target",
    "compiler",
    "export_c",
    "load_c",
    "lower",
    "scored",
    "sizes",
    "source",
    "written",
]
