"""The rules: what each ATen operation means for labels. One table, from operation to function; see `walk` for how they are
called.
"""

from __future__ import annotations

from typing import Any

from featherweight.structure.rules import contraction, factory, indexing, movement, normalisation, pointwise, recurrent, reduction
from featherweight.structure.walk import Rule

RULES: dict[Any, Rule] = {
    **movement.RULES,
    **indexing.RULES,
    **pointwise.RULES,
    **contraction.RULES,
    **normalisation.RULES,
    **reduction.RULES,
    **factory.RULES,
    **recurrent.RULES,
}
