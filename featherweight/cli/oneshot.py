"""Commands that need no training, and no data either: units cut, layers factorised, weights rounded, and the artifact written."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from featherweight.budget.multiples import CHANNELS, Multiple
from featherweight.cli import console, jobs, subjects
from featherweight.cli.jobs import Job
from featherweight.cli.options import AsJson, Device, Inputs, Model, Runtime, Seed, TargetData, Threads, Weights
from featherweight.errors import InputError
from featherweight.recipe import units
from featherweight.run.compressed import Compressed
from featherweight.run.oneshot import factorize, prune, quantize

CRITERIA = typing.get_args(units.Criterion)
Out = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the artifact. One in it is replaced.")]
Macs = Annotated[str, typer.Option("--macs", metavar="SHARE", help="Kept of the multiply-accumulates: 50%, 0.5, or 2x fewer.")]
Kept = Annotated[
    str | None,
    typer.Option("--macs", metavar="SHARE", help="Kept of the multiply-accumulates: 50%, 0.5, or 2x fewer; 50% without --ms."),
]
Milliseconds = Annotated[
    str | None, typer.Option("--ms", metavar="MS", help="In place of --macs: at most so many an example, as measured here.")
]
Ignore = Annotated[list[str] | None, typer.Option("--ignore", metavar="NAME", help="Left as it is: name or pattern, repeated.")]
Criterion = Annotated[
    str,
    typer.Option("--criterion", metavar="C", help=f"Which go, of {', '.join(CRITERIA)}; those but l1, l2, bn_scale need --data."),
]
View = Annotated[str, typer.Option("--view", metavar="V", help="Convolutions: spatial (k x 1, 1 x k), channel (k x k, 1 x 1).")]
Multiples = Annotated[
    str, typer.Option("--multiple", metavar="N", help=f"Sizes are multiples of it; auto: {CHANNELS} channels, which run faster.")
]

Refit = Annotated[
    bool | None,
    typer.Option("--refit/--no-refit", help="Fit what reads the cut units anew, on --data; done where these have no labels."),
]
Reconstruct = Annotated[
    int, typer.Option("--reconstruct", metavar="EPOCHS", help="Teach each layer what the dense one gives on --data: no labels.")
]

Where = Annotated[
    str, typer.Option("--where", metavar="W", help="class, or graph: also what the class cannot express, in an exported module.")
]


def prune_command(
    ctx: typer.Context,
    model: Model,
    out: Out,
    macs: Kept = None,
    milliseconds: Milliseconds = None,
    runtime: Runtime = "eager",
    shapes: Inputs = None,
    data: TargetData = None,
    weights: Weights = None,
    criterion: Criterion = "l1",
    multiple: Multiples = "auto",
    refit: Refit = None,
    reconstruct: Reconstruct = 0,
    where: Where = "class",
    ignore: Ignore = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Cut channels, neurons and heads of MODEL without training; write the artifact to DIR. --data (labels or none) scores it."""
    made, evaluate = _job(model, data, shapes, weights, seed, threads, device)
    looked = {"data": made.task.train} if data is not None else {}
    looked |= {"loss": made.task.loss} if data is not None and made.task.labels else {}  # type: ignore[dict-item]
    done = prune(
        made.network,
        made.task.example_inputs,
        macs=macs,
        latency_ms=milliseconds,
        runtime=runtime,  # type: ignore[arg-type]
        criterion=criterion,  # type: ignore[arg-type]
        multiple=multiple_of(multiple),
        refit=refit,
        reconstruct=reconstruct,
        where=where,  # type: ignore[arg-type]
        ignore=ignore or (),
        evaluate=evaluate,
        **looked,  # type: ignore[arg-type]
    )
    _finished(ctx, made, done, out, shapes, as_json)


def factorize_command(
    ctx: typer.Context,
    model: Model,
    out: Out,
    macs: Macs = "50%",
    shapes: Inputs = None,
    data: TargetData = None,
    weights: Weights = None,
    view: View = "spatial",
    ignore: Ignore = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Replace layers of MODEL by two thin ones without training, and write the artifact to DIR. With --data it is scored."""
    made, evaluate = _job(model, data, shapes, weights, seed, threads, device)
    done = factorize(
        made.network,
        made.task.example_inputs,
        macs=macs,
        view=view,  # type: ignore[arg-type]
        ignore=ignore or (),
        evaluate=evaluate,
    )
    _finished(ctx, made, done, out, shapes, as_json)


def quantize_command(
    ctx: typer.Context,
    model: Model,
    out: Out,
    bits: Annotated[int, typer.Option(help="1 to 8; weights take 2^bits levels.")] = 8,
    shapes: Inputs = None,
    data: TargetData = None,
    weights: Weights = None,
    per: Annotated[str, typer.Option(metavar="P", help="A scale for each output (row), or for each layer.")] = "row",
    ignore: Ignore = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Round the weights of MODEL to few levels without training, and write the artifact to DIR. With --data it is scored."""
    made, evaluate = _job(model, data, shapes, weights, seed, threads, device)
    done = quantize(
        made.network,
        made.task.example_inputs,
        bits=bits,
        per=per,  # type: ignore[arg-type]
        ignore=ignore or (),
        evaluate=evaluate,
    )
    _finished(ctx, made, done, out, shapes, as_json)


def multiple_of(text: str) -> Multiple:
    """Raises InputError."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or not 1 <= len(text) <= 5 or not int(text):
        raise InputError(f"--multiple is auto or a whole number from 1 on, given {text!r}")
    return int(text)


def _job(
    model: str, data: str | None, shapes: Any, weights: Path | None, seed: int, threads: int | None, device: str
) -> tuple[Job, Callable[[nn.Module], float] | None]:
    """The job, and the score of its task where it has data."""
    known = data if data is not None or shapes else subjects.data_for(model)
    made = Job.load(model, known, weights, seed, threads, shapes=shapes or (), device=device)
    if not made.trained:
        console.note(f"note: {model} has random weights: --weights FILE gives it trained ones")
    return made, made.task.evaluate if data is not None else None


def _finished(ctx: typer.Context, made: Job, done: Compressed, out: Path, shapes: Any, as_json: bool) -> None:
    files = jobs.save(made, done, out, shapes or ())
    if as_json:
        console.json_object({"output": str(out), "files": files, "rows": [row.to_dict() for row in done.rows]})
    else:
        console.results(done.rows, out, files, jobs.next_commands(str(ctx.find_root().info_name), made, out, shapes or ()))
