"""Reference networks: parameters and MACs against hand counts, shapes, and the weights of pytorchcv.

Weights: set FEATHERWEIGHT_WEIGHTS to a folder with resnet20_cifar10.safetensors and resnet56_cifar10.safetensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import zoo

INPUT_SHAPES: dict[str, tuple[int, ...]] = {"lenet5": (1, 28, 28), "lenet_300_100": (1, 28, 28)}  # all others: (3, 32, 32)
INPUT_SHAPES |= dict.fromkeys(("deepmotif_cnn", "deepmotif_rnn", "deepmotif_cnn_rnn"), (4, 101))


def image_shape(name: str) -> tuple[int, ...]:
    return INPUT_SHAPES.get(name, (3, 32, 32))


def hooked_macs(network: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """MACs of each layer for one example, from the tensors that really pass through it."""
    macs: dict[str, int] = {}

    def counter(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            macs[name] = output[0].numel() * weight[0].numel()  # one dot product of a filter's length for each output number

        return count

    def steps(name: str) -> Callable[[nn.LSTM, tuple[Tensor, ...], tuple[Tensor, Tensor]], None]:
        def count(module: nn.LSTM, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
            macs[name] = len(output[0][0]) * (module.weight_ih_l0.numel() + module.weight_hh_l0.numel())

        return count

    handles = [
        module.register_forward_hook(counter(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear))
    ]
    recurrent = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.LSTM)]
    handles += [module.register_forward_hook(steps(name)) for name, module in recurrent]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return macs


def trainable(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Written out from the layers' shapes: weights + biases, or weights + 2 numbers a batch-norm channel.
LENET5 = (20 * 25 + 20) + (50 * 20 * 25 + 50) + (800 * 500 + 500) + (500 * 10 + 10)
LENET_300_100 = 785 * 300 + 301 * 100 + 101 * 10
SHORTCUTS = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
VGG_CONVOLUTIONS = 9 * (3 * 64 + 64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512 + 5 * 512**2)
VGG_CHANNELS = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512


def resnet_parameters(blocks: int) -> int:
    stem = 27 * 16 + 2 * 16
    stage1 = 2 * blocks * (9 * 16 * 16 + 2 * 16)
    stage2 = 9 * 16 * 32 + 2 * 32 + (2 * blocks - 1) * (9 * 32 * 32 + 2 * 32)
    stage3 = 9 * 32 * 64 + 2 * 64 + (2 * blocks - 1) * (9 * 64 * 64 + 2 * 64)
    return stem + stage1 + stage2 + stage3 + 65 * 10


def resnet_macs(blocks: int) -> int:
    stage1 = 2 * blocks * 9 * 16 * 16 * 32 * 32
    stage2 = 9 * (16 * 32 + (2 * blocks - 1) * 32 * 32) * 16 * 16
    stage3 = 9 * (32 * 64 + (2 * blocks - 1) * 64 * 64) * 8 * 8
    return 27 * 16 * 32 * 32 + stage1 + stage2 + stage3 + 640


SHORTCUT_MACS = 16 * 32 * 16 * 16 + 32 * 64 * 8 * 8
VGG_MACS = (
    9 * (3 * 64 + 64 * 64) * 32 * 32
    + 9 * (64 * 128 + 128**2) * 16 * 16
    + 9 * (128 * 256 + 2 * 256**2) * 8 * 8
    + 9 * (256 * 512 + 2 * 512**2) * 4 * 4
    + 9 * 3 * 512**2 * 2 * 2
    + 5120
)

# The paper's own, with torch's two biases; the convolutions of 101 bases leave 93, 42 and 19 places, two poolings between them.
MOTIF_CNN = (4 * 128 * 9 + 128) + (128 * 128 * 5 + 128) + (128 * 128 * 3 + 128) + (128 * 2 + 2)
MOTIF_CNN_MACS = 93 * 4 * 128 * 9 + 42 * 128 * 128 * 5 + 19 * 128 * 128 * 3 + 128 * 2


def lstm(inputs: int, biases: int) -> int:
    """Two ways, 32 units each, four gates."""
    return 2 * 4 * 32 * (inputs + 32 + biases)


# name: parameters by hand, MACs by hand, parameters as published, MACs as published
EXPECTED = {
    "lenet5": (LENET5, 288_000 + 1_600_000 + 400_000 + 5_000, 431_080, 2_293_000),
    "lenet_300_100": (LENET_300_100, 784 * 300 + 300 * 100 + 100 * 10, 266_610, 266_200),
    "resnet20": (resnet_parameters(3), resnet_macs(3), 269_722, 40_551_040),
    "resnet32": (resnet_parameters(5), resnet_macs(5), 464_154, 68_862_592),
    "resnet56": (resnet_parameters(9), resnet_macs(9), 853_018, 125_485_696),
    "resnet20_projection": (resnet_parameters(3) + SHORTCUTS, resnet_macs(3) + SHORTCUT_MACS, 272_474, 40_813_184),
    "resnet32_projection": (resnet_parameters(5) + SHORTCUTS, resnet_macs(5) + SHORTCUT_MACS, 466_906, 69_124_736),
    "resnet56_projection": (resnet_parameters(9) + SHORTCUTS, resnet_macs(9) + SHORTCUT_MACS, 855_770, 125_747_840),
    "vgg16_cifar10": (VGG_CONVOLUTIONS + 2 * VGG_CHANNELS + 5130, VGG_MACS, 14_724_042, 313_201_664),
    "deepmotif_cnn": (MOTIF_CNN, MOTIF_CNN_MACS, 136_322, 4_803_328),
    "deepmotif_rnn": (lstm(4, 2) + 64 * 2 + 2, 101 * lstm(4, 0) + 64 * 2, 9_858, 930_944),
    "deepmotif_cnn_rnn": (
        (4 * 128 * 9 + 128) + lstm(128, 2) + 64 * 2 + 2,
        101 * 4 * 128 * 9 + 101 * lstm(128, 0) + 64 * 2,
        46_338,
        4_602_496,
    ),
}


def test_every_network_has_an_expectation() -> None:
    assert set(EXPECTED) == set(zoo.NETWORKS)


@pytest.mark.parametrize("name", EXPECTED)
def test_parameters_and_macs(name: str) -> None:
    network = zoo.NETWORKS[name]()
    parameters, macs, published_parameters, published_macs = EXPECTED[name]
    assert trainable(network) == parameters == published_parameters
    assert sum(hooked_macs(network, image_shape(name)).values()) == macs == published_macs


def test_lenet5_layer_by_layer() -> None:
    layers = hooked_macs(zoo.lenet5(), (1, 28, 28))
    assert layers == {"conv1": 288_000, "conv2": 1_600_000, "fc1": 400_000, "fc2": 5_000}


@pytest.mark.parametrize("name", EXPECTED)
def test_logits_are_finite_and_differ_between_images(name: str) -> None:
    torch.manual_seed(0)
    network = zoo.NETWORKS[name]().eval()
    with torch.no_grad():
        logits = network(torch.randn(2, *image_shape(name)))
    assert logits.shape == (2, 2 if name.startswith("deepmotif") else 10)
    assert logits.isfinite().all()
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_names_for_recipes() -> None:
    names = {name for name, module in zoo.resnet20_projection().named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert {"conv1", "stage1.0.conv1", "stage3.2.conv2", "stage2.0.shortcut.conv", "fc"} <= names
    assert len(names) == 1 + 18 + 2 + 1
    layers = [name for name, module in zoo.vgg16_cifar10().named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert layers == [f"conv{number}" for number in range(1, 14)] + ["fc"]


def test_lenet5_is_the_network_with_relu_before_pooling() -> None:
    torch.manual_seed(0)
    network = zoo.LeNet5()
    images = torch.randn(3, 1, 28, 28)
    hidden = F.max_pool2d(F.relu(network.conv1(images)), 2)
    hidden = F.max_pool2d(F.relu(network.conv2(hidden)), 2)
    expected = network.fc2(F.relu(network.fc1(hidden.flatten(1))))
    assert torch.equal(network(images), expected)


def test_pad_shortcut_by_hand() -> None:
    images = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).reshape(2, 2, 4, 4) + 1
    output = zoo.PadShortcut(2, 5, 2)(images)
    assert output.shape == (2, 5, 2, 2)
    for row in range(2):
        for column in range(2):
            assert torch.equal(output[:, 1:3, row, column], images[:, :, 2 * row, 2 * column])
    assert output[:, [0, 3, 4]].abs().max() == 0


def test_he_initialisation() -> None:
    torch.manual_seed(0)
    network = zoo.vgg16_cifar10()
    weight = network.get_submodule("conv13").weight
    bias = network.get_submodule("fc").bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert bias.abs().max() == 0


# --- pytorchcv -----------------------------------------------------------------------------------------------------------


def test_from_pytorchcv_renames_as_documented() -> None:
    names = {
        "features.init_block.conv.weight": "conv1.weight",
        "features.init_block.bn.running_var": "bn1.running_var",
        "features.stage1.unit9.body.conv2.conv.weight": "stage1.8.conv2.weight",
        "features.stage3.unit1.body.conv1.bn.bias": "stage3.0.bn1.bias",
        "features.stage2.unit1.identity_conv.conv.weight": "stage2.0.shortcut.conv.weight",
        "features.stage2.unit1.identity_conv.bn.num_batches_tracked": "stage2.0.shortcut.bn.num_batches_tracked",
        "output.bias": "fc.bias",
    }
    state = {key: torch.tensor(float(place)) for place, key in enumerate(names)}
    renamed = zoo.from_pytorchcv(state)
    assert list(renamed) == list(names.values())
    assert all(renamed[names[key]] is state[key] for key in names)


def test_from_pytorchcv_names_every_unknown_key() -> None:
    state = {key: torch.zeros(1) for key in ("output.bias", "features.stage4.unit1.body.conv1.conv.weight", "head.weight")}
    with pytest.raises(zoo.UnknownStateKeys, match=r"2 of 3 keys .*stage4\.unit1\.body\.conv1\.conv\.weight, head\.weight"):
        zoo.from_pytorchcv(state)


@pytest.mark.parametrize("depth", [20, 56])
def test_shipped_weights_load_exactly(depth: int) -> None:
    folder = os.environ.get("FEATHERWEIGHT_WEIGHTS")
    if folder is None:
        pytest.skip("FEATHERWEIGHT_WEIGHTS is not set: no folder with pytorchcv state dicts")
    path = Path(folder) / f"resnet{depth}_cifar10.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}")
    safetensors = pytest.importorskip("safetensors.torch")
    state = safetensors.load_file(path)
    network = zoo.NETWORKS[f"resnet{depth}_projection"]()
    result = network.load_state_dict(zoo.from_pytorchcv(state), strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert len(network.state_dict()) == len(state)
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network.eval()(image), pytorchcv_forward(state, image, blocks=(depth - 2) // 6), atol=1e-4)


def pytorchcv_forward(state: dict[str, Tensor], images: Tensor, blocks: int) -> Tensor:
    """The network as pytorchcv defines it, from its state dict alone."""

    def conv_bn(prefix: str, hidden: Tensor, stride: int, padding: int) -> Tensor:
        hidden = F.conv2d(hidden, state[f"{prefix}.conv.weight"], stride=stride, padding=padding)
        mean, variance = state[f"{prefix}.bn.running_mean"], state[f"{prefix}.bn.running_var"]
        return F.batch_norm(hidden, mean, variance, state[f"{prefix}.bn.weight"], state[f"{prefix}.bn.bias"])

    hidden = F.relu(conv_bn("features.init_block", images, 1, 1))
    for stage in (1, 2, 3):
        for unit in range(1, blocks + 1):
            prefix = f"features.stage{stage}.unit{unit}"
            stride = 2 if stage > 1 and unit == 1 else 1
            identity = conv_bn(f"{prefix}.identity_conv", hidden, stride, 0) if stride == 2 else hidden
            hidden = F.relu(conv_bn(f"{prefix}.body.conv1", hidden, stride, 1))
            hidden = F.relu(conv_bn(f"{prefix}.body.conv2", hidden, 1, 1) + identity)
    return F.linear(F.avg_pool2d(hidden, 8).flatten(1), state["output.weight"], state["output.bias"])
