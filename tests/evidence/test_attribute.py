"""Attributions: gradients by finite differences, closed forms of a linear network, completeness, and what is no classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import InputError
from featherweight.evidence import attribute
from featherweight.zoo import deepmotif


class Linear(nn.Module):
    """logits = W x + b of sequences (count, 4, 6)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def one_hot(count: int, length: int, seed: int = 0) -> Tensor:
    codes = torch.randint(0, 4, (count, length), generator=torch.Generator().manual_seed(seed))
    return nn.functional.one_hot(codes, 4).transpose(1, 2).float()


OF, AGAINST = torch.tensor([1, 2, 0]), torch.tensor([0, 1, 2])


def test_of_a_linear_network_every_method_has_a_closed_form() -> None:
    network, x = Linear(), one_hot(3, 6)
    weight = (network.fc.weight[OF] - network.fc.weight[AGAINST]).detach().reshape(3, 4, 6)
    expected = {
        "saliency": weight,
        "centred": (weight - weight.mean(1, keepdim=True)) * x,
        "input_x_gradient": weight * x,
        "integrated_gradients": weight * x,
    }
    assert set(expected) == set(attribute.METHODS)
    for name, closed in expected.items():
        found = attribute.attributions(network, x, OF, AGAINST, attribute.method(name))
        torch.testing.assert_close(found, closed, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [deepmotif.deepmotif_cnn, deepmotif.deepmotif_rnn, deepmotif.deepmotif_cnn_rnn])
def test_gradients_by_finite_differences(make) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    network = make().double().train()
    x = torch.rand(2, 4, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    of, against = torch.tensor([1, 0]), torch.tensor([0, 1])
    found = attribute.attributions(network, x, of, against, attribute.saliency)
    assert network.training and all(module.training for module in network.modules())
    network.eval()

    def score(given: Tensor) -> Tensor:
        logits = network(given)
        return logits[torch.arange(2), of] - logits[torch.arange(2), against]

    with torch.no_grad():
        for place in ((0, 5), (1, 17), (3, 29), (2, 0)):
            step = torch.zeros_like(x)
            step[:, place[0], place[1]] = 1e-6
            slope = (score(x + step) - score(x - step)) / 2e-6
            torch.testing.assert_close(found[:, place[0], place[1]], slope.float(), atol=2e-6, rtol=1e-3)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_integrated_gradients_are_complete() -> None:
    torch.manual_seed(0)
    network, x = deepmotif.deepmotif_rnn().eval(), one_hot(2, 40)
    of, against = torch.tensor([1, 1]), torch.tensor([0, 0])
    found = attribute.attributions(network, x, of, against, attribute.integrated_gradients)
    with torch.no_grad():
        ends = [network(given)[:, 1] - network(given)[:, 0] for given in (x, torch.zeros_like(x))]
    torch.testing.assert_close(found.sum((1, 2)), ends[0] - ends[1], atol=1e-4, rtol=1e-3)


def test_a_batch_sees_no_other_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, x = deepmotif.deepmotif_cnn(), one_hot(5, 40)
    of, against = torch.ones(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    whole = attribute.attributions(network, x, of, against)
    monkeypatch.setattr(attribute, "BATCH", 2)
    torch.testing.assert_close(attribute.attributions(network, x, of, against), whole, atol=1e-7, rtol=1e-5)


def test_maps_of_images_are_averaged_over_a_grid() -> None:
    found = torch.zeros(1, 3, 32, 32)
    found[0, 0, 4, 9], found[0, 2, 5, 10] = 8.0, -8.0
    pooled = attribute.pooled(found)
    assert pooled.shape == (1, 64) and pooled[0, 8 + 2] == 1.0 and pooled.sum() == 1.0  # 16 pixels a cell
    assert torch.equal(attribute.pooled(torch.tensor([[1.0, -2.0]])), torch.tensor([[1.0, 2.0]]))
    assert torch.equal(attribute.of_positions(torch.tensor([[[1.0, 0.0], [0.0, -3.0]]])), torch.tensor([[1.0, -3.0]]))


def test_another_output_and_another_class_are_named() -> None:
    x = one_hot(3, 6)
    with pytest.raises(InputError, match=r"logits \(examples, classes\).*3 examples give a tensor of shape \(3, 4, 6\)"):
        attribute.attributions(nn.Identity(), x, OF, AGAINST)
    with pytest.raises(InputError, match="3 classes, and class 3"):
        attribute.attributions(Linear(), x, OF + 1, AGAINST)
    with pytest.raises(InputError, match="Did you mean 'centred'"):
        attribute.method("centered")


def test_methods_of_captum() -> None:
    pytest.importorskip("captum", reason="captum is not installed: pip install 'featherweight[evidence]'")
    torch.manual_seed(0)
    network, x = deepmotif.deepmotif_rnn(), one_hot(3, 12)  # smooth: captum's rule and ours take other points of the way
    of, against = torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0])
    for theirs, ours in (("captum:InputXGradient", "input_x_gradient"), ("captum:IntegratedGradients", "integrated_gradients")):
        found = [attribute.attributions(network, x, of, against, attribute.method(name)) for name in (theirs, ours)]
        torch.testing.assert_close(*found, atol=1e-3 * float(found[1].abs().max()), rtol=0.01)
    deep = attribute.attributions(Linear(), one_hot(3, 6), OF, AGAINST, attribute.method("captum:DeepLift"))
    torch.testing.assert_close(deep, attribute.attributions(Linear(), one_hot(3, 6), OF, AGAINST, attribute.input_x_gradient))
    with pytest.raises(InputError, match="captum has no attribution 'Salience'"):
        attribute.method("captum:Salience")


def test_without_captum_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(InputError, match=r"featherweight\[evidence\]"):
        attribute.method("captum:DeepLift")
