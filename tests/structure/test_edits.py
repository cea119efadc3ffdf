"""An edit can only make a network smaller, and say only what surgery can have written; what surgery writes can be replayed."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
import torch
from probes import build
from torch import Tensor, nn

from featherweight.errors import ArtifactError
from featherweight.files import edits
from featherweight.files.edits import replay as replay_file
from featherweight.structure import Cut, prune, replay, trace
from featherweight.structure.errors import EditMismatch
from featherweight.structure.numbers import Numbers


class Numbered(nn.Module):
    """The ways in which code names a size: a stretch, an index, heads and their size, a flattened size, a shape in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.stride = 4, (2, 2)
        self.parts, self.size, self.heads = [12, 8, 4], 6, 4
        self.mixed = nn.Linear(10, 24)
        self.out, self.tall = nn.Linear(12, 24), nn.Linear(8, 20)
        self.fold = nn.Unflatten(1, (4, 5))
        self.conv, self.norm = nn.Conv1d(4, 8, 3, padding=1, stride=2), nn.LayerNorm(8, elementwise_affine=False)
        self.flat = 8 * 3
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.relu(self.mixed(x)).split(self.parts, 1)
        heads = self.out(a).view(-1, self.heads, self.size).softmax(-1).sum((1, 2))
        folded = torch.relu(self.conv(self.fold(torch.relu(self.tall(b)))))
        return self.head(folded.reshape(-1, self.flat)) + c.sum(1, keepdim=True) + heads[:, None]


def numbered() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Numbered().eval(), (torch.randn(1, 10),)


def test_what_surgery_writes_replays_and_only_gets_smaller() -> None:
    model, example = numbered()
    fresh, written, seen = copy.deepcopy(model), [], set()
    graph = trace(model, example)
    while able := [name for name in graph.sites if name not in seen and graph.site(name).size > 1]:
        name = able[0]
        edit = prune(model, graph, name, list(range(0, graph.site(name).size, 2)), any_batch=False).edit
        seen.add(name)
        if edit is not None:
            written.append(json.loads(json.dumps(edit.to_dict())))
            seen |= {attribute.name for attribute in edit.attributes}
            graph = trace(model, example)
    assert {"parts", "unflattened_size", "flat", "in_features", "out_channels"} <= seen
    replay(fresh, written)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(example[0]), model(example[0]))


LENET = {"kind": "cut", "sites": {}, "keeps": [[0, 1]], "cuts": [["conv1.weight", 0, 20, 0]], "attributes": [], "identities": []}


@pytest.mark.parametrize(
    ("attribute", "why"),
    [
        (["", "steps", 4, 10**9], "do not explain"),
        (["", "steps", 4, 5], "do not explain"),
        (["", "stride", [2, 2], [2, 9]], "do not explain"),
        (["", "stride", [2, 2], [2]], "do not explain"),
        (["", "steps", 4, -1], "do not explain"),
        (["conv", "stride", [2], [1]], "do not explain"),
        (["conv", "padding", [1], [0]], "do not explain"),
        (["conv", "dilation", [1], [10**9]], "do not explain"),
        (["mixed", "out_features", 24, 3], "do not explain"),
        (["mixed", "in_features", 10, 5], "do not explain"),
        (["fold", "dim", 1, 0], "do not explain"),
        (["norm", "normalized_shape", [8], [1, 1, 1]], "do not explain"),
        (["mixed", "nothing", 1, 0], "no whole number"),
        (["nowhere", "steps", 4, 2], "no module"),
    ],
    ids=str,
)
def test_a_number_that_no_cut_explains_is_refused(attribute: list[Any], why: str) -> None:
    model, _ = numbered()
    change = LENET | {"keeps": [list(range(12))], "cuts": [["mixed.weight", 0, 24, 0]], "attributes": [attribute]}
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(EditMismatch, match=why):
        replay(model, [change])
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before, "nothing is changed before that"


def test_a_cut_explains_axes_stretches_and_multiples() -> None:
    keep = (0, 1, 4, 5, 8, 9)  # of 12: two of each four
    numbers = Numbers({}, [Cut("w", 0, 12, keep)])
    fine = [(12, 6), (24, 12), (4, 2), (2, 2), (7, 4), (3, 2), (12, 6)]
    assert [pair for pair in fine if pair[0] != pair[1] and not numbers.explains(*pair)] == []
    wrong = [(12, 5), (24, 13), (4, 0), (4, 4), (4, 5), (-1, -2), (30, 15), (12, 13)]
    assert [pair for pair in wrong if pair[0] != pair[1] and numbers.explains(*pair)] == []
    assert numbers.explains((12, 7, 5), (6, 7, 5)) and not numbers.explains((12, 7), (6, 8))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cuts": [["conv1.weight", 0, 20, 0], ["conv1.weight", 0, 20, 0]]}, "twice"),
        ({"keeps": [list(range(20))]}, "as large as it is"),
        ({"cuts": [["conv1.weight", 7, 20, 0]]}, "made for 20 entries along dimension 7"),
        ({"cuts": [["conv1.weight", 0, 10**100, 0]]}, "a number of"),
        ({"identities": [""]}, "the network itself"),
        ({"identities": ["fc1", "fc1"]}, "twice"),
        ({"identities": ["nowhere"]}, "no module"),
        ({"cuts": [["nowhere" * 10**5, 0, 20, 0]]}, "no tensor"),
        ({"x" * 10**6: 1}, "unknown key"),
        ({"attributes": [["conv1", "groups", 1, 0]] * 10**5}, "100000 attributes"),
    ],
    ids=["twice", "nothing goes", "no dimension", "large", "itself", "one twice", "none", "long", "key", "many"],
)
def test_an_edit_of_more_than_the_network_has_is_refused_in_short(change: dict[str, Any], why: str) -> None:
    with pytest.raises(EditMismatch, match=why) as caught:
        replay(build("lenet")[0], [LENET | change])
    assert len(str(caught.value)) < 1000


def test_only_what_holds_parameters_becomes_the_identity() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2), nn.Linear(2, 2))
    with pytest.raises(EditMismatch, match="holds no branch"):
        replay(model, [LENET | {"keeps": [], "cuts": [], "identities": ["1"]}])


def test_one_tensor_is_not_cut_under_two_names() -> None:
    model, _ = build("tied")
    cuts = [["embed.weight", 1, 12, 0], ["out.weight", 0, 11, 0]]
    with pytest.raises(EditMismatch, match="under two of its names"):
        replay(model, [LENET | {"cuts": cuts}])


@pytest.mark.parametrize("count", [20_000, 200_000])
def test_the_work_is_bounded_by_the_network(count: int) -> None:
    keep = list(range(count))
    hostile = [
        LENET | {"keeps": [keep], "cuts": [["fc1.weight", 1, 1, 0, count]]},
        LENET | {"keeps": [keep], "cuts": [["fc1.weight", 1, count, 0]] * 20_000},
        LENET | {"keeps": [[0]] * count},
    ]
    for change in hostile:
        model = build("lenet")[0]
        start = time.process_time()
        with pytest.raises(ArtifactError) as caught:
            edits.replay(model, [{"edit": "structure", "change": change}] * 3)
        assert time.process_time() - start < 1.0 and len(str(caught.value)) < 1000


def test_a_class_that_overrides_setattr_is_not_asked() -> None:
    class Careful(nn.Linear):
        def __setattr__(self, name: str, value: Any) -> None:
            if name in ("weight", "out_features") and name in dir(self):
                raise AssertionError("replaying must not run the user's code")
            super().__setattr__(name, value)

    model = nn.Sequential(Careful(3, 4))
    cuts = [["0.weight", 0, 4, 0], ["0.bias", 0, 4, 0]]
    replay(model, [LENET | {"cuts": cuts, "attributes": [["0", "out_features", 4, 2]]}])
    assert model[0].weight.shape == (2, 3) and model[0].out_features == 2 and model[0].weight is model[0]._parameters["weight"]


def test_edits_of_a_file_copy_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is loaded after them: a thousand cuts of one large matrix would otherwise take a minute."""
    monkeypatch.setattr("featherweight.structure.edit.pick", lambda *given: pytest.fail("weights were copied"))
    change = {"kind": "cut", "sites": {}, "keeps": [[0, 2]], "cuts": [["weight", 1, 3, 0]], "identities": []}
    edit = {"edit": "structure", "change": change | {"attributes": [["", "in_features", 3, 2]]}}
    assert replay_file(nn.Linear(3, 4), [edit]).weight.shape == (4, 2)
