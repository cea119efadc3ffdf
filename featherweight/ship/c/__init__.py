"""A network as one C99 file that runs what is left of it: zeros are neither stored nor multiplied.

`lower` makes a list of simple steps of the exported graph, `source` writes it, with the kernels in `kernels`, `build` has it compiled
and called.
"""

from featherweight.ship.c.build import CompilerMissing, Loaded, Sizes, compiler, sizes
from featherweight.ship.c.lower import CError, lower
from featherweight.ship.c.source import Source, source

__all__ = ["CError", "CompilerMissing", "Loaded", "Sizes", "Source", "compiler", "lower", "sizes", "source"]
