"""Stages that cut on the graph what a class cannot express: trained on, killed and taken up, saved; and refused up front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attentions import TOKENS, Encoder, OfTheInput
from torch import Tensor, nn

import featherweight as fw
from featherweight import CutUnits, Recipe, Task, Train, measurement, recipes
from featherweight.errors import FeatherweightError, InputError
from featherweight.recipe.reading import from_dict
from featherweight.recipe.units import Units
from featherweight.training.schedule import Training

BATCH = (TOKENS.repeat(3, 1), torch.tensor([0, 1, 2]))
CUT = CutUnits("cut", units=Units("l1", macs=0.6, sites="attentions*", where="graph"), train=Training(1))
RECIPE = Recipe("r", (Train("dense", train=Training(1)), CUT))


def task(**given: Any) -> Task:
    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    made: dict[str, Any] = {"example_inputs": (TOKENS,), "train": [BATCH, BATCH], "loss": loss, "evaluate": lambda n: 0.0}
    return Task(optimizer=lambda parameters: torch.optim.Adam(parameters, 1e-2), **{**made, **given})


def test_heads_that_a_class_cannot_be_without_go_and_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "count_macs", lambda network, example: (1, ()))
    network = Encoder(OfTheInput, layers=1, hidden=4)
    steps = 0

    def killing(*told: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:  # the second step of the cut network
            raise KeyboardInterrupt

    whole = fw.compress(network, RECIPE, task())
    with pytest.raises(KeyboardInterrupt):
        fw.compress(network, RECIPE, task(), workdir=tmp_path / "run", checkpoint_seconds=0, monitor=killing)
    again = fw.compress(network, RECIPE, task(), workdir=tmp_path / "run")
    states = whole.snapshot.state, again.snapshot.state
    assert states[0].keys() == states[1].keys() and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.rows[1].spent == again.rows[1].spent and any("exported module" in s for s in whole.rows[1].spent.remarks())
    assert len(states[0]["attentions.0.qkv.weight"]) < len(network.attentions[0].qkv.weight)
    trained = states[0]["head.weight"]
    assert not torch.equal(trained, network.head.weight)
    again.save(tmp_path / "saved")
    loaded = fw.load(tmp_path / "saved")  # no class is asked for
    x = torch.randint(50, (2, 9))
    assert torch.equal(loaded(x), whole.model(x))


class Ranks(nn.Module):
    """Sorts by an operation that no file may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + torch.special.i0(x.sum())


def test_what_cannot_be_is_refused_before_anything_is_trained() -> None:
    trained = []

    def told(*state: Any) -> None:
        trained.append(state)

    wide = (torch.randn(3, 4), torch.zeros(3, dtype=torch.long))
    cases: list[tuple[nn.Module, Task, str]] = [
        (Ranks(), task(example_inputs=(torch.randn(1, 4),), train=[wide]), r"i0.*Cut with where: class"),
        (
            Encoder(OfTheInput, layers=1),
            task(loss=lambda n, b: n(tokens=b[0]).sum() + 0 * len(n.mlps)),
            "does not run on the exported",
        ),
    ]
    for network, work, match in cases:
        recipe = RECIPE if isinstance(network, Encoder) else recipes.l1_filters(where="graph", epochs=1)
        with pytest.raises(InputError, match=match):
            fw.compress(network, recipe, work, monitor=told)
    assert not trained


def test_layers_are_asked_for_before_the_graph_and_recipes_hold_the_choice() -> None:
    with pytest.raises(InputError, match=r"stage 'again' .* after stage 'cut', .*: put it before"):
        Recipe("r", (CUT, CutUnits("again", units=Units("l1", macs=0.5))))
    with pytest.raises(FeatherweightError, match="auxiliary heads need units of where: class"):
        CutUnits("cut", units=CUT.units, auxiliary=True)
    recipe = recipes.taylor(where="graph")
    assert from_dict(recipe.to_dict()) == recipe and recipe.stages[1].units.where == "graph"


@pytest.mark.parametrize("name", ["reconstruct", "amc", "discriminative_adapt"])
def test_every_recipe_that_cuts_once_cuts_on_the_graph(name: str) -> None:
    given = {"macs": 0.6, **({"episodes": 2, "warm_up": 1, "multiple": 1} if name == "amc" else {})}
    network = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    batches = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(3)]
    work = task(example_inputs=(torch.randn(1, 4),), train=batches, logits=lambda output: output)
    done = fw.compress(network, getattr(recipes, name)(epochs=1, samples=8, where="graph", **given), work)
    assert not isinstance(done.model, nn.Sequential) and len(done.snapshot.state["0.weight"]) < 12
    said = [sentence for row in done.rows for sentence in row.said]
    assert any("by the outputs alone" in sentence for sentence in said) == (name == "reconstruct")


def test_a_network_cut_on_the_graph_without_training_is_taught_the_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3))
    inputs = [torch.randn(16, 4) for _ in range(4)]
    done = fw.prune(network, (inputs[0],), macs=0.6, data=inputs, reconstruct=3, where="graph", refit=False)
    untaught = fw.prune(network, (inputs[0],), macs=0.6, data=inputs, where="graph", refit=False)
    with torch.no_grad():
        far = [float((made.model(inputs[0]) - network(inputs[0])).square().mean()) for made in (done, untaught)]
    assert far[0] < far[1] and any("by the outputs alone" in sentence for sentence in done.rows[1].said)
    done.save(tmp_path / "saved")
    assert torch.equal(fw.load(tmp_path / "saved")(inputs[1]), done.model(inputs[1]))
