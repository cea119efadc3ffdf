"""A network of one length alone is refused; exported for any, it runs at three: `tests/run/test_attention_budgets.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import featherweight as fw
from featherweight.ship.runtimes import ExportError


def test_a_network_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="takes no other length"):
        fw.export(nn.Sequential(nn.Linear(12, 4)), (torch.randn(1, 12),), tmp_path / "model.onnx", any_length=True)


class Named(nn.Module):
    """Outputs by name, one of which is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> dict[str, Tensor | None]:
        read = self.words(tokens)
        return {"logits": self.head(read), "loss": None, "read": read}


def test_outputs_are_named_as_the_network_names_them(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the file")
    written = fw.export(Named(), (torch.randint(9, (1, 6)),), tmp_path / "model.onnx", any_length=True)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert written.any_length and [one.name for one in session.get_outputs()] == ["logits", "read"]
    tokens = torch.randint(9, (3, 11))
    assert session.run(["read"], {session.get_inputs()[0].name: tokens.numpy()})[0].shape == (3, 11, 4)
