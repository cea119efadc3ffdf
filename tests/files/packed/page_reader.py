"""A reader of `.fwz` files that follows docs/format.md, in plain integers; imports nothing of ours.

It is as short and as slow as the page is long. Where the page is wrong, or says too little, this does not open a file.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from page_places import FOLLOWED, Layout, Reader, layout_of
from page_values import TYPES

KINDS = ("", "sparse", "rows", "factors", "scaled", "shared", "sparse_shared", "sparse_scaled")
SIZES: dict[str, tuple[str, ...]] = {
    "sparse": ("count",),
    "rows": ("count",),
    "factors": ("rank",),
    "scaled": ("count",),
    "shared": ("count",),
    "sparse_shared": ("count", "shared"),
    "sparse_scaled": ("count", "shared"),
}
VIEWS = (
    "... -> () (...)",
    "o i h w -> o (i h w)",
    "o i h w -> (i h) (o w)",
    "o i h w -> i (o h w)",
    "o i -> o i",
    "o i -> i o",
    "o i h w -> (o i) (h w)",
    "o i -> () (o i)",
)
PAGE = Path(__file__).parents[3] / "docs" / "format.md"
WORDS = re.findall(r"\w+", PAGE.read_text().partition("the words `")[2].partition("`")[0])


@dataclass
class Network:
    """What the class tells: `state_dict()` as (name, shape, type), the names of `named_parameters()` and `named_modules()`, and
    name -> the earlier name of the same tensor."""

    state: list[tuple[str, tuple[int, ...], str]]
    parameters: list[str]
    modules: list[str]
    ties: dict[str, str] = field(default_factory=dict)


def read(data: bytes, network: Network) -> dict[str, np.ndarray]:
    """Name in `state_dict()` -> value, those of codes decoded. Raises AssertionError where the file is not as the page says."""
    signature = zlib.crc32(repr(network.state).encode())
    assert data[:2] == b"FZ" and data[2] & 127 == 5 and data[3] == signature & 255
    assert zlib.crc32(data[8:], zlib.crc32(data[:4], signature)) == int.from_bytes(data[4:8], "little")
    body, bulk = data[8:], b""
    if data[2] & 128:
        length = place = 0
        while True:
            length |= (body[place] & 127) << 7 * place
            place += 1
            if body[place - 1] < 128:
                break
        body, bulk = body[place : place + length], body[place + length :]
    reader = Reader(body, bulk)
    names = list(dict.fromkeys([*WORDS, *(name for name, _, _ in network.state), *network.modules]))
    shapes = {name: shape for name, shape, _ in network.state}
    for edit in reader.plain(names) or []:
        if edit["edit"] == "factor":
            network = _factored(network, shapes, edit)
        else:
            _cut(shapes, edit)
    codes = {name: code for name in network.parameters if (code := _code(reader, names, shapes[name]))}
    kinds = {name: kind for name, _, kind in network.state}
    outputs: list[bool] | None = None
    modules: dict[str, list[bool]] = {}
    done: dict[str, np.ndarray] = {}
    for name in network.parameters:
        shape, module = shapes[name], name.rpartition(".")[0]
        if name in codes:
            done[name], living = _coded(reader, shape, kinds[name], *codes[name], outputs)
        else:
            done[name] = reader.tensor(shape, kinds[name], outputs if len(shape) == 1 else None)
            living = None
            if len(shape) == 1 and outputs is not None and len(outputs) == shape[0]:
                modules[module] = outputs
        if len(shape) >= 2:
            outputs = [True] * shape[0] if living is None else np.isin(np.arange(shape[0]), living).tolist()
            modules[module] = outputs
    for name, _, kind in network.state:
        if name not in done:
            tied = network.ties.get(name)
            done[name] = done[tied] if tied else reader.tensor(shapes[name], kind, modules.get(name.rpartition(".")[0]))
    assert not reader.bulk and reader.place >= len(reader.data)
    return done


def _code(reader: Reader, names: Sequence[str], shape: tuple[int, ...]) -> tuple[str, str, dict[str, int], dict[str, int]] | None:
    """Kind, view, sizes of its axes, sizes of the code."""
    kind = KINDS[reader.choice(f"code {min(len(shape), 2)}", 8)]
    if not kind:
        return None
    which = reader.choice("pattern", 9)
    view, axes = (reader.text(), dict(reader.plain(names))) if which == 8 else (VIEWS[which], {})
    return kind, view, axes, {size: reader.number(f"size {kind} {size}") for size in SIZES[kind]}


def _coded(
    reader: Reader,
    shape: tuple[int, ...],
    dtype: str,
    kind: str,
    view: str,
    axes: dict[str, int],
    sizes: dict[str, int],
    outputs: list[bool] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The parameter, and the indices of its first dimension that have entries; None: all."""
    layout = layout_of(shape, view, axes, outputs)
    places_of = rearrange(np.arange(math.prod(shape)).reshape(shape), view, **axes)
    rows, cols = places_of.shape
    flat = np.zeros(rows * cols, TYPES[dtype.removeprefix("torch.")])
    table = sizes.get("shared", sizes.get("count", 0))
    everywhere = np.arange(rows * cols)
    places = symbols = levels = None
    if kind in ("sparse", "sparse_shared", "sparse_scaled"):
        places = reader.places(layout, sizes["count"])
    elif kind == "rows":
        lines = reader.places(layout if cols == 1 else Layout((1, rows, 1), (1, rows)), sizes["count"])
        places = (lines[:, None] * cols + np.arange(cols)).reshape(-1)
    if kind in ("scaled", "shared"):
        symbols = reader.dense(layout, table)
    elif kind in ("sparse_shared", "sparse_scaled"):
        assert places is not None
        symbols = reader.marks(layout, places, table)
    if kind in ("scaled", "sparse_scaled"):
        levels = reader.tensor((table,), "float32")
        scale = reader.tensor((rows, 1), dtype)
        at = everywhere if places is None else places
        flat[at] = levels.astype(flat.dtype)[symbols] * scale[at // cols, 0]
    elif symbols is not None:
        levels = reader.tensor((table,), dtype)
        flat[everywhere if places is None else places] = levels[symbols]
    elif places is not None:
        flat[places] = reader.tensor((places.size,), dtype)
    else:
        left, right = (reader.tensor(size, dtype) for size in ((rows, sizes["rank"]), (sizes["rank"], cols)))
        flat[:] = (left @ right).reshape(-1)
    if places is None and symbols is not None and symbols.size <= FOLLOWED and levels is not None and not (levels != 0).all():
        places = np.flatnonzero(levels[symbols] != 0)
    value = np.empty_like(flat)
    value[places_of.reshape(-1)] = flat
    living = None
    if places is not None and not (layout.order is None and layout.matrix[0] != (shape or (1,))[0]):
        living = (places if layout.order is None else layout.order[places]) // (layout.size // shape[0]) if shape else None
    return value.reshape(shape), living


def _factored(network: Network, shapes: dict[str, tuple[int, ...]], edit: dict[str, Any]) -> Network:
    """The network whose layer of `edit` is two layers; their shapes take the place of the weight's in `shapes`."""
    name, rank = edit["parameter"], edit["rank"]
    layer, _, own = name.rpartition(".")
    axes, matrix = (side.strip() for side in edit["view"].split("->"))
    outputs, inputs, *kernel = shapes.pop(name)
    groups = [(group or axis).split() for group, axis in re.findall(r"\(([^)]*)\)|(\w+)", matrix)]
    with_inputs = next(group for group in groups if "i" in group)
    taken = [axis in with_inputs for axis in axes.split()[2:]]
    first = (rank, inputs, *(size if mine else 1 for size, mine in zip(kernel, taken, strict=True)))
    second = (outputs, rank, *(1 if mine else size for size, mine in zip(kernel, taken, strict=True)))
    if own == "weight":
        renamed = {name: [f"{layer}.0.weight", f"{layer}.1.weight"], f"{layer}.bias": [f"{layer}.1.bias"]}
    else:  # weight_ih_l0, of a recurrent layer: the linear layer `reduce` stands behind all that it has
        last = [one for one, _, _ in network.state if one.startswith(f"{layer}.")][-1]
        renamed = {last: [last, f"{layer}.reduce.weight"]}
    if f"{layer}.bias" in shapes:
        shapes[f"{layer}.1.bias"] = shapes[f"{layer}.bias"]
    shapes |= {f"{layer}.0.weight": first, f"{layer}.1.weight": second} if own == "weight" else {
        f"{layer}.reduce.weight": first, name: second
    }  # fmt: skip
    return Network(
        [(new, shapes[new], kind) for one, _, kind in network.state for new in renamed.get(one, [one])],
        [new for one in network.parameters for new in renamed.get(one, [one])],
        network.modules,
        network.ties,
    )


def _cut(shapes: dict[str, tuple[int, ...]], edit: dict[str, Any]) -> None:
    assert edit["edit"] == "structure"
    change = edit["change"]
    for name, dim, _, keep, *blocks in change["cuts"]:
        shape = list(shapes[name])
        shape[dim] = len(change["keeps"][keep]) // (blocks[0] if blocks else 1)
        shapes[name] = tuple(shape)
