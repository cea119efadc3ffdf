"""Latency: verdicts never finer than the spread, variants in turns, settings given back, load said."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import InputError
from featherweight.ship import bench as latency
from featherweight.ship.bench import Bench, Comparison, Timing, bench, interleaved, judge, text
from featherweight.ship.runtimes import RuntimeMissing
from featherweight.weights import codes, parametrized
from featherweight.weights.views import View

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def quartile(values: list[float], share: float) -> float:
    """By linear interpolation between the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def times(source: random.Random, middle: float, noise: float, rounds: int = 41) -> list[float]:
    return [middle * (1 + noise * source.uniform(-1, 1)) for _ in range(rounds)]


def test_no_speedup_smaller_than_the_spread_is_ever_claimed() -> None:
    source = random.Random(0)
    verdicts = set()
    for _ in range(400):
        noise = source.choice([0.0, 0.01, 0.1, 0.4])
        one, other = times(source, 1.0, noise), times(source, source.choice([0.5, 0.8, 0.95, 0.99, 1.0, 1.2, 3.0]), noise)
        ratio, spread, verdict = judge(one, other)
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        for values in (ratios, one, other):
            assert spread >= (quartile(values, 0.75) - quartile(values, 0.25)) / quartile(values, 0.5) - 1e-12
        assert abs(ratio - quartile(ratios, 0.5)) < 1e-12
        if verdict == "faster":
            assert ratio - 1 > spread and ratio > 1.03
        elif verdict == "slower":
            assert 1 / ratio - 1 > spread and ratio < 1 / 1.03
        else:
            assert max(ratio, 1 / ratio) - 1 <= max(spread, 0.03)
        verdicts.add(verdict)
    assert verdicts == {"faster", "slower", "no difference seen"}


def test_a_network_against_itself_is_no_faster() -> None:
    source = random.Random(1)
    for noise in (0.01, 0.05, 0.2, 0.5):
        found = [judge(times(source, 1.0, noise), times(source, 1.0, noise))[2] for _ in range(60)]
        assert set(found) == {"no difference seen"}


def test_a_busy_minute_slows_both_and_is_not_taken_for_a_difference() -> None:
    busy = [1.0] * 15 + [4.0] * 16
    ratio, _, verdict = judge(busy, [0.97 * b for b in busy])
    assert abs(ratio - 1 / 0.97) < 1e-9 and verdict == "no difference seen"


@pytest.mark.parametrize(("factor", "said"), [(0.5, "2.00x faster"), (2.0, "2.00x slower"), (1.01, "no difference seen")])
def test_verdicts_in_words(factor: float, said: str) -> None:
    one = [1.0, 1.01, 0.99, 1.0, 1.0]
    comparison = Comparison("thin", "dense", "eager", "cpu", 1, 1, *judge(one, [factor * t for t in one]))
    assert str(comparison) == said


def test_variants_take_turns_and_each_is_first_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "LEAST_SECONDS", 0.0)
    order: list[str] = []
    calls: dict[str, Callable[[], object]] = {name: (lambda name=name: order.append(name)) for name in "abc"}
    taken = interleaved(calls, rounds=6, warm_up=2)
    assert order[:9] == list("aaabbbccc")  # warm-up, and one call that tells how long one takes
    rounds = [order[9 + 3 * turn : 12 + 3 * turn] for turn in range(6)]
    assert all(sorted(one) == list("abc") for one in rounds)
    assert [one[0] for one in rounds] == list("abcabc")
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 6, "b": 6, "c": 6}
    assert all(second >= 0 for seconds in taken.values() for second in seconds)


def test_short_calls_are_repeated_within_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    count = [0]

    def call() -> None:
        now[0] += 0.001
        count[0] += 1

    taken = interleaved({"a": call}, rounds=5, warm_up=3)
    assert count[0] == 3 + 1 + 5 * 5
    assert all(abs(second - 0.001) < 1e-9 for second in taken["a"])


class Counted(nn.Module):
    """Records the threads and the shapes it is called with."""

    seen: set[tuple[int, tuple[int, ...]]]

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.seen = set()

    def forward(self, values: Tensor) -> Tensor:
        self.seen.add((torch.get_num_threads(), tuple(values.shape)))
        return self.fc(values)

    def __deepcopy__(self, memo: object) -> Counted:
        return self


def test_every_setting_is_timed_and_the_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    networks = {"dense": Counted(), "thin": Counted()}
    result = bench(networks, (torch.zeros(1, 6),), threads=(1, 2), batches=(1, 4), devices=["cpu"], rounds=5, warm_up=1)
    assert torch.get_num_threads() == before
    for network in networks.values():
        assert network.seen == {(1, (1, 6)), (1, (4, 6)), (2, (1, 6)), (2, (4, 6))}
    settings = [(t.variant, t.threads, t.batch) for t in result.timings]
    assert settings == [(name, threads, batch) for threads in (1, 2) for batch in (1, 4) for name in networks]
    assert all(0 < t.low <= t.median <= t.high and t.rounds == 5 for t in result.timings)
    assert [(c.variant, c.baseline) for c in result.comparisons] == [("thin", "dense")] * 4
    data = json.loads(json.dumps(result.to_dict()))
    assert data["timings"][0]["variant"] == "dense" and data["processors"] >= 1 and len(data["load"]) == 2


def test_threads_are_given_back_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        bench({"a": nn.Linear(6, 3)}, (torch.zeros(1, 5),), threads=(before + 1,), devices=["cpu"], rounds=5)
    assert torch.get_num_threads() == before


def test_codes_are_decoded_before_the_clock_starts() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    parametrized.attach(model, "0.weight", View("o i -> o i"), codes.Factors(8, 8, 2))
    seen = []

    def decoding(module: nn.Module, inputs: object, output: object) -> None:
        seen.append(module)

    model[0].parametrizations["weight"][0].register_forward_hook(decoding)  # type: ignore[index,union-attr]
    counts = []
    for rounds in (5, 25):
        bench({"coded": model}, (torch.zeros(1, 8),), devices=["cpu"], rounds=rounds, warm_up=1)
        counts.append(len(seen))
        seen.clear()
    assert counts[0] == counts[1]  # not once a call
    assert list(parametrized.coded(model)) == ["0.weight"]


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
def test_onnx_runtime_is_timed_too() -> None:
    networks = {"wide": nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2)), "narrow": nn.Sequential(nn.Linear(8, 2))}
    result = bench(networks, (torch.zeros(1, 8),), runtimes=("onnx",), batches=(3,), devices=["cpu"], rounds=5, warm_up=1)
    assert [(t.variant, t.runtime, t.batch) for t in result.timings] == [("wide", "onnx", 3), ("narrow", "onnx", 3)]
    assert all(t.median > 0 for t in result.timings)


def test_the_table_has_a_line_a_time_and_the_warnings() -> None:
    timings = (Timing("dense", "eager", "cpu", 1, 8, 2.0, 1.9, 2.1, 30), Timing("thin", "eager", "cpu", 1, 8, 1.0, 0.9, 1.1, 30))
    comparison = Comparison("thin", "dense", "eager", "cpu", 1, 8, 2.0, 0.1, "faster")
    lines = text(Bench(timings, (comparison,), (0.0, 0.0), 2, ("busy",))).splitlines()
    assert lines[0].split() == ["variant", "runtime", "device", "threads", "batch", "ms", "quartiles", "against", "the", "first"]
    assert lines[1].split() == ["dense", "eager", "cpu", "1", "8", "2.000", "1.900", "..", "2.100"]
    assert "eager: PyTorch as it is" in lines and latency.MEANT.keys() == set(latency.RUNTIMES)
    assert lines[2].endswith("2.00x faster") and lines[-1] == "! busy"


def test_load_and_spread_and_too_many_threads_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_load", lambda: 3.0)
    monkeypatch.setattr(latency, "_processors", lambda: 2)
    result = bench({"a": nn.Linear(4, 4)}, (torch.zeros(1, 4),), threads=(3,), devices=["cpu"], rounds=5, warm_up=1)
    assert "load average 6.0 on 2 processors" in result.warnings[0] and "3 threads" in result.warnings[1]
    wide = [Timing("a", "eager", "cpu", 1, 1, 1.0, 0.9, 1.4, 30)]
    assert "spread by more than 20%" in next(iter(latency._warnings((0.0, 0.0), 1, wide)))
    assert not list(latency._warnings((0.1, 0.1), 1, [Timing("a", "eager", "cpu", 1, 1, 1.0, 0.95, 1.05, 30)]))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"runtimes": ("onxx",)}, r"given \['onxx'\]"),
        ({"runtimes": ()}, "runtimes are"),
        ({"threads": (0,)}, "threads must be numbers from 1"),
        ({"batches": ()}, "batches must be sizes from 1"),
        ({"rounds": 4}, "at least 5"),
        ({"warm_up": 0}, "at least 1 call"),
        ({"devices": []}, "at least one device"),
        ({"threads": (0,), "rounds": 1}, "threads must.*; rounds must"),
    ],
)
def test_settings_out_of_range_are_refused_all_at_once(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        bench({"a": nn.Linear(4, 4)}, (torch.zeros(1, 4),), **options)  # type: ignore[arg-type]


def test_no_network_and_no_example_are_refused() -> None:
    with pytest.raises(InputError, match="at least one network"):
        bench({}, (torch.zeros(1, 4),))
    with pytest.raises(InputError, match="no example input is given for b"):
        bench({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}, {"a": (torch.zeros(1, 4),)})


def test_onnx_runtime_missing_is_said_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str, package: str | None = None) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(RuntimeMissing, match=r"featherweight\[onnx\]"):
        bench({"a": nn.Linear(4, 4)}, (torch.zeros(1, 4),), runtimes=("eager", "onnx"))
