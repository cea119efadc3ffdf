"""Bad input: named errors that say what was given, what is allowed and how to fix it."""

from __future__ import annotations

import pytest
import torch
from probes import build
from torch import Tensor, nn

from featherweight.errors import FeatherweightError
from featherweight.structure import Edit, drop, prune, replay, trace
from featherweight.structure.errors import (
    BadExample,
    BadSelection,
    DataDependentControlFlow,
    EditMismatch,
    NotExact,
    NotExportable,
    StaleGraph,
    UnknownSite,
)


def test_control_flow_on_data() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return h if h.sum() > 0 else -h

    with pytest.raises(DataDependentControlFlow, match=r"torch\.where"):
        trace(Branches(), (torch.randn(1, 4),))


def test_a_network_that_cannot_be_exported() -> None:
    class Numpy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2)

    with pytest.raises(NotExportable):
        trace(Numpy(), (torch.randn(1, 4),))


@pytest.mark.parametrize("example", [(torch.randn(1, 3, 28, 28),), (torch.randn(1, 1, 28),), (torch.randn(1, 1, 20, 20),)])
def test_an_example_of_the_wrong_shape(example: tuple[Tensor, ...]) -> None:
    model, _ = build("lenet")
    with pytest.raises(BadExample) as caught:
        trace(model, example)
    assert str(tuple(example[0].shape)) in str(caught.value)


@pytest.mark.parametrize("example", ["image", (), ({"x": 1},), (torch.randn(1, 1, 28, 28), torch.randn(1))])
def test_an_example_that_is_no_tuple_of_inputs(example: object) -> None:
    model, _ = build("lenet")
    with pytest.raises(BadExample):
        trace(model, example)  # type: ignore[arg-type]


def test_an_unknown_site_gets_the_nearest_names() -> None:
    model, example = build("lenet")
    graph = trace(model, example)
    with pytest.raises(UnknownSite, match="did you mean 'conv1'"):
        prune(model, graph, "con1", [0])
    with pytest.raises(UnknownSite, match=r"graph\.frozen says why|did you mean"):
        drop(model, graph, "block")
    with pytest.raises(UnknownSite):
        graph.macs({"convolution": 3})


@pytest.mark.parametrize(
    ("keep", "words"), [([], "nothing is kept"), ([0, 20], "out of range"), ([-1], "out of range"), ([1, 1], "twice")]
)
def test_selections_that_cannot_be(keep: list[int], words: str) -> None:
    model, example = build("lenet")
    shape = model.conv1.weight.shape
    with pytest.raises(BadSelection, match=words):
        prune(model, trace(model, example), "conv1", keep)
    assert model.conv1.weight.shape == shape


@pytest.mark.parametrize("number", [0, 21])
def test_sizes_that_cannot_be(number: int) -> None:
    model, example = build("lenet")
    with pytest.raises(BadSelection, match="1 to 20"):
        trace(model, example).macs({"conv1": number})


def test_a_graph_of_the_network_before_it_was_cut() -> None:
    model, example = build("lenet")
    graph = trace(model, example)
    prune(model, graph, "conv1", [0, 1])
    with pytest.raises(StaleGraph, match="call trace again"):
        prune(model, graph, "conv1", [0])


def edit_of(name: str = "lenet") -> Edit:
    model, example = build(name)
    edit = prune(model, trace(model, example), "conv1", [0, 1]).edit
    assert edit is not None
    return edit


def test_edits_for_another_class_name_the_first_difference() -> None:
    other, _ = build("residual")
    with pytest.raises(EditMismatch, match=r"'conv1\.weight'"):
        replay(other, [edit_of()])
    model, _ = build("lenet")
    model.conv1 = nn.Conv2d(1, 21, 5)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(EditMismatch, match="made for 20"):
        replay(model, [edit_of()])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "nothing is changed before everything is checked"


@pytest.mark.parametrize(
    "damage",
    [
        {"surprise": 1},
        {"kind": "run"},
        {"cuts": [["conv1.weight", 0, 20, 99]]},
        {"keeps": [[3, 1]]},
        {"keeps": [[0, 20]]},
        {"keeps": [[]]},
        {"keeps": "all"},
        {"cuts": [["conv1.weight", 0, 20, True]]},
        {"attributes": [["conv1", "forward", "x", "y"]]},
        {"identities": [3]},
        {"sites": []},
    ],
)
def test_damaged_edits_are_refused(damage: dict[str, object]) -> None:
    with pytest.raises(EditMismatch):
        Edit.from_dict(edit_of().to_dict() | damage)


@pytest.mark.parametrize(
    "attribute", [["conv1", "__class__", 1, 2], ["conv1", "training", 1, 0], ["conv1", "weight", 1, 2], ["conv1", "new", 1, 2]]
)
def test_edits_set_only_whole_numbers_that_are_there(attribute: list[object]) -> None:
    model, _ = build("lenet")
    with pytest.raises(EditMismatch):
        replay(model, [edit_of().to_dict() | {"attributes": [attribute]}])


def test_errors_have_one_base() -> None:
    assert issubclass(BadSelection, FeatherweightError) and issubclass(DataDependentControlFlow, NotExportable)


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "lambda", "class"])
def test_a_name_that_an_exported_module_cannot_have_is_refused_and_the_class_is_cut(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(4, 6))
            self.out = nn.Linear(6, 2)

        def forward(self, row: Tensor) -> Tensor:
            return self.out(torch.relu(getattr(self, name)(row)))

    network = Named()
    graph = trace(network, (torch.ones(1, 4),))
    with pytest.raises(NotExact, match=rf"cannot have a part named '{name}'.*Give the part another name.*where='class'"):
        prune(network, graph, name, [0, 1], where="graph")
    assert prune(network, graph, name, [0, 1]).where == "class" and network.out.in_features == 2
