"""Without Python's search for cycles, over code that makes very many objects of which nearly all stay.

The search looks at every object there is each time that their number has grown by a quarter. Importing torch and timm, and an
export, are a few hundred thousand objects that no search frees: it was a fifth of the time of either.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Inside, what is in a cycle is not freed; afterwards it is as before. One in another is the outer one."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
