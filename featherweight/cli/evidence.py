"""`featherweight evidence` and `featherweight report`: two networks compared, and what compression made of one, as pages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from featherweight.cli import console, display, subjects
from featherweight.cli.jobs import Job
from featherweight.cli.subjects import Subject
from featherweight.errors import InputError
from featherweight.evidence import evidence_page, motifs, report_page, study
from featherweight.evidence.examples import IMAGES, Examples, of_images, of_sequences, of_task
from featherweight.files.description import WRITER
from featherweight.network.copies import copied
from featherweight.task import itself
from featherweight.zoo import sequences
from featherweight.zoo.networks import NETWORKS

UNMET = 1
UNLIKE = 2_028_263_017  # a seed that nobody trains from: the floor must not be what a dense network started as
MOST = 1000  # examples that are looked at by default


def evidence_command(
    dense: Annotated[
        str, typer.Argument(metavar="DENSE", help="An artifact, a packed file (.fwz), or a MODEL with its weights.")
    ],
    small: Annotated[str, typer.Argument(metavar="SMALL", help="An artifact or a packed file.")],
    data: Annotated[str | None, typer.Option("--data", metavar="D", help="tfbs:mafk, cifar10 ..; default: SMALL's own.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="The page.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LEAST", help="Exit with 1 where a number is less, such as spearman=.6")
    ] = None,
    yardstick: Annotated[
        str | None, typer.Option(metavar="TARGET", help="A dense network of another seed: what two of them agree on.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The network; default: the one that SMALL names.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="Trained weights of DENSE, where it is a MODEL.")] = None,
    yardstick_weights: Annotated[Path | None, typer.Option(metavar="FILE", help="The same of the yardstick.")] = None,
    method: Annotated[str | None, typer.Option(help="Attribution: centred, saliency .., or captum:CLASS.")] = None,
    motif_file: Annotated[
        Path | None, typer.Option("--motifs", metavar="FILE", help="Known motifs, JASPAR's .pfm, to name those that are found.")
    ] = None,
    examples: Annotated[int, typer.Option(min=2, help="How many are looked at.")] = MOST,
    seed: Annotated[int, typer.Option(min=0, help="Of class optimisation and the untrained network.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: torch's own choice.")] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where networks run: cpu, cuda ..")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Does SMALL look at what DENSE looks at? Compare attributions and answers beside a yardstick and a floor; write a page."""
    began = time.monotonic()
    told = _steps(began)
    small_held = subjects.load(small, model, data, seed, threads, device=device)
    named = model or small_held.model
    dense_held = _trained(dense, named, small_held.data, weights, seed, device)
    other = _trained(yardstick, named, small_held.data, yardstick_weights, seed, device) if yardstick else None
    known = motifs.read(motif_file) if motif_file else []
    looked = examples_of(small_held, examples)
    logits = small_held.task.logits or itself
    floor = untrained(small_held, seed)
    found = study.examine(
        dense_held.network,
        small_held.network,
        looked,
        other=other.network if other else None,
        untrained=floor,
        method=method,
        logits=logits,
        said=told,
    )
    unmet = study.required(found, require or [])
    nets = (dense_held.network, small_held.network)
    names = tuple(Path(target).name if Path(target).exists() else target for target in (dense, small))
    size = None
    if out is not None:
        look = None
        if looked.kind == "sequences" and found.two_classes:
            look = evidence_page.looks(*nets, found, known, seed=seed, logits=logits, said=told)
        about = _about(found, (_called(dense, weights), small, _called(yardstick, yardstick_weights)), seed)
        page = evidence_page.build(
            found, nets, (names[0], names[1]), look=look, unmet=unmet, about=about, logits=logits, said=told
        )
        size = page.write(out)
    if as_json:
        files = {"page": str(out), "bytes": size} if out else {}
        console.json_object({"dense": dense, "small": small, **found.to_dict(), "unmet": unmet, **files})
    else:
        _show(found, out, size)
    for text in unmet:
        console.note(f"error: {text}")
    if unmet:
        raise typer.Exit(UNMET)


def report_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR [DIR ...]", help="Artifacts of one problem.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The page.")] = Path("report.html"),
) -> None:
    """Write what was asked of one or more runs and what came of it as a page: accuracy against sizes, stages, layers."""
    size = report_page.build(folders).write(out)
    console.output().print(console.written(f"wrote {out}  {size:,} bytes"), soft_wrap=True)


def examples_of(held: Subject, count: int) -> Examples:
    """What the networks are compared on: the test part of built-in data, or the first training batches of the user's own Task."""
    if held.data.startswith(sequences.PREFIX):
        return of_sequences(sequences.sequences(held.data.removeprefix(sequences.PREFIX)), count)
    if held.data in IMAGES:
        return of_images(held.data, count)
    return of_task(held.task, held.data, count)


def untrained(held: Subject, seed: int) -> torch.nn.Module | None:
    """A network of the same class with new random weights, where its modules can make them; None for an exported one."""
    if held.original is None:
        return None
    torch.manual_seed(seed + UNLIKE)
    if held.model in NETWORKS:
        return NETWORKS[held.model]()
    made = copied(held.original)
    for module in made.modules():
        again = getattr(module, "reset_parameters", None)
        if callable(again):
            again()
    return made


def _trained(target: str, model: str, data: str, weights: Path | None, seed: int, device: str) -> Subject:
    """A dense network: an artifact, or a MODEL with its weights. Raises InputError for a built-in MODEL without."""
    if not subjects.is_model(target):
        if weights is not None:
            raise InputError(f"{target} is an artifact and has its own weights: leave --weights out")
        return subjects.load(target, model, data, seed, device=device)
    made = Job.load(target, data, weights, seed, device=device)
    if not made.trained:
        raise InputError(
            f"{target} starts from random weights, and evidence is of a trained network: give its weights "
            "(--weights FILE.safetensors), an artifact, or file.py:function that returns it trained"
        )
    return Subject(made.network, made.network, made.task, None, target, made.data)


def _steps(began: float) -> Any:
    """Progress on standard error: a line a step, with the time so far."""

    def said(message: str) -> None:
        console.note(f"{display.clock(time.monotonic() - began)}  {message}")

    return said


def _about(found: study.Study, names: Sequence[str | None], seed: int) -> dict[str, str]:
    """names: of dense, small and yardstick."""
    how = "the gradient, centred over the bases" if found.method == "centred" else found.method
    asked = "class 1 against class 0" if found.two_classes else "the dense network's answer against its second best"
    which = "positives" if found.two_classes else "examples"
    return {
        "data": found.examples.how + ("" if found.examples.choosing else "; thresholds are not chosen"),
        "dense network": str(names[0]),
        "small network": str(names[1]),
        "yardstick": names[2] or "none was given: --yardstick TARGET, a dense network of another seed",
        "attribution": f"{how}, of the difference of two logits: {asked}; eval mode, the same examples for all networks",
        "compared": f"{len(found.of):,} {which}; correlations of each, then medians",
        "floor": "a network of the same class with random weights" if found.floor else "none: the class is not known",
        "seed": str(seed),
        "versions": f"featherweight {WRITER}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)",
    }


def _called(target: str | None, weights: Path | None) -> str | None:
    """A target as the page names it."""
    return f"{target} with {weights.name}" if target and weights else target


def _show(found: study.Study, out: Path | None, size: int | None) -> None:
    screen = console.output()
    screen.print(console.written(found.verdict.says, "bold"))
    for reason in found.verdict.reasons:
        screen.print(console.written(f"  {reason}"))
    rows = [(name, f"{value:.4f}") for name, value in found.numbers().items()]
    screen.print(console.table(("number", "value"), rows))
    if out is not None and size is not None:
        screen.print(console.written(f"wrote {out}  {size:,} bytes"), soft_wrap=True)
