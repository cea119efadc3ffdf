"""The Deep Motif networks: against the layers written out with numpy; their first weights; what can be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import InputError
from featherweight.structure import prune, trace
from featherweight.zoo import deepmotif

NETWORKS = (deepmotif.deepmotif_cnn, deepmotif.deepmotif_rnn, deepmotif.deepmotif_cnn_rnn)


def bases(count: int, length: int, seed: int = 0) -> Tensor:
    codes = torch.randint(0, 4, (count, length), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.one_hot(codes, 4).transpose(1, 2).float()


def state(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in network.state_dict().items()}


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One sequence (inputs, length): a dot product a filter and place."""
    width = weight.shape[2]
    return np.stack([(weight * x[None, :, t : t + width]).sum((1, 2)) + bias for t in range(x.shape[1] - width + 1)], axis=1)


def pooled(x: np.ndarray) -> np.ndarray:
    return np.stack([x[:, 2 * t : 2 * t + 2].max(1) for t in range(x.shape[1] // 2)], axis=1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def mean_state(x: np.ndarray, values: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    """The mean over time of the hidden states of an LSTM that reads (inputs, length) from the left."""
    h = c = np.zeros(values[f"{prefix}.weight_hh_l0"].shape[1])
    seen = []
    for t in range(x.shape[1]):
        gates = values[f"{prefix}.weight_ih_l0"] @ x[:, t] + values[f"{prefix}.weight_hh_l0"] @ h
        i, f, g, o = np.split(gates + values[f"{prefix}.bias_ih_l0"] + values[f"{prefix}.bias_hh_l0"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        seen.append(h)
    return np.mean(seen, axis=0)


def recurrent(x: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    ahead, back = mean_state(x, values, "recurrent.forwards"), mean_state(x[:, ::-1], values, "recurrent.backwards")
    return values["recurrent.fc.weight"] @ np.concatenate([ahead, back]) + values["recurrent.fc.bias"]


def by_hand(name: str, x: np.ndarray, values: dict[str, np.ndarray]) -> np.ndarray:
    if name == "deepmotif_rnn":
        return recurrent(x, values)
    if name == "deepmotif_cnn_rnn":
        padded = np.pad(x, ((0, 0), (4, 4)))
        return recurrent(np.maximum(convolved(padded, values["conv.weight"], values["conv.bias"]), 0), values)
    x = pooled(np.maximum(convolved(x, values["conv1.weight"], values["conv1.bias"]), 0))
    x = pooled(np.maximum(convolved(x, values["conv2.weight"], values["conv2.bias"]), 0))
    x = np.maximum(convolved(x, values["conv3.weight"], values["conv3.bias"]), 0).max(1)
    return values["fc.weight"] @ x + values["fc.bias"]


@pytest.mark.parametrize("make", NETWORKS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("length", [31, 40])
def test_the_layers_of_the_paper(make, length: int) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    network, x = make().eval(), bases(2, length)
    with torch.no_grad():
        logits = network(x).double().numpy()
    expected = np.stack([by_hand(make.__name__, one, state(network)) for one in x.double().numpy()])
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-4


def test_dropout_is_before_the_mean_and_after_each_activation() -> None:
    torch.manual_seed(0)
    for make in NETWORKS:
        network = make()
        x = bases(1, 60)
        assert not torch.equal(network(x), network(x)), "dropout is on in training"
        assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.5]


def test_the_authors_initialisation() -> None:
    torch.manual_seed(0)
    network = deepmotif.MotifCNNRNN()
    for layer in (network.recurrent.forwards, network.recurrent.backwards):
        assert layer.weight_ih_l0.std().item() == pytest.approx((32 + 128) ** -0.5, rel=0.05)
        assert layer.weight_hh_l0.std().item() == pytest.approx((32 + 128) ** -0.5, rel=0.05)
        gates = (layer.bias_ih_l0 + layer.bias_hh_l0).detach().reshape(4, 32)
        assert torch.equal(gates, torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand(4, 32))
    bound = (4 * 9) ** -0.5  # Torch's convolutions and linear layers: uniform within 1 / sqrt(inputs of a unit)
    assert 0.95 * bound < network.conv.weight.abs().max().item() <= bound


def test_the_ways_do_not_share_weights() -> None:
    network = deepmotif.MotifRNN()
    assert not torch.equal(network.recurrent.forwards.weight_ih_l0, network.recurrent.backwards.weight_ih_l0)


def test_too_few_bases_for_the_convolutions() -> None:
    network = deepmotif.deepmotif_cnn().eval()
    assert network(bases(1, 28)).shape == (1, 2)
    with pytest.raises(InputError, match="at least 28 bases at once, given 27"):
        network(bases(1, 27))
    assert deepmotif.deepmotif_rnn()(bases(3, 1)).shape == (3, 2)


def test_units_and_channels_can_go() -> None:
    torch.manual_seed(0)
    wanted = (("conv1", "conv2", "conv3"), ("forwards", "backwards"), ("conv", "forwards", "backwards"))
    for make, sites, length in zip(NETWORKS, wanted, (28, 6, 6), strict=True):
        network = make().eval()
        before = sum(p.numel() for p in network.parameters())
        graph = trace(network, (bases(1, length),))
        chosen = {name: range(10) for name in graph.sites if any(site in name for site in sites)}
        assert len(chosen) == len(sites)
        small = prune(network, graph, chosen).model
        assert sum(p.numel() for p in small.parameters()) < before
        assert small(bases(2, length)).shape == (2, 2)
