"""Blocks taken out whole: those that the loss misses least go, the budget holds, and what is left is the network without them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight import Blocks, DropBlocks, Recipe, Task, Train, Training, compress, load, structure
from featherweight.budget.choices import Infeasible
from featherweight.errors import InputError
from featherweight.recipes import RECIPES
from featherweight.run.drop_blocks import dropped

WIDTH, BLOCKS = 6, 5


class Block(nn.Module):
    """x + scale F(x)"""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.conv(x)


class Residual(nn.Module):
    """A stem, blocks of these scales, a linear layer. Each block has 6 * 6 * 9 * 64 multiply-accumulates."""

    def __init__(self, scales: tuple[float, ...] = (1.0, 1e-3, 1.0, 1e-4, 1.0)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(scale) for scale in scales))
        self.fc = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Encoder(nn.Module):
    """Layers of attention and MLP, norm first: both go at once, as the layer is the module around them."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(4))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean(1))


def task_of(network: nn.Module, *shape: int) -> Task:
    """Learned outputs, so that a block that does much is missed."""
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = copy.deepcopy(network).eval()(x)
    return Task(
        (x[:1],),
        lambda epoch: list(zip(x.split(16), wanted.split(16), strict=True)),
        lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        lambda model: -F.mse_loss(model(x), wanted).item(),
        lambda parameters: torch.optim.SGD(parameters, 1e-3),
    )


@pytest.fixture
def residual() -> Residual:
    torch.manual_seed(0)
    return Residual().eval()


def test_those_go_that_the_loss_misses_least_and_the_rest_is_untouched(residual: Residual) -> None:
    x, whole = torch.randn(3, 3, 8, 8), copy.deepcopy(residual)
    done = dropped(residual, task_of(residual, 3, 8, 8), Blocks(macs=0.7), 0)
    each, rest = 6 * 6 * 9 * 64, 3 * 6 * 9 * 64 + 6 * 4
    assert (done.spent.before, done.spent.after) == (5 * each + rest, 3 * each + rest)
    assert [path for edit in done.edits for path in edit.identities] in (["blocks.1", "blocks.3"], ["blocks.3", "blocks.1"])
    with torch.no_grad():  # the oracle: those of the whole network that are left, called one after the other
        kept = whole.blocks[4](whole.blocks[2](whole.blocks[0](whole.stem(x))))
        torch.testing.assert_close(residual(x), whole.fc(kept.mean((2, 3))), rtol=0, atol=0)


def test_a_layer_of_a_transformer_goes_whole() -> None:
    torch.manual_seed(0)
    network, x = Encoder().eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        for layer in (network.layers[1], network.layers[2]):
            layer.self_attn.out_proj.weight *= 1e-4
            layer.linear2.weight *= 1e-4
    whole = copy.deepcopy(network)
    done = dropped(network, task_of(network, 5, 8), Blocks(parameters=0.55), 0)
    assert sorted(path for edit in done.edits for path in edit.identities) == ["layers.1", "layers.2"]
    assert done.spent.after == sum(
        p.numel() for module in (whole.layers[0], whole.layers[3], whole.fc) for p in module.parameters()
    )
    with torch.no_grad():
        torch.testing.assert_close(network(x), whole.fc(whole.layers[3](whole.layers[0](x)).mean(1)), rtol=0, atol=0)


def test_a_block_alone_and_blocks_in_one_module_are_told_apart() -> None:
    network = Encoder().eval()
    graph = structure.trace(network, (torch.randn(1, 5, 8),))
    assert len(graph.blocks) == 8
    assert [len(gone) for gone in structure.removable(network, graph).values()] == [2, 2, 2, 2]
    assert structure.droppable(network, graph) == {}  # none goes without the other in the class


def test_it_is_trained_saved_and_loaded(residual: Residual, tmp_path: Path) -> None:
    recipe = RECIPES["drop_blocks"](macs="65%", epochs=1)
    result = compress(residual, recipe, task_of(residual, 3, 8, 8))
    assert result.rows[-1].spent is None and result.rows[1].spent is not None
    result.save(tmp_path / "artifact")
    x = torch.randn(2, 3, 8, 8)
    again = load(tmp_path / "artifact", Residual())
    assert isinstance(again.blocks[1], nn.Identity)
    torch.testing.assert_close(again.eval()(x), result.model.eval()(x))


@pytest.mark.parametrize(
    ("asked", "kind", "told"),
    [
        (Blocks(macs=0.01), Infeasible, r"without every block that can go it has 10,392.*Ask for 9.12 % or more"),
        (Blocks(macs=0.5, blocks="layer*"), InputError, r"'layer\*' matches none of those that can, blocks.0, blocks.1"),
    ],
)
def test_what_cannot_be_met_is_told_with_what_can(asked: Blocks, kind: type[Exception], told: str, residual: Residual) -> None:
    with pytest.raises(kind, match=told):
        dropped(residual, task_of(residual, 3, 8, 8), asked, 0)


def test_without_a_residual_block_another_way_is_named() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(InputError, match=r"no residual block.*l1_filters"):
        dropped(network, task_of(network, 3, 2, 2), Blocks(0.5), 0)


@pytest.mark.parametrize("given", [{}, {"macs": 0.5, "parameters": 0.5}, {"macs": 1.5}, {"macs": 0.5, "samples": 0}])
def test_a_budget_is_one_share(given: dict[str, float]) -> None:
    with pytest.raises(InputError):
        DropBlocks("d", Blocks(**given))  # type: ignore[arg-type]


def test_blocks_go_before_codes(residual: Residual) -> None:
    recipe = Recipe("r", (*RECIPES["progressive_admm"](("2x",), epochs=0, retrain_epochs=0).stages, DropBlocks("d", Blocks(0.9))))
    with pytest.raises(InputError, match="blocks go before weights are coded"):
        compress(residual, recipe, task_of(residual, 3, 8, 8))


def test_training_follows(residual: Residual) -> None:
    recipe = Recipe("r", (Train("dense"), DropBlocks("d", Blocks(0.65), train=Training(1))))
    last = compress(residual, recipe, task_of(residual, 3, 8, 8)).rows[-1]
    assert last.epochs == 1 and last.loss is not None and last.spent is not None
