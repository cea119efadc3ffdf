"""One law for attention networks as they are published: a vision transformer, an encoder, a decoder of grouped queries with a
gated MLP and a mixture of experts. At four budgets, with sizes of its own in each layer where there are two: cut, saved, read by
a fresh process, exported for any length, run at three; the vision transformer, whose pictures have one size, at three batches.
Nothing is refused, and the outputs are those of the cut network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attentions import TOKENS, Encoder, Fused, Gated, Mixture, OneNumber, Rotary
from torch import Tensor, nn

import featherweight as fw
from featherweight import measurement
from featherweight.run import cut_units

BUDGETS: dict[float, dict[str, Any]] = {
    0.85: {"allocate": "ranked"},
    0.79: {"allocate": "weighed"},
    0.67: {"allocate": "weighed"},
    0.5: {"allocate": "ranked"},
}
ON_GRAPH = "decoder 0.67"
EXPORTED = ["encoder 0.5", ON_GRAPH]
LENGTHS = (5, 6, 11)


class Vision(Encoder):
    """Patches in place of tokens, a class token, a table of positions."""

    def __init__(self) -> None:
        super().__init__(Fused, layers=1)
        self.patches, self.first = nn.Conv2d(3, 24, 4, 4), nn.Parameter(torch.zeros(1, 1, 24))
        self.places = nn.Parameter(torch.randn(1, 17, 24))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layers(x)[:, 0])


class Decoder(Encoder):
    """Llama's kind, and Mixtral's."""

    def __init__(self) -> None:
        super().__init__(Rotary)
        self.mlps = nn.ModuleList([Gated(24, 20), Mixture(24, 12, experts=2)])


NETWORKS: dict[str, Callable[[], Encoder]] = {
    "vision": Vision,
    "encoder": lambda: Encoder(OneNumber, layers=1, positions=40),
    "decoder": Decoder,
}


def given(name: str) -> list[Tensor]:
    """The example's size first; of several lengths where the network takes those."""
    torch.manual_seed(1)
    texts = [TOKENS, *(torch.randint(50, (2, length)) for length in LENGTHS)]
    return [torch.randn(batch, 3, 16, 16) for batch in (1, 2)] if name == "vision" else texts


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is found of a network does not hang on the budget."""
    found: list[Any] = []

    def asked(*args: Any, **options: Any) -> Any:
        if not found:
            found.append(function(*args, **options))
        return found[0]

    return asked


class Several(nn.ModuleList):
    """Networks in one file, whose writing is most of the time of this."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(network(tokens) for network in self)


READ = """
import sys, torch, featherweight as fw
import test_attention_budgets as law
for folder in sys.argv[1:]:
    key = folder.split("/")[-1]
    name = key.split()[0]
    network = fw.load(folder, None if key == law.ON_GRAPH else law.NETWORKS[name]()).eval()
    torch.save([network(x).detach() for x in law.given(name)], folder + "/outputs.pt")
"""


@pytest.mark.long
@torch.no_grad()
def test_budgets_on_attention_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the file")
    monkeypatch.setattr(measurement, "count_macs", lambda network, example: (1, ()))  # an export each; what is spent is counted
    trace, free_sizes = cut_units.trace, cut_units.free_sizes
    cut: dict[str, nn.Module] = {}
    for name, build in NETWORKS.items():
        dense = build().eval()
        for part in (dense.attentions[-1], dense.mlps[-1]):
            for parameter in part.parameters():
                parameter *= torch.linspace(0.2, 2.0, len(parameter)).reshape(-1, *[1] * (parameter.dim() - 1))
        monkeypatch.setattr(cut_units, "trace", once(trace))
        monkeypatch.setattr(cut_units, "free_sizes", once(free_sizes))
        uneven = False
        for share, how in BUDGETS.items():
            where: Any = {"where": "graph"} if f"{name} {share}" == ON_GRAPH else {}
            done = fw.prune(dense, (given(name)[0],), macs=share, multiple=1, **how, **where)
            spent = done.rows[1].spent
            assert spent is not None and share - 0.1 < spent.after / spent.before <= share, (name, share, spent)
            held = done.model.state_dict()
            uneven |= name == "decoder" and held["attentions.0.q.weight"].shape != held["attentions.1.q.weight"].shape
            done.save(tmp_path / f"{name} {share}")
            cut[f"{name} {share}"] = done.model.eval()
        assert uneven == (name == "decoder")

    here = Path(__file__).parent
    places = [str(here), str(here.parent), *sys.path]
    folders = [str(tmp_path / key) for key in cut]
    subprocess.run([sys.executable, "-c", READ, *folders], env=os.environ | {"PYTHONPATH": os.pathsep.join(places)}, check=True)
    for key, network in cut.items():
        for x, read in zip(given(key.split()[0]), torch.load(tmp_path / key / "outputs.pt"), strict=True):
            torch.testing.assert_close(read, network(x), rtol=1e-5, atol=1e-6, msg=key)

    whole = Several([cut[key] for key in EXPORTED])
    assert fw.export(whole, (TOKENS,), tmp_path / "all.onnx", any_length=True).relative < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "all.onnx", providers=["CPUExecutionProvider"])
    for tokens in given("encoder")[1:]:
        found = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        for key, one, wanted in zip(EXPORTED, found, whole(tokens), strict=True):
            np.testing.assert_allclose(one, wanted.numpy(), rtol=1e-3, atol=1e-4, err_msg=key)

    seeing = cut["vision 0.5"]
    assert fw.export(seeing, (given("vision")[0],), tmp_path / "vision.onnx").relative < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "vision.onnx", providers=["CPUExecutionProvider"])
    for images in (*given("vision"), torch.randn(3, 3, 16, 16)):
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        np.testing.assert_allclose(found, seeing(images).numpy(), rtol=1e-3, atol=1e-4)
