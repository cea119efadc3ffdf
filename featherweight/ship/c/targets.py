"""Other machines: what a network takes there, read off an object that zig compiles, and what it computes, by an emulator."""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.network.calls import Example, Inputs
from featherweight.ship.c.build import SECONDS, SMALL, CompilerMissing, build
from featherweight.ship.c.source import Source
from featherweight.ship.c.steps import CError

UNITS = {  # for floats, of processors that are made without and with one: with
    "cortex_m4": "vfp4d16sp",
    **dict.fromkeys(("cortex_m7", "cortex_m33", "cortex_m35p", "cortex_m55", "cortex_m85"), "fp_armv8d16sp"),
}
WITHOUT = ("cortex_m0", "cortex_m0plus", "cortex_m1", "cortex_m3", "cortex_m23")
EMULATORS = {"aarch64": "qemu-aarch64", "arm": "qemu-arm", "thumb": "qemu-arm"}


@dataclass(frozen=True)
class Target:
    """A machine as zig and clang name it: `triple` as in `-target`, `cpu` as in `-mcpu=`, "" for the least one."""

    triple: str
    cpu: str = ""

    @staticmethod
    def of(text: str) -> Target:
        """Of TRIPLE, TRIPLE:CPU, or cortex-m0 .. cortex-m85, with their unit for floats: Thumb for Linux with musl, since zig has
        headers of C for that; the code is what a board without a system runs. Raises InputError."""
        if not re.fullmatch(r"[a-z0-9_]+(-[a-z0-9_.+]+)*(:[a-z0-9_+-]+)?", text):
            raise InputError(
                "target must be TRIPLE or TRIPLE:CPU as zig names them, such as aarch64-linux-musl or "
                f"x86_64-linux-musl:x86_64_v3, or cortex-m4 and the like, given {text!r}"
            )
        if text.startswith("cortex-m"):
            cpu = text.replace("-", "_").replace("+", "plus")
            triple = f"thumb-linux-musleabi{'' if cpu in WITHOUT else 'hf'}"
            return Target(triple, f"{cpu}+{UNITS[cpu]}" if cpu in UNITS else cpu)
        triple, _, cpu = text.partition(":")
        return Target(triple, cpu.replace("-", "_"))

    def __str__(self) -> str:
        return f"{self.triple}:{self.cpu}" if self.cpu else self.triple

    def compiler(self) -> list[str]:
        """Raises CompilerMissing."""
        return [*zig(), "-target", self.triple, *([f"-mcpu={self.cpu}"] if self.cpu else [])]

    def emulator(self) -> str | None:
        """The command that runs a program for it here; None where there is none."""
        return shutil.which(EMULATORS.get(self.triple.partition("-")[0], "")) if "linux" in self.triple else None


def zig() -> list[str]:
    """Raises CompilerMissing."""
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    if found := shutil.which("zig"):
        return [found, "cc"]
    raise CompilerMissing('compiling for another machine needs zig: pip install "featherweight[c]", or leave the target out')


class Emulated:
    """A network as a program for `target` under an emulator, called as `build.Loaded` is, and much slower: to compare.

    The program is linked with nothing, so that no library is compiled for the target: a network that calls functions of C's math
    (softmax, `small` recurrent layers) is refused. Raises InputError, CompilerMissing, CError.
    """

    def __init__(self, source: Source, target: str) -> None:
        self.source, self.target = source, Target.of(target)
        emulator = self.target.emulator()
        if emulator is None:
            raise CError(f"a program for {self.target} cannot be run here: install an emulator, such as Debian's qemu-user")
        self.folder = tempfile.TemporaryDirectory(prefix="featherweight-c-")
        program = Path(self.folder.name) / "net"
        unlinked = build(source.text + SYSTEM + _main(source), program.with_suffix(".o"), (*SMALL, "-c"), self.target.compiler())
        linker = [*self.target.compiler()[: len(zig()) - 1], "ld.lld", str(unlinked), "-o", str(program), "-e", "begin"]
        done = subprocess.run(linker, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise CError(f"the network needs a library on {self.target}, which it is run without here: {done.stderr[:500]}")
        self.command = [emulator, str(program)]

    def __call__(self, inputs: Example | Inputs) -> list[Tensor]:
        given = [tensor.detach().cpu().float().contiguous().numpy() for tensor in Inputs.of(inputs).tensors()]
        count = len(given[0])
        rows = b"".join(one[row % len(one)].tobytes() for row in range(count) for one in given)
        done = subprocess.run(self.command, input=rows, capture_output=True, timeout=SECONDS, check=False)
        lengths = [math.prod(shape) for shape in self.source.outputs]
        if done.returncode or len(done.stdout) != 4 * count * sum(lengths):
            raise CError(f"the program for {self.target} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
        found = np.frombuffer(done.stdout, np.float32).reshape(count, -1)
        parts = np.split(found, np.cumsum(lengths)[:-1], axis=1)
        return [torch.tensor(one.reshape(count, *shape[1:])) for one, shape in zip(parts, self.source.outputs, strict=True)]


SYSTEM = """
#if defined(__aarch64__)
static long call(long number, long file, const void *at, size_t size) {
  register long x8 __asm__("x8") = number, x0 __asm__("x0") = file;
  register const void *x1 __asm__("x1") = at;
  register size_t x2 __asm__("x2") = size;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
  return x0;
}
enum { READ = 63, WRITE = 64, EXIT = 93 };
#else
static long call(long number, long file, const void *at, size_t size) {
  register long r0 __asm__("r0") = file;
  register const void *r1 __asm__("r1") = at;
  register size_t r2 __asm__("r2") = size;
  __asm__ volatile("push {r7}; mov r7, %1; svc 0; pop {r7}" : "+r"(r0) : "r"(number), "r"(r1), "r"(r2) : "memory");
  return r0;
}
enum { READ = 3, WRITE = 4, EXIT = 1 };
void __aeabi_memcpy(void *to, const void *from, size_t size) { memcpy(to, from, size); }
void __aeabi_memcpy4(void *to, const void *from, size_t size) { memcpy(to, from, size); }
void __aeabi_memset(void *to, size_t size, int value) { memset(to, value, size); }
void __aeabi_memset4(void *to, size_t size, int value) { memset(to, value, size); }
void __aeabi_memclr(void *to, size_t size) { memset(to, 0, size); }
void __aeabi_memclr4(void *to, size_t size) { memset(to, 0, size); }
#endif
void *memcpy(void *restrict to, const void *restrict from, size_t size) {
  for (size_t i = 0; i < size; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
  return to;
}
void *memset(void *to, int value, size_t size) {
  for (size_t i = 0; i < size; i++) ((volatile char *)to)[i] = (char)value;
  return to;
}
static void all(long number, long file, void *at, size_t size) {
  for (char *p = at; size;) {
    const long done = call(number, file, p, size);
    if (done <= 0) call(EXIT, done < 0, 0, 0);
    p += done;
    size -= (size_t)done;
  }
}
"""


def _main(source: Source) -> str:
    """A program that reads inputs until they end, and writes outputs."""
    sides = {"in": source.inputs, "out": source.outputs}
    arrays = {f"{side}{i}": math.prod(shape) for side, shapes in sides.items() for i, shape in enumerate(shapes)}
    held = "".join(f"static float {name}[{size}];\n" for name, size in arrays.items())
    reads, writes = (
        "".join(f"    all({what}, {name}, sizeof {name});\n" for name in arrays if name.startswith(side))
        for side, what in (("in", "READ, 0"), ("out", "WRITE, 1"))
    )
    call = f"    {source.name}_run({', '.join(arrays)}, arena);\n"
    return f"""
{held}static float arena[{source.arena}] __attribute__((aligned(64)));
void begin(void);
void begin(void) {{
  for (;;) {{
{reads}{call}{writes}  }}
}}
"""
