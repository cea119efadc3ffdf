"""A graph may come out of several kinds of files. What is hostile in it is refused by name, before it costs anything, in each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import ArtifactError
from featherweight.files import artifact, checkpoint, packed
from featherweight.files.edits import GRAPH, Snapshot, graph_edit
from featherweight.structure import exported, prune, trace
from featherweight.structure.errors import EditMismatch

X, OUT = ["placeholder", "x", "x", [], {}], ["output", "output", "output", [[{"node": "y"}]], {}]
HELD = [1] * 2000
NET = nn.Linear(1, 1)


def relu(*more: Any, name: str = "aten.relu.default", **by_name: Any) -> list[Any]:
    return ["call_function", "y", name, [{"node": "x"}, *more], by_name]


def shared(count: int) -> dict[str, Tensor]:
    memory = torch.zeros(1000)
    return {f"w{number}": memory[:] for number in range(count)}


def claims(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: [True, list(tensor.shape), "float32", True] for name, tensor in state.items()}


def graph(*nodes: Any, state: dict[str, Tensor] | None = None, **changes: Any) -> tuple[Any, dict[str, Tensor]]:
    state = state or {}
    return {"format": 1, "tensors": claims(state), "nodes": [X, *nodes, OUT], **changes}, state


JSON: dict[str, tuple[tuple[Any, dict[str, Tensor]], str]] = {  # what an artifact can hold, too
    "an operation of no table": (graph(relu(name="aten.save.default")), "not an operation"),
    "more values than a file has": (graph(relu(HELD)), "values"),
    "a text without end": (graph(relu("a" * 20_000)), "20000 characters"),
    "lists in lists in lists": (graph(relu([[[[1]]]])), "of single values"),
    "an output that has one name twice": (
        graph(relu(), nodes=[X, relu(), ["output", "output", "output", [{"dict": [["a", None], ["a", None]]}], {}]]),
        "each once",
    ),
}
PICKLED: dict[str, tuple[tuple[Any, dict[str, Tensor]], str]] = JSON | {  # and what only a checkpoint can
    "a tensor in place of the graph": ((torch.zeros(3), {}), "a Tensor, which JSON has not"),
    "a tensor in place of a node": (graph(torch.zeros(5)), "a Tensor, which JSON has not"),
    "a tensor in place of a claim": (graph(relu(), tensors={"w": torch.zeros(4)}), "a Tensor, which JSON has not"),
    "a key that is no text": (graph(relu(), tensors={3: []}), "a key is a int"),
    "a list held in very many places": (graph(relu(), [HELD] * 2000), "values"),
    "one memory under very many names": (graph(relu(), state=shared(9)), "more than 8 times"),
}


def of_an_artifact(folder: Path, hostile: Any, state: dict[str, Tensor]) -> None:
    """Where an artifact of a graph has it."""
    described = artifact.Description.model_construct(edits=[], recipe={}, report=[], exported=hostile)
    artifact.load(written(folder, described, state))


def of_its_edits(folder: Path, hostile: Any, state: dict[str, Tensor]) -> None:
    """Where a snapshot has it."""
    described = artifact.Description.model_construct(edits=[{"edit": GRAPH, "network": hostile}], recipe={}, report=[])
    artifact.snapshot(written(folder, described, state)).build(NET)


def written(folder: Path, described: artifact.Description, state: dict[str, Tensor]) -> Path:
    artifact.save(folder, Snapshot([], {name: tensor.clone() for name, tensor in state.items()}), described)
    return folder


def of_a_checkpoint(folder: Path, hostile: Any, state: dict[str, Tensor]) -> None:
    """As a run does that is taken up."""
    folder.mkdir()
    torch.save({"edits": [{"edit": GRAPH, "network": hostile}], "state": state}, folder / "network-0.pt")
    held = checkpoint.read(folder / "network-0.pt")
    assert held is not None
    Snapshot(**held).build(NET)


WAYS: dict[Callable[[Path, Any, dict[str, Tensor]], None], dict[str, Any]] = {
    of_an_artifact: JSON, of_its_edits: JSON, of_a_checkpoint: PICKLED,
}  # fmt: skip


@pytest.mark.parametrize(("way", "name"), [(way, name) for way, cases in WAYS.items() for name in cases])
def test_a_hostile_graph_is_refused_by_name_wherever_it_comes_from(
    way: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featherweight.structure.plain.MOST_VALUES", 1000)
    (hostile, state), said = PICKLED[name]
    with pytest.raises(ArtifactError, match=said) as caught:
        way(tmp_path / "art", hostile, state)
    assert len(str(caught.value)) < 1000


def test_a_packed_file_and_the_edits_of_a_class_have_no_place_for_a_graph(tmp_path: Path) -> None:
    foreign = Snapshot([{"edit": GRAPH, "network": graph(relu())[0]}], {})
    written(tmp_path / "art", artifact.Description(edits=foreign.edits, recipe={}, report=[]), {})
    for use in (lambda: artifact.load(tmp_path / "art", NET), lambda: packed.write(tmp_path / "a.fwz", foreign, NET)):
        with pytest.raises(ArtifactError, match="kind 'graph'"):
            use()


def test_a_tensor_in_place_of_a_list_of_an_edit_is_refused() -> None:
    for key in ("keeps", "cuts", "attributes", "identities", "sites"):
        change = {"kind": "cut", "sites": {}, "keeps": [], "cuts": [], "attributes": [], "identities": []}
        with pytest.raises(ArtifactError, match="a Tensor, which JSON has not"):
            Snapshot([{"edit": "structure", "change": change | {key: torch.zeros(3)}}], {}).build(NET)


def test_an_honest_graph_stays_what_was_saved_and_too_much_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    found = trace(network, (torch.ones(1, 3),))
    cut = prune(network, found, {site: range(2) for site in found.sites}, where="graph").model
    saved = Snapshot.of(cut, [graph_edit(cut)])
    built = saved.build(network)
    assert torch.equal(built(torch.ones(1, 3)), cut(torch.ones(1, 3)))
    with torch.no_grad():
        next(built.parameters()).add_(1)
    assert all(torch.equal(value, saved.state[name]) for name, value in cut.state_dict().items())
    monkeypatch.setattr("featherweight.structure.plain.MOST_VALUES", 10)
    with pytest.raises(exported.NotStorable, match="values"):
        exported.to_dict(cut)
    with pytest.raises(EditMismatch, match="values"):
        exported.from_dict(saved.edits[0]["network"], saved.state)
