"""From names of operations to the operations this torch has: a name that a version lacks is no error."""

from __future__ import annotations

from typing import Any

import torch

from featherweight.structure.walk import Rule


def table(rule: Rule, names: str) -> dict[Any, Rule]:
    """The same rule for every operation in a space-separated list of ATen names."""
    result: dict[Any, Rule] = {}
    for name in names.split():
        packet = getattr(torch.ops.aten, name, None)
        if packet is not None:
            result[packet] = rule
    return result
