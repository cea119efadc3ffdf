"""The command line: `featherweight compress`, `plan`, `inspect`, `pack`, `recipes`, `demo` and `reproduce`."""

from __future__ import annotations

import ast
import inspect
import runpy
import shlex
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.text import Text

from featherweight import artifact, console, given, job, outline, packed
from featherweight.compress import Compressed
from featherweight.errors import ArtifactError, FeatherweightError, InputError, did_you_mean
from featherweight.job import Job
from featherweight.measure import Measurement, measure
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
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
) -> None:
    """Compress MODEL on the data by the recipe, and write the artifact to DIR. Ctrl-C saves; the same command goes on."""
    chosen = given.recipe(recipe, settings or ())
    subject = Job.load(model, data, weights, seed, threads)
    if dry_run:
        _show_plan(subject, chosen, as_json)
        return
    done, files = _run(ctx, subject, chosen, out, workdir)
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
    as_json: AsJson = False,
    budget: Annotated[str | None, typer.Option(help="In place of a recipe: macs=50% or parameters=50% to keep.")] = None,
) -> None:
    """Show what `compress` would do, with exact names and sizes, or which units a budget would cut; and run nothing."""
    if budget is not None:
        what, share = outline.budget_of(budget)
        subject = Job.load(model, data, weights, seed)
        found = outline.cuts(trace(subject.network, subject.task.example), what, share)
        console.json_object(found) if as_json else console.cuts(found)
        return
    if recipe is None:
        raise InputError("plan needs --recipe NAME, or --budget macs=50% for units alone")
    chosen = given.recipe(recipe, settings or ())
    _show_plan(Job.load(model, data, weights, seed), chosen, as_json)


@app.command("inspect", epilog=EPILOG)
def inspect_command(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="An artifact, a packed file (.fwz), or a MODEL.")],
    model: Annotated[str | None, typer.Option(help="The network; default: the built-in one that the artifact names.")] = None,
    data: Annotated[str | None, typer.Option(help="The task; default: the built-in one that the artifact names.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For a task whose score depends on its seed.")] = 0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure an artifact or packed file anew, from its files alone; or show a MODEL's structure: what can go, and why not.

    Exits with 4 where an artifact's files disagree with its report.
    """
    folder = Path(target)
    if folder.suffix == ".fwz":
        _inspect_packed(folder, model, data, seed, threads, as_json)
        return
    if not folder.is_dir() and (target in NETWORKS or ".py:" in target):
        subject = Job.load(target, data or _data_for(target), None, seed, threads)
        found = outline.outline(trace(subject.network, subject.task.example))
        console.json_object(found) if as_json else console.outline(target, found)
        return
    described = artifact.describe(folder)
    # A path such as file.py:Net is code: it is taken from the command line only, whatever the artifact says.
    model = model or _recorded(described.model, NETWORKS, "--model", folder)
    data = data or _recorded(described.data, TASKS, "--data", folder)
    subject = Job.load(model, data, None, seed, threads)
    network = artifact.load(folder, subject.network)
    given.check_fit(network, subject.task, model, data)
    measured, claimed = measure(network, subject.task.example, subject.task.score), _claim(described.report, folder)
    table, differ = console.compared(measured, claimed)
    files = artifact.file_sizes(folder)
    left = job.weights_left(network, subject.network)
    if as_json:
        reported = {"measured": asdict(measured), "claimed": asdict(claimed), "agrees": not differ, "differs": differ}
        console.json_object({"folder": str(folder), "model": model, "data": data, **reported, "weights": left, "files": files})
    else:
        title = f"{folder}: {model} on {data}, written by featherweight {described.featherweight}"
        console.output().print(Text(console.printable(title)))
        console.inspection(table, left, files)
        if not differ:
            console.output().print("\nThe files agree with their report.")
    if differ:
        console.note(f"error: the files disagree with their report: {', '.join(differ)}")
        raise typer.Exit(DISAGREES)


@app.command("pack", epilog=EPILOG)
def pack_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An artifact.")],
    out: Annotated[Path | None, typer.Option("-o", help="The file; default: DIR/model.fwz.")] = None,
    model: Annotated[str | None, typer.Option(help="The network; default: the built-in one that the artifact names.")] = None,
    as_json: AsJson = False,
) -> None:
    """Pack an artifact's network into one entropy-coded file, every byte counted, bitwise the same when loaded."""
    network = given.network(model or _recorded(artifact.describe(folder).model, NETWORKS, "--model", folder), None)
    snapshot, path = artifact.snapshot(folder), out or folder / "model.fwz"
    artifact.load(folder, network)  # a network of another class is refused with its first difference
    packed.write(path, snapshot, network)
    counted = packed.storage(snapshot, network)
    if as_json:
        console.json_object({"path": str(path), **asdict(counted)})
    else:
        console.storage(counted.table(), path)


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
    subject = Job.load("lenet5", "digits", None, seed, threads)
    done, files = _run(ctx, subject, chosen, out, None)
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
    known = _benchmarks()
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
    runpy.run_path(str(known[name]), run_name="__main__")


# --- what the commands share ---------------------------------------------------------------------------------------------


def _run(ctx: typer.Context, subject: Job, recipe: Recipe, out: Path, workdir: Path | None) -> tuple[Compressed, dict[str, int]]:
    place = workdir or job.beside(out)
    try:
        return job.run(subject, recipe, out, place, keep_workdir=workdir is not None)
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


def _show_plan(subject: Job, recipe: Recipe, as_json: bool) -> None:
    stages = job.plan(subject, recipe)
    if as_json:
        console.json_object({"recipe": recipe.to_dict(), "model": subject.model, "data": subject.data, "stages": stages})
    else:
        console.plan(recipe, stages)


def _inspect_packed(path: Path, model: str | None, data: str | None, seed: int, threads: int | None, as_json: bool) -> None:
    """Score and sizes of a packed file, which names neither network nor data."""
    if model is None or data is None:
        raise InputError(f"{path} names no network and no data: give --model and --data")
    subject = Job.load(model, data, None, seed, threads)
    network = packed.load(path, subject.network)
    measured, size = measure(network, subject.task.example, subject.task.score), path.stat().st_size
    if as_json:
        console.json_object({"path": str(path), "bytes": size, "measured": asdict(measured)})
    else:
        table, _ = console.compared(measured, measured)
        console.inspection(table, job.weights_left(network, subject.network), {path.name: size})


def _data_for(model: str) -> str:
    """The built-in task whose images a built-in network takes."""
    return "cifar10" if "res" in model or "vgg" in model else "digits"


def _recorded(name: str | None, known: Collection[str], option: str, folder: Path) -> str:
    """A built-in name that an artifact holds. Raises InputError for any other: a path is code, and is never taken from a file."""
    if name is not None and name in known:
        return name
    said = "names none" if name is None else f"names {name!r}, which is not built in"
    raise InputError(f"{folder} {said}: give {option}, one of {', '.join(known)}, or file.py:name")


def _claim(rows: list[dict[str, Any]], folder: Path) -> Measurement:
    """What the last row of a report says. Raises ArtifactError."""
    try:
        return TypeAdapter(Measurement).validate_python(rows[-1]["measured"])
    except (IndexError, KeyError, TypeError, ValidationError):
        where = folder / artifact.DESCRIPTION
        raise ArtifactError(f"{where} is damaged: its report has no measurement in its last row") from None


def _benchmarks() -> dict[str, Path]:
    """Name -> file of each benchmark of the checkout that this package is in, else of the current folder."""
    for home in (Path(__file__).resolve().parent.parent, Path.cwd()):
        files = sorted((home / "benchmarks").glob("*.py"))
        found = {path.stem.replace("_", "-"): path for path in files if _has_main(path)}
        if found:
            return found
    return {}


def _has_main(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
