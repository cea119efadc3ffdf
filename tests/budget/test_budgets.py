"""Budgets: recounted from the rebuilt network, in multiples where asked, and milliseconds by a clock that the test holds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherweight import CutUnits, Recipe, Task, compress
from featherweight.budget.choices import Infeasible
from featherweight.budget.costs import Spent, cost_of
from featherweight.budget.units import AllocateBy, allocate, offered
from featherweight.recipe.units import Units
from featherweight.run import latency_budget
from featherweight.run.oneshot import prune as prune_untrained
from featherweight.run.report import Row, notes
from featherweight.structure import prune, trace
from featherweight.training.schedule import Training

HOW: tuple[AllocateBy, ...] = ("uniform", "ranked", "weighed", "knapsack")


class Tied(nn.Module):
    """Batch norms with buffers and a counter, in float64; and a parameter of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24)
        self.two, self.last = nn.Conv2d(24, 40, 3), nn.Linear(40, 3)
        self.again = self.last
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.relu(self.two(torch.relu(self.norm(self.one(x))))).mean((2, 3)))


def images(epoch: int) -> list[Tensor]:
    return [torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(epoch))]


TASK = Task(
    (images(0)[0][:1],), images, lambda network, x: network(x).square().mean(), lambda network: 0.0,
    lambda parameters: torch.optim.SGD(parameters, 0.01),
)  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return Tied()


def run(units: Units, epochs: int = 0, **options: Any) -> Any:
    return compress(network(), Recipe("r", (CutUnits("cut", units=units, train=Training(epochs)),)), TASK, **options)


def stored(made: nn.Module) -> int:
    """Bytes by hand: every tensor of the state once. The two names of the last layer are one tensor each."""
    return sum(t.numel() * t.element_size() for name, t in made.state_dict().items() if not name.startswith("again"))


def test_bytes_are_those_of_the_rebuilt_network() -> None:
    made = network()
    graph = trace(made, TASK.example_inputs)
    cost = cost_of("bytes", made, graph)
    assert cost({}) == stored(made)
    source = random.Random(0)
    for _ in range(2):
        sizes = {name: source.randint(1, site.size) for name, site in graph.sites.items()}
        smaller = network()
        prune(smaller, trace(smaller, TASK.example_inputs), {name: range(size) for name, size in sizes.items()}, where="class")
        assert cost(sizes) == stored(smaller)


@pytest.mark.parametrize("what", ["macs", "parameters", "bytes"])
def test_the_report_says_what_the_rebuilt_network_costs(what: str) -> None:
    result = run(Units("l1", **{what: 0.4}))  # type: ignore[arg-type]
    row = result.rows[0]
    held = {"macs": row.measured.macs, "parameters": row.measured.parameters, "bytes": stored(result.model)}[what]
    assert row.spent is not None and row.spent.after == held and row.spent.asked == 0.4 * row.spent.before
    assert 0.99 * row.spent.asked <= held <= row.spent.asked or "one size more" in row.spent.note
    assert Row.from_dict(row.to_dict()) == row
    assert Row.from_dict({key: value for key, value in row.to_dict().items() if key != "spent"}).spent is None


@pytest.mark.parametrize("part", ["row", "measured", "spent"])
def test_what_other_versions_add_to_a_row_is_no_error_and_what_they_write_as_text_is_a_number(part: str) -> None:
    row = run(Units("l1", macs=0.4)).rows[0]
    data = row.to_dict()
    of = data if part == "row" else data[part]
    of["a new field"] = 1
    number = next(key for key, value in of.items() if type(value) in (int, float))
    of[number] = str(of[number])
    assert Row.from_dict(data) == row
    assert part != "spent" or Spent.from_dict(of) == row.spent


def test_what_was_made_of_the_budget_outlives_an_interruption(tmp_path: Any) -> None:
    units = Units("l1", parameters=0.4)

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(units, 2, workdir=tmp_path, monitor=stop, checkpoint_seconds=0)
    assert run(units, 2, workdir=tmp_path).rows[0].spent == run(units, 2).rows[0].spent is not None


@pytest.mark.parametrize("how", HOW)
def test_sizes_are_multiples_and_nothing_more_fits(how: AllocateBy) -> None:
    source = random.Random(1)
    whole = {"a": 24, "b": 21, "c": 5}
    losses = {
        name: [float(v) for v in sorted((source.random() for _ in range(n + 1)), reverse=True)] for name, n in whole.items()
    }

    def cost(sizes: Mapping[str, int]) -> int:
        a, b, c = (sizes.get(name, n) for name, n in whole.items())
        return 7 * a + a * b + b * c + 3 * c

    allowed = {"a": [8, 16, 24], "b": [8, 16, 21], "c": [1, 2, 3, 4, 5]}
    assert {name: list(offered(n, 8)) for name, n in whole.items()} == allowed
    for share in (0.3, 0.5, 0.8):
        sizes = allocate(how, losses, cost, share * cost({}), 8)
        assert cost(sizes) <= share * cost({}) and all(size in allowed[name] for name, size in sizes.items())
        for name, size in sizes.items():
            larger = [k for k in allowed[name] if k > size]
            assert not larger or cost(sizes | {name: larger[0]}) > share * cost({})
    assert allocate(how, losses, cost, cost({}), 8) == whole
    with pytest.raises(Infeasible, match=f"8 units a site costs {cost({'a': 8, 'b': 8, 'c': 1})}"):
        allocate(how, losses, cost, cost({"a": 8, "b": 8, "c": 1}) - 1, 8)


def test_the_share_that_a_message_tells_to_ask_for_is_enough() -> None:
    cost = lambda sizes: 1000 + 7 * sizes.get("a", 997)  # noqa: E731
    with pytest.raises(Infeasible) as error:
        allocate("uniform", {"a": [0.0] * 998}, cost, 10)
    share = float(str(error.value).split("Ask for ")[1].split(" %")[0])
    assert allocate("uniform", {"a": [0.0] * 998}, cost, share / 100 * cost({}))["a"] >= 1


# --- milliseconds --------------------------------------------------------------------------------------------------------


def seconds(made: nn.Module) -> float:
    """The time that the test's machine takes: not linear in what is counted."""
    one, two = made.one.weight, made.two.weight  # type: ignore[union-attr]
    return 1e-3 * (0.5 + 0.02 * one.shape[0] + 0.001 * (two.shape[0] * two.shape[1]) ** 1.1)  # type: ignore[union-attr,operator]


def clock(noise: float, seconds: Any = seconds) -> Any:
    source = random.Random(0)

    def timed(networks: Mapping[str, nn.Module], example: object, rounds: int, called: object = None) -> dict[str, list[float]]:
        busy = [1 + noise * source.random() for _ in range(rounds)]
        return {n: [seconds(m) * b * (1 + noise * source.random()) for b in busy] for n, m in networks.items()}

    return timed


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_milliseconds_are_met_and_told_beside_what_the_table_said(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_budget, "timed", clock(0.0))
    asked = 1000 * share * seconds(network())
    result = run(Units("l1", latency_ms=asked))
    row = result.rows[0]
    assert row.asked is None and row.spent is not None and row.spent.predicted is not None
    assert row.spent.after == pytest.approx(1000 * seconds(result.model))
    assert row.spent.before == pytest.approx(1000 * seconds(network()))
    assert row.spent.after == pytest.approx(asked, rel=0.01)
    assert row.spent.predicted == pytest.approx(row.spent.after, rel=0.05)
    assert any("predicted" in remark and "measured" in remark for remark in notes(result.rows))


def test_a_table_that_is_wrong_is_put_right_by_what_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table says that every cut network takes 1.2 times as long as it does; what is built and timed again is right."""
    right = clock(0.0)

    def wrong_first(
        networks: Mapping[str, nn.Module], example: object, rounds: int, called: object = None
    ) -> dict[str, list[float]]:
        factor = 1.2 if len(networks) > 2 else 1.0
        times = right(networks, example, rounds)
        return {name: [second * (1 if name == "dense" else factor) for second in taken] for name, taken in times.items()}

    monkeypatch.setattr(latency_budget, "timed", wrong_first)
    asked = 600 * seconds(network())
    result = run(Units("l1", latency_ms=asked))
    assert 1000 * seconds(result.model) == pytest.approx(asked, rel=0.02)


def test_noise_is_told_and_does_not_lead_far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_budget, "timed", clock(0.2))
    slower = 1.1**2  # on average, by this noise
    asked = 600 * slower * seconds(network())
    result = run(Units("l1", latency_ms=asked))
    spent = result.rows[0].spent
    assert spent.spread is not None and 0.05 < spent.spread < 0.4
    assert 1000 * slower * seconds(result.model) == pytest.approx(asked, rel=0.1)
    assert abs(spent.after / asked - 1) <= 0.01 or "% off" in spent.note


def steps(made: nn.Module) -> float:
    """A machine to which only multiples of 8 channels are fast, and that is slow to begin."""
    one, two = made.one.weight, made.two.weight  # type: ignore[union-attr]
    return 1e-3 * (2 + (-(-int(one.shape[0]) // 8)) + 2 * (-(-int(two.shape[0]) // 8)))  # type: ignore[union-attr,operator]


@pytest.mark.parametrize(
    ("runtime", "how", "noise"), [("eager", seconds, 0.15), ("eager", steps, 0.0), ("onnx", steps, 0.15), ("c", seconds, 0.0)]
)
def test_what_is_measured_is_never_above_the_budget_where_a_network_was_within_it(
    how: Any, noise: float, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any runtime, from few networks. Each is called as that runtime takes it, and the whole one's file is written once."""
    made: list[tuple[str, nn.Module]] = []

    def ready(network: nn.Module, example: object, where: str, folder: object) -> Any:
        made.append((where, network))
        return network

    def timed(networks: Mapping[str, nn.Module], example: object, rounds: int, called: Any) -> dict[str, list[float]]:
        calls = networks if runtime == "eager" else {name: called(network) for name, network in networks.items()}
        return clock(noise, how)(calls, example, rounds)

    monkeypatch.setattr(latency_budget, "ready", ready)
    monkeypatch.setattr(latency_budget, "timed", timed)
    for share in (0.8, 0.45):
        made.clear()
        asked = 1000 * share * how(network()) * (1 + noise / 2) ** 2
        spent = run(Units("l1", latency_ms=asked, multiple="auto", runtime=runtime)).rows[0].spent
        assert spent.after <= 1.01 * asked and spent.runtime == runtime
        assert spent.after >= 0.7 * asked, "and not far below it: the steps are of a quarter"
        assert runtime == "eager" or (len(made) <= 7 and {where for where, _ in made} == {runtime})
        assert len({id(one) for _, one in made}) == len(made), "a file a network"


def test_milliseconds_are_those_of_onnx_runtime_where_that_is_named() -> None:
    pytest.importorskip("onnxruntime", reason="the runtime that is asked for")
    small = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).eval()  # two files: with both units, and with one
    spent = prune_untrained(small, (torch.randn(1, 4),), latency_ms="1s", runtime="onnx").rows[-1].spent
    assert spent is not None and spent.before == spent.after < 1000 and "as fast as that" in spent.note
    assert str(spent).startswith("latency_ms in onnx: asked 1e+03, measured")


def test_milliseconds_out_of_reach_name_the_nearest_and_within_reach_cut_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_budget, "timed", clock(0.0))
    least = network()
    prune(least, trace(least, TASK.example_inputs), {"one": [0], "two": [0]}, where="class")
    with pytest.raises(Infeasible, match="cannot be met") as error:
        run(Units("l1", latency_ms=900 * seconds(least)))
    enough = float(str(error.value).split("Ask for ")[1].split(" or more")[0])
    assert enough == pytest.approx(1000 * seconds(least), abs=0.001) and run(Units("l1", latency_ms=enough)).rows[0].spent
    generous = run(Units("l1", latency_ms=2000 * seconds(network()))).rows[0]
    assert generous.measured.parameters == sum(p.numel() for p in network().parameters()) and "as fast" in generous.spent.note


def test_a_table_believes_no_network_that_does_more_and_takes_less() -> None:
    table = latency_budget.Table({100: 0.2, 200: 0.5, 300: 0.4, 400: 1.0})
    assert table.share_at(200) == table.share_at(300) == pytest.approx(0.45)
    assert table.macs_at(0.325) == pytest.approx(150)
    assert table.share_at(350) == pytest.approx(0.725)


def test_the_real_clock_gives_a_time_a_round_and_leaves_the_network_alone() -> None:
    made = network().train()
    times = latency_budget.timed({"a": made, "b": made}, TASK.example_inputs, 6)
    assert [len(taken) for taken in times.values()] == [6, 6] and min(min(taken) for taken in times.values()) > 0
    assert made.training and int(made.norm.num_batches_tracked) == 0  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "one budget"),
        ({"macs": 0.5, "bytes": 0.5}, "one budget"),
        ({"latency_ms": 0.0}, "above 0"),
        ({"bytes": 1.5}, "a share to keep"),
        ({"macs": 0.5, "multiple": 0}, "multiple"),
        ({"macs": 0.5, "runtime": "onnx"}, "a runtime is for a budget of latency_ms"),
        ({"latency_ms": 1.0, "runtime": "integers"}, "runtime is eager, onnx, c"),
        ({"macs": 0.5, "certify": True}, "certify needs .* collaborative, given l1"),
    ],
)
def test_budgets_that_are_none_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Units("l1", **given)


def test_spent_speaks() -> None:
    assert str(Spent("bytes", 50, 100, 48, note="why")) == "bytes: asked 50 %, kept 48 %: why"
    said = str(Spent("latency_ms", 3, 5, 3.01, 3.2, 0.04))
    assert said == "latency_ms: asked 3, measured 3.01 of 5, predicted 3.2, spread 4 %"
