"""A network as one C99 file that runs what is left of it: zeros are neither stored nor multiplied.

`lower` makes a list of simple steps of the exported graph, `source` writes it, with the kernels in `kernels`, `build` has it
compiled and called, `file` does all of it and compares.
"""

from featherweight.ship.c.build import CompilerMissing, Loaded, Sizes, compiler, sizes
from featherweight.ship.c.file import ExportedC, export_c, load_c, scored, written
from featherweight.ship.c.lower import lower
from featherweight.ship.c.source import Source, source
from featherweight.ship.c.steps import CError

__all__ = [
    "CError",
    "CompilerMissing",
    "ExportedC",
    "Loaded",
    "Sizes",
    "Source",
    "compiler",
    "export_c",
    "load_c",
    "lower",
    "scored",
    "sizes",
    "source",
    "written",
]
