"""A network of one length alone is refused; what is exported for any runs at three lengths: `run/test_attention_budgets.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight.ship.runtimes import ExportError


def test_a_network_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="takes no other length"):
        fw.export(nn.Sequential(nn.Linear(12, 4)), (torch.randn(1, 12),), tmp_path / "model.onnx", any_length=True)
