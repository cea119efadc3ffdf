"""Goals: read from text, ways fitted by what they cost, probes that never look at the test part, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from featherweight import Task, shrink
from featherweight.budget.choices import Infeasible
from featherweight.compression import chosen, compress
from featherweight.errors import InputError
from featherweight.recipe.schema import Recipe, Train
from featherweight.recipe.way import Way
from featherweight.recipes.goals import BITS, ways_to
from featherweight.run.choose import LEAST, SEARCHED, fitted, held_out
from featherweight.run.goals import Costs, Goal, OutOfReach
from featherweight.run.shrunk import remember, settled, taken_up


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def task(batches: int = 8, evaluate: Callable[[nn.Module], float] | None = None) -> Task:
    dice = torch.Generator().manual_seed(0)
    inputs = torch.randn(16 * batches, 6, generator=dice)
    labels = inputs[:, :3].argmax(1)
    pairs = list(zip(inputs.split(16), labels.split(16), strict=True))
    return Task(
        (inputs[:1],), pairs, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1]),
        evaluate or (lambda net: 100 * float((net(inputs).argmax(1) == labels).float().mean())),
        lambda parameters: torch.optim.Adam(parameters, 1e-2),
    )  # fmt: skip


# --- goals as text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("100kB", Goal("bytes", 100_000, False)),
        ("1.5 MB", Goal("bytes", 1_500_000, False)),
        ("bytes=4x", Goal("bytes", 0.25, True)),
        ("bytes=20KiB", Goal("bytes", 20_480, False)),
        ("2ms", Goal("latency_ms", 2, False)),
        ("500us", Goal("latency_ms", 0.5, False)),
        ("latency_ms=2", Goal("latency_ms", 2, False)),
        ("faster=4x", Goal("latency_ms", 0.25, True)),
        ("macs=50%", Goal("macs", 0.5, True)),
        ("weights=10x", Goal("weights", 0.1, True)),
        ("parameters=0.25", Goal("parameters", 0.25, True)),
    ],
)
def test_a_goal_is_read(text: str, goal: Goal) -> None:
    found = Goal.of(text)
    assert (found.what, found.share) == (goal.what, goal.share) and found.amount == pytest.approx(goal.amount, rel=1e-12)
    assert found.limit(8.0) == pytest.approx(8 * goal.amount if goal.share else goal.amount)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2x", "of what"),
        ("macs=50", "macs=50%"),
        ("macs=2ms", "a goal is"),
        ("latency_ms=2x", "faster"),
        ("bytes=3", "a share to keep"),
        ("bytes=3ms", "a size"),
        ("weigths=10x", "Did you mean 'weights'"),
        ("faster=50%", "above 1"),
        ("0kB", "above 0"),
        ("fast", "A goal is"),
    ],
)
def test_a_goal_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Goal.of(text)


# --- how far a way goes --------------------------------------------------------------------------------------------------


def way(**fields: Any) -> Way:
    """One whose recipe carries the amount in its name."""
    return Way("made up", lambda amount, epochs: Recipe(repr(amount), (Train("dense"),)), **fields)


SHAPES: dict[str, Callable[[float], float]] = {
    "in proportion": lambda a: 1000 * a,
    "a part stays": lambda a: 60 + 940 * a,
    "of the square": lambda a: 1000 * a * a,
    "coded, far below what was given": lambda a: 5 + 120 * a,
    "steps": lambda a: 1000 * math.ceil(40 * a) / 40,
}


@pytest.mark.parametrize("share", [0.8, 0.3, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_way_goes_as_far_as_it_has_to_and_little_further(shape: str, share: float) -> None:
    tried = []

    def cost(recipe: Recipe) -> float:
        tried.append(float(recipe.name))
        return SHAPES[shape](tried[-1])

    fit = fitted(way(), Goal("weights", share, True), 1000 * share, 1000, cost)
    assert len(tried) <= SEARCHED and fit.amount in tried
    largest = min(1.0, max(a / 1000 for a in range(1, 1001) if SHAPES[shape](a / 1000) <= 1000 * share))
    assert fit.cost == SHAPES[shape](fit.amount) <= 1000 * share and fit.amount >= 0.9 * largest


def test_the_mildest_of_several_bits_is_taken() -> None:
    for limit in (8.5, 8, 5.9, 3, 2):
        fit = fitted(way(amounts=BITS), Goal("weights", limit, False), limit, 32, lambda recipe: float(recipe.name))
        assert fit.amount == max(bits for bits in BITS if bits <= limit)


def test_a_way_that_cannot_go_far_enough_says_what_the_least_was() -> None:
    def cost(recipe: Recipe) -> float:
        if float(recipe.name) < 0.2:
            raise Infeasible("Ask for 20 % or more")
        return 1000 * float(recipe.name)

    fit = fitted(way(), Goal("weights", 0.1, True), 100, 1000, cost)
    assert fit.amount is None and 200 <= fit.cost < 240 and "Ask for 20 %" in fit.why
    assert fitted(way(), Goal("weights", 0.3, True), 300, 1000, cost).cost > 280
    none = fitted(way(), Goal("weights", 1e-4, True), 0.1, 1000, lambda recipe: 1000 * float(recipe.name))
    assert none.amount is None and none.cost == pytest.approx(1000 * LEAST)


# --- probes --------------------------------------------------------------------------------------------------------------


def test_probes_train_on_other_batches_than_they_are_judged_by_and_never_ask_for_the_score() -> None:
    def asked(net: nn.Module) -> float:
        raise AssertionError("the test part was looked at")

    whole = task(10, asked)
    probing = held_out(whole)
    seen: list[torch.Tensor] = []
    net = network()
    net.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    probing.evaluate(net)
    trained = [batch[0] for batch in probing.batches(0)]
    assert len(trained) == 8 and len(seen) == 2
    assert not any(torch.equal(one, other) for one in trained for other in seen)
    score = -sum(float(whole.loss(net, batch)) for batch in list(whole.batches(0))[8:]) / 2
    assert probing.evaluate(net) == pytest.approx(score)
    choice = chosen(network(), whole, Goal.of("parameters=50%"), epochs=2)
    assert choice.dense_loss is not None and choice.recipe.epochs() == 2
    losses = {one.way: one.loss for one in choice.table if one.loss is not None}
    assert len(losses) == 2 and losses[choice.way] == min(losses.values())
    with pytest.raises(InputError, match="one batch"):
        held_out(task(1))


# --- the whole -----------------------------------------------------------------------------------------------------------


def trained(work: Task) -> nn.Module:
    net = network()
    optimizer = work.optimizer(net.parameters())
    for _ in range(20):
        for batch in work.batches(0):
            optimizer.zero_grad()
            work.loss(net, batch).backward()
            optimizer.step()
    return net


@pytest.mark.third
@pytest.mark.parametrize("goal", ["weights=4x", "macs=50%", "bytes=5x"])
def test_a_goal_is_met_as_measured_and_the_file_is_there(goal: str, tmp_path: Any) -> None:
    work, lines = task(), []
    net = trained(work)
    before = [weight.clone() for weight in net.parameters()]
    done = shrink(net, work, goal, epochs=4, lose=100, told=lines.append)
    assert all(torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True))
    assert done.met and done.kept and done.measured <= done.choice.limit * 1.01
    last = done.compressed.rows[-1].measured
    if goal.startswith("weights"):
        assert done.measured == last.nonzeros <= sum(w.numel() for w in net.parameters()) / 4 < 1.2 * last.nonzeros
    if goal.startswith("macs"):
        assert done.measured == last.macs and last.macs is not None and 0.35 * 576 < last.macs <= 288
    files = done.save(tmp_path / "small")
    if goal.startswith("bytes"):
        assert files["model.fwz"] == done.measured == (tmp_path / "small" / "model.fwz").stat().st_size
    assert any("chosen" in line for line in lines) and "met" in str(done) and done.to_dict()["choice"]["recipe"]["stages"]


def test_what_cannot_be_reached_is_refused_with_the_least_that_can() -> None:
    with pytest.raises(OutOfReach, match=r"cannot be reached. The least that was reached is \d+ non-zero weights") as told:
        shrink(network(), task(), "weights=30x", epochs=2)
    least = int(str(told.value).partition("reached is ")[2].partition(" ")[0])
    whole = sum(weight.numel() for weight in network().parameters())
    assert least > whole / 30
    assert chosen(network(), task(), Goal.of(f"weights={1.05 * least / whole:.6f}"), epochs=2).cost <= 1.05 * least
    with pytest.raises(InputError, match="nothing to do"):
        shrink(network(), task(), "1MB")
    with pytest.raises(InputError, match="goal of time"):
        shrink(network(), task(), "macs=50%", runtimes=["onnx"])
    with pytest.raises(InputError, match="no runtime"):
        shrink(network(), task(), "2ms", runtimes=["tensorrt"])


def test_times_that_spread_widely_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def interleaved(calls: Any, rounds: int) -> Any:
        asked.append(rounds)
        noisy = [0.5, 1.0, 2.0, 4.0, 8.0]
        return {name: [1.0] * 5 if name != "small" else (noisy if len(asked) == 2 else [0.25] * 5) for name in calls}

    monkeypatch.setattr("featherweight.run.goals.interleaved", interleaved)
    with Costs(Goal.of("faster=2x"), network(), task(), ["eager"]) as costs:
        assert costs.time(network(), "eager") == (250.0, 0.0)  # of a second, by the second look; the first says 2 s
    assert asked[1:] == [15, 60]


def test_a_goal_of_time_is_measured_in_turns_with_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts multiply-accumulates: eager takes one tick each."""
    work, wide = task(), nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def ready(net: nn.Module, example: Any, runtime: str, folder: Any, seen: Any = ()) -> Any:
        assert runtime == "eager"
        ticks = sum(module.weight.numel() for module in net.modules() if isinstance(module, nn.Linear))
        return lambda: ticks

    def interleaved(calls: Any, rounds: int) -> Any:
        return {name: [call() / 1000 * (1 + 0.001 * turn) for turn in range(rounds)] for name, call in calls.items()}

    monkeypatch.setattr("featherweight.run.goals.ready", ready)
    monkeypatch.setattr("featherweight.run.goals.interleaved", interleaved)
    choice = chosen(wide, work, Goal.of("faster=2x"), epochs=0, runtimes=["eager"])
    assert choice.runtime == "eager" and choice.fastest == "eager" and choice.limit == pytest.approx(choice.now / 2)
    assert any("as it is" in one.way and one.cost is None for one in choice.table)
    done = settled(choice, compress(wide, choice.recipe, work), work, 0.0)
    held = sum(m.weight.numel() for m in done.compressed.model.modules() if isinstance(m, nn.Linear))
    assert done.met and held < 0.5 * (6 * 64 + 64 * 64 + 64 * 3) and done.spread is not None
    assert done.kept == (done.score >= done.before)


def test_a_choice_is_taken_up_by_the_same_network_and_goal_alone(tmp_path: Any) -> None:
    choice = chosen(network(), task(), Goal.of("weights=3x"), epochs=3)
    about = {"goal": "weights=3x", "epochs": 3}
    remember(choice, tmp_path, about, network())
    assert taken_up(tmp_path, about, network()) == choice
    assert taken_up(tmp_path, about | {"epochs": 4}, network()) is None
    other = network()
    other[0].bias.data += 1  # type: ignore[index, operator]
    assert taken_up(tmp_path, about, other) is None
    (tmp_path / "choice.json").write_text("{")
    assert taken_up(tmp_path, about, network()) is None


def test_every_goal_has_ways_and_those_of_time_end_in_a_runtime() -> None:
    for goal in ("weights=2x", "parameters=2x", "macs=2x", "1kB"):
        assert all(one.runtime is None for one in ways_to(Goal.of(goal).what, (), "eager"))
    found = ways_to("latency_ms", ("eager", "onnx", "integers", "c"), "onnx")
    assert {one.runtime for one in found} == {"onnx", "integers", "c"} and not found[0].loses
    assert {one.runtime for one in ways_to("latency_ms", ("integers",), "eager")} == {"integers"}
    for one in found:
        for epochs in (0, 1, 2, 6, 20):
            assert one.recipe(0.2, epochs).epochs() <= epochs
