"""A network written to a C file, compiled, run and compared; and such a file loaded again."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.errors import ArtifactError, InputError, StorageError
from featherweight.files import storage
from featherweight.network.calls import Example, Inputs
from featherweight.network.devices import placed
from featherweight.ship.activations import FromFile
from featherweight.ship.c.build import Loaded, sizes
from featherweight.ship.c.lower import lower
from featherweight.ship.c.source import Source, source
from featherweight.ship.c.steps import CError, Program
from featherweight.ship.c.targets import Target
from featherweight.ship.export import BATCHES, shippable
from featherweight.ship.runtimes import compare, resized
from featherweight.task import Task

TOLERANCE = 1e-5  # of the largest output: the order of additions differs, and in a small file bits after a weight's 24th
LARGEST = 1 << 30  # bytes of a C file that is read


@dataclass(frozen=True)
class ExportedC:
    """What was written.

    bytes       of the file; tables: of the numbers in it, as they are in memory
    flash, ram  bytes of code and tables compiled for `target` to be small, and of the arena and what else is written to, but for
                the stack; flash is None where nothing was compiled
    target      the machine, None: this one
    relative    largest difference of the compiled file from PyTorch over `batches`, over the largest output; None likewise
    dense       layers that run over all their weights, sparse: those over their non-zeros
    score       of the compiled file, by the task
    """

    path: str
    bytes: int
    tables: int
    ram: int
    flash: int | None
    relative: float | None
    batches: tuple[int, ...]
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    target: str | None = None
    format: str = "c"
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON and for a report."""
        return asdict(self)


def written(
    model: nn.Module, example: Example | Inputs, *, name: str = "net", dense: bool = False, small: bool = False
) -> tuple[nn.Module, Source]:
    """`model` in eval mode without codes, and as C (see `source`). `dense`: over all weights, to compare with. Raises CError,
    InputError."""
    network, program = _lowered(model, example)
    return network, source(program, name, always_dense=dense, small=small)


def _lowered(model: nn.Module, example: Example | Inputs) -> tuple[nn.Module, Program]:
    inputs = resized(placed(Inputs.of(example), "cpu"), 1)
    if not inputs.tensors():
        raise InputError("the example holds no tensor; give the network's inputs as a tuple by position or as a dict by name")
    network = shippable(model, inputs).cpu()
    return network, lower(network, inputs)


def export_c(
    model: nn.Module,
    example: Example | Inputs,
    path: str | Path,
    *,
    name: str = "net",
    small: bool = False,
    check: bool = True,
    tolerance: float = TOLERANCE,
    target: str | None = None,
) -> ExportedC:
    """Write `model` as one C99 file whose function `NAME_run` runs it on one example; compile it here, run it and compare.

    `example`: the inputs of the network in float32, batch first. `small`: for little memory in place of speed, see `source`;
    where 24 bits of its weights are not enough for `tolerance`, the smallest layers get all 32. The file appears only when it
    computes what the network computes. Without `check` it is not compiled: for a machine that has no compiler. `target`: the
    machine that flash and RAM are of, such as cortex-m4 or aarch64-linux-musl (see `targets.Target`), for which zig compiles the
    file, too; it is run and compared on this one. Raises CError where C has no form of an operation, which it names with its
    layer, CompilerMissing, InputError and StorageError.
    """
    path, there = Path(path), Target.of(target).compiler() if target is not None else None
    network, program = _lowered(model, example)
    made = source(program, name, small=small)
    flash, relative, ram = None, None, 4 * made.arena
    if check:
        several = [resized(placed(Inputs.of(example), "cpu"), batch) for batch in BATCHES]
        _, relative = compare(network, Loaded(made), several)
        layers = sorted(program.layers().items(), key=lambda layer: (layer[1], layer[0])) if small else []
        for count in range(1, len(layers) + 1):  # 24 bits were not enough: all of them, in the smallest layers first
            if relative <= tolerance:
                break
            made = source(program, name, small=True, whole={layer for layer, _ in layers[:count]})
            _, relative = compare(network, Loaded(made), several)
        if not relative <= tolerance:
            raise CError(
                f"the C file differs from the network by {relative:.2e} of its largest output, more than {tolerance:g}: it is "
                "not written"
            )
    if check or there is not None:
        taken = sizes(made, there)
        flash, ram = taken.flash, taken.ram
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.free(path)
        storage.replace(path, lambda file: file.write(made.text.encode()))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}. Free space or choose another place") from error
    return ExportedC(str(path), len(made.text), made.weights, ram, flash, relative, BATCHES if check else (), made.dense,
                     made.sparse, target)  # fmt: skip


def scored(done: ExportedC, network: nn.Module, task: Task) -> ExportedC:
    """With the score that the task gives the file, compiled and run in place of the network. Raises CError, CompilerMissing."""
    run = FromFile(load_c(done.path), network, Inputs.of(task.example_inputs))
    return replace(done, score=task.evaluate(run))


def load_c(path: str | Path) -> Loaded:
    """Compile a C file that `export_c` wrote, and load it: a function of `Inputs` that gives the outputs.

    It is code, and is run: load your own files only. Raises ArtifactError for another file, CError, CompilerMissing.
    """
    try:
        raw = Path(path).read_bytes()[: LARGEST + 1]
        text = raw.decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read as C: {error}") from error
    arena = re.search(r"^#define ([A-Z][A-Z0-9_]*)_ARENA (\d{1,9})$", text, re.MULTILINE)
    run = re.search(r"^void (\w{1,60})_run\(", text, re.MULTILINE)
    if arena is None or run is None or run[1].upper() != arena[1]:
        raise ArtifactError(f"{path} was not written by featherweight: it has no line that says how large its arena is")
    shapes = {
        side: tuple(
            tuple(int(size) for size in found.split(",") if size.strip())
            for found in re.findall(rf"^#define {arena[1]}_{side}\d+ \d+ /\* \[([\d, ]*)\] \*/$", text, re.MULTILINE)
        )
        for side in ("IN", "OUT")
    }
    return Loaded(Source(run[1], text, int(arena[2]), shapes["IN"], shapes["OUT"], 0, (), ()))
