"""Hostile artifacts: folders whose edits, report, description, weights or stored graph are not what they should be."""

from __future__ import annotations

import contextlib
import json
import os
import random as plain_random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_edits import LONG, WORDS, changed, hostile_edits, hostile_report, one
from hostile_graphs import Grower
from hostile_victims import Victim, drawn
from pydantic import ValidationError
from torch import Tensor, nn

from featherweight.cli import console, subjects
from featherweight.files import artifact, edits
from featherweight.measurement import Measurement
from featherweight.network.copies import copied
from featherweight.run import report
from featherweight.structure.interpreted import Interpreted

TYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip
MINE = Measurement(score=90.0, parameters=10, nonzeros=5, bits=7, macs=None)


def weights_file(random: np.random.Generator, state: dict[str, Tensor], damaged: bool) -> bytes:
    """What safetensors writes of a state, or the same with one entry of its header changed."""
    header: dict[str, Any] = {}
    parts, place = [], 0
    for name, tensor in state.items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + len(data)]}
        place += len(data)
        parts.append(data)
    if damaged and header:
        name = one(random, list(header))
        if random.random() < 0.2:
            header[one(random, (*WORDS, *LONG))] = header.pop(name)
            name = one(random, list(header))
        key = one(random, ("dtype", "shape", "data_offsets"))
        value = header[name][key]
        if key == "dtype":
            header[name][key] = one(random, [*TYPES.values(), "F8_E4M3", "", "x" * 3000])
        else:
            header[name][key] = one(
                random, ([], value * 2, [2**40, *value], [-1, *value[1:]], value[::-1], [0, 0], ["1"], [2**63] * 9)
            )
    text = json.dumps(header).encode()
    length = len(text) + (int(random.integers(-9, 10)) if damaged and random.random() < 0.2 else 0)
    return max(0, length).to_bytes(8, "little") + text + b"".join(parts)


def written(folder: Path, description: bytes, weights: bytes) -> None:
    """New files, never the old ones again: an artifact that is still open has them mapped."""
    for name, data in ((artifact.DESCRIPTION, description), (artifact.WEIGHTS, weights)):
        path = folder / name
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        path.write_bytes(data)


def as_json(data: Any) -> bytes:
    return json.dumps(data).encode(errors="surrogatepass")


def _described(given: Any, rows: Any = ()) -> dict[str, Any]:
    return {"format": 1, "edits": given, "recipe": {}, "report": list(rows) if isinstance(rows, tuple) else rows}


# --- edits ---------------------------------------------------------------------------------------------------------------


def edits_folder(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> tuple[str, Any]:
    """Hostile edits; the weights are those of the edits where the edits can be replayed, as often as not."""
    found = drawn(random, among)
    given = hostile_edits(random, found)
    number = int(random.integers(len(found.honest)))
    damaged = random.random() < 0.1
    state = found.honest[number].state
    if random.random() < 0.5:
        try:
            state = edits.replay(copied(found.model), given).state_dict()
        except Exception:  # noqa: BLE001  the weights do not matter then: the file is refused before they are looked at
            state = {}
        weights = weights_file(random, state, damaged)
    elif damaged:
        weights = weights_file(random, state, damaged)
    else:
        weights = found.once(("weights", number), lambda: weights_file(random, state, False))
    written(folder, as_json(_described(given)), weights)
    return "edits", partial(loaded, folder, found)


def loaded(folder: Path, found: Victim) -> nn.Module:
    return artifact.load(folder, found.model)


# --- reports and descriptions --------------------------------------------------------------------------------------------


def report_folder(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> tuple[str, Any]:
    """A report of hostile rows, shown beside what was measured."""
    found = drawn(random, among)
    written(folder, as_json(_described([], hostile_report(random, found))), b"")
    return "report", partial(reported, folder)


def reported(folder: Path) -> None:
    """As `inspect` does, and then as a run does that takes up rows: checked, read, and shown as a table."""
    described = artifact.describe(folder)
    console.compared(MINE, subjects.claimed(described, folder))
    rows = []
    for row in described.report:
        try:
            rows.append(report.Row.from_dict(row))
        except (ValidationError, ValueError, TypeError, RecursionError):  # as `validate.problem` does
            return
    report.text(rows)


def description_folder(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> tuple[str, Any]:
    """A description with other keys and values, or with text that is no JSON."""
    found = drawn(random, among)
    number = int(random.integers(len(found.honest)))
    data: Any = _described(json.loads(found.plain(number)), [dict(PLAIN) for PLAIN in ()])
    data = {**data, "featherweight": "0.1", "model": "lenet5", "data": "digits", "exports": {"a.onnx": {"bytes": 3}}}
    for _ in range(int(random.integers(0, 4))):
        key = one(random, list(data)) if isinstance(data, dict) and data else ""
        data = {**data, key: changed(random, data[key], found)} if key and random.random() < 0.5 else changed(random, data, found)
    text = as_json(data)
    if random.random() < 0.2:
        place = int(random.integers(len(text)))
        other = (
            b"[" * 200,
            b'{"a":' * 3000,
            b"\xff",
            b"1e999",
            b"NaN",
            b"1" * 5000,
            b'"' + b"k" * 11_000 + b'":1,',
            b",",
            b"\\ud800",
        )
        text = text[:place] + one(random, other) + text[place + int(random.integers(0, 3)) :]
    state = found.honest[number].state
    written(folder, text, found.once(("weights", number), lambda: weights_file(random, state, False)))
    return "description", partial(loaded, folder, found)


# --- stored graphs -------------------------------------------------------------------------------------------------------


def graph_folder(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> tuple[str, Any]:
    """A stored graph with its weights, to be loaded and run once."""
    made = Grower(plain_random.Random(int(random.integers(2**62)))).graph()
    weights = weights_file(random, made.state, random.random() < 0.02)
    description = {**_described([]), "exported": made.written}
    if random.random() < 0.05:
        with contextlib.suppress(IndexError):
            description["exported"] = changed(random, description["exported"], drawn(random, among))
    written(folder, as_json(description), weights)
    return "graph", partial(computed, folder, made.inputs)


def computed(folder: Path, inputs: tuple[Tensor, ...]) -> str:
    network = artifact.load(folder)
    assert isinstance(network, Interpreted)
    missing = len(network._program.inputs) - len(inputs)  # a damaged graph may have lost one, or name another
    with torch.no_grad():
        network(*inputs[: len(network._program.inputs)], *[torch.ones(1)] * max(0, missing))
    return "ran"


def artifact_folder(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> tuple[str, Any]:
    """Of these kinds, graphs most often."""
    folder.mkdir(exist_ok=True)
    dice = random.random()
    kind = graph_folder if dice < 0.4 else edits_folder if dice < 0.75 else report_folder if dice < 0.87 else description_folder
    return kind(random, folder, among)
