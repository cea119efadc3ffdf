"""Files that an earlier version wrote open, and compute what they computed then (`written/README.md`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featherweight.files import artifact
from featherweight.files.description import FORMAT
from featherweight.files.packed import container

WRITTEN = Path(__file__).parent / "written"
OUTPUTS = json.loads((WRITTEN / "outputs.json").read_text())


class Written(nn.Module):
    """The network of the files."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.last(hidden.mean((2, 3)))


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_of_an_earlier_version_opens_and_computes_the_same(name: str) -> None:
    given = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    network = artifact.load(WRITTEN / name, None if name == "exported" else Written()).eval()
    with torch.no_grad():
        assert torch.allclose(network(given), torch.tensor(OUTPUTS[name]), rtol=1e-4, atol=1e-6)


def test_every_kind_of_file_is_there() -> None:
    assert {file.name for file in WRITTEN.iterdir()} == {*OUTPUTS, "outputs.json", "README.md"}
    assert set(OUTPUTS) == {"cut", "coded", "coded.fwz", "factored", "exported"}
    kinds = {edit["edit"] for name in ("cut", "coded", "factored") for edit in artifact.describe(WRITTEN / name).edits}
    assert kinds == {"structure", "code", "factor"}


def test_a_file_of_each_version_that_is_written_now_is_there() -> None:
    """Where a format's number changes, a file of the new one is added, and those of the old ones stay."""
    packed = {file.read_bytes()[2] & ~container.HAS_BULK for file in WRITTEN.glob("*.fwz")}
    folders = {json.loads(file.read_text())["format"] for file in WRITTEN.glob("*/compression.json")}
    assert container.VERSION in packed and FORMAT in folders
    assert f"is at {container.VERSION}" in (Path(__file__).parents[2] / "docs" / "format.md").read_text()
