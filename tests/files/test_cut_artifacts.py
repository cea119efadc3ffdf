"""Networks that were cut come back in a fresh network: in the user's class, or as the exported module where it cannot say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import featherweight
from featherweight.errors import ArtifactError, InputError
from featherweight.structure import prune, sweep, trace
from featherweight.zoo.networks import lenet5, lenet_300_100


class Attention(nn.Module):
    """`nn.MultiheadAttention` reads its number of heads from an attribute that its checks tie to the width."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.attention(tokens, tokens, tokens, need_weights=False)[0])


def images() -> torch.Tensor:
    return torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_cut_twice_in_the_users_class(tmp_path: Path) -> None:
    network, example = lenet5(), (images()[:1],)
    first = prune(network, trace(network, example), {"conv1": range(7), "fc1": range(0, 500, 9)})
    with torch.no_grad():
        first.model.conv2.weight[5:] = 0
        first.model.conv2.bias[5:] = 0
    second = sweep(first.model, trace(first.model, example))
    assert [first.where, second.where] == ["class", "class"]
    featherweight.save_cut(tmp_path / "art", second.model, [first.edit, second.edit])
    loaded = featherweight.load(tmp_path / "art", lenet5())
    assert loaded.conv2.weight.shape == (5, 7, 5, 5)
    assert torch.equal(loaded(images()), second.model(images()))


def test_another_class_gets_the_first_difference(tmp_path: Path) -> None:
    network = lenet5()
    result = prune(network, trace(network, (images()[:1],)), "conv1", range(7))
    featherweight.save_cut(tmp_path / "art", result.model, [result.edit])
    with pytest.raises(ArtifactError, match=r"conv1\.weight"):
        featherweight.load(tmp_path / "art", lenet_300_100())
    with pytest.raises(InputError, match="instance of the class"):
        featherweight.load(tmp_path / "art")


def exported(folder: Path) -> nn.Module:
    """Heads of an `nn.MultiheadAttention`, cut as a graph, written to `folder`."""
    network = Attention().eval()
    graph = trace(network, (torch.randn(1, 5, 16),))
    site = next(iter(graph.sites))
    result = prune(network, graph, site, range(graph.sites[site].size // 2), where="graph")
    assert result.where == "graph"
    featherweight.save_cut(folder, result.model)
    return result.model


@pytest.mark.skipif(
    torch.__version__ < "2.11", reason="torch 2.10 exports this attention with a view that other batch sizes do not take"
)
def test_an_exported_module_comes_back_without_its_class(tmp_path: Path) -> None:
    cut = exported(tmp_path / "art")
    tokens = torch.randn(4, 5, 16)
    loaded = featherweight.load(tmp_path / "art")
    assert torch.equal(loaded(tokens), cut(tokens))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in Attention().parameters())


@pytest.mark.third
@pytest.mark.parametrize(
    "change",
    [
        lambda written: written["tensors"].popitem(),
        lambda written: next(iter(written["tensors"].values())).__setitem__(1, [2**30, 2**9]),
        lambda written: written["nodes"][0].__setitem__(0, "call_module"),
        lambda written: next(n for n in written["nodes"] if n[0] == "call_function").__setitem__(2, "os.system"),
        lambda written: written.update(tensors=[1]),
        lambda written: written.update(code="import os"),
    ],
    ids=["a tensor less", "a tensor beyond memory", "another node", "another function", "a list", "another key"],
)
def test_a_module_that_was_tampered_with_is_refused(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    exported(tmp_path / "art")
    path = tmp_path / "art" / "compression.json"
    data = json.loads(path.read_text())
    change(data["exported"])
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError):
        featherweight.load(tmp_path / "art")
