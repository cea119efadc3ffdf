"""Latency: networks timed against each other, with the spread of the times, and a verdict that is never finer than the spread.

Variants are timed in turns, round by round, so that a busy minute slows all of them; a comparison is of the two times of a round.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from featherweight.errors import InputError, did_you_mean
from featherweight.network.calls import Example, Inputs
from featherweight.network.devices import chosen, on_threads, placed, synchronise
from featherweight.ship import c
from featherweight.ship.activations import Integers
from featherweight.ship.export import export, shippable
from featherweight.ship.runtimes import onnx_caller, require, resized

Runtime = Literal["eager", "onnx", "integers", "c"]
RUNTIMES: tuple[Runtime, ...] = ("eager", "onnx", "integers", "c")
USUAL: tuple[Runtime, ...] = ("eager", "onnx")  # what needs no compiler and no data to calibrate on
IN_ONNX = ("onnx", "integers")
MEANT: dict[str, str] = {  # runtime -> what was timed, in words
    "eager": "PyTorch as it is",
    "onnx": "ONNX Runtime, the file that `export` writes",
    "integers": "ONNX Runtime, activations in 8 bits (`export --integers`)",
    "c": "C, compiled here (`export --format c`), one thread",
}
Verdict = Literal["faster", "no difference seen", "slower"]

LEAST_GAIN = 0.03  # below this a difference is not told from what the order and the memory layout of two variants do
LEAST_SECONDS = 0.005  # of one time taken; shorter calls are repeated within it
LARGE_SPREAD = 0.2  # of the median: the machine was busy


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call of a variant: the median over `rounds`, and the quartiles around it."""

    variant: str
    runtime: str
    device: str
    threads: int
    batch: int
    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Comparison:
    """`ratio`: the baseline's time over the variant's, median over rounds; above 1 the variant is faster. `spread`: the largest
    interquartile range of the ratio and of both times, each over its median."""

    variant: str
    baseline: str
    runtime: str
    device: str
    threads: int
    batch: int
    ratio: float
    spread: float
    verdict: Verdict

    def __str__(self) -> str:
        factor = self.ratio if self.verdict == "faster" else 1 / self.ratio
        return self.verdict if self.verdict == "no difference seen" else f"{factor:.2f}x {self.verdict}"


@dataclass(frozen=True)
class Bench:
    """`load`: the one-minute load average before and after, over the number of processors; `warnings`: what makes it doubtful."""

    timings: tuple[Timing, ...]
    comparisons: tuple[Comparison, ...]
    load: tuple[float, float]
    processors: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return asdict(self)


def bench(
    variants: Mapping[str, nn.Module],
    example: Example | Inputs | Mapping[str, Example | Inputs],
    *,
    runtimes: Sequence[Runtime] = ("eager",),
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    devices: Sequence[str] | None = None,
    rounds: int = 30,
    warm_up: int = 3,
    calibration: Mapping[str, Sequence[Inputs]] | None = None,
) -> Bench:
    """Time every variant in every setting. The first one is the baseline that the others are compared with.

    `example`: the inputs of all variants, batch first, by position or by name as in `export`; or, where the names are the
    variants', of each. `devices`: default the processor, and the GPU if there is one, for each runtime that can use it; a call
    ends when its device has done it. The networks stay where they are. Codes are decoded before, so that what is timed is the
    network that would be shipped. `calibration`: of each variant, for the runtime "integers" (see `activations`); "c" runs on the
    processor, one thread, a row at a time. Raises InputError for settings out of range, RuntimeMissing without ONNX Runtime, and
    ExportError for a network that it cannot run.
    """
    alone: list[str] = []
    if devices is None:
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        alone = [device for device in devices if set(runtimes) & set(IN_ONNX) and not _offered(device)]
    _check(variants, runtimes, threads, batches, [device for device in devices if device not in alone], rounds, warm_up)
    examples = _examples(variants, example)
    before = _load()
    timings: list[Timing] = []
    comparisons: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        networks = {name: shippable(model, examples[name]).cpu() for name, model in variants.items()}
        examples = {name: placed(given, "cpu") for name, given in examples.items()}
        files = {
            (name, kind): _written(
                kind, network, examples[name], Path(folder) / f"{number}.{kind}", (calibration or {}).get(name, ())
            )
            for number, (name, network) in enumerate(networks.items())
            for kind in runtimes
        }
        for runtime, device, count, batch in _settings(runtimes, devices, threads, batches, alone):
            with on_threads(count):
                calls = {
                    name: _call(network, files[name, runtime], resized(examples[name], batch), runtime, device, count)
                    for name, network in networks.items()
                }
                seconds = interleaved(calls, rounds, warm_up)
            where = (runtime, device, count, batch)
            timings += [Timing(name, *where, *_quartiles([1000 * s for s in taken]), rounds) for name, taken in seconds.items()]
            base, *others = seconds
            for name in others:
                ratio, spread, verdict = judge(seconds[base], seconds[name])
                comparisons.append(Comparison(name, base, *where, ratio, spread, verdict))
    load = (before, _load())
    unused = [f"ONNX Runtime has no {_provider(device)} here: on {device} only PyTorch was timed" for device in alone]
    warnings = (*_warnings(load, max(threads), timings), *unused)
    return Bench(tuple(timings), tuple(comparisons), load, _processors(), warnings)


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Name -> the seconds of one call in each round. In every round each is timed once; who is first changes with the round."""
    names = list(calls)
    repeats = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            call()
        begun = time.perf_counter()
        call()
        repeats[name] = max(1, round(LEAST_SECONDS / max(time.perf_counter() - begun, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            call = calls[name]
            begun = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            taken[name].append((time.perf_counter() - begun) / repeats[name])
    return taken


def judge(baseline: Sequence[float], variant: Sequence[float]) -> tuple[float, float, Verdict]:
    """(ratio, spread, verdict) of the times of the same rounds: faster or slower only by more than the spread and LEAST_GAIN."""
    ratios = [one / other for one, other in zip(baseline, variant, strict=True)]
    ratio = statistics.median(ratios)
    spread = max((high - low) / median for median, low, high in map(_quartiles, (ratios, baseline, variant)))
    gain = max(ratio, 1 / ratio) - 1
    if gain <= max(spread, LEAST_GAIN):
        return ratio, spread, "no difference seen"
    return ratio, spread, "faster" if ratio > 1 else "slower"


def text(result: Bench) -> str:
    """A plain-text table, the baseline first in each setting, what each runtime is, and the warnings."""
    verdicts = {(c.variant, c.runtime, c.device, c.threads, c.batch): str(c) for c in result.comparisons}
    rows = [("variant", "runtime", "device", "threads", "batch", "ms", "quartiles", "against the first")]
    for t in result.timings:
        verdict = verdicts.get((t.variant, t.runtime, t.device, t.threads, t.batch), "")
        quartiles = f"{t.low:.3f} .. {t.high:.3f}"
        rows.append((t.variant, t.runtime, t.device, str(t.threads), str(t.batch), f"{t.median:.3f}", quartiles, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    left = {0, 1, 2, 7}
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]
    named = [f"{name}: {MEANT[name]}" for name in dict.fromkeys(t.runtime for t in result.timings)]
    return "\n".join([*lines, *named, *(f"! {warning}" for warning in result.warnings)])


# --- the parts -----------------------------------------------------------------------------------------------------------


def _check(
    variants: Mapping[str, nn.Module],
    runtimes: Sequence[str],
    threads: Sequence[int],
    batches: Sequence[int],
    devices: Sequence[str],
    rounds: int,
    warm_up: int,
) -> None:
    unknown = [runtime for runtime in runtimes if runtime not in RUNTIMES]
    checks = (
        (not variants, "give at least one network to time"),
        (not runtimes or bool(unknown), f"runtimes are {', '.join(RUNTIMES)}, given {list(runtimes)}"),
        (not threads or min(threads, default=0) < 1, f"threads must be numbers from 1, given {list(threads)}"),
        (not batches or min(batches, default=0) < 1, f"batches must be sizes from 1, given {list(batches)}"),
        (not devices, "give at least one device"),
        (rounds < 5, f"rounds must be at least 5 for a spread, given {rounds}"),
        (warm_up < 1, f"warm_up must be at least 1 call, given {warm_up}"),
    )
    mistakes = [message for wrong, message in checks if wrong]
    if unknown:
        mistakes[-1] += did_you_mean(unknown[0], RUNTIMES) if len(mistakes) == 1 else ""
    if mistakes:
        raise InputError("; ".join(mistakes))
    for device in devices:
        chosen(device)
        if set(runtimes) & set(IN_ONNX) and not _offered(device):
            raise InputError(
                f"ONNX Runtime has no {_provider(device)} here and would run on the processor: leave {device} or onnx out, or "
                "install onnxruntime-gpu"
            )


def _provider(device: str) -> str:
    return f"{device.partition(':')[0].upper()}ExecutionProvider"


def _offered(device: str) -> bool:
    """Can ONNX Runtime use this device here?"""
    return _provider(device) in require("onnxruntime", "to time ONNX models").get_available_providers()


def _settings(
    runtimes: Sequence[Runtime], devices: Sequence[str], threads: Sequence[int], batches: Sequence[int], alone: Sequence[str]
) -> Iterator[tuple[Runtime, str, int, int]]:
    """Every setting once; on a GPU the number of threads makes none. `alone`: devices that only PyTorch can use."""
    for runtime in runtimes:
        able = {"eager": devices, "c": [device for device in devices if device == "cpu"]}
        for device in able.get(runtime, [device for device in devices if device not in alone]):
            for count in threads if device == "cpu" and runtime != "c" else threads[:1]:
                for batch in batches:
                    yield runtime, device, count, batch


def _examples(variants: Mapping[str, nn.Module], example: Example | Inputs | Mapping[str, Example | Inputs]) -> dict[str, Inputs]:
    """Variant -> its inputs. A mapping that names a variant is of examples, any other of one example's inputs by name."""
    if not isinstance(example, Mapping) or set(example).isdisjoint(variants):
        return dict.fromkeys(variants, Inputs.of(example))
    lacking = [name for name in variants if name not in example]
    if lacking:
        raise InputError(f"no example input is given for {', '.join(lacking)}")
    return {name: Inputs.of(example[name]) for name in variants}


def _written(kind: Runtime, network: nn.Module, example: Inputs, path: Path, seen: Sequence[Inputs]) -> Path | c.Loaded | None:
    """The network as the runtime takes it; None: as it is."""
    if kind == "c":
        return c.Loaded(c.written(network, example)[1])
    if kind in IN_ONNX:
        export(network, example, path, integers=Integers(seen) if kind == "integers" else None)
        return path
    return None


def _call(
    network: nn.Module, file: Path | c.Loaded | None, inputs: Inputs, runtime: Runtime, device: str, threads: int
) -> Callable[[], object]:
    if isinstance(file, c.Loaded):
        return file.caller(inputs)
    if file is not None:
        return onnx_caller(file, inputs, threads, (_provider(device),))
    place = torch.device(device)
    network, given = network.to(place), placed(inputs, place)

    def call() -> object:
        with torch.inference_mode():
            outputs = given.call(network)
        synchronise(place)
        return outputs

    return call


def ready(
    model: nn.Module, example: Example | Inputs, runtime: Runtime, folder: str | Path, seen: Sequence[Inputs] = ()
) -> Callable[[], object]:
    """`model` as it would be shipped, in eval mode on the processor, as `runtime` takes it, called on `example` with one thread:
    to be timed. `folder`: for the file, which has to stay while it is called; `seen`: calibration, for integers.

    Raises RuntimeMissing, ExportError, CError.
    """
    network, inputs = shippable(model, example).cpu(), placed(Inputs.of(example), "cpu")
    path = Path(folder) / f"{len(list(Path(folder).iterdir()))}.{runtime}"
    return _call(network, _written(runtime, network, inputs, path, seen), inputs, runtime, "cpu", 1)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _processors() -> int:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else os.cpu_count() or 1


def _load() -> float:
    """The one-minute load average over the number of processors; 0 where the system does not tell."""
    return os.getloadavg()[0] / _processors() if "getloadavg" in dir(os) else 0.0


def _warnings(load: tuple[float, float], threads: int, timings: Sequence[Timing]) -> Iterator[str]:
    others = load[0] * _processors()
    if others > 0.5:
        yield (
            f"the machine was busy before the first time was taken (load average {others:.1f} on {_processors()} processors): "
            "run it again when it is idle"
        )
    if threads > _processors():
        yield f"{threads} threads were asked for on {_processors()} processors: they wait for each other"
    wide = [timing for timing in timings if timing.spread > LARGE_SPREAD]
    if wide:
        worst = max(wide, key=lambda timing: timing.spread)
        yield (
            f"{len(wide)} of {len(timings)} times spread by more than {LARGE_SPREAD:.0%} of their median "
            f"({worst.variant}, {worst.runtime}: {worst.spread:.0%}): something else was running"
        )
