"""What the CIFAR-10 benchmarks share: the networks that they start from, and the layout in which they train fast."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from featherweight import artifact, zoo
from featherweight.measure import Measurement
from featherweight.report import Row

BASELINE = Path(__file__).parent / "artifacts" / "resnet20-baseline"
RESNET56 = BASELINE.with_name("resnet56-baseline")


def resnet20() -> nn.Module:
    """The trained network of `BASELINE`."""
    if not BASELINE.exists():
        raise SystemExit(f"{BASELINE} is not there: `featherweight reproduce trp --weights FILE` trains it")
    return artifact.load(BASELINE, zoo.resnet20_projection())


def resnet56() -> nn.Module:
    """The trained network of `RESNET56`."""
    if not RESNET56.exists():
        raise SystemExit(f"{RESNET56} is not there: `featherweight reproduce resnet56 --weights FILE` trains it")
    return artifact.load(RESNET56, zoo.resnet56_projection())


def measured() -> Measurement:
    """Of `BASELINE`, as its report says."""
    return Row.from_dict(artifact.describe(BASELINE).report[-1]).measured


def channels_last(network: nn.Module) -> nn.Module:
    """In the layout in which bfloat16 convolutions are fast."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
