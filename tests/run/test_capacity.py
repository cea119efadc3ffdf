"""What a run needs on several devices is what the same network holds here, counted without values."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from featherweight.cli import app
from featherweight.errors import InputError
from featherweight.network.calls import Inputs
from featherweight.run.capacity import Counted, Live, count, dual
from featherweight.weights.drivers import ADMM
from featherweight.weights.sets import LowRank, TopK

EXAMPLE = Inputs((torch.zeros(16, 3, dtype=torch.int64),))


class Words(nn.Module):
    """Tokens (batch, time) -> (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(10, 32), nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens).mean(1)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return self.out(hidden)


@pytest.fixture(scope="module")
def counted() -> Counted:
    return count(Words, EXAMPLE)


def test_each_part_is_what_the_network_itself_holds(counted: Counted) -> None:
    network, live = Words(), Live()
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(live.is_gradient)
    with live:
        network(*EXAMPLE.args).float().square().mean().backward()
    optimizer.step()
    assert counted.activations == live.peak > 16 * 32 * 4
    weights = sum(p.numel() for p in network.parameters())
    driven = 3 * 32 * 32 + 4 * 32  # the embedding is none
    assert (counted.parameters, counted.targets, counted.driven) == (weights, driven, 4)
    assert counted.weights == counted.gradients == 4 * weights
    held = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    assert counted.moments == sum(t.nbytes for t in held) == 8 * weights
    assert counted.duals == driven * 4 + driven // 8
    assert counted.flops == 3 * 2 * 16 * driven


def test_gradients_are_no_activations() -> None:
    """Each is one, for the moment in which it is made."""
    deep = count(lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(6))), Inputs((torch.zeros(1, 64),)))
    assert deep.gradients == 6 * 4 * 65 * 64 and deep.activations < 2 * 4 * 65 * 64


def test_duals_are_what_the_driver_holds() -> None:
    driver = ADMM(0.1, 5)
    assert dual(driver, TopK(9), torch.float32) == dual(driver, TopK(9), torch.bfloat16) == 4.125
    assert dual(driver, LowRank(2), torch.float32) == 12


def test_shards_divide_what_lies_in_them_and_the_fewest_devices_are_the_first_that_hold_it(counted: Counted) -> None:
    one, eight, whole = counted.on(1, True), counted.on(8, True), counted.on(8, False)
    for part in ("weights", "gradients", "optimizer", "Z and U"):
        assert eight.parts[part] == pytest.approx(whole.parts[part] / 8, abs=1)
    assert eight.parts["activations"] == whole.parts["activations"]
    assert one.sent == {} and whole.sent["gradients, summed"] == pytest.approx(2 * 7 / 8 * counted.gradients, abs=1)
    least = counted.least(eight.bytes)
    assert least is not None and counted.on(least, True).bytes <= eight.bytes < counted.on(least // 2, True).bytes
    assert counted.least(1) is None


def test_a_network_that_asks_for_values_is_refused_in_a_sentence() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.layer(given) if given.sum() > 0 else given

    with pytest.raises(InputError, match="asks no tensor for its values"):
        count(Asking, Inputs((torch.zeros(1, 4),)))


def test_the_command_tells_it_and_whether_it_fits() -> None:
    given = ["plan", "lenet_300_100", "--input", "8x1x28x28", "--devices", "4", "--memory", "1MB"]
    told = CliRunner().invoke(app, [*given, "--json"])
    found = json.loads(told.stdout)
    assert found["counted"]["parameters"] == 266610
    assert found["in shards"]["bytes"] < found["whole on each"]["bytes"] and found["fewest devices"] is None
    assert "does not fit" in CliRunner().invoke(app, given).stdout
    assert CliRunner().invoke(app, [*given, "--budget", "macs=50%"]).exit_code == 2
