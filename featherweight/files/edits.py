"""Edits: what was done to a network, as data. Replayed on a fresh network of the user's own class they give the same one.

They may come from a stranger. Each can only make the network smaller, and how many there are, and what each may take in time and
memory, is bounded by the network before anything of that size is read or made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from featherweight import structure
from featherweight.errors import ArtifactError, InputError, short
from featherweight.lowrank.factor import replay_factor
from featherweight.network.copies import bare, copied, fill, state_of
from featherweight.network.devices import device_of
from featherweight.structure import exported
from featherweight.structure.errors import StructureError
from featherweight.weights.codes import CODES, Code
from featherweight.weights.parametrized import Viewed, attach, coded, layouts_kept, owner
from featherweight.weights.views import MOST_AXES, View

Edit = dict[str, Any]  # plain JSON data; "edit" names the kind
GRAPH = "graph"  # the kind of edit that is a network of its own, in checkpoints; artifacts hold it elsewhere
LARGEST_TABLE = 2**16  # levels or shared values that a file may ask for
USUAL_TABLE = 2**12  # so many also of a parameter with fewer entries
MOST_CUTS = 1000  # changes of structure that a file may hold


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
    given = list(edits)
    parameters = sum(1 for _ in model.parameters())
    most = {"structure": MOST_CUTS, "factor": parameters, "code": MOST_CUTS + 2 * parameters}
    counted: dict[str, int] = dict.fromkeys(most, 0)
    for number, edit in enumerate(given):
        kind = edit.get("edit") if isinstance(edit, Mapping) else None
        if not isinstance(kind, str) or kind not in most:
            raise ArtifactError(f"edit {number} is of kind {short(kind)}, which this version does not know")
        counted[kind] += 1
        if counted[kind] > most[kind]:
            raise ArtifactError(f"edit {number} is one more than the {most[kind]} of kind {kind!r} that this network can have")
        _REPLAYS[kind](model, edit, f"edit {number}")
    return model


@dataclass
class Snapshot:
    """A compressed network at rest: its edits, and its state (names -> tensors, on the CPU)."""

    edits: list[Edit]
    state: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, structural: list[Edit]) -> Snapshot:
        """`structural`: the edits, before any code, that made `model` from the user's network. Raises UnsupportedNetwork for a
        state that no file can hold.
        """
        network = bare(model)
        return cls(structural + code_edits(network), state_of(network))

    def structural(self) -> list[Edit]:
        return [edit for edit in self.edits if edit["edit"] != "code"]

    def build(self, original: nn.Module) -> nn.Module:
        """A new network: a copy of the user's original one with the edits replayed and the state loaded; or the exported module
        that it has become, on the device of the original."""
        if self.edits and self.edits[-1].get("edit") == GRAPH:
            return self._exported(original)
        model = replay(copied(original), self.edits)
        try:
            fill(model, self.state)
        except RuntimeError as error:
            raise ArtifactError(f"what was saved is not of this {type(original).__name__}: {error}") from None
        return model

    def _exported(self, original: nn.Module) -> nn.Module:
        if len(self.edits) > 1:
            raise ArtifactError("what was saved is a graph and edits of a class at once")
        try:
            made = exported.from_dict(self.edits[0].get("network"), self.state)
        except StructureError as error:
            raise ArtifactError(f"what was saved is not of a network that was cut on its graph: {error}") from None
        return copied(made).to(device_of(original))  # trained on, it must not change what was saved


def structure_edit(edit: structure.Edit) -> Edit:
    """A change of structure as plain data."""
    return {"edit": "structure", "change": edit.to_dict()}


def graph_edit(module: nn.Module) -> Edit:
    """An exported module as plain data. It stands alone: what was cut before is cut in it. Raises NotStorable."""
    return {"edit": GRAPH, "network": exported.to_dict(module)}


def entries_left(edits: Iterable[Edit]) -> dict[tuple[str, int], Tensor]:
    """(tensor, dimension) -> the numbers in the original network of the entries that changes of structure have left, where some
    went. Of ordinary dimensions: the columns of grouped convolutions are not told."""
    left: dict[tuple[str, int], Tensor] = {}
    for edit in edits:
        if edit["edit"] == "structure":
            for cut in structure.Edit.from_dict(edit["change"]).cuts:
                if cut.blocks == 1:
                    place, kept = (cut.tensor, cut.dim), torch.tensor(cut.keep)
                    left[place] = left[place][kept] if place in left else kept
    return left


def _replay_structure(model: nn.Module, edit: Mapping[str, Any], where: str) -> None:
    try:
        with layouts_kept(model):
            structure.replay(model, [edit["change"]], values=False)
    except KeyError:
        raise ArtifactError(f"{where} is of kind 'structure' and says no change") from None
    except (StructureError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{where} does not fit {type(model).__name__}: {error}") from None


class _Layout(BaseModel):
    """`codes.Code.layout`, as a file gives it."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["sparse", "rows", "factors", "scaled", "shared", "sparse_shared", "sparse_scaled"]
    rows: StrictInt
    cols: StrictInt
    sizes: dict[str, StrictInt]


class _CodeEdit(BaseModel):
    """A code edit, as a file gives it."""

    model_config = ConfigDict(extra="forbid")

    edit: Literal["code"]
    parameter: str
    pattern: str
    sizes: list[tuple[str, StrictInt]]
    code: _Layout


def _attach_blank(model: nn.Module, given: Mapping[str, Any], where: str) -> None:
    """Put an empty code on a parameter, after checking every size against the parameter's own shape."""
    layers = (given, given.get("sizes"), given.get("code"))
    if any(isinstance(layer, Mapping | list) and len(layer) > MOST_AXES for layer in layers):
        raise ArtifactError(f"{where} is not a code edit: no part of one holds more than {MOST_AXES} entries")
    try:
        edit = _CodeEdit.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ArtifactError(f"{where}: {short('.'.join(map(str, first['loc'])))}: {first['msg'][:200]}") from None
    name, layout = edit.parameter, edit.code
    known = dict(model.named_parameters())
    if name not in known or isinstance(known[name], UninitializedParameter):
        raise ArtifactError(f"{where} is for parameter {short(name)}, which {type(model).__name__} does not have")
    stack = owner(model, name)[0]
    if isinstance(stack, parametrize.ParametrizationList) and any(isinstance(part, Viewed) for part in stack):
        raise ArtifactError(f"{where} is for {short(name)}, which is the free part of a code and takes no other")
    if layout.kind == "factors" and sum(p is known[name] for _, p in model.named_parameters(remove_duplicate=False)) > 1:
        raise ArtifactError(f"{where} would untie {short(name)}: factors of one owner leave the whole weight to the other")
    shape = tuple(known[name].shape)
    try:
        view = View(edit.pattern, tuple(edit.sizes))
        expected = view.matrix_shape(shape)
    except InputError as error:
        raise ArtifactError(f"{where}: parameter {short(name)}: {error}") from None
    if (layout.rows, layout.cols) != expected:
        raise ArtifactError(
            f"{where}: parameter {short(name)} has shape {shape}, a {expected} matrix; the artifact holds another"
        )
    try:
        code = _blank(layout.kind, layout.rows, layout.cols, layout.sizes)
        attach(model, name, view, code, blank=True)
    except (
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:  # KeyError: what holds the parameter keeps it elsewhere than in a module
        raise ArtifactError(f"{where}: {error}") from None


def _blank(kind: str, rows: int, cols: int, sizes: dict[str, int]) -> Code:
    """A code whose discrete part is still to be loaded. Raises ValueError at a size that such a code cannot have."""
    entries = rows * cols
    table = min(LARGEST_TABLE, max(USUAL_TABLE, entries))
    limits = {
        "sparse": {"count": (0, entries)},
        "rows": {"count": (0, rows)},
        "factors": {"rank": (0, min(rows, cols))},
        "scaled": {"count": (1, table)},
        "shared": {"count": (1, max(entries, 1))},
        "sparse_shared": {"count": (0, entries), "shared": (1, table)},
        "sparse_scaled": {"count": (0, entries), "shared": (1, table)},
    }[kind]
    if sizes.keys() != limits.keys():
        raise ValueError(f"a {kind} code has the sizes {sorted(limits)}, not {short(sorted(sizes))}")
    for name, (least, most) in limits.items():
        if not least <= sizes[name] <= most:
            raise ValueError(
                f"{name} = {short(sizes[name])} is not a size that a {kind} code of {rows} x {cols} can have ({least} to {most})"
            )
    return CODES[kind](rows, cols, **sizes)


_REPLAYS: dict[str, Callable[[nn.Module, Mapping[str, Any], str], None]] = {
    "structure": _replay_structure,
    "factor": replay_factor,
    "code": _attach_blank,
}


def check_state(model: nn.Module) -> None:
    """Every index of every code lies in range. Raises ArtifactError; run it after loading a state from a file."""
    for name, viewed in coded(model).items():
        problem = viewed.code.problem()
        if problem:
            raise ArtifactError(f"the code of {name!r} is damaged: {problem}")
