"""The callbacks put `constrain` around the loops of transformers and Lightning; and the part of both that needs neither."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import featherweight as fw
from featherweight.errors import InputError
from featherweight.weights import callbacks
from featherweight.weights.callbacks import _Around

DRIVER = fw.ADMM(0.1, None, None, 1.0)  # its pace is the loop's


def rows() -> TensorDataset:
    dice = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(32, 6, generator=dice), torch.arange(32) % 3)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    inputs, labels = rows().tensors
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(inputs), labels).backward()
    optimizer.step()


def test_a_loop_that_begins_and_ends_is_constrained_at_its_own_pace() -> None:
    network = net()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    around = _Around({"0.weight": fw.TopK(5)}, DRIVER)
    around.begin(network, optimizer, steps=40, epochs=4)
    for _ in range(40):
        step(network, optimizer)
    around.end()
    assert int(network[0].weight.count_nonzero()) == 5
    assert around.imposed is not None and around.imposed.driver == DRIVER.paced(40, 4)


def test_a_loop_that_failed_leaves_the_network_and_may_begin_anew() -> None:
    network = net()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    around = _Around({"0.weight": fw.TopK(5)}, DRIVER)
    around.begin(network, optimizer, 40, 4)
    step(network, optimizer)
    around.abandon()
    assert int(network[0].weight.count_nonzero()) == 48 and "0.weight" in dict(network.named_parameters())
    around.begin(network, optimizer, 40, 4)
    step(network, optimizer)
    around.end()
    assert int(network[0].weight.count_nonzero()) == 5
    with pytest.raises(InputError, match="no optimizer"):
        _Around({}, None).begin(net(), None, 1, 1)


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(callbacks.importlib, "import_module", absent)
    with pytest.raises(InputError, match="pip install transformers"):
        callbacks.trainer_callback({})
    with pytest.raises(InputError, match="pip install lightning"):
        callbacks.lightning_callback({})


class Classifier(nn.Module):
    """As transformers' Trainer wants it: the loss comes out of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Named(Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, label = rows()[index]
        return {"x": x, "labels": label}


def test_the_trainer_of_transformers_is_constrained(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="an optional package: the callback of its Trainer")
    pytest.importorskip("accelerate", reason="what its Trainer needs")
    network = Classifier()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=4, per_device_train_batch_size=8, report_to=[], disable_tqdm=True, use_cpu=True
    )
    one_line = fw.trainer_callback({"net.0.weight": fw.TopK(5)}, DRIVER)
    transformers.Trainer(network, arguments, train_dataset=Named(), callbacks=[one_line]).train()
    assert int(network.net[0].weight.count_nonzero()) == 5
    assert one_line.around.imposed.step == 16 and not one_line.around.is_open


def test_the_trainer_of_lightning_is_constrained(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="an optional package: the callback of its Trainer")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    module, one_line = Module(), fw.lightning_callback({"net.0.weight": fw.TopK(5)}, DRIVER)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", callbacks=[one_line], default_root_dir=tmp_path, **quiet)
        trainer.fit(module, DataLoader(rows(), 8))
    assert int(module.net[0].weight.count_nonzero()) == 5
    assert one_line.around.imposed.step == 16 and not one_line.around.is_open
