"""What the CIFAR-10 benchmarks share: the networks that they start from, and the layout in which they train fast."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from featherweight import Measurement, Row, zoo
from featherweight.files import artifact

HOME = Path(__file__).parents[1]
BASELINE = HOME / "trp" / "artifacts" / "resnet20-baseline"
RESNET56 = HOME / "resnet56" / "artifacts" / "resnet56-baseline"
ENOUGH = 93.0  # what that has to reach: a delta against a network that could still be better flatters
INNER = "re:stage.*conv1"  # the first convolution of every block: what it gives up goes, and the residual streams stay whole


def resnet20() -> nn.Module:
    """The trained network of `BASELINE`."""
    return _trained(BASELINE, zoo.resnet20_projection(), "trp")


def resnet56() -> nn.Module:
    """The trained network of `RESNET56`."""
    return _trained(RESNET56, zoo.resnet56_projection(), "resnet56")


def _trained(folder: Path, network: nn.Module, benchmark: str) -> nn.Module:
    if not folder.exists():
        raise SystemExit(f"{folder} is not there: `featherweight reproduce {benchmark} --weights FILE` trains it")
    return artifact.load(folder, network)


def inner(sites: Iterable[str]) -> list[str]:
    """Those that `INNER` means."""
    return [site for site in sites if re.fullmatch(INNER.removeprefix("re:"), site)]


def measured(folder: Path = BASELINE) -> Measurement:
    """Of a baseline, as its report says."""
    return Row.from_dict(artifact.describe(folder).report[-1]).measured


def channels_last(network: nn.Module) -> nn.Module:
    """In the layout in which bfloat16 convolutions are fast."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
