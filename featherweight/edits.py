"""Edits: what was done to a network, as data. Replayed on a fresh network of the user's own class they give the same one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from featherweight.codes import CODES, Code, attach, coded
from featherweight.errors import ArtifactError, InputError
from featherweight.views import View

Edit = dict[str, Any]  # plain JSON data; "edit" names the kind


def code_edits(model: nn.Module) -> list[Edit]:
    """One edit for each coded parameter of `model`, in order of name."""
    return [
        {
            "edit": "code",
            "parameter": name,
            "pattern": viewed.view.pattern,
            "sizes": [list(size) for size in viewed.view.sizes],
            "code": viewed.code.layout(),
        }
        for name, viewed in sorted(coded(model).items())
    ]


def replay(model: nn.Module, edits: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Apply `edits` to `model` in place and return it. Its values mean nothing until a state is loaded.

    Raises ArtifactError where an edit does not fit the network, naming the first difference.
    """
    for number, edit in enumerate(edits):
        kind = edit.get("edit")
        if kind == "code":
            _attach_blank(model, edit, f"edit {number}")
        else:
            raise ArtifactError(f"edit {number} is of kind {kind!r}, which this version does not know")
    return model


@dataclass
class Snapshot:
    """A compressed network at rest: its edits, and its state (names -> tensors)."""

    edits: list[Edit]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, structural: list[Edit]) -> Snapshot:
        """`structural`: the edits, before any code, that made `model` from the user's network."""
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        return cls(structural + code_edits(model), state)

    def structural(self) -> list[Edit]:
        return [edit for edit in self.edits if edit["edit"] != "code"]

    def build(self, original: nn.Module) -> nn.Module:
        """A new network: a copy of the user's original one with the edits replayed and the state loaded."""
        model = replay(copy.deepcopy(original), self.edits)
        model.load_state_dict(self.state)
        return model


def _attach_blank(model: nn.Module, edit: Mapping[str, Any], where: str) -> None:
    """Put an empty code on a parameter, after checking every size against the parameter's own shape."""
    try:
        name, layout = str(edit["parameter"]), edit["code"]
        view = View(str(edit["pattern"]), tuple((str(axis), int(size)) for axis, size in edit["sizes"]))
        kind, rows, cols, sizes = layout["kind"], int(layout["rows"]), int(layout["cols"]), dict(layout["sizes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{where} is not a well-formed code edit: {error!r}") from None
    known = dict(model.named_parameters())
    if name not in known:
        raise ArtifactError(f"{where} is for parameter {name!r}, which {type(model).__name__} does not have")
    shape = tuple(known[name].shape)
    try:
        expected = view.matrix_shape(shape)
    except InputError as error:
        raise ArtifactError(f"{where}: parameter {name!r}: {error}") from None
    if (rows, cols) != expected:
        raise ArtifactError(
            f"{where}: parameter {name!r} has shape {shape}, a {expected} matrix; the artifact holds one of {(rows, cols)}"
        )
    attach(model, name, view, _blank(kind, rows, cols, sizes, where))


def _blank(kind: Any, rows: int, cols: int, sizes: dict[str, Any], where: str) -> Code:
    if kind not in CODES:
        raise ArtifactError(f"{where} has a code of kind {kind!r}; known kinds are {', '.join(CODES)}")
    limits = {"count": max(rows * cols, 256), "rank": min(rows, cols), "shared": 2**16}
    for key, size in sizes.items():
        if type(size) is not int or not 0 <= size <= limits.get(key, -1):
            raise ArtifactError(f"{where}: {key} = {size!r} is not a size that a {kind} code of {rows} x {cols} can have")
    try:
        return CODES[kind](rows, cols, **sizes)
    except TypeError:
        raise ArtifactError(f"{where}: a {kind} code does not have the sizes {sorted(sizes)}") from None


def check_state(model: nn.Module) -> None:
    """Every index of every code lies in range. Raises ArtifactError; run it after loading a state from a file."""
    for name, viewed in coded(model).items():
        problem = viewed.code.problem()
        if problem:
            raise ArtifactError(f"the code of {name!r} is damaged: {problem}")
