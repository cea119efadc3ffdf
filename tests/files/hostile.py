"""Hostile files, grown from the grammar of what is read, and the judge of what opening one may do.

A generator draws one file and says how to open it; `judged` opens it. `benchmarks/fuzz` runs many, `test_hostile.py` a few.
The files are drawn in `hostile_packed`, `hostile_artifacts`, `hostile_edits` and `hostile_graphs`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random as plain_random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile_artifacts import artifact_folder, as_json, weights_file, written
from hostile_graphs import overloads, schema
from hostile_packed import packed_file, unpacked
from hostile_victims import ALL, VICTIMS, victim
from torch import nn

from featherweight.errors import FeatherweightError
from featherweight.files import artifact
from featherweight.structure import operations

__all__ = ["ALL", "GENERATORS", "MEGABYTES", "SECONDS", "VICTIMS", "Case", "judged", "warm"]
SECONDS, MEGABYTES, LONGEST = 1.0, 300.0, 2000  # of one file; bytes of a message


@dataclass(frozen=True)
class Case:
    """One file: its kind, and how it is opened. What `open` gives: a network, which is compared with its victim; or words."""

    kind: str
    open: Callable[[], Any]


def _packed(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> Case:
    found, data, kind = packed_file(random, among)
    return Case(kind, lambda: _compared(unpacked(data, found), found))


def _artifact(random: np.random.Generator, folder: Path, among: tuple[str, ...]) -> Case:
    kind, attempt = artifact_folder(random, folder, among)
    if kind in ("edits", "description"):
        return Case(kind, lambda: _compared(attempt(), attempt.args[1]))
    return Case(kind, attempt)


def _compared(network: nn.Module, found: Any) -> str:
    """Opened; raises AssertionError where the network is larger than the one that it was opened with."""
    problem = found.outgrown(network)
    assert not problem, problem
    return "opened"


Generator = Callable[[np.random.Generator, Path, tuple[str, ...]], Case]  # of one of these victims, in this folder
GENERATORS: dict[str, Generator] = {"packed": _packed, "artifact": _artifact}


# --- the judge -----------------------------------------------------------------------------------------------------------

FORBIDDEN = (
    *("exec", "compile", "import", "subprocess.", "os.", "shutil.", "socket.", "ctypes.", "pickle.", "marshal.", "code."),
    *("tempfile.", "glob.", "webbrowser.", "urllib.", "http.", "ftplib.", "smtplib.", "sqlite3.", "winreg.", "pty.", "syslog."),
    *("function.", "object.__reduce", "sys.settrace", "sys.setprofile", "sys.addaudithook", "signal.", "mmap.", "fcntl."),
)
HARMLESS = ("os.listdir", "os.scandir", "os.fwalk", "os.walk", "ctypes.dlsym")  # looking
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
INSIDE = (artifact.DESCRIPTION, artifact.WEIGHTS)  # opened by their names in the open folder


@dataclass
class Watch:
    """What the interpreter was seen to do while a file was opened."""

    folder: str = ""
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: it cannot be removed, so that it is there once and asleep."""
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            inside = isinstance(path, int) or path in INSIDE or os.fspath(path).startswith(self.folder)
            if inside and not (flags or 0) & WRITING:
                return
        elif not event.startswith(FORBIDDEN) or event in HARMLESS:
            return
        self.seen.append(f"{event} {arguments!r}"[:200])

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        self.folder, self.seen, self.on = str(folder), [], True
        try:
            yield
        finally:
            self.on = False


@functools.cache
def watch() -> Watch:
    found = Watch()
    sys.addaudithook(found.look)
    return found


class Memory:
    """The most memory that this process had since `forget`, in MB, as Linux counts it."""

    def __init__(self) -> None:
        self.status = os.open("/proc/self/status", os.O_RDONLY)
        self.clear = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def forget(self) -> None:
        os.pwrite(self.clear, b"5", 0)

    def most(self) -> float:
        text = os.pread(self.status, 8192, 0)
        return int(text.partition(b"VmHWM:")[2].split(None, 1)[0]) / 1024


@functools.cache
def memory(process: int) -> Memory:
    return Memory()


@dataclass(frozen=True)
class Verdict:
    """How opening a file ended: `outcome` is "refused" (by a named error), "opened" or "ran"; seconds of processor time; what
    the process grew by, MB."""

    kind: str
    outcome: str
    seconds: float
    grown: float
    faults: tuple[str, ...] = ()
    again: bool = False  # it was opened twice

    @property
    def refused(self) -> bool:
        return self.outcome == "refused"


def judged(case: Case, folder: Path) -> Verdict:
    """Open a file. Its faults: an error that is not named or is long, time, memory, and what the interpreter was seen to do.

    What took too long is opened once more, and the shorter of the two times counts: a processor that others use as well is slow.
    """
    verdict = _judged(case, folder)
    if verdict.seconds <= SECONDS:
        return verdict
    again = _judged(case, folder)
    return replace(again if again.seconds < verdict.seconds else verdict, again=True)


def _judged(case: Case, folder: Path) -> Verdict:
    faults: list[str] = []
    own = memory(os.getpid())
    own.forget()
    before, started = own.most(), time.process_time()
    with warnings.catch_warnings(), watch().over(folder):
        warnings.simplefilter("ignore")
        try:
            outcome = case.open() or "opened"
        except FeatherweightError as error:
            outcome = "refused"
            long = len(str(error).encode(errors="replace"))
            faults += [f"a message of {long} bytes: {str(error)[:300]}"] if long >= LONGEST else []
        except Exception as error:  # noqa: BLE001  that is what is looked for
            outcome = "failed"
            faults.append(f"{type(error).__name__}: {error}"[:300])
    seconds, grown = time.process_time() - started, own.most() - before
    faults += [f"{seconds:.1f} s"] if seconds > SECONDS else []
    faults += [f"{grown:.0f} MB"] if grown > MEGABYTES else []
    return Verdict(case.kind, outcome, seconds, grown, (*faults, *watch().seen))


def warm(folder: Path, among: tuple[str, ...] = ALL, graphs: bool = True) -> None:
    """Open honest files of each, and run each operation of a stored graph, so that what torch and others import when they are
    first used is there before anything is watched."""
    random = np.random.default_rng(0)
    for name in among:
        found = victim(name)
        for number, honest in enumerate(found.honest):
            unpacked(found.packed(number), found)
            (folder / "hostile").mkdir(exist_ok=True)
            edits = as_json({"format": 1, "edits": honest.edits, "recipe": {}, "report": []})
            written(folder / "hostile", edits, weights_file(random, honest.state, False))
            artifact.load(folder / "hostile", found.model)
    for generator in GENERATORS.values():
        for _ in range(200 if graphs else 50):
            _quiet(generator(random, folder / "hostile", among))
    if graphs:
        for name in overloads():
            _each(name)


def _quiet(case: Case) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):  # what counts is what is imported
            case.open()


def _each(name: str) -> None:
    """Call one operation in a few ways, right and wrong."""
    from hostile_graphs import Grower

    if name in operations.ARITHMETIC or not schema(name):
        return
    grower = Grower(plain_random.Random(name))
    for number, shape in enumerate(((2, 3, 6, 6), (2, 5, 6), (3,))):
        grower.put("placeholder", f"x{number}", f"x{number}", [], {}, torch.ones(shape, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            grower.tried(name, *grower.arguments(name))
