"""Activations rounded in training: as ONNX rounds them, straight through, in training mode alone; and what it wins back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import Task, compress
from featherweight.errors import InputError
from featherweight.recipe.schema import Constrain
from featherweight.recipes import quantize_aware
from featherweight.training.rounding import rounded, straight_through


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shift", [0.0, 3.0, -9.0])
def test_values_are_rounded_as_torch_and_onnx_do_and_the_gradient_passes(bits: int, shift: float) -> None:
    values = (torch.randn(50, generator=torch.Generator().manual_seed(bits)) + shift).requires_grad_(True)
    found = straight_through(values, bits)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = (high - low) / (2**bits - 1)
    wanted = torch.fake_quantize_per_tensor_affine(values.detach(), step, round(-low / step), 0, 2**bits - 1)
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=1e-5 * (high - low))
    assert len(found.detach().unique()) <= 2**bits and straight_through(torch.zeros(3), bits).eq(0).all()
    found.sum().backward()
    assert values.grad is not None and values.grad.eq(1).all()


def test_it_rounds_what_layers_take_in_training_mode_alone_and_goes_again() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    given = torch.randn(5, 2, 8)
    plain = network(given)
    with rounded(network, 3):
        assert not torch.allclose(network(given), plain, atol=1e-3)
        by_hand = network[3](straight_through(network[2](F.relu(network[0](straight_through(given, 3)))), 3))  # type: ignore[operator]
        network.eval()
        assert torch.equal(network(given), plain)
        network.train()
    assert torch.equal(network(given), plain)
    with rounded(network, 3):
        network[0]._forward_pre_hooks.clear(), network[3]._forward_pre_hooks.clear()
        assert not torch.allclose(by_hand, plain, atol=1e-3)
    with rounded(network, None):
        assert torch.equal(network(given), plain)


def test_training_with_it_wins_back_what_rounding_loses() -> None:
    dice = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 8, generator=dice)
    labels = (inputs @ torch.randn(8, 16, generator=dice)).relu() @ torch.randn(16, 4, generator=dice)
    batches = list(zip(inputs.split(32), labels.argmax(1).split(32), strict=True))

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    def shipped(network: nn.Module) -> float:
        """Minus the loss with activations at three bits."""
        network.train()
        with rounded(network, 3), torch.no_grad():
            return -float(loss(network, (inputs, labels.argmax(1))))

    task = Task((inputs[:1],), batches, loss, shipped, lambda parameters: torch.optim.Adam(parameters, 1e-2))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    scores = {}
    for activations in (None, 3):
        recipe = quantize_aware(4, activations, dense_epochs=6, epochs=2, retrain_epochs=4, rate=1.0, retrain_rate=1.0)
        torch.manual_seed(0)
        done = compress(network, recipe, task)
        scores[activations] = done.rows[-1].measured.score or 0.0
        assert all(len(row.unique()) <= 16 for row in done.model[2].weight)  # type: ignore[index, union-attr]
    assert scores[3] > scores[None] + 0.05


def test_bits_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="2 to 8 bits, given 12"):
        quantize_aware(activations=12)
    stage = quantize_aware(bits=6, activations=5).stages[-1]
    assert isinstance(stage, Constrain) and stage.activations == 5
