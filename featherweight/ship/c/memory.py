"""Where everything of a C file lies: arrays and scratch in one arena, numbers in tables, kernels that are used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from featherweight.ship.c.numbers import constants
from featherweight.ship.c.steps import CError, Program

ALIGN = 16  # floats


class Memory:
    """What has been placed so far."""

    def __init__(self, program: Program, name: str, always_dense: bool, small: bool, whole: Collection[str]) -> None:
        self.program, self.name, self.always_dense, self.small, self.whole = program, name, always_dense, small, whole
        self.largest = 0  # number of what a small layer is
        self.tables: list[str] = []
        self.body: list[str] = []
        self.used: dict[str, str] = {}  # kernel -> its source, in the order in which they are needed
        self.reached: dict[str, Mapping[int, frozenset[tuple[str, int]]]] = {}  # kernel -> what of it is used (see convolutions)
        self.all_strides = False  # are windows laid out of other strides than 1?
        self.bytes = 0
        self.at = 0  # number of the step that is written
        self.number = 0
        self.dense: list[str] = []
        self.sparse: list[str] = []
        self.scratch: dict[tuple[int, str], int] = {}  # (step, use) -> floats

    # --- memory ---

    def plan(self) -> tuple[dict[str, str], int]:
        """Array or scratch -> its place, an expression of C, and the floats of the arena; what is not live at once may share."""
        program, places = self.program, {}
        for i, value in enumerate(program.inputs):
            places[f"a{value.array}"] = f"in{i}"
        self.copies: list[tuple[int, int]] = []  # (output, array) that are copied at the end
        last_read: dict[int, int] = {}
        for i, value in enumerate(program.outputs):
            if f"a{value.array}" in places:
                self.copies.append((i, value.array))
                last_read[value.array] = len(program.steps)
            else:
                places[f"a{value.array}"] = f"out{i}"
        spans: dict[str, tuple[int, int, int]] = {}
        for at, step in enumerate(program.steps):
            for array in (*step.reads, *step.writes):
                first, _, _ = spans.get(f"a{array}", (at, at, 0))
                spans[f"a{array}"] = (first, max(at, last_read.get(array, 0)), program.sizes[array])
        for (at, use), floats in self.scratch.items():
            spans[f"s{at}{use}"] = (at, at, floats)
        taken: list[tuple[int, int, int, int]] = []  # offset, end, first, last
        arena = ALIGN  # room before, and behind, that may be read beside an array
        for key, (first, last, floats) in sorted(spans.items(), key=lambda item: (-item[1][2], item[0])):
            if key in places:
                continue
            size, offset = -(-floats // ALIGN) * ALIGN, ALIGN
            for start, end, begun, ended in sorted(taken):
                if begun <= last and first <= ended and offset + size > start and end > offset:
                    offset = end
            taken.append((offset, offset + size, first, last))
            arena = max(arena, offset + size)
            places[key] = f"(arena + {offset})"
        return places, arena + ALIGN

    def last(self, places: dict[str, str]) -> list[str]:
        """Outputs that are inputs, or other outputs."""
        sizes = self.program.sizes
        return [f"memcpy(out{i}, {places[f'a{array}']}, sizeof(float) * {sizes[array]}u);" for i, array in self.copies]

    def temporary(self, use: str, floats: int) -> str:
        self.scratch[self.at, use] = floats
        return f"[[s{self.at}{use}]]"

    # --- tables ---

    def need(self, key: str, text: str) -> str:
        self.used.setdefault(key, text)
        return f"{self.name}_{key}"

    def floats(self, values: Tensor, what: str) -> str:
        values = values.float().reshape(-1)
        if not bool(values.isfinite().all()):
            raise CError(f"{what} has weights that are not finite numbers")
        return self.table("float", constants(values) if values.numel() else ["0.0f"], 4)

    def integers(self, values: Sequence[int], bits: int, signed: bool = False) -> str:
        return self.table(f"{'' if signed else 'u'}int{bits}_t", [str(value) for value in values] or ["0"], bits // 8)

    def table(self, kind: str, texts: list[str], size: int) -> str:
        self.number += 1
        name = f"{self.name}_t{self.number}"
        lines, line = [], ""
        for text in texts:
            if len(line) + len(text) > 120:
                lines.append(line)
                line = ""
            line += f"{text},"
        self.tables.append(f"static const {kind} {name}[{len(texts)}] = {{\n" + "\n".join([*lines, line]) + "};")
        self.bytes += size * len(texts)
        return name
