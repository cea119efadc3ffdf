"""`shrink`: from a goal to a network that reaches it, as measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import console, jobs
from featherweight.cli.jobs import Job
from featherweight.cli.options import AsJson, Data, Device, Model, Seed, Threads, Weights, Workdir
from featherweight.compression import chosen, ways_of
from featherweight.errors import InputError
from featherweight.files import storage
from featherweight.recipe import reading
from featherweight.recipe.schema import Recipe
from featherweight.run import again, shrunk
from featherweight.run.goals import FORMS, Goal
from featherweight.run.shrunk import Choice, Shrunk
from featherweight.zoo import own_data

MISSED = 1


def shrink_command(
    ctx: typer.Context,
    model: Model,
    data: Data,
    out: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for the artifact. An artifact in it is replaced.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="GOAL", help=f"At most {FORMS}.")] = None,
    faster: Annotated[
        str | None, typer.Option("--faster", metavar="2x", help="In place of --to: than its fastest runtime here runs MODEL now.")
    ] = None,
    lose: Annotated[
        float | None, typer.Option(min=0, metavar="POINTS", help="Of the score, at most; checked at the end.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of training, in all stages of the full run.")] = 20,
    runtime: Annotated[
        list[str] | None, typer.Option(help="For a goal of time: eager, onnx, integers or c; may be repeated. Default: all here.")
    ] = None,
    recipe_out: Annotated[
        Path | None, typer.Option("--recipe-out", metavar="FILE", help="Write the chosen recipe there, as YAML for `compress`.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose, say what and why, and stop.")] = False,
    weights: Weights = None,
    workdir: Workdir = None,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Reach a goal: pick and chain what fits, by its cost as measured and short probes on batches held out, and run it.

    A goal that is missed as measured, with points left, is tightened and run again, twice at most; the nearest is kept. Exits
    with 1 where the goal is not met as measured, or more is lost than --lose.
    """
    if (to is None) == (faster is None):
        raise InputError(f"give --to GOAL ({FORMS}) or --faster 2x, one of the two")
    goal = Goal.of(to if to is not None else f"faster={faster}")
    made = Job.load(model, data, weights, seed, threads, device=device)
    if out is None and not dry_run:
        raise InputError("give -o DIR for the artifact, or --dry-run")
    if not made.trained:
        raise InputError(
            f"{model} has random weights, and what is lost by shrinking can only be told of a trained network: give --weights"
        )
    place = workdir or (jobs.beside(out) if out is not None else None)
    if out is not None:
        jobs.check_output(out)
    about = made.identity | {"goal": str(goal), "epochs": epochs, "runtimes": sorted(runtime or ())}
    choice = shrunk.taken_up(place, about, made.network) if place is not None else None
    if choice is None:
        choice = chosen(made.network, made.task, goal, epochs=epochs, runtimes=runtime or (), told=console.note)
        if place is not None and not dry_run:
            shrunk.remember(choice, place, about, made.network)
    else:
        console.note(f"going on with what was chosen before, in {place}")
    _write(choice.recipe, recipe_out)
    if dry_run or out is None or place is None:
        console.json_object(choice.to_dict()) if as_json else console.lines(str(choice))
        return
    if not as_json:
        console.lines(str(choice))
    files: dict[str, int] = {}

    def in_full(chosen: Choice) -> Shrunk:
        inside = again.workdir_of(place, chosen)
        if chosen.before:
            shrunk.remember(chosen, place, about, made.network)
        with jobs.interruptible(ctx, inside, f"{out} holds the nearest so far; " if chosen.before else ""):
            done = jobs.ran(made, chosen.recipe, inside)
        return shrunk.settled(chosen, done, made.task, lose)

    def save(reached: Shrunk) -> None:
        files.update(jobs.written(made, reached.compressed, out))
        files.update(reached.ship(out, any_length=own_data.varies(made.data)))
        _write(reached.choice.recipe, recipe_out)

    reached = again.until_met(choice, in_full, ways_of(choice), console.note, lose, nearest=save)
    for folder in (*again.workdirs(place), place) if workdir is None else ():
        jobs.clear(folder)
    if reached is None:
        console.note(f"{out} stays as it is: what a run before came to is nearer to the goal, and none of these is kept")
        raise typer.Exit(MISSED)
    if as_json:
        console.json_object({"output": str(out), "files": files, **reached.to_dict()})
    else:
        console.results(reached.compressed.rows, out, files, jobs.next_commands(str(ctx.find_root().info_name), made, out))
        console.lines(str(reached))
    if not (reached.met and reached.kept):
        raise typer.Exit(MISSED)


def _write(recipe: Recipe, path: Path | None) -> None:
    """As YAML, where that is asked for."""
    if path is not None:
        text = reading.to_yaml(recipe)
        storage.replace(path, lambda file: file.write(text.encode()))
