"""C99 source of a lowered network: tables of numbers, the kernels that are used, and one function that runs it.

Nothing of the source comes from the network but numbers and the names of layers, which stand in comments as letters, digits, dots
and underscores. No allocation, no global that is written: the caller passes the arena, so that threads may share the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.ship.c import convolutions, kernels, steps
from featherweight.ship.c.memory import ALIGN
from featherweight.ship.c.numbers import by_count, ungrouped
from featherweight.ship.c.steps import Program, number
from featherweight.ship.c.tables import DENSE_RECURRENT_FROM, Tables

DENSE_FROM = 0.7  # density from which a convolution is taken over all weights: an estimate between 10 %, which pays, and 100 %
STAGING, PADDING, ALIGNED, UNALIGNED = (
    2.8,
    7.0,
    0.7,
    1.15,
)  # cycles of a vector: laid out, padded, multiplied aligned, and as it lies
NEAR_CACHE = 40_000  # bytes of the first cache that a tile of a sparse convolution may take
FAR_CACHE = 2**20  # bytes of the second that planes may take, about


@dataclass(frozen=True)
class Source:
    """arena: floats that the caller passes; inputs, outputs: shapes with a batch of 1; weights: bytes of the tables; dense,
    sparse: layers that run over all their weights, over their non-zeros."""

    name: str
    text: str
    arena: int
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    weights: int
    dense: tuple[str, ...]
    sparse: tuple[str, ...]


def source(
    program: Program, name: str = "net", *, always_dense: bool = False, small: bool = False, whole: Collection[str] = ()
) -> Source:
    """`name`: of the function `NAME_run` and what belongs to it, an identifier of C.

    small   for little memory in place of speed: plain loops, a byte a place, weights by their first 24 bits (those of the layers
            in `whole`: all 32) or as an index into a table of these, nothing laid out. Raises InputError, CError.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,40}", name, re.ASCII):
        raise InputError(f"the name must be an identifier of C: letters, digits and underscores, given {name!r}")
    return _Writer(program, name, always_dense, small, whole).written()


class _Writer(Tables):
    """What a step becomes."""

    def written(self) -> Source:
        program, lines = self.program, []
        for at, step in enumerate(program.steps):
            self.at = at
            lines.append((at, [f"/* {_comment(step.name)} */", *self.emit(step)]))
        places, arena = self.plan()
        parameters = [f"const float *restrict in{i}" for i in range(len(program.inputs))]
        parameters += [f"float *restrict out{i}" for i in range(len(program.outputs))]
        signature = f"void {self.name}_run({', '.join(parameters)}, float *restrict arena)"
        body = [f"  {line}" for _, step_lines in lines for line in step_lines]
        text = "\n".join(body)
        text = re.sub(r"\[\[(\w+)\]\]", lambda found: places[found[1]], text)
        text += "".join(f"\n  {line}" for line in self.last(places))
        upper = self.name.upper()
        sizes = [f"#define {upper}_IN{i} {value.size} /* {list(value.shape)} */" for i, value in enumerate(program.inputs)]
        sizes += [f"#define {upper}_OUT{i} {value.size} /* {list(value.shape)} */" for i, value in enumerate(program.outputs)]
        head = [
            "/* Written by featherweight. One call runs the network on one example; what it needs is in its arguments, so that",
            f"   threads may run it at once, each with an arena of {upper}_ARENA floats of its own (fastest where aligned to",
            "   64 bytes). Arrays may not overlap. Compile with -O3, and -ffp-contract=fast for fused multiplications. */",
            "#include <math.h>", "#include <stddef.h>", "#include <stdint.h>", "#include <string.h>",
            f"#define {upper}_ARENA {max(arena, 1)}", *sizes, f"{signature};", "",
        ]  # fmt: skip
        unused = ["  (void)arena;"] if "arena" not in text else []
        base = kernels.SMALL % (16 if self.largest < 2**16 else 32) if self.small else kernels.HEAD
        made = "\n".join([*head, base, *self.used.values(), *self.tables, f"{signature} {{", *unused, text, "}", ""])
        return Source(self.name, made.replace("@", self.name), max(arena, 1), tuple(v.shape for v in program.inputs),
                      tuple(v.shape for v in program.outputs), self.bytes, tuple(self.dense), tuple(self.sparse))  # fmt: skip

    # --- steps ---

    def emit(self, step: steps.Step) -> list[str]:
        return getattr(self, f"emit_{type(step).__name__.lower()}")(step)

    def emit_conv(self, step: steps.Conv) -> list[str]:
        weight = ungrouped(step.weight.float(), step.groups)
        outputs, channels, kh, kw = weight.shape
        if self.small:
            (_, height, width), shape = step.size, (*step.dilation, *step.pad, *step.out, *step.stride)
            arrays = (f"[[a{step.reads[0]}]]", f"[[a{step.writes[0]}]]")
            return [
                self.spread(weight.flatten(1), step.bias, step.name, arrays, (kh * kw, kw, height, width, *shape), int(step.relu))
            ]
        _, height, width = step.size
        oh, ow = step.out
        size = oh * ow
        (sy, sx), (dy, dx), (py, px) = step.stride, step.dilation, step.pad
        held = weight != 0
        density = float(held.double().mean()) if weight.numel() else 0.0
        dense = (self.always_dense and step.groups == 1) or density >= DENSE_FROM
        if dense:
            held = torch.ones_like(held)
        direct = (kh, kw, sy, sx, py, px) == (1, 1, 1, 1, 0, 0) and (oh, ow) == (height, width)
        c, ky, kx = (torch.arange(n).view([-1 if i == j else 1 for j in range(3)]) for i, n in enumerate((channels, kh, kw)))
        shared = sy == 1 and ow % ALIGN == 0 and kh > 1  # the rows of the kernel look into one plane
        plane = (c * kw + kx + 0 * ky) if shared else (c * kh + ky) * kw + kx  # number of the plane of each place of the kernel
        needed = sorted(set(plane[held.any(0)].tolist()))
        rows = oh + (kh - 1) * dy if shared else oh
        room = rows * ow if size == 1 else -(-rows * ow // ALIGN) * ALIGN
        if direct:
            needed, room = list(range(channels)), size
        position = torch.zeros(channels * kh * kw, dtype=torch.int64)
        position[torch.tensor(needed, dtype=torch.int64)] = torch.arange(len(needed))
        place = position[plane] * room + (ky * dy * ow if shared else 0)
        lines: list[str] = []
        read = f"[[a{step.reads[0]}]]"
        apart = sy == sx == 1 and ow >= 4 and not direct and not dense
        if apart and self.by_rows(held, len(needed) * room, (oh, ow), (channels, kh, kw), (py, px)):
            return self.rows(step, weight, held, c, ky, kx)
        if not direct and needed:
            whole = len(needed) == (channels * kw if shared else channels * kh * kw)
            planes = "0" if whole else self.integers(needed, 32, signed=True)
            staged = self.temporary("w", len(needed) * room)
            call = self.stage((sy, sx), px, kw, dx, width, ow)
            read = self.inside(lines, step, read)
            lines.append(f"{call}({read}, {staged}, {planes}, {len(needed)}, {height}, {width}, {rows}, {ow}, {sy}, {sx}, {dy}, "
                         f"{dx}, {py}, {px}, {1 if shared else kh}, {kw}, {room});")  # fmt: skip
            read = staged
        write, relu = f"[[a{step.writes[0]}]]", int(step.relu)
        if size == 1 and (direct or room == 1):
            return [*lines, self.matrix(weight.reshape(outputs, -1)[:, needed], step.bias, step.name, read, write, relu)]
        padded = torch.cat([step.bias.float(), torch.zeros(-outputs % 4)])
        bias = self.floats(padded if dense else step.bias[by_count(held)], step.name)
        if dense:
            self.dense.append(step.name)
            flat = torch.cat([weight.reshape(outputs, -1), torch.zeros(-outputs % 4, channels * kh * kw)])
            blocks = flat.reshape(-1, 4, flat.shape[1]).transpose(1, 2)
            call = self.need("conv_all", convolutions.dense_all())
            places = self.integers(place.reshape(-1).tolist(), 32, signed=True)
            values = self.floats(blocks, step.name)
            return [*lines, f"{call}({read}, {write}, {size}, {outputs}, {places}, {flat.shape[1]}, {values}, {bias}, {relu});"]
        kind, tables = self.entries(weight, held, place, step.name)
        through = direct and by_planes(channels, outputs, size)
        tile = 8 if through or self.distinct * 8 * 64 <= NEAR_CACHE else 4
        call = self.over("conv", kind, convolutions.flat_tiles(size, tile))
        if through:
            call = self.need(f"planes_{kind}", convolutions.sparse_planes(kind))
        return [*lines, f"{call}({read}, {write}, {size}, {outputs}, {tables}, {bias}, {relu}, {tile});"]

    def by_rows(
        self, held: Tensor, staged: int, out: tuple[int, int], kernel: tuple[int, int, int], pad: tuple[int, int]
    ) -> bool:
        """Are unaligned rows of the input itself faster than windows laid out and aligned? By cycles, fitted on this project's
        machine (AVX-512)."""
        (channels, kh, kw), (oh, ow) = kernel, out
        nonzeros, padded = int(held.sum()), (oh + kh - 1) * (ow + kw - 1) * channels if pad != (0, 0) else 0
        vectors = -(-ow // 16) if ow >= 16 else 1
        laid = STAGING * staged / 16 + ALIGNED * nonzeros * oh * ow / 16
        return PADDING * padded / 16 + UNALIGNED * nonzeros * oh * vectors <= laid

    def inside(self, lines: list[str], step: steps.Conv, read: str) -> str:
        """The array that is read, in the arena: the caller's has no room beside it that may be read."""
        if step.reads[0] not in {value.array for value in (*self.program.inputs, *self.program.outputs)}:
            return read
        count = math.prod(step.size)
        copy = self.temporary("i", count)
        lines.append(f"memcpy({copy}, {read}, sizeof(float) * {count}u);")
        return copy

    def rows(self, step: steps.Conv, weight: Tensor, held: Tensor, c: Tensor, ky: Tensor, kx: Tensor) -> list[str]:
        outputs, channels, kh, kw = weight.shape
        (_, height, width), (oh, ow), (dy, dx), (py, px) = step.size, step.out, step.dilation, step.pad
        tall, wide = oh + (kh - 1) * dy, -(-(ow + (kw - 1) * dx) // 8) * 8
        lines: list[str] = []
        read = f"[[a{step.reads[0]}]]"
        if (py, px) != (0, 0) or tall > height or ow + (kw - 1) * dx > width:
            padded = self.temporary("w", channels * tall * wide)
            call = self.stage((1, 1), px, 1, 1, width, wide)
            read = self.inside(lines, step, read)
            lines.append(f"{call}({read}, {padded}, 0, {channels}, {height}, {width}, {tall}, {wide}, 1, 1, 1, 1, {py}, "
                         f"{px}, 1, 1, {tall * wide});")  # fmt: skip
            read, height, width = padded, tall, wide
        place = c * (height * width) + ky * (dy * width) + kx * dx
        bias, (kind, tables) = self.floats(step.bias[by_count(held)], step.name), self.entries(weight, held, place, step.name)
        call = self.over("rows", kind, convolutions.row_tiles(ow, oh))
        return [*lines, f"{call}({read}, {width}, "
                f"[[a{step.writes[0]}]], {oh}, {ow}, {outputs}, {tables}, {bias}, {int(step.relu)});"]  # fmt: skip

    def emit_linear(self, step: steps.Linear) -> list[str]:
        read, write = f"[[a{step.reads[0]}]]", f"[[a{step.writes[0]}]]"
        if step.rows == 1:
            return [self.matrix(step.weight, step.bias, step.name, read, write, int(step.relu))]
        outputs, inputs = step.weight.shape
        call = self.matrix(
            step.weight, step.bias, step.name, f"{read} + r * {inputs}", f"{write} + r * {outputs}", int(step.relu)
        )
        return [f"for (int r = 0; r < {step.rows}; r++) {call}"]

    def emit_recurrent(self, step: steps.Recurrent) -> list[str]:
        gates, inputs = step.weights[0].shape
        hidden = step.weights[1].shape[1]
        given, state = self.temporary("g", gates + ALIGN), self.temporary("r", gates + ALIGN)  # cells read whole vectors
        h, c = self.temporary("h", hidden + ALIGN), self.temporary("c", hidden + ALIGN)
        at = f"({step.steps - 1} - t)" if step.backward else "t"
        read = f"[[a{step.reads[0]}]] + {at} * {inputs}"
        first = self.gates(step.weights[0], step.biases[0], step.name, read, given, step.steps)
        second = self.gates(step.weights[1], step.biases[1], step.name, h, state, step.steps)
        if not self.small:
            self.need("exp", kernels.AT + kernels.EXP)
        cell = self.need(step.kind, (kernels.CELLS if self.small else kernels.VECTOR_CELLS)[step.kind])
        out = f"[[a{step.writes[0]}]] + {at} * {step.width} + {step.offset}"
        return [
            f"for (int i = 0; i < {hidden + ALIGN}; i++) {h}[i] = {c}[i] = 0.0f;",
            f"for (int i = {gates}; i < {gates + ALIGN}; i++) {given}[i] = {state}[i] = 0.0f;",
            f"for (int t = 0; t < {step.steps}; t++) {{",
            f"  {first}", f"  {second}", f"  {cell}({h}, {c}, {given}, {state}, {hidden});",
            f"  memcpy({out}, {h}, sizeof(float) * {hidden}u);",
            "}",
        ]  # fmt: skip

    def gates(self, weight: Tensor, bias: Tensor, what: str, read: str, write: str, times: int) -> str:
        """A call that multiplies by a matrix of a recurrent layer, which is small and read at every step: over all its weights in
        blocks of 16 outputs, but where hardly any are left."""
        density = float((weight != 0).double().mean())
        if self.small or (density < DENSE_RECURRENT_FROM and not self.always_dense):
            return self.matrix(weight, bias, what, read, write, 0, times, DENSE_RECURRENT_FROM)
        self.dense.append(what)
        outputs, inputs = weight.shape
        call, more = self.need("columns", kernels.COLUMNS), -outputs % 16
        padded = torch.cat([weight.float(), torch.zeros(more, inputs)])
        values = self.floats(padded.reshape(-1, 16, inputs).transpose(1, 2), what)
        biases = self.floats(torch.cat([bias.float(), torch.zeros(more)]), what)
        return f"{call}({read}, {write}, {outputs}, {inputs}, {values}, {biases});"

    def emit_map(self, step: steps.Map) -> list[str]:
        shape = [size for size in step.shape if size != 1]
        strides = [[s for s, size in zip(held, step.shape, strict=True) if size != 1] for held in step.strides]
        tables, constants = [], []
        for tensor, held in step.constants:
            tables.append(self.floats(tensor, step.name))
            constants.append([s for s, size in zip(held, step.shape, strict=True) if size != 1])
        shape, all_strides = _merged(shape, [*strides, *constants])
        index = [_index(held) for held in all_strides]
        operands = {f"a{i}": f"[[a{array}]][{index[i]}]" for i, array in enumerate(step.reads)}
        operands |= {f"c{i}": f"{table}[{index[len(step.reads) + i]}]" for i, table in enumerate(tables)}
        text = re.sub(r"\{([ac]\d+)\}", lambda found: operands[found[1]], step.expression)
        own = _index([math.prod(shape[i + 1 :]) for i in range(len(shape))])
        inner = f"[[a{step.writes[0]}]][{own}] = {text};"
        if step.relu:
            inner = f"{{ const float v = {text}; [[a{step.writes[0]}]][{own}] = v < 0.0f ? 0.0f : v; }}"
        return [f"{_loops(shape)}{inner}"]

    def emit_copy(self, step: steps.Copy) -> list[str]:
        (start, source), (begin, target) = step.source, step.target
        keep = [i for i, size in enumerate(step.shape) if size != 1]
        shape = [step.shape[i] for i in keep]
        shape, (read, write) = _merged(shape, [[source[i] for i in keep], [target[i] for i in keep]])
        to, of = f"[[a{step.writes[0]}]]", f"[[a{step.reads[0]}]]"
        return [f"{_loops(shape)}{to}[{_index(write, begin)}] = {of}[{_index(read, start)}];"]

    def emit_fill(self, step: steps.Fill) -> list[str]:
        return [f"for (int i0 = 0; i0 < {step.count}; i0++) [[a{step.writes[0]}]][i0] = {number(step.value)};"]

    def emit_pool(self, step: steps.Pool) -> list[str]:
        c, h, w = step.size
        (oh, ow), (kh, kw), (sy, sx), (py, px), (dy, dx) = step.out, step.kernel, step.stride, step.pad, step.dilation
        read, write = f"[[a{step.reads[0]}]]", f"[[a{step.writes[0]}]]"
        if step.kind == "mean" and step.adaptive and (oh, ow) == (1, 1):
            call = self.need("mean", kernels.reduce("mean"))
            return [f"{call}({read}, {write}, {c}, {h * w}, 1, 0.0f);"]
        simple = (kh, kw, sy, sx, py, px, dy, dx) == (2, 2, 2, 2, 0, 0, 1, 1) and 2 * oh <= h and 2 * ow <= w
        if step.kind == "max" and simple:
            if self.small:
                return [f"{self.need('max2', kernels.MAX2_SMALL)}({read}, {write}, {c}, {h}, {w}, {oh}, {ow});"]
            return [f"{self.need('max2', kernels.LARGER + kernels.MAX2)}({read}, {write}, {c}, {h}, {w}, {oh}, {ow});"]
        divide = {"inside": 0, "padded": 1}.get(step.divide)
        divide = int(step.divide) + 1 if divide is None else divide
        return [f"{self.need('pool', kernels.POOL)}({read}, {write}, {c}, {h}, {w}, {oh}, {ow}, {kh}, {kw}, {sy}, {sx}, {py}, "
                f"{px}, {dy}, {dx}, {int(step.kind == 'mean')}, {divide}, {int(step.adaptive)});"]  # fmt: skip

    def emit_reduce(self, step: steps.Reduce) -> list[str]:
        call = self.need(step.kind, kernels.reduce(step.kind))
        arrays = f"[[a{step.reads[0]}]], [[a{step.writes[0]}]]"
        return [f"{call}({arrays}, {step.outer}, {step.count}, {step.inner}, {number(step.eps)});"]


# --- small questions -----------------------------------------------------------------------------------------------------


def by_planes(channels: int, outputs: int, size: int) -> bool:
    """Is a convolution with a kernel of 1 faster an output after the other than a tile of all outputs after the other?

    Where the second cache holds what is read, and not what is written, or planes are whole pages apart, which share a few places
    of every cache: its writes then follow each other, which the processor foresees.
    """
    return 4 * size * channels <= FAR_CACHE and (4 * size * outputs > 2 * FAR_CACHE or size % 1024 == 0)


def _comment(name: str) -> str:
    """A name as it may stand in a comment: nothing in it can end one."""
    return re.sub(r"[^A-Za-z0-9_.]", "", name)[:80]


def _merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The same entries by as few dimensions as can be."""
    sizes, held = list(shape), [list(one) for one in strides]
    for i in range(len(sizes) - 1, 0, -1):
        contiguous = math.prod(sizes[i + 1 :])
        if all(one[i - 1] == one[i] * sizes[i] for one in held) and contiguous >= 0:
            sizes[i - 1] *= sizes[i]
            for one in held:
                one[i - 1] = one[i]
                del one[i]
            del sizes[i]
    return sizes, held


def _index(strides: Sequence[int], offset: int = 0) -> str:
    terms = [f"i{d}" if s == 1 else f"{s} * i{d}" for d, s in enumerate(strides) if s]
    if offset or not terms:
        terms.insert(0, str(offset))
    return " + ".join(terms).replace("+ -", "- ")


def _loops(shape: Sequence[int]) -> str:
    return "".join(f"for (int i{d} = 0; i{d} < {size}; i{d}++) " for d, size in enumerate(shape))
