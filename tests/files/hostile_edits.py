"""Hostile edits, reports and descriptions: of the right types about what the network has, near honest ones and far from them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hostile_victims import Victim

from featherweight.files.packed import container
from featherweight.weights.views import WHOLE

NUMBERS = (0, 1, 2, 3, 7, 64, 65_536, 2**31, 2**53, 2**63, 10**30, -1, -(2**40))
WORDS = (
    "",
    ".",
    "..",
    "weight",
    "0",
    "__class__",
    "forward",
    "_parameters",
    "training",
    "a" * 3000,
    "\x1b[2J",
    "../x",
    "日本",
    "\U000e0001" * 250,
    "\U0001d4b3" * 200,
)
LONG = tuple("k" * size for size in (300, 5_000, 20_000))  # some below and some above what a description takes
PATTERNS = (
    "o i -> o i",
    "o i -> i o",
    "... -> () (...)",
    "o i h w -> o (i h w)",
    "(g h) i -> h (g i)",
    "a -> a a",
    "(a b) -> a b",
    "(" * 50 + "a" + ")" * 50,
    "o " * 1500 + "-> o",
    "\U000e0001" * 250 + " -> o",
    "o i -> (" + "o" * 3000 + " i)",
)
ROW = {
    "stage": "a",
    "measured": {"score": 91.5, "parameters": 3, "nonzeros": 2, "bits": 7, "macs": 5, "uncounted": ["x"], "notes": ["y"]},
    "asked": 0.5,
    "targets": {"conv1.weight": [2, 3]},
    "epochs": 1,
    "seconds": 2.5,
    "loss": 0.25,
    "residuals": {"conv1.weight": 0.01},
    "spent": {"what": "macs", "asked": 3.0, "before": 5.0, "after": 4.0, "note": "z", "gaps": {"fc": 0.1}, "caveats": ["c"]},
    "said": ["one sentence"],
}
PLAIN_ROW = {key: value for key, value in ROW.items() if key not in ("spent", "said")}


def one(random: np.random.Generator, among: Any) -> Any:
    return among[random.integers(len(among))]


def hostile_edits(random: np.random.Generator, found: Victim, plain: bool = False) -> Any:
    """Honest edits with a few places changed, or edits with right types about what the network has; sometimes many of them."""
    if random.random() < 0.5:
        result = json.loads(found.plain(int(random.integers(len(found.honest)))))
        result = [edit for edit in result if edit["edit"] != "code"] if plain else result
        for _ in range(int(random.integers(0, 4))):
            result = changed(random, result, found)
    else:
        result = [grown_edit(random, found) for _ in range(int(random.integers(1, 4)))]
    if random.random() < 0.03 and isinstance(result, list):
        result = result * int(one(random, (2, 50, 1500)))
    return result


def changed(random: np.random.Generator, value: Any, found: Victim) -> Any:
    """The same data but at one place."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = one(random, list(value))
        dice = random.random()
        if dice < 0.05:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: changed(random, value[key], found)} if dice < 0.95 else {**value, _word(random, found): 1}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = int(random.integers(len(value)))
        return [*value[:place], changed(random, value[place], found), *value[place + 1 :]]
    if isinstance(value, list):
        more = 300 if random.random() < 0.05 else 3
        return one(
            random, ([], value * 2, value * more, value[:1], value[::-1], [*value, 10**9], [value], nested(value, more // 3))
        )
    if isinstance(value, int) and random.random() < 0.5:
        return value + int(random.integers(-3, 4))
    if isinstance(value, float) and random.random() < 0.5:
        return one(random, (0.0, -value, 1e300, -1e300, 5e-324, 2))
    dice = random.random()
    if dice < 0.4:
        return one(random, NUMBERS)
    if dice < 0.7:
        return _word(random, found)
    return one(random, (None, True, 0.5, {}, [], float("nan")))


def nested(value: Any, deep: int) -> Any:
    for _ in range(deep):
        value = [value]
    return value


def _word(random: np.random.Generator, found: Victim) -> str:
    dice = random.random()
    return one(random, LONG if dice < 0.02 else WORDS if dice < 0.3 else found.names())


def grown_edit(random: np.random.Generator, found: Victim) -> dict[str, Any]:
    """One edit of the right shape about tensors, modules and numbers that the network has."""
    kind = one(random, ("structure", "code", "factor"))
    shapes = found.shapes()
    name = one(random, list(shapes))
    shape = shapes[name]
    if kind == "factor":
        rank = int(random.integers(0, max(shape, default=1) + 2))
        return {"edit": "factor", "parameter": name, "view": one(random, PATTERNS), "rank": rank}
    if kind == "code":
        size = int(np.prod(shape))
        code = one(random, list(container.KINDS))
        sizes = {
            key: int(random.integers(0, size + 2)) if random.random() < 0.8 else one(random, NUMBERS)
            for key in container.KINDS[code]
        }
        layout = {"kind": code, "rows": 1, "cols": size, "sizes": sizes}
        return {"edit": "code", "parameter": name, "pattern": WHOLE.pattern, "sizes": [], "code": layout}
    cuts, keeps = [], []
    for _ in range(int(random.integers(0, 4))):
        tensor = one(random, list(shapes))
        dims = shapes[tensor]
        if dims:
            dim = int(random.integers(len(dims)))
            share = np.flatnonzero(random.random(dims[dim]) < one(random, (0.3, 0.7, 1.0))).tolist()
            keeps.append(share or [0])
            cuts.append([tensor, dim, dims[dim], len(keeps) - 1])
    attributes = []
    for _ in range(int(random.integers(0, 3))):
        path, key, number = one(random, found.numbers())
        after = int(random.integers(0, number + 2)) if 0 <= number < 2**40 else one(random, NUMBERS)
        attributes.append([path, key, number, after])
    identities = [one(random, found.names())] if random.random() < 0.3 else []
    change = {"kind": "cut", "sites": {}, "keeps": keeps, "cuts": cuts, "attributes": attributes, "identities": identities}
    return {"edit": "structure", "change": change}


def hostile_report(random: np.random.Generator, found: Victim) -> Any:
    """Rows of a report, changed in a few places."""
    rows: Any = [dict(ROW if random.random() < 0.5 else PLAIN_ROW) for _ in range(int(random.integers(1, 3)))]
    for _ in range(int(random.integers(0, 4))):
        rows = changed(random, rows, found)
    return rows * 600 if isinstance(rows, list) and random.random() < 0.01 else rows
