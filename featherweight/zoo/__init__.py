"""Reference networks, the data sets they are trained on, and the built-in tasks."""

from featherweight.zoo.deepmotif import deepmotif_cnn, deepmotif_cnn_rnn, deepmotif_rnn
from featherweight.zoo.networks import (
    NETWORKS,
    CifarResNet,
    LeNet5,
    PadShortcut,
    ProjectionShortcut,
    UnknownStateKeys,
    from_pytorchcv,
    lenet5,
    lenet_300_100,
    resnet20,
    resnet20_projection,
    resnet32,
    resnet32_projection,
    resnet56,
    resnet56_projection,
    vgg16_cifar10,
)

__all__ = [
    "NETWORKS",
    "CifarResNet",
    "LeNet5",
    "PadShortcut",
    "ProjectionShortcut",
    "UnknownStateKeys",
    "deepmotif_cnn",
    "deepmotif_cnn_rnn",
    "deepmotif_rnn",
    "from_pytorchcv",
    "lenet5",
    "lenet_300_100",
    "resnet20",
    "resnet20_projection",
    "resnet32",
    "resnet32_projection",
    "resnet56",
    "resnet56_projection",
    "vgg16_cifar10",
]
