"""Structure: find, cut and verify the channels, heads, recurrent units and blocks of any network."""

from featherweight.structure.blocks import Block
from featherweight.structure.constant_units import silence
from featherweight.structure.counting import ParameterCount
from featherweight.structure.cut import Result, prune
from featherweight.structure.dead_units import sweep
from featherweight.structure.drop import branches, drop, droppable, removable
from featherweight.structure.edit import Attribute, Edit, Moved, replay
from featherweight.structure.entries import Cut
from featherweight.structure.express import expressible, free_sizes
from featherweight.structure.gate import Check
from featherweight.structure.graph import Graph, Site, Slice
from featherweight.structure.state import carry, carry_average
from featherweight.structure.tracing import trace

__all__ = [
    "Attribute", "Block", "Check", "Cut", "Edit", "Graph", "Moved", "ParameterCount", "Result", "Site", "Slice",
    "branches", "carry", "carry_average", "drop", "droppable", "expressible", "free_sizes", "prune", "removable", "replay",
    "silence", "sweep", "trace",
]  # fmt: skip
