"""The C compiler of the machine: source built, loaded and called from Python, and its size in flash."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featherweight.network.calls import Example, Inputs
from featherweight.ship.c.source import Source
from featherweight.ship.c.steps import CError

STANDARD = ("-std=c99", "-ffp-contract=fast")
FAST = ("-O3", "-march=native")
WITHOUT_UNWINDING = ("-fno-asynchronous-unwind-tables", "-fno-unwind-tables")  # tables that no C program needs
SMALL = ("-Os", *WITHOUT_UNWINDING)
WRITTEN, ALLOCATED, NO_BITS = 1, 2, 8  # of a section of ELF
SECONDS = 300  # that a compiler may take


class CompilerMissing(CError):
    """There is no C compiler."""


def compiler() -> list[str]:
    """The command of the system's C compiler, else of the `ziglang` package. Raises CompilerMissing."""
    for name in ("cc", "gcc", "clang"):
        found = shutil.which(name)
        if found:
            return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise CompilerMissing(
        'there is no C compiler (cc, gcc or clang): install one, such as Debian\'s gcc, or pip install "featherweight[c]". '
        "The source can be written without one (--no-check), but then it is not run and compared"
    )


def compiled(source: Source, output: Path, options: Sequence[str], command: Sequence[str] | None = None) -> Path:
    """Compile a source to `output`, by this machine's compiler or by `command`. Raises CompilerMissing, and CError with what the
    compiler says."""
    return build(source.text, output, options, command or compiler())


def build(text: str, output: Path, options: Sequence[str], command: Sequence[str], seconds: int = SECONDS) -> Path:
    with tempfile.TemporaryDirectory(prefix="featherweight-c-") as folder:
        file = Path(folder) / "net.c"
        file.write_text(text)
        whole = [*command, *STANDARD, *options, str(file), "-o", str(output), *([] if "-c" in options else ["-lm"])]
        try:
            done = subprocess.run(whole, capture_output=True, text=True, timeout=seconds, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CError(f"the C compiler did not finish: {error}") from error
    if done.returncode:
        raise CError(f"the C compiler refuses the source: {done.stderr.strip()[:2000]}")
    return output


@dataclass(frozen=True)
class Sizes:
    """Bytes. flash: code and tables of an object file; ram: the arena, and what the object writes to; without the stack."""

    flash: int
    ram: int


def sizes(source: Source, command: Sequence[str] | None = None, options: Sequence[str] = SMALL) -> Sizes:
    """Read off an object file, for this machine or for what `command` compiles for. Raises CompilerMissing, CError."""
    with tempfile.TemporaryDirectory(prefix="featherweight-c-") as folder:
        object_file = compiled(source, Path(folder) / "net.o", (*options, "-c"), command).read_bytes()
    flash, written = sections(object_file)
    return Sizes(flash, 4 * source.arena + written)


def sections(elf: bytes) -> tuple[int, int]:
    """Bytes of what is stored and of what is written to, of an object file in ELF; another's bytes are all taken as stored."""
    if elf[:4] != b"\x7fELF":
        return len(elf), 0
    wide, order = elf[4] == 2, "<" if elf[5] == 1 else ">"
    (start,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", elf, 40 if wide else 32)
    each, count = struct.unpack_from(f"{order}HH", elf, 58 if wide else 46)
    flash = ram = 0
    for at in range(start, start + each * count, each):
        _, kind, flags, _, _, size = struct.unpack_from(f"{order}{'IIQQQQ' if wide else 'IIIIII'}", elf, at)
        flash += size if flags & ALLOCATED and kind != NO_BITS else 0
        ram += size if flags & ALLOCATED and flags & WRITTEN else 0
    return flash, ram


class Loaded:
    """A compiled network: called with inputs of a batch of any size, a row at a time, it gives its outputs.

    The inputs as they are given to the network: a tensor, a tuple by position, a dict by name.
    """

    def __init__(self, source: Source, options: Sequence[str] = FAST) -> None:
        self.source = source
        self.folder = tempfile.TemporaryDirectory(prefix="featherweight-c-")
        library = compiled(source, Path(self.folder.name) / "net.so", (*options, "-shared", "-fPIC"))
        self.library = ctypes.CDLL(str(library))  # stays loaded; the file may go
        self.function: Any = getattr(self.library, f"{source.name}_run")
        self.function.restype = None
        room = np.zeros(source.arena + 32, np.float32)
        start = -(room.ctypes.data // 4) % 16
        self.arena = room[start : start + source.arena]

    def __call__(self, inputs: Example | Inputs) -> list[Tensor]:
        given = [tensor.detach().cpu().to(torch.float32).contiguous().numpy() for tensor in Inputs.of(inputs).tensors()]
        shapes = self.source.inputs
        if len(given) != len(shapes) or any(one.shape[1:] != shape[1:] for one, shape in zip(given, shapes, strict=False)):
            raise CError(f"the network takes inputs of {list(shapes)}, given {[one.shape for one in given]}")
        count = len(given[0])
        outputs = [np.empty((count, *shape[1:]), np.float32) for shape in self.source.outputs]
        for row in range(count):
            arrays = [one[row % len(one) :] for one in given] + [one[row:] for one in outputs]
            self.function(*(ctypes.c_void_p(one.ctypes.data) for one in (*arrays, self.arena)))
        return [torch.from_numpy(one) for one in outputs]

    def caller(self, inputs: Example | Inputs) -> Any:
        """A function without arguments that runs these inputs, with no more of Python than one call a row: to be timed."""
        given = [tensor.detach().cpu().to(torch.float32).contiguous().numpy() for tensor in Inputs.of(inputs).tensors()]
        count = len(given[0])
        outputs = [np.empty((count, *shape[1:]), np.float32) for shape in self.source.outputs]
        rows = [
            tuple(ctypes.c_void_p(one.ctypes.data) for one in (*[g[r:] for g in given], *[o[r:] for o in outputs], self.arena))
            for r in range(count)
        ]
        function, kept = self.function, (self, given, outputs)  # the arena lives as long as the caller

        def call() -> Any:
            for row in rows:
                function(*row)
            return kept

        return call
