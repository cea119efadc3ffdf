"""The exported module: any batch size, trains, goes to JSON and back without pickle or code."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
from probes import build
from torch import nn
from zeroing import half, inputs, output

from featherweight.structure import carry, prune, trace
from featherweight.structure.errors import EditMismatch
from featherweight.structure.exported import from_dict, to_dict

NAMES = [
    "strided slice",
    "constant order",
    "group shuffle depthwise",
    "transformer encoder",
    "grouped queries",
    "bidirectional gru",
]


def cut(name: str) -> Any:
    model, example = build(name)
    graph = trace(model, example)
    return model, example, prune(model, graph, half(graph), where="graph")


@cache
def stored() -> tuple[str, dict[str, torch.Tensor]]:
    """A stored module and its weights, made once, to be damaged."""
    module = cut("strided slice")[2].model
    return json.dumps(to_dict(module)), module.state_dict()


@pytest.mark.third
@pytest.mark.parametrize("name", NAMES)
def test_to_json_and_back(name: str) -> None:
    _, example, result = cut(name)
    data = json.loads(json.dumps(to_dict(result.model)))
    again = from_dict(data, result.model.state_dict())
    for batch in (1, 5):
        x = tuple(t.float() if t.is_floating_point() else t for t in inputs(example, batch))
        assert torch.equal(output(again, x), output(result.model, x)) and len(output(again, x)) == batch


def test_it_trains_under_the_names_of_the_users_network_and_the_optimizer_follows() -> None:
    model, example = build("strided slice")
    optimizer = torch.optim.Adam(model.parameters())
    graph = trace(model, example)
    result = prune(model, graph, half(graph), where="graph")
    carry(optimizer, result)
    assert set(dict(result.model.named_parameters())) == set(dict(model.named_parameters()))
    before = copy.deepcopy(result.model.state_dict())
    result.model(torch.randn(3, 3, 16, 16)).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in result.model.named_parameters())
    assert model.conv1.weight.shape[0] == 16, "the user's own network is untouched"


@pytest.mark.parametrize(
    "target",
    [
        "aten.from_file.default",
        "os.system",
        "aten.__class__.mro",
        "aten.relu",
        "eval",
        "aten.set_.source_Tensor",
        "prims.add.default",
        "__import__",
    ],
)
def test_operations_that_may_not_be_loaded(target: str) -> None:
    data = json.loads(stored()[0])
    node = next(n for n in data["nodes"] if n[0] == "call_function")
    node[2] = target
    with pytest.raises(EditMismatch):
        from_dict(data, stored()[1])


def damaged(where: str, value: Any) -> dict[str, Any]:
    data = json.loads(stored()[0])
    if where == "name":
        data["nodes"][0][1] = value
    elif where == "argument":
        next(n for n in data["nodes"] if n[0] == "call_function")[3][0] = value
    elif where == "tensor":
        data["tensors"][value] = [True, [1], "float32", True]
    elif where == "shape":
        next(iter(data["tensors"].values()))[1] = value
    else:
        data[where] = value
    return data


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("name", "x; import os"),
        ("argument", {"node": "nowhere"}),
        ("argument", {"code": "1"}),
        ("argument", {"dtype": "load"}),
        ("tensor", "__dict__.x y"),
        ("shape", [-1]),
        ("shape", "big"),
        ("format", 2),
        ("nodes", [["call_module", "a", "b", [], {}]]),
        ("surprise", 1),
        ("nodes", 3),
    ],
)
def test_damaged_files_are_refused(where: str, value: Any) -> None:
    with pytest.raises(EditMismatch):
        from_dict(damaged(where, value), stored()[1])


def test_a_network_of_a_fixed_batch_still_gives_its_module() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x))[:, ::2].reshape(2, 3))

    torch.manual_seed(0)
    model = Fixed().eval()
    graph = trace(model, (torch.randn(2, 4),))
    result = prune(model, graph, half(graph), where="graph")
    assert result.where == "graph" and result.model(torch.randn(2, 4)).shape == (2, 2)
