"""The command line: one function a command, and what they share."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli import benchmarks, console, evidence, failures, inputs, jobs, outline, subjects
from featherweight.cli.jobs import Job
from featherweight.compression import Compressed
from featherweight.errors import FeatherweightError, InputError, did_you_mean
from featherweight.files import artifact, packed
from featherweight.files.description import WRITER
from featherweight.recipe.schema import Recipe
from featherweight.recipes import RECIPES
from featherweight.run.report import weights_left
from featherweight.run.state import CHECKPOINT
from featherweight.ship import activations, bench, c
from featherweight.ship import export as exporting
from featherweight.structure import trace
from featherweight.zoo.networks import NETWORKS

DISAGREES, INTERRUPTED = 4, 130
DATA = ", ".join(inputs.BUILT_IN_DATA)
EPILOG = (
    "Exit codes: 0 done. 1 the demo missed its aim, evidence is less than required, or an error of no other kind. 2 a wrong "
    "argument, name or recipe. 3 data missing or damaged. 4 an artifact or checkpoint damaged or foreign, or inspect disagrees "
    "with the report. 5 training cannot go on, such as a loss that is NaN. 6 files cannot be written. 130 interrupted; the same "
    "command goes on. "
    f"{failures.DEBUG}=1 before a command shows the traceback of an error."
)
DEMO = {"keep": "4x,10x,22x", "dense_epochs": "12", "epochs": "6", "retrain_epochs": "9", "every": "5", "rho": "0.02"}
DEMO |= {"growth": "1.2", "rho_max": "1", "distill": "1"}  # tried on held-out training images, not on the test part
DEMO_RATIO, DEMO_POINTS = 20.0, 1.0


class Commands(typer.core.TyperGroup):
    """The one place where named errors become a message and an exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.obj = shlex.join(args)  # to be shown after an interruption: the same command goes on
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        failures.quiet()
        try:
            return super().invoke(ctx)
        except FeatherweightError as error:
            code = failures.tell(error)
            if isinstance(error, subjects.CodeNeeded):
                more = [part for option in error.options.items() for part in option]
                console.command(f"  {ctx.find_root().info_name} {ctx.find_root().obj} {shlex.join(more)}")
            raise typer.Exit(code) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("typer", "click"):
                raise  # a mistake in the options, or an exit
            raise typer.Exit(failures.tell(error)) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help=f"{', '.join(NETWORKS)}; or file.py:function, which returns a module.")
]
Data = Annotated[
    str, typer.Option("--data", metavar="D", help=f"{DATA}, or tfbs:PATH; or file.py:task, a Task or a function seed -> Task.")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="R", help="A built-in recipe (see `recipes`), or a .yaml or .json file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter of the recipe (keep=5x,10x), or a path in a file's data (stages.1.keep=0.1).",
    ),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="A .safetensors file with the trained weights.")]
Workdir = Annotated[Path | None, typer.Option(metavar="W", help="Folder for checkpoints. Default: DIR.work, removed at the end.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds torch and the task.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: torch's own choice.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where networks run: cpu, cuda, cuda:1 ..")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="An artifact, a packed file (.fwz), or a MODEL.")]
TargetModel = Annotated[str | None, typer.Option("--model", help="The network; default: the one that the artifact names.")]
TargetData = Annotated[str | None, typer.Option("--data", help="The task; default: the one that the artifact names.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="1x3x224x224",
        help="Shape of an input, in place of --data; again for each further one. 1x16:int64 for other types than float32, "
        "tokens=1x16:int64 by name.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Makes trained PyTorch networks small and fast, and measures what came out."""
    if version:
        typer.echo(WRITER)
        raise typer.Exit


@app.command("compress", epilog=EPILOG)
def compress_command(
    ctx: typer.Context,
    model: Model,
    data: Data,
    recipe: RecipeName,
    out: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the artifact. An artifact in it is replaced.")
    ],
    settings: Settings = None,
    weights: Weights = None,
    workdir: Workdir = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Compress MODEL on the data by the recipe, and write the artifact to DIR. Ctrl-C saves; the same command goes on."""
    chosen = inputs.recipe(recipe, settings or ())
    made = Job.load(model, data, weights, seed, threads, device=device)
    if dry_run:
        _show_plan(made, chosen, as_json)
        return
    done, files = _run(ctx, made, chosen, out, workdir)
    if as_json:
        console.json_object(_summary(done, out, files))
    else:
        console.results(done.rows, out, files, jobs.next_commands(str(ctx.find_root().info_name), made, out))


@app.command("plan", epilog=EPILOG)
def plan_command(
    model: Model,
    data: TargetData = None,
    recipe: Annotated[str | None, typer.Option(help="A built-in name, or a .yaml or .json file.")] = None,
    settings: Settings = None,
    weights: Weights = None,
    seed: Seed = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    budget: Annotated[
        str | None,
        typer.Option(help="In place of a recipe: macs=50%, parameters=50% or bytes=50% to keep, or latency_ms=3 an example."),
    ] = None,
    shapes: Inputs = None,
) -> None:
    """Show what `compress` would do, with exact names and sizes, or which units a budget would cut; and run nothing."""
    if recipe is None and budget is None:
        raise InputError("plan needs --recipe NAME, or --budget macs=50% for units alone")
    if recipe is not None and budget is not None:
        raise InputError("give --recipe or --budget, not both: a recipe has its own budget, such as --set macs=50%")
    if data is None and not shapes:
        data = subjects.data_for(model)
    if budget is not None:
        what, amount = outline.budget_of(budget)
        made = Job.load(model, data, weights, seed, shapes=shapes or (), device=device)
        found = outline.cuts(made.network, made.task, what, amount)
        console.json_object(found) if as_json else console.cuts(found)
        return
    assert recipe is not None
    if shapes:
        raise InputError("a recipe trains, and its plan says for how many steps: give --data in place of --input")
    chosen = inputs.recipe(recipe, settings or ())
    _show_plan(Job.load(model, data, weights, seed, device=device), chosen, as_json)


@app.command("inspect", epilog=EPILOG)
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

    Exits with 4 where an artifact's files disagree with its report.
    """
    if shapes and not subjects.is_model(target):
        raise InputError("--input shows the structure of a MODEL; an artifact or packed file is scored: give --data")
    held = subjects.load(target, model, data, seed, threads, shapes=shapes or (), device=device)
    if subjects.is_model(target):
        found = outline.outline(trace(held.network, held.task.example_inputs))
        console.json_object(found) if as_json else console.outline(target, found)
        return
    measured, folder = subjects.measured(held, target), Path(target)
    left = weights_left(held.network, held.original) if held.original is not None else {}
    if held.description is None:
        size = folder.stat().st_size
        if as_json:
            console.json_object({"path": target, "bytes": size, "measured": asdict(measured)})
        else:
            console.inspection(console.compared(measured, measured)[0], left, {folder.name: size})
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


@app.command("pack", epilog=EPILOG)
def pack_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    out: Annotated[Path | None, typer.Option("-o", help="The file; default: DIR/model.fwz.")] = None,
    model: TargetModel = None,
    as_json: AsJson = False,
) -> None:
    """Pack an artifact's network into one entropy-coded file, every byte counted, bitwise the same when loaded."""
    network = inputs.network(subjects.model_of(folder, model))
    snapshot, path = artifact.snapshot(folder), out or folder / "model.fwz"
    artifact.load(folder, network)  # a network of another class is refused with its first difference
    packed.write(path, snapshot, network)
    counted = packed.storage(snapshot, network)
    if as_json:
        console.json_object({"path": str(path), **asdict(counted)})
    else:
        console.storage(counted.table(), path)


@app.command("export", epilog=EPILOG)
def export_command(
    target: Target,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: model.FORMAT in DIR.")] = None,
    format: Annotated[str, typer.Option(metavar="F", help=f"{', '.join(exporting.FORMATS)} or c.")] = "onnx",
    model: TargetModel = None,
    data: TargetData = None,
    seed: Seed = 0,
    opset: Annotated[int, typer.Option(help="Of ONNX.")] = exporting.LEAST_OPSET,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="The example's batch size only, not any.")] = False,
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
    scored: Annotated[bool, typer.Option("--score", help="Score the file by the task.")] = False,
    as_json: AsJson = False,
    shapes: Inputs = None,
) -> None:
    """Write TARGET as an ONNX model, a torch.export program or C, run the file, and say how far it is from the network."""
    held, folder = subjects.load(target, model, data, seed, shapes=shapes or ()), Path(target)
    if out is None and held.description is None:
        raise InputError(f"{target} is not an artifact's folder to write into: give -o FILE")
    if (integers or scored) and shapes:
        raise InputError(
            "--integers calibrates on a task's training batches and --score asks it: give --data in place of --input"
        )
    path = out or folder / f"model.{format}"
    if format == "c":
        if integers or scored or weights != "packed":
            raise InputError(
                "--integers, --score and --weights are for ONNX; a C file runs the weights that are left, in float32"
            )
        wrote = c.export_c(held.network, held.task.example_inputs, path, small=small, check=not unchecked)
        if out is None:
            artifact.note_export(folder, path.name, wrote.to_dict())
        console.json_object(wrote.to_dict()) if as_json else console.exported_c(wrote)
        return
    asked = None
    if integers:
        seen = activations.calibration(held.network, held.task, samples)
        asked = activations.Integers(seen, method, tuple(in_float or ()), not float_ends)  # type: ignore[arg-type]
    done = exporting.export(
        held.network,
        held.task.example_inputs,
        path,
        format,  # type: ignore[arg-type]
        opset=opset,
        dynamic_batch=not fixed_batch,
        weights=weights,  # type: ignore[arg-type]
        integers=asked,
    )
    if scored:
        done = exporting.scored(done, held.network, held.task)
    if out is None:
        artifact.note_export(folder, path.name, done.to_dict())
    console.json_object(done.to_dict()) if as_json else console.exported(done)


@app.command("bench", epilog=EPILOG)
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


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one.")] = None,
    settings: Settings = None,
) -> None:
    """List the built-in recipes, or show one: its parameters as comments and itself as YAML, ready to be saved as a file."""
    out = console.output()
    if name is None:
        cells = [(key, function().source, inputs.first_line(function.__doc__)) for key, function in RECIPES.items()]
        out.print(console.table(("recipe", "paper", "what it does"), cells, left=3))
        return
    if name not in RECIPES:
        raise InputError(f"no recipe is named {name!r}.{did_you_mean(name, RECIPES)} There are: {', '.join(RECIPES)}")
    typer.echo(inputs.as_file(name, inputs.recipe(name, settings or ())), nl=False)


@app.command("demo", epilog=EPILOG)
def demo_command(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the artifact.")] = Path("runs/demo"),
    seed: Seed = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train LeNet-5 on scikit-learn's digits and leave a twentieth of its weights. Nothing is downloaded; a minute or two."""
    settings = [f"{key}={value}" for key, value in DEMO.items()]
    same = ["compress", "lenet5", "--data", "digits", "--recipe", "progressive_admm"]
    same += [part for setting in settings for part in ("--set", setting)]
    console.command(f"the same as: {ctx.find_root().info_name} {shlex.join([*same, '-o', str(out)])}")
    chosen = inputs.recipe("progressive_admm", settings)
    made = Job.load("lenet5", "digits", None, seed, threads)
    done, files = _run(ctx, made, chosen, out, None)
    dense, last = done.rows[0].measured, done.rows[-1].measured
    assert dense.score is not None and last.score is not None
    ratio, lost = dense.nonzeros / last.nonzeros, dense.score - last.score
    achieved = ratio >= DEMO_RATIO and lost <= DEMO_POINTS
    if as_json:
        asked = {"ratio": DEMO_RATIO, "points_lost": DEMO_POINTS}
        got = {"ratio": ratio, "points_lost": lost}
        console.json_object(_summary(done, out, files) | {"asked": asked, "achieved": got, "met": achieved})
    else:
        console.results(done.rows, out, files)
        screen = console.output()
        screen.print(f"asked     at least {DEMO_RATIO:g}x fewer weights, at most {DEMO_POINTS:g} point of accuracy lost")
        points = f"{abs(lost):.2f} points {'lost' if lost > 0 else 'gained'}"
        screen.print(f"achieved  {ratio:.1f}x fewer weights, {points}{'' if achieved else ': NOT what was asked'}")
        screen.print(console.written(f"measure the files anew: {ctx.find_root().info_name} inspect {shlex.quote(str(out))}"))
    if not achieved:
        raise typer.Exit(1)


app.command("evidence", epilog=EPILOG)(evidence.evidence_command)
app.command("report", epilog=EPILOG)(evidence.report_command)


@app.command("reproduce", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def reproduce_command(ctx: typer.Context, name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None) -> None:
    """Run a benchmark of a checkout and rewrite its table; without NAME, list them. Further arguments go to the benchmark."""
    known = benchmarks.benchmarks()
    if not known:
        raise InputError("benchmarks are part of a checkout, and none is here: clone the project and run this in its folder")
    if name is None:
        cells = [(key, benchmarks.purpose(path)) for key, path in known.items()]
        console.output().print(console.table(("benchmark", "what it measures"), cells, left=2))
        return
    if name not in known:
        raise InputError(f"no benchmark is named {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}")
    benchmarks.run(known[name], ctx.args)


# --- what the commands share ---------------------------------------------------------------------------------------------


def _run(ctx: typer.Context, made: Job, recipe: Recipe, out: Path, workdir: Path | None) -> tuple[Compressed, dict[str, int]]:
    place = workdir or jobs.beside(out)
    try:
        return jobs.run(made, recipe, out, place, keep_workdir=workdir is not None)
    except KeyboardInterrupt:
        saved = (place / CHECKPOINT).exists()
        console.note(f"interrupted; {f'saved in {place}. To go on' if saved else 'nothing was done yet. To start again'}:")
        root = ctx.find_root()
        console.command(f"  {root.info_name} {root.obj}")
        raise typer.Exit(INTERRUPTED) from None


def _summary(done: Compressed, out: Path, files: dict[str, int]) -> dict[str, Any]:
    rows = [row.to_dict() for row in done.rows]
    return {"output": str(out), "files": files, "recipe": done.recipe.to_dict(), "rows": rows}


def _show_plan(made: Job, recipe: Recipe, as_json: bool) -> None:
    stages = jobs.plan(made, recipe)
    if as_json:
        console.json_object({"recipe": recipe.to_dict(), "model": made.model, "data": made.data, "stages": stages})
    else:
        console.plan(recipe, stages)


def main() -> None:
    """The entry point."""
    app()
