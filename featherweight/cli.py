"""The command line: one function a command, and what they share."""

from __future__ import annotations

import ast
import inspect
import runpy
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from featherweight import artifact, checkout, console, given, job, latency, outline, packed, subject
from featherweight import export as exporting
from featherweight.compress import Compressed
from featherweight.errors import FeatherweightError, InputError, did_you_mean
from featherweight.job import Job
from featherweight.measure import measure
from featherweight.recipe import Recipe, to_yaml
from featherweight.recipes import RECIPES
from featherweight.run import CHECKPOINT
from featherweight.structure import trace
from featherweight.tasks import TASKS
from featherweight.version import __version__
from featherweight.zoo import NETWORKS

DISAGREES, INTERRUPTED = 4, 130
EPILOG = (
    "Exit codes: 0 done. 1 the demo missed its aim, or an error of no other kind. 2 a wrong argument, name or recipe. "
    "3 data missing or damaged. 4 an artifact or checkpoint damaged or foreign, or inspect disagrees with the report. "
    "5 training cannot go on, such as a loss that is NaN. 6 files cannot be written. 130 interrupted; the same command goes on."
)
DEMO = {"ratios": "4,10,22", "dense_epochs": "12", "epochs": "6", "retrain_epochs": "9", "every": "5", "rho": "0.02"}
DEMO |= {"growth": "1.2", "rho_max": "1", "distill": "0.5"}  # tried on held-out training images, not on the test part
DEMO_RATIO, DEMO_POINTS = 20.0, 1.0


class Commands(typer.core.TyperGroup):
    """The one place where named errors become a message and an exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.obj = shlex.join(args)  # to be shown after an interruption: the same command goes on
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except FeatherweightError as error:
            console.note(f"error: {error}")
            raise typer.Exit(error.exit_code) from None


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
    str, typer.Option("--data", metavar="D", help=f"{', '.join(TASKS)}; or file.py:task, a Task or a function seed -> Task.")
]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="R", help="A built-in recipe (see `recipes`), or a .yaml or .json file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter of the recipe (ratios=5,10), or a path in a file's data (stages.1.keep=0.1).",
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
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Makes trained PyTorch networks small and fast, and measures what came out."""
    if version:
        typer.echo(__version__)
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
    chosen = given.recipe(recipe, settings or ())
    made = Job.load(model, data, weights, seed, threads, device)
    if dry_run:
        _show_plan(made, chosen, as_json)
        return
    done, files = _run(ctx, made, chosen, out, workdir)
    if as_json:
        console.json_object(_summary(done, out, files))
    else:
        console.results(done.rows, out, files)


@app.command("plan", epilog=EPILOG)
def plan_command(
    model: Model,
    data: Data,
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
) -> None:
    """Show what `compress` would do, with exact names and sizes, or which units a budget would cut; and run nothing."""
    if budget is not None:
        what, amount = outline.budget_of(budget)
        made = Job.load(model, data, weights, seed, device=device)
        found = outline.cuts(made.network, made.task, what, amount)
        console.json_object(found) if as_json else console.cuts(found)
        return
    if recipe is None:
        raise InputError("plan needs --recipe NAME, or --budget macs=50% for units alone")
    chosen = given.recipe(recipe, settings or ())
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
) -> None:
    """Measure an artifact or packed file anew, from its files alone; or show a MODEL's structure: what can go, and why not.

    Exits with 4 where an artifact's files disagree with its report.
    """
    held = subject.load(target, model, data, seed, threads, device=device)
    if subject.is_model(target):
        found = outline.outline(trace(held.network, held.task.example))
        console.json_object(found) if as_json else console.outline(target, found)
        return
    measured, folder = measure(held.network, held.task.example, held.task.score), Path(target)
    left = job.weights_left(held.network, held.original) if held.original is not None else {}
    if held.description is None:
        size = folder.stat().st_size
        if as_json:
            console.json_object({"path": target, "bytes": size, "measured": asdict(measured)})
        else:
            console.inspection(console.compared(measured, measured)[0], left, {folder.name: size})
        return
    claimed = subject.claimed(held.description, folder)
    table, differ = console.compared(measured, claimed)
    files = artifact.file_sizes(folder)
    if as_json:
        reported = {"measured": asdict(measured), "claimed": asdict(claimed), "agrees": not differ, "differs": differ}
        reported |= {"weights": left, "files": files, "exports": held.description.exports}
        console.json_object({"folder": target, "model": held.model, "data": held.data, **reported})
    else:
        title = f"{folder}: {held.model} on {held.data}, written by featherweight {held.description.featherweight}"
        console.output().print(Text(console.printable(title)))
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
    network = given.network(model or subject.recorded(artifact.describe(folder).model, NETWORKS, "--model", folder), None)
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
    format: Annotated[str, typer.Option(metavar="F", help=f"{' or '.join(exporting.FORMATS)}.")] = "onnx",
    model: TargetModel = None,
    data: TargetData = None,
    seed: Seed = 0,
    opset: Annotated[int, typer.Option(help="Of ONNX.")] = exporting.LEAST_OPSET,
    fixed_batch: Annotated[bool, typer.Option("--fixed-batch", help="The example's batch size only, not any.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write TARGET as an ONNX model or a torch.export program, run the file, and say how far it is from the network."""
    held, folder = subject.load(target, model, data, seed), Path(target)
    if out is None and held.description is None:
        raise InputError(f"{target} is not an artifact's folder to write into: give -o FILE")
    path = out or folder / f"model.{format}"
    done = exporting.export(held.network, held.task.example, path, format, opset=opset, dynamic_batch=not fixed_batch)  # type: ignore[arg-type]
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
    runtime: Annotated[list[str] | None, typer.Option(help="eager or onnx; may be repeated. Default: both.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Of the processor; may be repeated. Default: 1.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; may be repeated. Default: 1.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu or cuda; may be repeated. Default: the processor, and a GPU if there is one.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Times that each is measured, in turns.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Time networks against A, in turns: faster, slower, or no difference seen where times spread more than they differ."""
    held = {target: subject.load(target, model, data, also=targets) for target in targets}
    if len(held) < len(targets):
        raise InputError("the same network is given twice: its two times would go by one name")
    examples = {name: one.task.example for name, one in held.items()}
    found = latency.bench(
        {name: one.network for name, one in held.items()},
        examples,
        runtimes=runtime or latency.RUNTIMES,  # type: ignore[arg-type]
        threads=threads or (1,),
        batches=batch or (1,),
        devices=device,
        rounds=rounds,
    )
    console.json_object(found.to_dict()) if as_json else typer.echo(latency.text(found))


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one.")] = None,
    settings: Settings = None,
) -> None:
    """List the built-in recipes, or show one: its parameters as comments and itself as YAML, ready to be saved as a file."""
    out = console.output()
    if name is None:
        cells = [(key, function().source, _first_line(function.__doc__)) for key, function in RECIPES.items()]
        out.print(console.table(("recipe", "paper", "what it does"), cells, left=3))
        return
    if name not in RECIPES:
        raise InputError(f"no recipe is named {name!r}.{did_you_mean(name, RECIPES)} There are: {', '.join(RECIPES)}")
    built = given.recipe(name, settings or ())
    lines = [f"{name}, {built.source}", *(inspect.getdoc(RECIPES[name]) or "").splitlines(), "", "Parameters, for --set:"]
    rows = given.parameters(name)
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines += [f"  {key.ljust(widths[0])}  {kind.ljust(widths[1])}  {default}" for key, kind, default in rows]
    typer.echo("\n".join(f"# {line}".rstrip() for line in lines))
    typer.echo(to_yaml(built), nl=False)


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
    chosen = given.recipe("progressive_admm", settings)
    made = Job.load("lenet5", "digits", None, seed, threads)
    done, files = _run(ctx, made, chosen, out, None)
    dense, last = done.rows[0].measured, done.rows[-1].measured
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
        screen.print(f"achieved  {ratio:.1f}x fewer weights, {console.points(-lost)}{'' if achieved else ': NOT what was asked'}")
        screen.print(Text(f"measure the files anew: {ctx.find_root().info_name} inspect {shlex.quote(str(out))}"))
    if not achieved:
        raise typer.Exit(1)


@app.command("reproduce", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def reproduce_command(ctx: typer.Context, name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None) -> None:
    """Run a benchmark of a checkout and rewrite its table; without NAME, list them. Further arguments go to the benchmark."""
    known = checkout.benchmarks()
    if not known:
        raise InputError(
            "benchmarks are part of a checkout, and there is none here: clone the project and run this in its folder"
        )
    if name is None:
        cells = [(key, _first_line(ast.get_docstring(ast.parse(path.read_text())))) for key, path in known.items()]
        console.output().print(console.table(("benchmark", "what it measures"), cells, left=2))
        return
    if name not in known:
        raise InputError(f"no benchmark is named {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}")
    sys.argv = [str(known[name]), *ctx.args]  # the benchmark's own argument parser reads them
    sys.path.insert(0, str(known[name].parent))  # benchmarks import what they share, as when run as scripts
    runpy.run_path(str(known[name]), run_name="__main__")


# --- what the commands share ---------------------------------------------------------------------------------------------


def _run(ctx: typer.Context, made: Job, recipe: Recipe, out: Path, workdir: Path | None) -> tuple[Compressed, dict[str, int]]:
    place = workdir or job.beside(out)
    try:
        return job.run(made, recipe, out, place, keep_workdir=workdir is not None)
    except KeyboardInterrupt:
        saved = (place / CHECKPOINT).exists()
        console.note(
            f"interrupted; saved in {place}. To go on:" if saved else "interrupted; nothing was done yet. To start again:"
        )
        root = ctx.find_root()
        console.command(f"  {root.info_name} {root.obj}")
        raise typer.Exit(INTERRUPTED) from None


def _summary(done: Compressed, out: Path, files: dict[str, int]) -> dict[str, Any]:
    rows = [row.to_dict() for row in done.rows]
    return {"output": str(out), "files": files, "recipe": done.recipe.to_dict(), "rows": rows}


def _show_plan(made: Job, recipe: Recipe, as_json: bool) -> None:
    stages = job.plan(made, recipe)
    if as_json:
        console.json_object({"recipe": recipe.to_dict(), "model": made.model, "data": made.data, "stages": stages})
    else:
        console.plan(recipe, stages)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
