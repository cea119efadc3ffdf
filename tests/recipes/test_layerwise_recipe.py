"""Pruning in one shot, layer after layer, end to end: a small language model, convolutions of all kinds, artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import featherweight as fw
from featherweight.criteria.inputs import in_order, second_moments
from featherweight.errors import InputError, RecipeError
from featherweight.network.evaluating import evaluating
from featherweight.recipe.plan import resolve
from featherweight.recipe.schema import Constrain, Layerwise, Rule
from featherweight.recipes import RECIPES
from featherweight.weights.drivers import ADMM
from featherweight.weights.sets import LowRank, TopEach, TopK

TOKENS, WIDTH = 24, 16


class Language(nn.Module):
    """Causal, one block; queries, keys and values are layers of their own, and so is the head."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(TOKENS, WIDTH), nn.Embedding(WIDTH, WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
        normed = self.norm(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(normed), self.k(normed), self.v(normed), is_causal=True))
        return self.head(x + self.down(F.gelu(self.up(x))))


class Mixed(nn.Module):
    """A convolution in groups, one whose input channels no four divide, and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 16, 3, groups=2, stride=2)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.up(self.grouped(self.first(images).relu()).relu()).relu()
        return self.last(hidden.mean((2, 3)))


def language_task(batches: int = 2) -> fw.Task:
    text = torch.randint(0, TOKENS, (batches, 8, 12), generator=torch.Generator().manual_seed(0))

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, 1e-2)  # type: ignore[arg-type]

    return fw.Task(
        (text[0, :1, :-1],), list(text), loss, lambda network: 0.0, optimizer, logits=lambda output: output, classes=-1
    )


def image_task() -> fw.Task:
    dice = torch.Generator().manual_seed(1)
    pairs = [(torch.randn(8, 3, 9, 9, generator=dice), torch.randint(0, 4, (8,), generator=dice)) for _ in range(3)]
    return fw.Task.classification(pairs, pairs)


def made(kind: type[nn.Module], **how: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**how)


@pytest.mark.parametrize("keep", ["4x", "2:4"])
def test_a_language_model_keeps_its_embeddings_and_its_head_and_says_so(keep: str, tmp_path: Path) -> None:
    network, task = made(Language), language_task()
    done = fw.compress(network, RECIPES["layerwise_admm"](keep, allocate="uniform", samples=16), task)
    said = " ".join(done.rows[-1].said)
    assert "embed.weight" in said and "head.weight: it is the head of a language model" in said
    for name in ("q", "k", "v", "o", "up", "down"):
        weight = done.model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        share = 0.5 if keep == "2:4" else 0.25
        assert int(weight.count_nonzero()) == round(share * weight.numel())
        if keep == "2:4":
            assert bool((weight.reshape(-1, 4).count_nonzero(1) <= 2).all())
    assert torch.equal(done.model.head.weight, network.head.weight)  # type: ignore[union-attr]
    assert "the weights that went are zeros" in str(done.report)
    assert "are zeros" not in str(fw.prune(made(Mixed), (torch.zeros(1, 3, 9, 9),), macs=0.7).report), "fewer MACs, not zeros"
    done.save(tmp_path / "folder")
    size = done.pack(tmp_path / "file.fwz")
    assert size < 4 * sum(p.numel() for p in network.parameters())
    tokens = task.example_inputs[0]  # type: ignore[index]
    for path in ("folder", "file.fwz"):
        assert torch.equal(fw.load(tmp_path / path, made(Language))(tokens), done.model(tokens))


def test_whose_head_is_left_alone() -> None:
    """Rules that prune leave it out unless it is named; others take it; a tied one is tied; a classifier is no head."""
    task, found = language_task(), {}
    for name, network in (("own", made(Language)), ("tied", made(Language, tied=True)), ("classifier", made(Mixed))):
        example = (image_task() if name == "classifier" else task).example_inputs
        for targets in ("weights", "*head*"):
            try:
                plan = resolve(RECIPES["progressive_admm"](("5x",), targets).stages[-1], network, example=example)  # type: ignore[arg-type]
                found[name, targets] = "head.weight" in plan.targets, plan.left_out.get("head.weight", "")[:8]
            except RecipeError:
                found[name, targets] = None, ""
        found[name, "last"] = (
            "last.weight" in resolve(RECIPES["layerwise_admm"]().stages[-1], network, example=example).targets,
            "",
        )  # type: ignore[arg-type]
    assert found["own", "weights"] == (False, "it is th") and found["own", "*head*"] == (True, "")
    assert found["tied", "weights"] == (False, "it is ti") and found["tied", "*head*"] == (None, "")
    assert found["classifier", "last"][0]
    quantised = resolve(RECIPES["admm_quantization"]().stages[-1], made(Language), example=task.example_inputs)  # type: ignore[arg-type]
    assert "head.weight" in quantised.targets


@pytest.mark.parametrize("method", ["admm", "sparsegpt", "wanda", "magnitude"])
def test_convolutions_of_all_kinds(method: str) -> None:
    network, task = made(Mixed), image_task()
    done = fw.compress(network, RECIPES["layerwise_admm"](0.5, method, allocate="uniform"), task)
    weights = {name: done.model.get_submodule(name).weight for name in ("first", "grouped", "last", "up")}
    assert [int(w.count_nonzero()) for w in weights.values()] == [108, 288, 16, 16 * 8 * 4]
    assert any("up.weight: what a ConvTranspose2d" in line for line in done.rows[-1].said)
    grouped = fw.compress(network, RECIPES["layerwise_admm"]("2:4", method), task)
    assert any("first.weight: view" in line and "4 into 3" in line for line in grouped.rows[-1].said)
    kept = grouped.model.get_submodule("grouped").weight
    assert isinstance(kept, Tensor) and bool((kept.transpose(1, 3).count_nonzero(3) <= 2).all())


def test_a_layer_is_watched_behind_what_was_pruned_before_it_and_the_network_runs_no_further() -> None:
    network, task = made(Language), language_task()
    order = in_order(network, task.example_inputs, ["down", "up", "o", "v", "k", "q", "head"])
    assert list(order) == [("q", "k", "v"), ("o",), ("up",), ("down",), ("head",)] and order[("q", "k", "v")] == 3
    with torch.no_grad():
        network.up.weight.zero_()  # type: ignore[union-attr, operator]
    network.down.register_forward_pre_hook(lambda module, inputs: pytest.fail("it runs on") if network.stop else None)  # type: ignore[arg-type]
    network.stop = True  # type: ignore[assignment]
    assert list(second_moments(network, task, ["up"], 1, 16)) == ["up"]
    network.stop = False  # type: ignore[assignment]
    found = second_moments(network, task, ["down"], 1, 16)["down"]
    expected = F.gelu(network.up.bias).double()  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(found[0], torch.outer(expected, expected), rtol=1e-5, atol=1e-8)
    exact = second_moments(network, task, ["q"], 1, 16)["q"]
    with torch.autocast("cpu", torch.bfloat16):  # a loss's own, which rounds nothing of what is summed
        torch.testing.assert_close(second_moments(network, task, ["q"], 1, 16)["q"], exact, rtol=1e-6, atol=1e-8)


def test_moments_of_a_grouped_convolution_are_those_of_its_unfolded_inputs() -> None:
    network, task = made(Mixed), image_task()
    found = second_moments(network, task, ["grouped"], 1, 8)["grouped"]
    images = next(iter(task.batches(0)))[0]
    with torch.no_grad(), evaluating(network):
        vectors = F.unfold(network.first(images).relu(), 3, stride=2).transpose(1, 2).flatten(0, 1)  # type: ignore[operator]
    for group in range(2):
        mine = vectors[:, 36 * group : 36 * (group + 1)].double()
        torch.testing.assert_close(found[group], mine.T @ mine / len(mine), rtol=1e-5, atol=1e-8)


def test_rules_that_match_more_than_weights_and_weights_of_half_precision() -> None:
    network = made(Language).bfloat16()
    stage = Constrain("s", (Rule("*q*", TopEach(3), "rows"), Rule("*k*", TopK(5))), layerwise=Layerwise(samples=8))
    done = fw.compress(network, fw.Recipe("half", (fw.Train("dense"), stage)), language_task())
    assert done.model.q.weight.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert bool((done.model.q.weight.count_nonzero(1) == 3).all()) and int(done.model.k.weight.count_nonzero()) == 5  # type: ignore[union-attr]
    assert torch.equal(done.model.q.bias, network.q.bias)  # type: ignore[union-attr]
    assert any("q.bias" in line for line in done.rows[-1].said)


def test_training_goes_on_inside_the_places(tmp_path: Path) -> None:
    done = fw.compress(made(Language), RECIPES["layerwise_admm"]("4x", samples=8, epochs=2), language_task(), workdir=tmp_path)
    before = fw.compress(made(Language), RECIPES["layerwise_admm"]("4x", samples=8), language_task())
    for one, other in ((done.model.q.weight, before.model.q.weight),):  # type: ignore[union-attr]
        assert torch.equal(one != 0, other != 0) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("made_wrong", "told"),
    [
        (lambda: Constrain("s", (Rule("*", TopK(1)),), layerwise=Layerwise("svd")), "svd is for LowRank"),
        (lambda: Constrain("s", (Rule("*", LowRank(1)),), layerwise=Layerwise()), "layerwise chooses which weights stay"),
        (
            lambda: Constrain("s", (Rule("*", TopK(1)),), driver=ADMM(1.0, 1), layerwise=Layerwise()),
            "takes the place of a driver",
        ),
        (lambda: Layerwise(samples=0), "samples must be at least 1"),
        (lambda: RECIPES["layerwise_admm"]("5:4"), "keeps 5 of each 4"),
        (lambda: RECIPES["progressive_admm"](("0:4",)), "keeps 0 of each 4"),
        (lambda: RECIPES["layerwise_admm"]("half"), "keep holds what each stage keeps"),
        (lambda: RECIPES["layerwise_admm"](("2x",)), "keep holds what each stage keeps"),
    ],
)
def test_what_makes_no_sense_is_refused(made_wrong: object, told: str) -> None:
    with pytest.raises(InputError, match=told):
        made_wrong()  # type: ignore[operator]


def test_progressive_admm_takes_n_of_m() -> None:
    recipe = RECIPES["progressive_admm"](("2:4",), epochs=1, retrain_epochs=1)
    stage = recipe.stages[-1]
    assert isinstance(stage, Constrain) and stage.rules[0].set == TopEach(2) and not stage.sweep and not stage.respread
    done = fw.compress(made(Language), recipe, language_task())
    weight = done.model.up.weight  # type: ignore[union-attr]
    assert bool((weight.reshape(-1, 4).count_nonzero(1) <= 2).all())
