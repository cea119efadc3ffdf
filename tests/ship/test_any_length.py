"""Exported transformers, cut before, run at other lengths than the example's; a network of one length alone is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featherweight as fw
from featherweight.ship.runtimes import ExportError

onnxruntime = pytest.importorskip("onnxruntime", reason="runs the files")


class Layer(nn.Module):
    """Attention, of `heads` query heads over `shared` ones of key and value, and a gated or plain MLP."""

    def __init__(self, heads: int, shared: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.causal = heads, shared, causal
        self.norm, self.second = nn.LayerNorm(24), nn.LayerNorm(24)
        self.q, self.k, self.v = nn.Linear(24, 6 * heads), nn.Linear(24, 6 * shared), nn.Linear(24, 6 * shared)
        self.o, self.up, self.gate, self.down = nn.Linear(6 * heads, 24), nn.Linear(24, 32), nn.Linear(24, 32), nn.Linear(32, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (m(h).unflatten(-1, (-1, 6)).transpose(1, 2) for m in (self.q, self.k, self.v))
        k, v = (one.repeat_interleave(self.heads // self.shared, 1) for one in (k, v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))
        h = self.second(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Text(nn.Module):
    """An encoder's layer, and a decoder's with grouped queries."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 24), nn.Embedding(40, 24)
        self.layers = nn.Sequential(Layer(4, 4, causal=False), Layer(4, 2, causal=True))
        self.head = nn.Linear(24, 50)

    def forward(self, tokens: Tensor) -> dict[str, Tensor | None]:
        read = self.layers(self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device)))
        return {"logits": self.head(read), "loss": None, "read": read}


def test_a_cut_transformer_runs_at_three_lengths(tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = fw.prune(Text().eval(), (torch.randint(50, (1, 12)),), macs=0.7)
    written = done.export(tmp_path / "model.onnx", any_length=True)
    assert written.relative < 1e-4 and written.any_length
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, length in ((1, 5), (3, 12), (2, 29)):
        tokens = torch.randint(50, (batch, length))
        (found,) = session.run(["logits"], {session.get_inputs()[0].name: tokens.numpy()})
        np.testing.assert_allclose(found, done.model(tokens)["logits"].detach().numpy(), rtol=1e-3, atol=1e-4)
    assert [one.name for one in session.get_outputs()] == ["logits", "read"], "as the network names them"


def test_a_network_of_one_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="takes no other length"):
        fw.export(nn.Sequential(nn.Linear(12, 4)), (torch.randn(1, 12),), tmp_path / "model.onnx", any_length=True)
