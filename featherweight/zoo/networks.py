"""Reference networks: LeNet-5, LeNet-300-100, the CIFAR-10 ResNets in two flavours, VGG-16 for CIFAR-10, and Deep Motif's.

Plain modules with readable names, since recipes address layers by name: `conv1`, `fc2`, `stage2.0.conv1`,
`stage2.0.shortcut.conv`. Numbers of parameters include biases and batch-norm affines; MACs are of one image.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.zoo.deepmotif import deepmotif_cnn, deepmotif_cnn_rnn, deepmotif_rnn

# --- LeNets, input (batch, 1, 28, 28) ------------------------------------------------------------------------------------


class LeNet5(nn.Module):
    """The Caffe variant of LeNet-5, with a ReLU after each layer but the last: 431,080 parameters, 2,293,000 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 28, 28) -> logits (batch, 10)."""
        # ReLU is monotone, so it commutes with max-pooling: pooling first is the same function and a quarter of the ReLUs.
        hidden = F.relu(F.max_pool2d(self.conv1(images), 2))  # (batch, 20, 12, 12)
        hidden = F.relu(F.max_pool2d(self.conv2(hidden), 2))  # (batch, 50, 4, 4)
        hidden = F.relu(self.fc1(hidden.flatten(1)))
        return self.fc2(hidden)


class LeNet300100(nn.Module):
    """Fully connected 784-300-100-10: 266,610 parameters, 266,200 MACs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 28, 28), or anything with 784 numbers an image -> logits (batch, 10)."""
        hidden = F.relu(self.fc1(images.flatten(1)))
        hidden = F.relu(self.fc2(hidden))
        return self.fc3(hidden)


# --- CIFAR-10 ResNets, input (batch, 3, 32, 32) --------------------------------------------------------------------------


class PadShortcut(nn.Module):
    """Option A of He et al. (arXiv 1512.03385, section 4.2): every stride-th pixel, missing channels filled with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, images: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ProjectionShortcut(nn.Module):
    """Option B of He et al.: a strided 1x1 convolution and batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        return self.bn(self.conv(images))


Shortcut = Callable[[int, int, int], nn.Module]  # (inputs, outputs, stride) -> module


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut is the identity unless the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        same_shape = inputs == outputs and stride == 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if same_shape else shortcut(inputs, outputs, stride)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(images))


class CifarResNet(nn.Module):
    """Three stages of `blocks` basic blocks with 16, 32 and 64 channels: 6 * blocks + 2 layers."""

    def __init__(self, blocks: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stage1 = _stage(blocks, 16, 16, 1, shortcut)
        self.stage2 = _stage(blocks, 16, 32, 2, shortcut)
        self.stage3 = _stage(blocks, 32, 64, 2, shortcut)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, 32, 32) -> logits (batch, 10)."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.stage1(hidden)  # (batch, 16, 32, 32)
        hidden = self.stage2(hidden)  # (batch, 32, 16, 16)
        hidden = self.stage3(hidden)  # (batch, 64, 8, 8)
        return self.fc(F.adaptive_avg_pool2d(hidden, 1).flatten(1))


def _stage(blocks: int, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


# --- the networks by name ------------------------------------------------------------------------------------------------


def lenet5() -> nn.Module:
    """LeNet-5 (Caffe variant), input (batch, 1, 28, 28): 431,080 parameters, 2,293,000 MACs."""
    return _initialised(LeNet5())


def lenet_300_100() -> nn.Module:
    """LeNet-300-100, input (batch, 1, 28, 28): 266,610 parameters, 266,200 MACs."""
    return _initialised(LeNet300100())


def resnet20() -> nn.Module:
    """ResNet-20 with parameter-free shortcuts (option A): 269,722 parameters, 40.55 M MACs."""
    return _initialised(CifarResNet(3, PadShortcut))


def resnet32() -> nn.Module:
    """ResNet-32 with parameter-free shortcuts (option A): 464,154 parameters, 68.86 M MACs."""
    return _initialised(CifarResNet(5, PadShortcut))


def resnet56() -> nn.Module:
    """ResNet-56 with parameter-free shortcuts (option A): 853,018 parameters, 125.49 M MACs."""
    return _initialised(CifarResNet(9, PadShortcut))


def resnet20_projection() -> nn.Module:
    """ResNet-20 with projection shortcuts, as pytorchcv's resnet20_cifar10: 272,474 parameters, 40.81 M MACs."""
    return _initialised(CifarResNet(3, ProjectionShortcut))


def resnet32_projection() -> nn.Module:
    """ResNet-32 with projection shortcuts: 466,906 parameters, 69.12 M MACs."""
    return _initialised(CifarResNet(5, ProjectionShortcut))


def resnet56_projection() -> nn.Module:
    """ResNet-56 with projection shortcuts, as pytorchcv's resnet56_cifar10: 855,770 parameters, 125.75 M MACs."""
    return _initialised(CifarResNet(9, ProjectionShortcut))


def vgg16_cifar10() -> nn.Module:
    """VGG-16 with batch norm and one classifier layer 512-10, input (batch, 3, 32, 32): 14,724,042 parameters, 313.20 M MACs.

    Layers are conv1 .. conv13 with bn1 .. bn13, as in tables of the pruning literature, then fc. The convolutions have no bias:
    the batch norm behind each would cancel it.
    """
    widths = [(64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)]  # a max-pool ends each group
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, number = 3, 0
    for group, outputs_of_group in enumerate(widths, start=1):
        for outputs in outputs_of_group:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU()
            inputs = outputs
        layers[f"pool{group}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()  # (batch, 512, 1, 1) -> (batch, 512)
    layers["fc"] = nn.Linear(512, 10)
    return _initialised(nn.Sequential(layers))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet5": lenet5,
    "lenet_300_100": lenet_300_100,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "resnet20_projection": resnet20_projection,
    "resnet32_projection": resnet32_projection,
    "resnet56_projection": resnet56_projection,
    "vgg16_cifar10": vgg16_cifar10,
    "deepmotif_cnn": deepmotif_cnn,
    "deepmotif_rnn": deepmotif_rnn,
    "deepmotif_cnn_rnn": deepmotif_cnn_rnn,
}


def _initialised(network: nn.Module) -> nn.Module:
    """He et al. (arXiv 1502.01852, equation 10) for convolutions and linear layers, zero biases; batch norm keeps PyTorch's."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


# --- weights of other libraries ------------------------------------------------------------------------------------------


class UnknownStateKeys(ValueError):
    """A state dict has keys that do not belong to the architecture it is said to be of."""


def from_pytorchcv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a pytorchcv `resnet{20,56}_cifar10` state dict to those of `resnet{20,56}_projection`.

        features.init_block.{conv,bn}.*                  -> conv1.* bn1.*
        features.stageS.unitU.body.convN.{conv,bn}.*     -> stageS.(U-1).convN.* stageS.(U-1).bnN.*
        features.stageS.unitU.identity_conv.{conv,bn}.*  -> stageS.(U-1).shortcut.{conv,bn}.*
        output.*                                         -> fc.*

    The tensors are passed on, not copied. Raises UnknownStateKeys with every key that fits none of these.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        name = _name_of_pytorchcv_key(key)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = tensor
    if unknown:
        raise UnknownStateKeys(
            f"{len(unknown)} of {len(state)} keys are not of a pytorchcv CIFAR-10 ResNet with basic blocks: "
            f"{', '.join(unknown)}. "
            "Allowed are features.init_block.*, features.stageS.unitU.(body.convN|identity_conv).* and output.*; "
            "pass the state dict of pytorchcv's resnet20_cifar10 or resnet56_cifar10."
        )
    return renamed


def _name_of_pytorchcv_key(key: str) -> str | None:
    if match := re.fullmatch(r"features\.init_block\.(conv|bn)\.(\w+)", key):
        return f"{match[1]}1.{match[2]}"
    if match := re.fullmatch(r"features\.stage([123])\.unit([1-9]\d*)\.body\.conv([12])\.(conv|bn)\.(\w+)", key):
        stage, unit, number, kind, tensor = match.groups()
        return f"stage{stage}.{int(unit) - 1}.{kind}{number}.{tensor}"
    if match := re.fullmatch(r"features\.stage([123])\.unit([1-9]\d*)\.identity_conv\.(conv|bn)\.(\w+)", key):
        stage, unit, kind, tensor = match.groups()
        return f"stage{stage}.{int(unit) - 1}.shortcut.{kind}.{tensor}"
    if match := re.fullmatch(r"output\.(weight|bias)", key):
        return f"fc.{match[1]}"
    return None
