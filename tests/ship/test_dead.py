"""Units that do nothing are cut before a network is written, whatever code its weights and biases are in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from featherweight.ship import dead
from featherweight.ship.export import _decoded, shippable
from featherweight.weights import parametrized
from featherweight.weights.sets import Codebook, Levels, Set, SparseCodebook, TopK, TopRows
from featherweight.weights.views import WHOLE, View

IMAGES = torch.randn(2, 3, 6, 6)
ROWS = View("o ... -> o (...)")


def count(matrix: Tensor) -> int:
    return int(matrix.count_nonzero())


CODES: dict[str, Callable[[Tensor], Set] | None] = {  # matrix -> a set that has its zeros
    "plain": None,
    "sparse": lambda matrix: TopK(count(matrix)),
    "rows": lambda matrix: TopRows(count(matrix.norm(dim=1))),
    "sparse_scaled": lambda matrix: Levels("uniform", 3, sparse=True),
    "sparse_shared": lambda matrix: SparseCodebook(count(matrix), 3),
    "masked_shared": lambda matrix: Codebook(3, sparse=True),
}


def network() -> nn.Module:
    """8, 6 and 9 units, of which 2, 1 and 3 are dead: of zeros, of a constant, and of zeros that nobody reads."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 9)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(9, 4))
    model(torch.randn(16, 3, 6, 6))
    with torch.no_grad():
        model[0].weight[:2] = model[0].bias[:2] = 0
        model[3].weight[4] = 0  # leaves its bias
        model[6].weight[3:6] = model[6].bias[3:6] = 0
        model[8].weight[:, 3:6] = 0
    return model.eval()


@pytest.mark.third
@pytest.mark.parametrize("kind", CODES)
def test_dead_units_go_whatever_the_code_of_weights_and_biases(kind: str) -> None:
    model, make = network(), CODES[kind]
    for name, weight in list(model.named_parameters()):
        if make is not None and not name.startswith("1."):
            view = ROWS if weight.dim() > 1 and kind != "sparse_shared" else WHOLE
            matrix = view.to_matrix(weight.detach())
            parametrized.attach(model, name, view, make(matrix).encode(matrix))
    plain, (got, held) = shippable(model), _decoded(model, (IMAGES,))
    weights = dict(got.named_parameters())
    assert [len(weights[f"{layer}.weight"]) for layer in (0, 3, 6)] == [6, 5, 6]
    assert all(torch.equal(one.weight, weights[name].detach()) for name, one in held.items())
    torch.testing.assert_close(got(IMAGES), plain(IMAGES), rtol=1e-5, atol=1e-5)


def test_codes_in_a_file_follow_the_cut() -> None:
    """What a code stores of a cut weight decodes to that weight: values, indices, and scales of its rows."""
    torch.manual_seed(0)
    masks = {("0.weight", 0): torch.tensor([True, False] * 32), ("0.weight", 1): torch.tensor([True, True, False, True] * 16)}
    for chosen in (TopK(500), Levels("uniform", 3), Levels("uniform", 3, sparse=True), Codebook(9), SparseCodebook(700, 9)):
        model = nn.Sequential(nn.Linear(64, 64, bias=False))
        view = WHOLE if isinstance(chosen, SparseCodebook) else ROWS
        parametrized.attach(model, "0.weight", view, chosen.encode(view.to_matrix(model[0].weight.detach())))
        plain, held = _decoded(model, None)
        small = nn.Sequential(nn.Linear(48, 32, bias=False))
        small[0].weight.data = plain[0].weight.data[::2][:, masks["0.weight", 1]]
        one = dead.cut_codes(held, small, masks)["0.weight"]
        values = one.values if one.index is None or one.table is None else one.table[one.index.long()]
        assert values is not None
        if one.support is not None:
            values = torch.zeros(32, 48).masked_scatter_(one.support, values)
        assert torch.equal(values.reshape(32, 48) * (1 if one.scale is None else one.scale), small[0].weight)


def test_a_network_that_was_not_pruned_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(dead.structure, "trace", lambda *given: asked.append(given))
    words = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 2))
    shippable(words, (torch.zeros(1, 3, dtype=torch.int64),))
    assert not asked


def test_a_network_that_cannot_be_traced_stays_as_it_is() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    model = Branching(3, 4)
    model.weight.data[1] = 0
    assert torch.equal(shippable(model, (torch.ones(1, 3),)).weight, model.weight)
