"""The papers' settings for ImageNet: each file is a recipe with a head that says what is published, and runs end to end as it is,
on few pictures, a small network of the same names, and epochs cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import featherweight as fw
from featherweight.cli.commands import app
from featherweight.network.devices import CPU
from featherweight.recipe import reading
from featherweight.recipe.schema import Recipe
from featherweight.recipes import FILES
from featherweight.zoo import arrays, own_data

METHODS = {  # network -> what was published on it
    "alexnet": {"progressive_admm"},
    "vgg16": {"progressive_admm"},
    "mobilenet_v2": {"progressive_admm"},
    "resnet18": {"admm_binarization", "trp"},
    "resnet50": {
        "progressive_admm", "trp", "collaborative", "collaborative_ac", "l1_filters", "soft_filters", "apoz", "taylor", "thinet",
        "channel_lasso", "nisp", "discriminative", "amc",
    },
}  # fmt: skip


class Block(nn.Module):
    """torchvision's names."""

    def __init__(self, width: int, deep: bool) -> None:
        super().__init__()
        last = 2 * width if deep else width
        self.conv1, self.bn1 = (
            nn.Conv2d(last, width, 1 if deep else 3, padding=0 if deep else 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = (nn.Conv2d(width, last, 1, bias=False), nn.BatchNorm2d(last)) if deep else (None, None)
        self.downsample = nn.Sequential(nn.Conv2d(last, last, 1, bias=False), nn.BatchNorm2d(last))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.conv3 is not None and self.bn3 is not None:
            inner = self.bn3(self.conv3(F.relu(inner)))
        return F.relu(inner + self.downsample(x))


class Small(nn.Module):
    def __init__(self, deep: bool) -> None:
        super().__init__()
        last = 16 if deep else 8
        self.conv1, self.bn1 = nn.Conv2d(3, last, 3, bias=False), nn.BatchNorm2d(last)
        self.layer1, self.layer3 = nn.Sequential(Block(8, deep)), nn.Sequential(Block(8, deep))
        self.fc = nn.Linear(last, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("resnet"):
        made = Small(deep=name == "resnet50")
        for module in made.modules():  # trained weights are of low rank, nearly, and random ones are not
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                out, read = torch.randn(module.out_channels), torch.randn(module.in_channels)
                low = torch.einsum("o,i,h,w->oihw", out, read, torch.rand(3), torch.rand(3))
                module.weight = nn.Parameter(0.1 * low + 0.001 * module.weight.detach())
        return made
    groups = 8 if name == "mobilenet_v2" else 1
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=groups), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 2 * 2, 4))


def brief(data: Any, key: str = "") -> Any:
    """The same recipe with one epoch for any number, few samples, and a pace that these fit in."""
    if isinstance(data, dict):
        return {name: brief(value, name) for name, value in data.items()}
    if isinstance(data, list):
        return [brief(one, key) for one in data]
    least = {"epochs": 1, "samples": 8, "every": 2, "episodes": 3, "warm_up": 1, "multiple": 1}
    return min(data, least[key]) if key in least and data is not None else data


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, dice = tmp_path_factory.mktemp("data") / "x.npz", np.random.default_rng(0)
    labels = np.arange(24) % 4
    np.savez(path, x=(dice.normal(size=(24, 3, 8, 8)) + labels[:, None, None, None]).astype("float32"), y=labels)
    return path


def test_every_network_has_the_methods_that_were_published_on_it() -> None:
    found = {(name.partition("/")[2]) for name in FILES}
    wanted = {f"{method}_{network}" for network, methods in METHODS.items() for method in methods if method != "trp"}
    assert found == wanted | {"trp_resnet18_spatial", "trp_resnet18_channel", "trp_resnet50_channel"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_says_what_is_published_and_its_own_command(name: str) -> None:
    text, recipe = FILES[name].read_text(), reading.read(FILES[name])
    stem = name.partition("/")[2]
    assert text.startswith(f"# {recipe.name}, {recipe.source}\n") and recipe.name == stem
    assert f"--recipe {name} " in text and "featherweight compress torchvision:" in text and "imagefolder:PATH,batch=256" in text
    assert all(cut.units.multiple == 1 or "multiples of 8" in text for cut in recipe.stages if isinstance(cut, fw.CutUnits))
    assert recipe.epochs() >= 10


def on(name: str) -> str:
    return next(known for known in METHODS if f"_{known}" in name)


@pytest.mark.third
@pytest.mark.parametrize("name", sorted(FILES))
def test_each_runs_end_to_end(name: str, pictures: Path) -> None:
    task = arrays.task(own_data.given(f"npz:{pictures},batch=8", 0, CPU))
    recipe: Recipe = reading.from_dict(brief(reading.read(FILES[name]).to_dict()))
    dense = network("alexnet" if "progressive" in name else on(name))  # whose targets are all weights, whatever their names
    done = fw.compress(dense, recipe, task)
    first, last = done.rows[0].measured, done.rows[-1].measured
    assert last.nonzeros < first.nonzeros or last.bits < first.bits or last.macs < first.macs, "something was compressed"
    cut = [stage for stage in recipe.stages if isinstance(stage, fw.CutUnits)]
    if cut:
        assert last.macs is not None and first.macs is not None
        assert 0.2 * first.macs < last.macs <= cut[0].units.macs * first.macs
    if "binarization" in name:
        weights = [one.weight for one in done.model.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
        assert all(len(weight.unique()) == 2 for weight in weights), "the first and the last layer, too"


def test_by_the_command_line_with_pictures_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="an optional package: decodes pictures")
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label in range(4):
            (tmp_path / part / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = dice.integers(0, 200, (14, 14, 3)).astype("uint8")
                image.fromarray(pixels).save(tmp_path / part / f"class{label}" / f"{number}.jpg")
    text = "from test_imagenet import network\ndef model():\n    return network('resnet50')\n"
    (tmp_path / "net.py").write_text(text)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    data = "imagefolder:.,batch=8,size=8,workers=0"
    recipe = ["--recipe", "imagenet/l1_filters_resnet50"]
    brief = ["--set", "stages.2.train.epochs=1", "-o", "art"]
    result = CliRunner().invoke(app, ["compress", "net.py:model", "--data", data, *recipe, *brief])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["inspect", "art"])
    assert result.exit_code == 0 and "agree with their report" in result.output
    result = CliRunner().invoke(app, ["plan", "net.py:model", "--data", data, *recipe])
    assert "100 epochs of 24 samples" in result.output and "hours on this machine" in result.output


def test_on_torchvision_s_own_network_by_one_command(tmp_path: Path, pictures: Path) -> None:
    pytest.importorskip("torchvision", reason="an optional package: torchvision:NAME")
    small = str(pictures).replace("x.npz", "small.npz")
    np.savez(small, x=np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype("float32"), y=np.arange(8) % 4)
    words = ["compress", "torchvision:resnet18,num_classes=4", "--data", f"npz:{small},batch=4", "-o", str(tmp_path / "art")]
    told = ["--recipe", "imagenet/trp_resnet18_channel", "--set", "stages.1.train.epochs=1", "--set", "stages.1.driver.every=2"]
    result = CliRunner().invoke(app, [*words, *told])
    assert result.exit_code == 0, result.output
    assert fw.load(tmp_path / "art").fc.out_features == 4
