"""The command line: one function a command, and what they share."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli import (
    artifacts,
    benchmarks,
    capacity,
    console,
    effort,
    evidence,
    failures,
    inputs,
    jobs,
    oneshot,
    outline,
    overview,
    shrink,
    subjects,
)
from featherweight.cli.jobs import Job
from featherweight.cli.options import (
    AsJson,
    Data,
    Device,
    Inputs,
    Model,
    RecipeName,
    Runtime,
    Seed,
    Settings,
    TargetData,
    Threads,
    Weights,
    Workdir,
)
from featherweight.cli.overview import EPILOG
from featherweight.compression import Compressed
from featherweight.errors import FeatherweightError, InputError, did_you_mean
from featherweight.recipe.schema import Recipe
from featherweight.recipes import FILES, GOALS, RECIPES
from featherweight.run.ground import launched, local

DEMO = {"keep": "4x,10x,22x", "dense_epochs": "12", "epochs": "6", "retrain_epochs": "9", "every": "5", "rho": "0.02"}
DEMO |= {"growth": "1.2", "rho_max": "1", "distill": "1"}  # tried on held-out training images, not on the test part
DEMO_RATIO, DEMO_POINTS = 20.0, 1.0


class Commands(overview.Group):
    """The one place where named errors become a message and an exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        ctx.obj = shlex.join(args)  # to be shown after an interruption: the same command goes on
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        failures.quiet()
        try:
            with warnings.catch_warnings():
                warnings.showwarning = failures.warned
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


app = typer.Typer(cls=Commands, **overview.LOOKS)  # type: ignore[arg-type]
app.callback(invoke_without_command=True)(overview.root)


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
    """Compress MODEL on the data by the recipe, and write the artifact to DIR. Ctrl-C saves; the same command goes on.

    In several processes: torchrun --nproc-per-node 8 -m featherweight compress ... (or accelerate launch, in place of torchrun).
    """
    chosen = inputs.recipe(recipe, settings or ())
    with launched(device) as engine:
        made = Job.load(model, data, weights, seed, threads, device=local(device))
        if dry_run:
            if engine.is_main:
                _show_plan(made, chosen, as_json)
            return
        place, keep = workdir or jobs.beside(out), workdir is not None
        done, files = jobs.run_or_saved(ctx, made, chosen, out, place, keep, engine)
    if not engine.is_main:
        return
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
        typer.Option(help="In place of a recipe: macs=50%, parameters=2x (fewer) or bytes=100kB to keep, or 3ms an example."),
    ] = None,
    shapes: Inputs = None,
    multiple: oneshot.Multiples = "auto",
    runtime: Runtime = "eager",
    devices: Annotated[
        int | None, typer.Option(help="In place of names and sizes: the memory by part that each of so many devices needs.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="That each has, such as 80GB: does it fit?")] = None,
) -> None:
    """Show what `compress` would do, with exact names and sizes, or which units a budget would cut; and run nothing."""
    if devices is not None or memory is not None:
        if weights is not None or budget is not None or (shapes and data is not None):
            raise InputError("plan --devices takes MODEL with --input or --data, and --recipe; no weights and no budget")
        chosen = None if recipe is None else inputs.recipe(recipe, settings or ())
        step = capacity.counted(model, data, shapes or (), seed, chosen)
        asked = step, 1 if devices is None else devices, capacity.bytes_of(memory)
        console.json_object(capacity.found(*asked)) if as_json else capacity.show(*asked)
        return
    if recipe is None and budget is None:
        raise InputError("plan needs --recipe NAME, or --budget macs=50% for units alone")
    if recipe is not None and budget is not None:
        raise InputError("give --recipe or --budget, not both: a recipe has its own budget, such as --set macs=50%")
    if data is None and not shapes:
        data = subjects.data_for(model)
    if budget is not None:
        what, amount = outline.budget_of(budget)
        made = Job.load(model, data, weights, seed, shapes=shapes or (), device=device)
        found = outline.cuts(made.network, made.task, what, amount, oneshot.multiple_of(multiple), runtime)
        console.json_object(found) if as_json else console.cuts(found)
        return
    assert recipe is not None
    if runtime != "eager":
        raise InputError(f"a recipe has a runtime of its own: --set latency_ms=2ms --set runtime={runtime}")
    if shapes:
        raise InputError("a recipe trains, and its plan says for how many steps: give --data in place of --input")
    chosen = inputs.recipe(recipe, settings or ())
    _show_plan(Job.load(model, data, weights, seed, device=device), chosen, as_json)


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one.")] = None,
    settings: Settings = None,
) -> None:
    """List the built-in recipes by what they are for, or show one: its parameters and itself as YAML, to be saved as a file.

    `shrink` picks among them by a goal.
    """
    screen = console.output()
    if name is None:
        for goal, names in GOALS.items():
            made = {key: RECIPES[key] for key in names}
            cells = [(key, inputs.first_sentence(f.__doc__), f"{f().epochs()} epochs", f().source) for key, f in made.items()]
            screen.print(console.written(goal, "bold"))
            console.listed(("recipe", "what it does", "trains", "paper"), cells)
        files = [(key, *inputs.head_of(path)) for key, path in FILES.items()]
        console.listed(("on ImageNet, as files", "paper", "what is published"), files)
        return
    if name in FILES:
        typer.echo(FILES[name].read_text(), nl=False)
        return
    if name not in RECIPES:
        raise InputError(f"no recipe is named {name!r}.{did_you_mean(name, (*RECIPES, *FILES))} There are: {', '.join(RECIPES)}")
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
    done, files = jobs.run_or_saved(ctx, made, chosen, out, jobs.beside(out), keep=False)
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


COMMANDS: tuple[Callable[..., None], ...] = (
    shrink.shrink_command,
    oneshot.prune_command,
    oneshot.factorize_command,
    oneshot.quantize_command,
    artifacts.inspect_command,
    artifacts.pack_command,
    artifacts.export_command,
    artifacts.bench_command,
    evidence.evidence_command,
    evidence.report_command,
)
for command in COMMANDS:
    app.command(command.__name__.removesuffix("_command"), epilog=EPILOG)(command)


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


def _summary(done: Compressed, out: Path, files: dict[str, int]) -> dict[str, Any]:
    rows = [row.to_dict() for row in done.rows]
    return {"output": str(out), "files": files, "recipe": done.recipe.to_dict(), "rows": rows}


def _show_plan(made: Job, recipe: Recipe, as_json: bool) -> None:
    stages = jobs.plan(made, recipe)
    if as_json:
        asked = {"recipe": recipe.to_dict(), "model": made.model, "data": made.data, "stages": stages}
        console.json_object(asked | {"effort": effort.estimate(made, recipe, stages)})
    else:
        console.plan(recipe, stages)
        console.lines("\n".join(effort.told(made, recipe, stages)))
