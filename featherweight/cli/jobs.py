"""One job of the command line: a network, a task and a recipe brought together, planned, run, taken up again and saved."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import nn

from featherweight.budget.multiples import ADVICE, multiples
from featherweight.cli import console, display, inputs, remembered
from featherweight.cli.inputs import BUILT_IN_DATA
from featherweight.compression import Compressed, compress
from featherweight.errors import FeatherweightError, InputError, StorageError
from featherweight.evidence import report_page
from featherweight.files import artifact, storage
from featherweight.network.devices import chosen
from featherweight.recipe.plan import resolve
from featherweight.recipe.schema import Constrain, CutUnits, DropBlocks, LearnUnits, Recipe
from featherweight.recipe.units import Blocks, Units
from featherweight.run import drop_blocks
from featherweight.run.cut_units import may_go
from featherweight.run.ground import ALONE, Engine
from featherweight.run.shrunk import CHOICE
from featherweight.run.state import CHECKPOINT, files_of
from featherweight.structure import trace
from featherweight.structure.errors import StructureError
from featherweight.task import Task, steps_of
from featherweight.zoo import own_data, sources
from featherweight.zoo.networks import NETWORKS
from featherweight.zoo.tasks import BATCHES

INTERRUPTED = 130
RUN = "run.json"  # in a workdir of an earlier version
PAGE = "report.html"  # in an artifact: what `featherweight report` shows of it alone
HINT = re.compile(r"[\w./-]{1,100}\.py:[A-Za-z_]\w{0,60}", re.ASCII)  # plain text that means the same in a shell
SHOWN_APART = (
    "kind",
    "name",
    "rules",
    "keep",
    "allocate",
    "driver",
    "train",
    "retrain",
    "units",
    "blocks",
    "adaptive",
)  # of a stage in a plan


@dataclass(frozen=True)
class Job:
    """The network and the task that a command works on, and the names they were given by."""

    model: str
    data: str
    network: nn.Module
    task: Task
    trained: bool  # are the weights given, or a built-in network's first random ones?
    identity: dict[str, Any]  # what must be the same for a run to be taken up again
    device: str = "cpu"  # as it was named

    @classmethod
    def load(
        cls,
        model: str,
        data: str | None,
        weights: Path | None = None,
        seed: int = 0,
        threads: int | None = None,
        *,
        shapes: Sequence[str] = (),
        device: str = "cpu",
        built: nn.Module | None = None,
    ) -> Job:
        """Bring them together on `device` after seeding torch. `shapes`: of the inputs, in place of data, where only structure is
        asked for. `built`: the network of `model`, where it is there. Raises InputError where they do not fit each other."""
        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(seed)
        place = chosen(device)
        network = (inputs.network(model, weights) if built is None else built).to(place)
        task, data = inputs.work(data, shapes, seed, place, model, network)
        inputs.check_fit(network, task, model, data)
        identity = {"model": model, "data": data, "seed": seed}  # a checkpoint knows the weights themselves
        trained = weights is not None or _comes_trained(model)
        return cls(model, data, network, task, trained, identity, device)


def _comes_trained(model: str) -> bool:
    """Are its weights, as far as can be known, no random ones?"""
    if sources.is_source(model):
        return model.startswith("hf:") or sources.split(model).pretrained
    return model not in NETWORKS


def run(
    job: Job, recipe: Recipe, out: Path, workdir: Path, keep_workdir: bool, engine: Engine = ALONE
) -> tuple[Compressed, dict[str, int]]:
    """Compress and save, going on from a checkpoint in `workdir`: what was done, and the sizes of the files written. Of several
    processes the first writes and tells.

    Raises KeyboardInterrupt after saving, and every FeatherweightError.
    """
    if not engine.is_main:
        return _helped(job, recipe, workdir, engine), {}
    engine.decided(lambda: check_output(out))
    done = ran(job, recipe, workdir, engine)
    files = written(job, done, out)
    if not keep_workdir:
        clear(workdir)
    return done, files


def ran(job: Job, recipe: Recipe, workdir: Path, engine: Engine = ALONE) -> Compressed:
    """Compress, going on from a checkpoint in `workdir`, and tell how it goes. Raises as `run` does."""
    if job.data in BUILT_IN_DATA or own_data.is_own(job.data):
        job.task.batches(0)  # reads the files: what is missing is said before a workdir is made
    first = recipe.stages[0]
    if (workdir / CHECKPOINT).exists():
        console.note(f"going on from the checkpoint in {workdir}")
    elif not job.trained and (isinstance(first, Constrain) or not first.train.epochs):
        hint = "give --weights FILE, or let the recipe train it first (progressive_admm: --set dense_epochs=20)"
        console.note(f"note: {job.model} starts from random weights, and no stage trains it before it is compressed; {hint}")
    with display.Display([stage.name for stage in recipe.stages]) as shown:
        done = compress(job.network, recipe, job.task, workdir=workdir, monitor=shown, identity=job.identity, engine=engine)
    shown.finished(done.rows[-1].stage, done.rows[-1].measured.score)
    return done


def written(job: Job, done: Compressed, out: Path) -> dict[str, int]:
    """Save, with a page of the run; the files' sizes."""
    files = save(job, done, out)
    try:
        files[PAGE] = report_page.build([out]).write(out / PAGE)
    except FeatherweightError as error:  # the artifact is there: a page that cannot be made is no reason to fail
        console.note(f"note: {PAGE} was not written: {error}")
    return files


def _helped(job: Job, recipe: Recipe, workdir: Path, engine: Engine) -> Compressed:
    """What a process does that is not the first. Ctrl-C is for the first, which saves; then this one ends, too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine.decided(lambda: None)  # the place of the output is fine
        return compress(job.network, recipe, job.task, workdir=workdir, identity=job.identity, engine=engine)
    finally:
        signal.signal(signal.SIGINT, before)


def save(job: Job, done: Compressed, out: Path, shapes: Sequence[str] = ()) -> dict[str, int]:
    """Write the artifact, and remember here what it was made of (see `remembered`); its files' sizes."""
    source = sources.source_of(job.model, job.network)
    model = None if source is not None else noted(job.model, NETWORKS)
    known = job.data in BUILT_IN_DATA
    files = done.save(out, model=model, data=noted(job.data, BUILT_IN_DATA), source=source)
    named = known or own_data.is_own(job.data) or ".py:" in job.data
    remembered.keep(out, remembered.Typed(job.model, job.data if named else None, tuple(shapes)))
    return files


def run_or_saved(
    ctx: typer.Context, made: Job, recipe: Recipe, out: Path, place: Path, keep: bool, engine: Engine = ALONE
) -> tuple[Compressed, dict[str, int]]:
    """`run` of a command, which ends with INTERRUPTED and says how to go on where it is interrupted."""
    with interruptible(ctx, place):
        return run(made, recipe, out, place, keep_workdir=keep, engine=engine)


@contextlib.contextmanager
def interruptible(ctx: typer.Context, place: Path, beside: str = "") -> Iterator[None]:
    """Ends with INTERRUPTED and says how to go on where it is interrupted. `beside`: what there is already, in words."""
    try:
        yield
    except KeyboardInterrupt:
        saved = (place / CHECKPOINT).exists()
        console.note(
            f"interrupted; {beside}{f'saved in {place}. To go on' if saved else 'nothing was done yet. To start again'}:"
        )
        root = ctx.find_root()
        console.command(f"  {root.info_name} {root.obj}")
        raise typer.Exit(INTERRUPTED) from None


def noted(text: str, known: Collection[str]) -> str | None:
    """What an artifact holds of a name on the command line: a built-in name, or `file.py:name` as a hint that is shown and never
    run; without the folders of an absolute path, which are nobody else's business. None where it is not plain text."""
    if text in known:
        return text
    file, _, name = text.rpartition(":")
    hint = f"{Path(file).name if Path(file).is_absolute() or '..' in Path(file).parts else file}:{name}"
    return hint if HINT.fullmatch(hint) else None


def next_commands(program: str, job: Job, out: Path, shapes: Sequence[str] = ()) -> list[str]:
    """The commands that go on from an artifact, exact: code of the user's own has to be named in each, and shapes that stood in
    place of data only where the dense network is run, which an artifact knows of itself."""
    model = [] if job.model in NETWORKS or sources.is_source(job.model) else ["--model", job.model]
    data = [] if shapes or job.data in BUILT_IN_DATA else ["--data", job.data]
    known = [] if noted(job.model, NETWORKS) == job.model else model  # else the target names it
    known = [*known, *(part for shape in shapes for part in ("--input", shape))]
    where = [] if job.device == "cpu" else ["--device", job.device]  # rounding differs: measured anew where it was measured
    forms = (("inspect", str(out), *model, *where), ("bench", job.model, str(out), *known), ("export", str(out), *model))
    return [f"{program} {shlex.join(words)}" for words in (*((*form, *data) for form in forms), ("pack", str(out), *model))]


def beside(out: Path) -> Path:
    """The default workdir."""
    return out.resolve().with_name(f"{out.resolve().name}.work")


def check_output(out: Path) -> None:
    """Fail before the work and not after it. Raises InputError, StorageError."""
    try:
        artifact.check_output(out)
        parent = out.resolve().parent
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise StorageError(f"cannot write to {out}: {error.strerror}. Choose another output folder") from error


def clear(place: Path) -> None:
    """Remove a workdir that is done with, and leave one in which another run has begun: it is that one's now."""
    with contextlib.suppress(InputError):
        _remove(place)


def _remove(place: Path) -> None:
    """Remove our own files, and the folder if nothing else is in it. Raises InputError if another run is going on there."""
    with storage.claimed(place):
        for path in (place / CHECKPOINT, place / RUN, place / CHOICE, *files_of(place).values()):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it
        place.rmdir()


def plan(job: Job, recipe: Recipe) -> list[dict[str, Any]]:
    """Every stage as plain data. A size that an allocator will choose on weights, or gradients, still to come is None."""
    steps = BATCHES[job.data] if job.data in BATCHES else steps_of(job.task, 0)
    stages = []
    changed = False  # will the weights be others than now when the stage starts?
    for stage in recipe.stages:
        phases = {name: getattr(stage, name, None) for name in ("train", "retrain")}
        planned: dict[str, Any] = {"stage": stage.name, "kind": stage.kind, "targets": [], "left_out": {}, "budget": None}
        planned |= {
            name: asdict(training) | {"steps": training.epochs * steps} if training else {"epochs": 0, "steps": 0}
            for name, training in phases.items()
        }
        planned |= {"driver": None, "units": None, "blocks": None, "adaptive": None}
        planned["options"] = {name: value for name, value in asdict(stage).items() if name not in SHOWN_APART and value}
        if isinstance(stage, Constrain):
            planned |= _constraints(job, stage, steps, changed)
        elif isinstance(stage, CutUnits):
            planned |= {
                "units": asdict(stage.units),
                "left_out": _sites_left_out(job, stage.units),
                "advice": _advice(job, stage),
            }
        elif isinstance(stage, DropBlocks):
            planned["blocks"] = asdict(stage.blocks) | {"can_go": _removable(job, stage.blocks)}
        elif isinstance(stage, LearnUnits):
            planned["adaptive"] = asdict(stage.adaptive)
        stages.append(planned)
        changed = changed or isinstance(stage, Constrain) or stage.epochs > 0
    return stages


def _constraints(job: Job, stage: Constrain, steps: int, changed: bool) -> dict[str, Any]:
    resolved = resolve(stage, job.network, example=job.task.example_inputs)
    targets = []
    budget = {"size": 0, "of": 0}
    for name, target in resolved.targets.items():
        rule = resolved.rules[name]
        size, of = resolved.sizes.get(name, (None, None))
        allocated = rule.keep is None and not rule.set.complete()
        if allocated and size is not None and of is not None:
            budget = {"size": budget["size"] + size, "of": budget["of"] + of}
        described = {"set": console.described(rule.set), "view": target.view.pattern}
        later = allocated and (changed or stage.fisher > 0 or stage.respread)
        targets.append({"parameter": name, **described, "size": None if later else size, "of": of})
    options: dict[str, Any] = {"keep": stage.keep, "allocate": stage.allocate} if budget["of"] else {}
    driver = stage.driver and stage.driver.paced(stage.train.epochs * steps, stage.train.epochs)
    return {
        "driver": console.described(driver),
        "options": options | {name: value for name, value in asdict(stage).items() if name not in SHOWN_APART and value},
        "targets": targets,
        "left_out": resolved.left_out,
        "budget": budget if budget["of"] else None,
    }


def _advice(job: Job, stage: CutUnits) -> str:
    """A warning where sizes would run slowly on this network; "" where not, and where it cannot be followed."""
    if stage.units.multiple == "auto":
        return ""
    try:
        graph = trace(job.network, job.task.example_inputs)
    except StructureError:
        return ""
    asked, wanted = (multiples(one, job.network, graph) for one in (stage.units.multiple, "auto"))
    return f"sizes may be {ADVICE}" if any(asked[site] % wanted[site] for site in graph.sites) else ""


def _removable(job: Job, asked: Blocks) -> list[str]:
    """Modules that can go whole; not one where the network cannot be followed."""
    try:
        return list(drop_blocks.may_go(job.network, trace(job.network, job.task.example_inputs), asked))
    except StructureError:
        return []


def _sites_left_out(job: Job, asked: Units) -> dict[str, str]:
    """Site -> why it keeps all its units, as far as can be said without data. Nothing where the network cannot be followed."""
    try:
        graph = trace(job.network, job.task.example_inputs, soft=asked.soft)
        return may_go(job.network, graph, asked)[1]
    except StructureError as error:
        return {"all sites": str(error)}
