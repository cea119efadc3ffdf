"""Artifacts of an installed library's network: remembered as data, built where the library is there, refused where it differs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import featherweight as fw
from featherweight.errors import ArtifactError, InputError
from featherweight.files import libraries
from featherweight.files.libraries import LibraryMissing, Source

X = (torch.randn(1, 6, generator=torch.Generator().manual_seed(0)),)


def network(width: int = 16, num_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, num_classes))


def stand_in(width: int = 16) -> Any:
    """What is asked of timm."""

    def create_model(name: str, pretrained: bool, **given: int) -> nn.Module:
        assert not pretrained
        return network(width, given.get("num_classes", 4))  # what else is passed on would be taken by the real one

    return types.SimpleNamespace(list_models=lambda: ["mlp"], list_pretrained=lambda _: ["mlp.ours"], create_model=create_model)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "library", lambda name, wanted_for: stand_in())
    monkeypatch.setattr(libraries, "version_of", lambda name: "1.0")


SOURCE = Source(library="timm", version="1.0", name="mlp", arguments={"num_classes": 4})


def pruned(folder: Path) -> nn.Module:
    torch.manual_seed(0)
    small = fw.prune(network(num_classes=4), X, macs=0.5)
    small.save(folder, source=SOURCE)
    return small.model


def test_an_artifact_of_a_library_needs_no_model(tmp_path: Path, installed: None) -> None:
    model = pruned(tmp_path / "art")
    again = fw.load(tmp_path / "art")
    assert torch.equal(again(*X), model(*X)) and again[0].out_features == 8
    assert json.loads((tmp_path / "art/compression.json").read_text())["source"]["arguments"] == {"num_classes": 4}


def test_without_a_source_the_description_is_as_it_was(tmp_path: Path) -> None:
    fw.prune(network(), X, macs=0.5).save(tmp_path / "art")
    assert "source" not in json.loads((tmp_path / "art/compression.json").read_text())
    with pytest.raises(InputError, match="holds weights and edits, not code"):
        fw.load(tmp_path / "art")


def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned(tmp_path / "art")
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LibraryMissing, match="timm:mlp needs timm, which is not installed here: pip install timm"):
        fw.load(tmp_path / "art")
    assert torch.isfinite(fw.load(tmp_path / "art", network(num_classes=4))(*X)).all(), "the class itself will do"


def test_another_version_is_named_where_its_network_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: None
) -> None:
    pruned(tmp_path / "art")
    monkeypatch.setattr(libraries, "version_of", lambda name: "2.0")
    assert fw.load(tmp_path / "art")[0].out_features == 8, "another version of the same structure will do"
    monkeypatch.setattr(libraries, "library", lambda name, wanted_for: stand_in(width=12))
    with pytest.raises(
        ArtifactError,
        match=re.escape("made with timm 1.0, and the mlp of 2.0, which is installed, differs: pip install timm==1.0"),
    ):
        fw.load(tmp_path / "art")


HOSTILE: dict[str, dict[str, Any]] = {
    "a path for a name": {"name": "../evil"},
    "the hub for a name": {"name": "hf-hub:me/evil"},
    "a name that is not listed": {"name": "os"},
    "a file to read": {"arguments": {"checkpoint_path": 1}},
    "a huge number": {"arguments": {"num_classes": 10**9}},
    "another library": {"library": "os"},
    "one key more": {"code": "import os"},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_source_from_a_stranger_is_held_to_names_and_few_numbers(
    tmp_path: Path, installed: None, change: dict[str, Any]
) -> None:
    pruned(tmp_path / "art")
    path = tmp_path / "art/compression.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"source": told["source"] | change}))
    with pytest.raises(fw.FeatherweightError):
        fw.load(tmp_path / "art")


def test_a_configuration_is_bounded_and_holds_no_code() -> None:
    held = {
        "auto_map": {"AutoModel": "evil.Net"},
        "hidden_size": 8,
        "_attn_implementation": "hub/kernel",
        "_name_or_path": "/home/me",
    }
    assert libraries.checked(held) == {"hidden_size": 8}
    for wrong in ({"num_hidden_layers": 10**6}, {"text_config": {"n_layer": 9999}}, {"sizes": [2**40]}):
        with pytest.raises(InputError, match="is not built"):
            libraries.checked(wrong)


class Shifted(nn.Module):
    """Called by name, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x * mask)))


def block(folder: Path) -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    return str(found)


def test_the_lines_of_an_artifact_s_readme_open_it_in_a_fresh_process(tmp_path: Path) -> None:
    from featherweight.zoo import lenet_300_100

    small = fw.prune(lenet_300_100(), (torch.randn(1, 1, 28, 28),), macs=0.5)
    small.save(tmp_path / "art", model="lenet_300_100")
    lines = block(tmp_path / "art")
    assert len([line for line in lines.splitlines() if line]) <= 6
    where = os.environ | {"PYTHONPATH": str(Path(fw.__file__).parent.parent)}
    shown = f"{lines}\nprint(tuple(output.shape))"
    done = subprocess.run([sys.executable, "-c", shown], cwd=tmp_path / "art", env=where, capture_output=True, text=True)
    assert done.stdout == "(1, 10)\n", done.stderr


def test_the_lines_run_for_a_library_s_network_and_the_user_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: None
) -> None:
    pruned(tmp_path / "art")
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))\n"
    )
    fw.prune(network(), X, macs=0.5).save(tmp_path / "own", model="mine.py:net")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, classes in (("art", 4), ("own", 3)):
        names: dict[str, Any] = {}
        monkeypatch.chdir(tmp_path / name)
        exec(block(tmp_path / name), names)
        assert names["output"].shape == (1, classes)


def test_what_cannot_be_run_as_it_stands_says_what_it_needs(tmp_path: Path) -> None:
    fw.prune(Shifted(), {"x": X[0], "mask": torch.ones(1, 6)}, macs=0.6).save(tmp_path / "art")
    assert "model: a Shifted, made as before" in block(tmp_path / "art") and "mask=torch.randn(1, 6)" in block(tmp_path / "art")


def test_networks_of_timm_come_back_alone(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="an optional package: timm:NAME")
    from featherweight.zoo import sources

    made = sources.network("timm:test_resnet,num_classes=5")
    small = fw.prune(made, sources.example("timm:test_resnet", made), macs=0.6)
    small.save(tmp_path / "art", source=sources.source_of("timm:test_resnet,num_classes=5", made))
    again, x = fw.load(tmp_path / "art"), torch.randn(2, 3, 160, 160)
    assert torch.equal(again(x), small.model.eval()(x)) and again(x).shape == (2, 5)
    assert timm.__version__ in (tmp_path / "art/README.md").read_text()
