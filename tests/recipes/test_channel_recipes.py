"""Every recipe that cuts units: on a CIFAR ResNet, on VGG-16 and on a network of one's own, tuned, saved and loaded again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import Task, compress, load, zoo
from featherweight.criteria.propagate import Unsuited
from featherweight.recipe.schema import Constrain, CutUnits, LearnUnits, Stage
from featherweight.recipes import RECIPES

SHORT: dict[str, dict[str, Any]] = {  # what makes each a matter of seconds
    **{name: {} for name in ("l1_filters", "channel_lasso", "thinet", "nisp", "taylor", "apoz")},
    **{name: {} for name in ("collaborative", "collaborative_ac", "discriminative")},
    "discriminative_adapt": {"tolerance": 0.05},
    "reconstruct": {},
    "amc": {"episodes": 3, "warm_up": 2},
    "soft_filters": {"every": 1},
    "adaptive": {"fine_tune_epochs": 1, "weight": 30.0, "gate_rate": 0.2},
}


class Own(nn.Module):
    """A depthwise convolution with squeeze-and-excitation on a residual stream, group norm, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in, self.norm = nn.Conv2d(3, 12, 3, 4, 1, bias=False), nn.BatchNorm2d(12)
        self.stem, self.norm0 = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv_up, self.norm1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.norm2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.squeeze, self.excite = nn.Linear(24, 6), nn.Linear(6, 24)
        self.conv_down, self.norm3 = nn.Conv2d(24, 8, 1, bias=False), nn.GroupNorm(2, 8)
        self.hidden, self.last = nn.Linear(8, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm0(self.stem(torch.relu(self.norm(self.conv_in(x))))))
        y = torch.relu(self.norm2(self.depthwise(torch.relu(self.norm1(self.conv_up(x))))))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3))))))[:, :, None, None]
        x = torch.relu(x + self.norm3(self.conv_down(y)))
        return self.last(torch.relu(self.hidden(x.mean((2, 3)))))


def vgg16() -> nn.Module:
    """VGG-16 with an eighth of its channels: the same layers, in seconds."""
    network = zoo.vgg16_cifar10()
    for name, module in list(network.named_children()):
        if isinstance(module, nn.Conv2d):
            inputs = max(module.in_channels // 8, 3)
            setattr(network, name, nn.Conv2d(inputs, module.out_channels // 8, 3, padding=1, bias=False))
        elif isinstance(module, nn.BatchNorm2d):
            setattr(network, name, nn.BatchNorm2d(module.num_features // 8))
    network.fc = nn.Linear(64, 10)
    return network


def resnet() -> nn.Module:
    """A CIFAR ResNet of eight layers, with projection shortcuts: one block a stage."""
    return zoo.CifarResNet(1, zoo.ProjectionShortcut)


# network -> what makes it, the sites that may go, the filters that `soft_filters` drops
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "resnet": (resnet, "re:stage2.*conv1", "re:stage2.*conv1.weight"),
    "vgg16": (vgg16, "re:conv[1-7]$", "re:conv[67].weight"),
    "own": (Own, "*", "conv_in.weight"),
}
GENERATOR = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.randn(32, 3, 32, 32, generator=GENERATOR), torch.randint(0, 10, (32,), generator=GENERATOR)


def right(network: nn.Module) -> float:
    with torch.no_grad():
        return 100 * float((network.eval()(IMAGES[:16]).argmax(1) == LABELS[:16]).float().mean())


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


TASK = Task(
    example_inputs=(IMAGES[:1],),
    train=lambda epoch: list(zip(IMAGES.split(16), LABELS.split(16), strict=True)),
    loss=lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
    evaluate=right,
    optimizer=sgd,
)


def cuts(stage: Stage) -> bool:
    return isinstance(stage, CutUnits | LearnUnits) or (isinstance(stage, Constrain) and stage.sweep)


def test_every_recipe_that_cuts_units_is_here() -> None:
    cutting = {name for name, make in RECIPES.items() if any(cuts(stage) for stage in make().stages)}
    assert set(SHORT) == cutting - {"progressive_admm", "admm_joint"}  # which sweep dead units out, and are of single weights


# On each network one recipe of each kind; nisp cannot follow the own one, and a plain one stands in. The others differ from
# l1_filters by their criterion: criteria meet residual networks in tests/criteria, and all recipes run in test_imagenet.
ON_OWN = ("l1_filters", "thinet", "nisp", "collaborative_ac", "discriminative_adapt", "soft_filters", "adaptive")
ON_RESNET = ("l1_filters", "nisp", "collaborative_ac", "discriminative_adapt", "amc", "soft_filters", "adaptive")


@pytest.mark.third
@pytest.mark.parametrize(
    ("name", "network"),
    [*((name, "own") for name in ON_OWN), *((name, "resnet") for name in ON_RESNET), ("nisp", "vgg16")],
)
def test_a_recipe_runs_on_every_kind_of_network(name: str, network: str, tmp_path: Path) -> None:
    make, sites, filters = NETWORKS[network]
    asked: dict[str, Any] = {"epochs": 1, **SHORT[name]}
    if name == "soft_filters":
        asked |= {"keep": 0.5, "targets": filters}
    elif name == "adaptive":
        asked |= {"parameters": 0.9}
    else:
        asked |= {"macs": 0.85, "sites": sites, "samples": 16}
    torch.manual_seed(0)
    if (name, network) == ("nisp", "own"):
        with pytest.raises(Unsuited, match="has group_norm, mul, sigmoid: use taylor or collaborative"):
            compress(make(), RECIPES[name](**asked), TASK)
        return
    result = compress(make(), RECIPES[name](**asked), TASK)
    dense, small = result.rows[0].measured, result.rows[-1].measured
    assert dense.macs is not None and small.macs is not None
    if name == "adaptive":
        assert small.parameters <= 0.9 * dense.parameters
    else:
        assert small.macs < dense.macs if name == "soft_filters" else small.macs <= 0.85 * dense.macs
    result.save(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small", make()).eval()(IMAGES[:4]), result.model.eval()(IMAGES[:4]))


def test_the_name_of_before_is_taken_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="allot is allocate now"):
        before = RECIPES["taylor"](allot="knapsack")
    assert before == RECIPES["taylor"](allocate="knapsack")
