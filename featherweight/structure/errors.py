"""Errors of the structure package. Each message names what was given, what is allowed and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from featherweight.errors import FeatherweightError


class StructureError(FeatherweightError):
    """Base of the errors about finding and cutting units."""


class NotExportable(StructureError):
    """The network could not be captured by torch.export."""


class DataDependentControlFlow(NotExportable):
    """The network's Python code branches on, or makes shapes from, the values of a tensor."""


class BadExample(StructureError):
    """The example given is not something the network can be run on."""


class UnknownSite(StructureError):
    """A site or block name that the graph does not have."""


class BadSelection(StructureError):
    """The units to keep are none, out of range, repeated or leave a tensor without entries."""


class StaleGraph(StructureError):
    """The graph describes other shapes than the network has: it was cut after the graph was made."""


class EditMismatch(StructureError):
    """A recorded edit does not fit the network it is replayed on."""


class NotExact(StructureError):
    """A cut changed what the network computes and was rolled back."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UnknownSite:
    """The error for a name that is not in `allowed`, with the nearest names first."""
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.4)
    if near:
        hint = "did you mean " + " or ".join(repr(name) for name in near) + "?"
    elif names:
        hint = f"the graph has {len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    else:
        hint = "the graph has none; graph.frozen says why for each parameter"
    return UnknownSite(f"no {kind} is named {given!r}; {hint}")
