"""Commands on what has been made: measured anew, packed, exported, timed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli import console, outline, subjects
from featherweight.cli.options import AsJson, Device, Inputs, Seed, Target, TargetData, TargetModel, Threads
from featherweight.cli.subjects import Subject
from featherweight.errors import InputError
from featherweight.files import artifact, packed
from featherweight.measurement import Measurement, measure
from featherweight.network import calls
from featherweight.run.report import weights_left
from featherweight.ship import activations, bench, c
from featherweight.ship import export as exporting
from featherweight.ship.export import Exported
from featherweight.structure import trace
from featherweight.zoo import own_data

DISAGREES = 4
WIDER = 1.5  # tables of C, times the bytes of the codes, from which it is said


def inspect_command(
    target: Target,
    model: TargetModel = None,
    data: TargetData = None,
    seed: Annotated[int, typer.Option(min=0, help="For a task whose score depends on its seed.")] = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    shapes: Inputs = None,
) -> None:
    """Measure an artifact or packed file anew, from its files alone; or show a MODEL's structure: what can go, and why not.

    Exits with 4 where an artifact's files disagree with its report. Of a packed file without --data no score, and without --input
    no MACs.
    """
    if shapes and not subjects.takes_shapes(target):
        raise InputError("--input shows the structure of a MODEL; an artifact that was made with data is scored: give --data")
    if subjects.is_packed(target) and model is not None and data is None and not shapes:
        network, original = subjects.unpacked(target, model, seed, device)
        _show_packed(Path(target), measure(network), weights_left(network, original), as_json)
        return
    held = subjects.load(target, model, data, seed, threads, shapes=shapes or (), device=device)
    if subjects.is_model(target):
        found = outline.outline(trace(held.network, held.task.example_inputs))
        console.json_object(found) if as_json else console.outline(target, found)
        return
    measured, folder = subjects.measured(held, target), Path(target)
    left = weights_left(held.network, held.original) if held.original is not None else {}
    if held.description is None:
        _show_packed(folder, measured, left, as_json)
        return
    claimed = subjects.claimed(held.description, folder)
    table, differ = console.compared(measured, claimed)
    files = artifact.file_sizes(folder)
    if as_json:
        reported = {"measured": asdict(measured), "claimed": asdict(claimed), "agrees": not differ, "differs": differ}
        reported |= {"weights": left, "files": files, "exports": held.description.exports}
        console.json_object({"folder": target, "model": held.model, "data": held.data, **reported})
    else:
        title = f"{folder}: {held.model} on {held.data}, written by featherweight {held.description.featherweight}"
        console.output().print(console.written(title))
        console.inspection(table, left, files)
        for name, export in held.description.exports.items():
            console.export_noted(name, export)
        if not differ:
            console.output().print("\nThe files agree with their report.")
    if differ:
        console.note(f"error: the files disagree with their report: {', '.join(differ)}")
        raise typer.Exit(DISAGREES)


def _show_packed(path: Path, measured: Measurement, left: dict[str, Any], as_json: bool) -> None:
    size = path.stat().st_size
    if as_json:
        console.json_object({"path": str(path), "bytes": size, "measured": asdict(measured)})
    else:
        console.inspection(console.compared(measured, measured)[0], left, {path.name: size})


def pack_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    out: Annotated[Path | None, typer.Option("-o", help="The file; default: DIR/model.fwz.")] = None,
    model: TargetModel = None,
    as_json: AsJson = False,
) -> None:
    """Pack an artifact's network into one entropy-coded file, every byte counted, bitwise the same when loaded."""
    network = subjects.original_of(folder, model)
    snapshot, path = artifact.snapshot(folder), out or folder / "model.fwz"
    artifact.load(folder, network)  # a network of another class is refused with its first difference
    packed.write(path, snapshot, network)
    counted = packed.storage(snapshot, network)
    if as_json:
        console.json_object({"path": str(path), **asdict(counted)})
    else:
        console.storage(counted.table(), path)


def export_command(
    target: Target,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: model.FORMAT in DIR.")] = None,
    format: Annotated[str, typer.Option(metavar="F", help=f"{', '.join(exporting.FORMATS)} or c.")] = "onnx",
    model: TargetModel = None,
    data: TargetData = None,
    seed: Seed = 0,
    opset: Annotated[int, typer.Option(help="Of ONNX.")] = exporting.LEAST_OPSET,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="The example's batch size only, not any.")] = False,
    any_length: Annotated[
        bool | None,
        typer.Option("--any-length/--one-length", help="Inputs of other lengths too, as the network takes them; so are texts."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="W", help="Coded weights in ONNX: packed (small, as fast), integers (DequantizeLinear) or float."),
    ] = "packed",
    integers: Annotated[
        bool, typer.Option("--integers", help="Activations in 8 bits too, calibrated on the task's data.")
    ] = False,
    method: Annotated[str, typer.Option("--calibrate", metavar="M", help="minmax, percentile or entropy.")] = "minmax",
    samples: Annotated[int, typer.Option(help="Training samples to calibrate on.")] = activations.SAMPLES,
    in_float: Annotated[
        list[str] | None, typer.Option("--float", metavar="LAYER", help="Left in float32; again for more.")
    ] = None,
    float_ends: Annotated[bool, typer.Option("--float-ends", help="The first and the last layer left in float32.")] = False,
    small: Annotated[bool, typer.Option("--small", help="C: for little memory in place of speed.")] = False,
    unchecked: Annotated[bool, typer.Option("--no-check", help="C: written without being compiled and compared.")] = False,
    machine: Annotated[
        str | None,
        typer.Option("--target", metavar="T", help="C: flash and RAM on cortex-m4, aarch64-linux-musl .., by zig."),
    ] = None,
    scored: Annotated[bool, typer.Option("--score", help="Score the file by the task.")] = False,
    as_json: AsJson = False,
    shapes: Inputs = None,
) -> None:
    """Write TARGET as an ONNX model, a torch.export program or C, run the file, and say how far it is from the network."""
    if format not in (*exporting.FORMATS, "c"):
        raise InputError(f"format must be one of {', '.join(exporting.FORMATS)} or c, given {format!r}")
    if format == "c" and (integers or weights != "packed"):
        raise InputError("--integers and --weights are for ONNX; a C file runs the weights that are left, in float32")
    if format == "c" and scored and unchecked:
        raise InputError("--score compiles and runs the C file, and --no-check leaves that out: give one of the two")
    if (integers or scored) and shapes:
        raise InputError(
            "--integers calibrates on a task's training batches and --score asks it: give --data in place of --input"
        )
    if machine is not None and format != "c":
        raise InputError("--target is for C, the one format that is compiled: give --format c, or leave it out")
    held, folder = subjects.load(target, model, data, seed, shapes=shapes or ()), Path(target)
    if out is None and held.description is None:
        raise InputError(f"{target} is not an artifact's folder to write into: give -o FILE")
    path = out or folder / f"model.{format}"
    if format == "c":
        wrote = c.export_c(held.network, held.task.example_inputs, path, small=small, check=not unchecked, target=machine)
        if scored:
            wrote = c.scored(wrote, held.network, held.task)
        if out is None:
            artifact.note_export(folder, path.name, wrote.to_dict())
        console.json_object(wrote.to_dict()) if as_json else console.exported_c(wrote)
        coded = measure(held.network, held.task.example_inputs).bits // 8
        if wrote.tables > WIDER * coded:
            console.note(
                f"note: C holds each weight that is left as a float, {wrote.tables:,} bytes of tables, where their codes take "
                f"{coded:,}. For little flash: few weights and few shared values (the recipe admm_joint), and --small"
            )
        return
    asked = None
    if integers:
        seen = activations.calibration(held.network, held.task, samples)
        asked = activations.Integers(seen, method, tuple(in_float or ()), not float_ends)  # type: ignore[arg-type]
    done = _exported(
        held, path, any_length, format=format, opset=opset, dynamic_batch=not fixed_batch, weights=weights, integers=asked
    )
    if scored:
        done = exporting.scored(done, held.network, held.task)
    if out is None:
        artifact.note_export(folder, path.name, done.to_dict())
    console.json_object(done.to_dict()) if as_json else console.exported(done)


def _exported(held: Subject, path: Path, any_length: bool | None, **options: Any) -> Exported:
    """`any_length` None: where the data are texts, no two of which are alike in length, and the network can."""
    example = held.task.example_inputs
    if any_length is not None or not own_data.varies(held.data):
        return exporting.export(held.network, example, path, any_length=bool(any_length), **options)
    done, why = exporting.for_lengths(held.network, example, path, **options)
    if why is not None:
        console.note(f"note: the file takes texts of the example's length alone ({calls.Inputs.of(example)}). For others: {why}")
    return done


def bench_command(
    targets: Annotated[
        list[str], typer.Argument(metavar="A [B ...]", help="Artifacts, packed files, MODELs; A is the baseline.")
    ],
    model: TargetModel = None,
    data: TargetData = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="eager, onnx, integers or c; may be repeated. Default: eager and onnx.")
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Of the processor; may be repeated. Default: 1.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; may be repeated. Default: 1.")] = None,
    device: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: cpu, and cuda if there is one.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that each is measured, in turns.")] = 30,
    as_json: AsJson = False,
    shapes: Inputs = None,
) -> None:
    """Time networks against A, in turns: faster, slower, or no difference seen where times spread more than they differ."""
    held = {target: subjects.load(target, model, data, also=targets, shapes=shapes or ()) for target in targets}
    if len(held) < len(targets):
        raise InputError("the same network is given twice: its two times would go by one name")
    seen = {}
    if "integers" in (runtime or ()):
        if shapes:
            raise InputError("integers are calibrated on a task's batches: give --data in place of --input")
        seen = {name: activations.calibration(one.network, one.task) for name, one in held.items()}
    found = bench.bench(
        {name: one.network for name, one in held.items()},
        {name: one.task.example_inputs for name, one in held.items()},
        runtimes=runtime or bench.USUAL,  # type: ignore[arg-type]
        calibration=seen,
        threads=threads or (1,),
        batches=batch or (1,),
        devices=device,
        rounds=rounds,
    )
    console.json_object(found.to_dict()) if as_json else console.lines(bench.text(found))
