"""Prefixes and suffixes by running each alone; class optimisation against a network whose best input is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from featherweight.evidence import optimise, prefixes
from featherweight.zoo import deepmotif


def one_hot(count: int, length: int) -> Tensor:
    codes = torch.randint(0, 4, (count, length), generator=torch.Generator().manual_seed(0))
    return nn.functional.one_hot(codes, 4).transpose(1, 2).float()


def test_a_prefix_is_the_network_on_it_alone() -> None:
    torch.manual_seed(0)
    network, x = deepmotif.MotifRNN(), one_hot(2, 12)
    ahead, back = prefixes.prefixes(network, x), prefixes.suffixes(network, x)
    assert ahead.shape == back.shape == (2, 12) and network.training
    network.eval()
    with torch.no_grad():
        for example in range(2):
            for step in range(12):
                alone = network(x[example : example + 1, :, : step + 1]).softmax(1)[0, 1]
                rest = network(x[example : example + 1, :, step:]).softmax(1)[0, 1]
                torch.testing.assert_close(torch.stack([ahead[example, step], back[example, step]]), torch.stack([alone, rest]))
    assert ahead[:, -1].equal(back[:, 0])


def test_the_convolution_is_made_once_of_the_whole_sequence() -> None:
    """At the border of a prefix the features know the bases beyond it: a prefix run alone has zeros there."""
    torch.manual_seed(0)
    network, x = deepmotif.MotifCNNRNN().eval(), one_hot(1, 20)
    found = prefixes.prefixes(network, x)
    with torch.no_grad():
        features = torch.relu(network.conv(x))
        cut = torch.stack([network.recurrent(features[:, :, : step + 1]).softmax(1)[0, 1] for step in range(20)])
        alone = torch.stack([network(x[:, :, : step + 1]).softmax(1)[0, 1] for step in range(20)])
    torch.testing.assert_close(found[0], cut)
    assert (found[0] - alone)[:-1].abs().max() > 1e-5
    torch.testing.assert_close(found[0, -1], alone[-1])


def test_a_network_without_parts_is_run_as_a_whole() -> None:
    torch.manual_seed(0)
    network, x = deepmotif.MotifRNN(), one_hot(1, 8)
    whole = nn.Sequential(network)
    torch.testing.assert_close(prefixes.prefixes(whole, x), prefixes.prefixes(network, x))
    assert prefixes.is_recurrent(whole) and not prefixes.is_recurrent(deepmotif.deepmotif_cnn())


class Wants(nn.Module):
    """Logit 1 is how many places hold their wanted base."""

    def __init__(self, wanted: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.functional.one_hot(torch.tensor(wanted), 4).T.float() - 0.25)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).sum((1, 2))
        return torch.stack([-score, score], dim=1)


def test_the_optimised_input_is_what_the_network_wants() -> None:
    wanted = [0, 3, 2, 1, 1, 0]
    found = optimise.optimise(Wants(wanted), 4, 6, starts=3, seed=1, steps=150)
    assert found.codes.tolist() == wanted and found.weights.argmax(1).tolist() == wanted
    assert found.weights.shape == (6, 4) and torch.allclose(found.weights.sum(1), torch.ones(6))
    exact = torch.sigmoid(torch.tensor(2 * 6 * 0.75)).item()  # of the one-hot sequence itself
    assert found.probability_of_codes == pytest.approx(exact, rel=1e-5)
    assert len(found.probabilities_of_starts) == 3 and max(found.probabilities_of_starts) == found.probability_of_codes


def test_it_is_seeded_and_the_penalty_shrinks_it() -> None:
    torch.manual_seed(0)
    network = deepmotif.deepmotif_rnn()
    made = [optimise.optimise(network, 4, 9, seed=seed, steps=5) for seed in (0, 0, 1)]
    assert torch.equal(made[0].weights, made[1].weights) and not torch.equal(made[0].weights, made[2].weights)
    other = optimise.optimise(Wants([0, 1]), 4, 2, starts=1, steps=400, penalty=10.0)
    assert other.probability < optimise.optimise(Wants([0, 1]), 4, 2, starts=1, steps=400).probability


def test_one_step_is_the_authors() -> None:
    """RMSprop of Torch: m = .99 m + .01 g^2, x = x - .05 g / (sqrt(m) + 1e-8); g of NLL + .009 |X|^2 by hand."""
    network = Wants([2, 0, 1])
    x = torch.rand((1, 4, 3), generator=torch.Generator().manual_seed(5))
    weight = network.weight.detach()
    for _ in range(2):
        share = torch.sigmoid(2 * (x * weight).sum((1, 2)))
        gradient = -2 * (1 - share)[:, None, None] * weight + 2 * 0.009 * x
        mean = 0.01 * gradient**2 if _ == 0 else 0.99 * mean + 0.01 * gradient**2  # noqa: F821
        x = x - 0.05 * gradient / (mean.sqrt() + 1e-8)
    found = optimise.optimise(network, 4, 3, starts=1, seed=5, steps=2)
    clamped = x[0].clamp(0, 1)
    scaled = clamped / clamped.max() + 0.01
    torch.testing.assert_close(found.weights, (scaled / scaled.sum(0)).T, atol=1e-5, rtol=1e-4)
