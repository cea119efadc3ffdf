"""Weights in shards: masks are those of the whole weight, ties included; training ends where that of the whole network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import table
import torch
import torch.distributed.tensor  # before the fork: it is large
from several import NEEDS_GLOO, in_two
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW

from featherweight.errors import InputError
from featherweight.weights.constrained import Constrained
from featherweight.weights.drivers import ADMM, Periodic
from featherweight.weights.parametrized import decoded
from featherweight.weights.sets import LowRank, TopK, TopRows
from featherweight.weights.sharded import largest_of_all
from featherweight.weights.targets import Target
from featherweight.weights.views import View

pytestmark = NEEDS_GLOO
INPUTS, ANSWERS = table.matrix(10, 8, seed=70), table.matrix(10, 1, seed=71)
MATRIX = View("o i -> o i")
SETS = {"top_k": TopK(17), "top_rows": TopRows(2), "low_rank": LowRank(2)}


def network() -> nn.Sequential:
    """The last layer has one row, so that one of two processes has an empty shard of it."""
    layers = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    with torch.no_grad():
        for number, parameter in enumerate(layers.parameters()):
            parameter.copy_(table.matrix(1, parameter.numel(), seed=80 + number).reshape(parameter.shape))
    return layers


def trained(kind: str, model: nn.Module, driver: Any = None) -> tuple[Constrained, dict[str, float]]:
    optimizer = AdamW(model.parameters(), 0.01)
    targets = {"0.weight": Target(SETS[kind], MATRIX), "2.weight": Target(TopK(3))}
    driver = driver or ADMM(0.3, 3, 1.2, coupling="proximal")
    with Constrained(driver, model, optimizer, targets) as imposed:
        for _ in range(7):
            optimizer.zero_grad()
            (model(INPUTS) - ANSWERS).square().mean().backward()
            optimizer.step()
        residuals = imposed.residuals()
    return imposed, residuals


def sharded(rank: int) -> Any:
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for kind in SETS:
        model: Any = network()
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
        imposed, residuals = trained(kind, model)
        state = imposed.states["2.weight"]
        assert state["pulled_to"].shape == model[2].weight.to_local().shape  # of none in one process
        found[kind] = {name: p.full_tensor().detach() for name, p in model.named_parameters()}, residuals
    with pytest.raises(InputError, match="Periodic is not imposed on shards"):
        trained("top_k", model, Periodic(3))
    return found


def test_fsdp_ends_where_the_whole_network_does(tmp_path: Path) -> None:
    one, other = in_two(tmp_path / "run", sharded)
    for kind in SETS:
        model = network()
        _, residuals = trained(kind, model)
        weights, found = one[kind]
        for name, expected in decoded(model).items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-6, atol=1e-9)
            assert torch.equal(weights[name] != 0, expected != 0)
        assert found == pytest.approx(residuals, rel=1e-6) and other[kind][1] == found


def cut(rank: int) -> list[tuple[int, int, Tensor]]:
    """Of every matrix of the table in two uneven parts: the mask of this process's."""
    found = []
    for matrix in table.MATRICES.values():
        flat = matrix.reshape(-1)
        for split in (0, 7):
            part = flat[:split] if rank == 0 else flat[split:]
            found += [(split, count, largest_of_all(part, count)) for count in (0, 1, 13, 20, 48)]
    return found


def test_the_largest_of_all_shards_are_those_of_the_whole_by_order_of_processes(tmp_path: Path) -> None:
    one, other = in_two(tmp_path / "run", cut)
    wholes = [matrix.reshape(-1) for matrix in table.MATRICES.values() for _ in range(2 * 5)]
    for whole, (_, count, first), (_, _, second) in zip(wholes, one, other, strict=True):
        mask = torch.cat([first, second])
        expected = torch.zeros_like(mask)
        expected[whole.abs().argsort(descending=True, stable=True)[:count]] = True
        assert torch.equal(mask, expected)
        assert whole.abs()[mask].sum() == pytest.approx(float(TopK(count).project(whole[None]).abs().sum()))
