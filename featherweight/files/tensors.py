"""Files of tensors, read as data: safetensors, and what `torch.save` writes of plain values and tensors.

Of `torch.save` a file is a zip of one pickle and of raw storages, stored as they are. torch's own reader for foreign files
(`weights_only=True`) runs no code, but a few hundred bytes make it take all memory or go on for ever: compressed records,
constructors that take a size, keys whose hash is exponential. Here the whole is bounded before it is read, the pickle may hold
only what plain values and tensors need, and keys are text or numbers. OrderedDicts come as dicts, parameters as tensors.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from featherweight.files import storage

LARGEST_HEADER, MOST_TENSORS = 2**23, 50_000  # of a safetensors file
PICKLE_BYTES = 2**20  # of a pickle, and more for each tensor
PICKLE_BYTES_A_RECORD = 512
MOST_ENTRIES = 2**24  # of all lists, tuples and dicts of a file, what is shared counted at each place
DEEPEST = 32  # nesting
LARGEST_INTEGER = 2**63
END = struct.Struct("<4s4H2LH")  # of a zip: signature, disks, records, bytes and place of the directory, length of a comment
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
WAY_OUT = "save the state alone, by a current torch: torch.save(network.state_dict(), FILE)"


class Damaged(ValueError):
    """A file that is not what it should be; the message says how."""


def load_safetensors(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of an open safetensors file, mapped into memory and not copied. Raises OSError and Damaged."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise Damaged("it ends before its header does")
    if length > LARGEST_HEADER or file.read(length).count(b"{") > MOST_TENSORS + 2:
        raise Damaged(f"its header has {length} bytes, more than {LARGEST_HEADER}, or more than {MOST_TENSORS} tensors")
    try:
        # By the number of the open file: its name may mean another file by now.
        return safetensors.torch.load_file(f"/dev/fd/{file.fileno()}")
    except (SafetensorError, ValueError, RuntimeError, TypeError, OverflowError, KeyError, AttributeError) as error:
        raise Damaged(str(error)[:500]) from error


def load(path: Path, most: int, records: int, *, follow: bool = False) -> Any:
    """Values and tensors (on the CPU) of a file of at most `most` bytes and `records` tensors. Raises OSError and Damaged."""
    with storage.opened(path, follow=follow) as file:
        size = file.seek(0, 2)
        if size > most:
            raise Damaged(f"it has {size} bytes, more than the {most} that one for this network may have")
        try:
            return _load(file, size, records)
        except (OSError, Damaged):
            raise
        # zipfile, struct, the pickle's own operations and torch each have errors of their own for bytes that make no sense,
        # a dozen kinds. All of them mean the same here.
        except Exception as error:
            raise Damaged(f"{type(error).__name__}: {str(error)[:200]}") from error


def _load(file: BinaryIO, size: int, records: int) -> Any:
    _bound_directory(file, size, records)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > records + 16:
            raise Damaged(f"it has {len(members)} records, more than the {records} tensors of such a file")
        if any(member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size for member in members):
            raise Damaged("it has compressed records, and torch writes none")
        if sum(member.file_size for member in members) > size:
            raise Damaged("its records are larger than the file")
        named = {member.filename: member for member in members}
        main = [name for name in named if name.endswith("/data.pkl")]
        if len(main) != 1 or len(named) != len(members):
            raise Damaged("it is not of torch.save: it has no data.pkl, or two")
        prefix = main[0].removesuffix("data.pkl")
        order = archive.read(named[prefix + "byteorder"]).decode() if prefix + "byteorder" in named else sys.byteorder
        if order != sys.byteorder:
            raise Damaged(f"it was written by a machine of the other byte order ({order[:10]})")
        if named[main[0]].file_size > PICKLE_BYTES + PICKLE_BYTES_A_RECORD * records + size // 64:
            raise Damaged(f"its data.pkl has {named[main[0]].file_size} bytes, more than such a file needs")
        held: dict[str, torch.UntypedStorage] = {}

        def raw(key: str) -> torch.UntypedStorage:
            if key not in held:
                data = bytearray(archive.read(named[f"{prefix}data/{key}"]))  # its checksum is compared, too
                held[key] = torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)
            return held[key]

        value = _Pickle(archive.read(named[main[0]]), raw).load()
    weigh(value)
    return value


def _bound_directory(file: BinaryIO, size: int, records: int) -> None:
    """`zipfile` makes an object for every entry of the directory: look at its length first."""
    file.seek(max(0, size - END.size))
    tail = file.read(END.size)
    if len(tail) < END.size or tail[:4] != b"PK\5\6":
        raise Damaged(f"it is not of torch.save in its present form, a zip: {WAY_OUT}")
    length = END.unpack(tail)[5]
    if length == 2**32 - 1 and size >= END.size + LOCATOR.size:
        file.seek(size - END.size - LOCATOR.size)
        signature, _, place, _ = LOCATOR.unpack(file.read(LOCATOR.size))
        file.seek(min(place, size))
        record = file.read(END_64.size)
        if signature != b"PK\6\7" or len(record) < END_64.size:
            raise Damaged("its zip directory is not found")
        length = END_64.unpack(record)[8]
    if length > 256 * (records + 16):
        raise Damaged(f"its zip directory has {length} bytes, more than the {records} tensors of such a file need")


# --- the pickle ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    raw: torch.UntypedStorage
    dtype: torch.dtype | None  # None: the tensor says it


def _tensor(
    held: Any,
    offset: Any,
    size: Any,
    stride: Any,
    gradient: Any = False,
    hooks: Any = None,
    metadata: Any = None,
    dtype: Any = None,
) -> Tensor:
    """torch._utils._rebuild_tensor_v2, for a tensor that lies wholly in its storage."""
    dtype = held.dtype or dtype
    if (
        type(held) is not _Storage
        or type(dtype) is not torch.dtype
        or not _counts(size)
        or not _counts(stride)
        or not _counts((offset,))
    ):
        raise Damaged("a tensor is built from something else than a storage and sizes")
    if len(size) != len(stride) or len(size) > 64 or hooks or metadata:
        raise Damaged("a tensor is built of sizes and strides that do not belong together")
    entries = held.raw.nbytes() // dtype.itemsize
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if math.prod(size) else 0
    if reach > entries or math.prod(size) > entries:
        raise Damaged(f"a tensor of shape {tuple(size)} reaches beyond its {entries} numbers")
    return torch.empty(0, dtype=dtype).set_(held.raw, offset, tuple(size), tuple(stride))


def _counts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(type(value) is int and 0 <= value < LARGEST_INTEGER for value in values)


def _typed_tensor(
    held: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    return _tensor(held, offset, size, stride, gradient, hooks, metadata, dtype)  # torch._utils._rebuild_tensor_v3


def _parameter(data: Any, gradient: Any, hooks: Any) -> Tensor:
    if type(data) is not Tensor:
        raise Damaged("a parameter is built from something else than a tensor")
    return data


def _ordered(items: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in items:
        made[_key(key)] = value
    return made


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _typed_tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
}
STORAGES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": None,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


def _global(module: str, name: str) -> Any:
    if f"{module} {name}" in BUILDERS:
        return BUILDERS[f"{module} {name}"]
    if module in ("torch", "torch.storage") and name in STORAGES:
        return name
    if module == "torch" and name.isidentifier() and isinstance(found := getattr(torch, name, None), torch.dtype):
        return found
    raise Damaged(f"it holds {module[:100]}.{name[:100]}, which is neither a plain value nor a tensor: {WAY_OUT}")


def _key(key: Any) -> Any:
    if type(key) not in (str, int, float, bool):
        raise Damaged("a key is neither text nor a number")
    return key


class _Pickle:
    """A stack machine for the operations of pickle protocol 2 that plain values and tensors need."""

    def __init__(self, data: bytes, raw: Callable[[str], torch.UntypedStorage]) -> None:
        self.data, self.raw, self.place = data, raw, 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        if self.take(2) != b"\x80\x02":
            raise Damaged("its pickle is not of protocol 2, which torch.save writes")
        operations = OPERATIONS
        while (code := self.byte()) != ord("."):
            operation = operations.get(code)
            if operation is None:
                raise Damaged(f"its pickle has the operation {code}, which plain values and tensors do not need")
            operation(self)
        if len(self.stack) != 1 or self.outer or self.stack[0] is None:
            raise Damaged("its pickle holds nothing, or several things")
        return self.stack[0]

    def byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def take(self, count: int) -> bytes:
        start, self.place = self.place, self.place + count
        if self.place > len(self.data):
            raise Damaged("its pickle ends in the middle")
        return self.data[start : self.place]

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.place)
        start, self.place = self.place, end + 1
        return self.data[start:end].decode("ascii")

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_integer(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.byte()), "little", signed=True))

    def push_text(self) -> None:
        self.stack.append(self.take(self.number(_UINT)).decode("utf-8", "surrogatepass"))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Damaged("its pickle takes more than there is")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise Damaged("its pickle appends to what is no list")
        self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(items) % 2:
            raise Damaged("its pickle sets an entry of what is no dict")
        self.stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def pair(self) -> list[Any]:
        value = self.stack.pop()
        return [self.stack.pop(), value]

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple or not any(function is builder for builder in BUILDERS.values()):
            raise Damaged("its pickle calls what is no builder of tensors")
        self.stack.append(function(*arguments))

    def build(self) -> None:
        self.stack.pop()
        if type(self.stack[-1]) is not dict:  # what an OrderedDict carries beside its entries, such as the versions of modules
            raise Damaged("its pickle gives a state to what has none")

    def persistent(self) -> None:
        match self.stack.pop():
            case ("storage", str(kind), str(key), str(), int()) if kind in STORAGES:
                self.stack.append(_Storage(self.raw(key), STORAGES[kind]))
            case _:
                raise Damaged("its pickle names something else than a storage")


_UINT, _INT, _USHORT, _DOUBLE = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<H"), struct.Struct(">d")
OPERATIONS: dict[int, Callable[[_Pickle], object]] = {
    ord("("): _Pickle.mark,
    ord("N"): lambda p: p.stack.append(None),
    0x88: lambda p: p.stack.append(True),
    0x89: lambda p: p.stack.append(False),
    ord("K"): lambda p: p.stack.append(p.byte()),
    ord("M"): lambda p: p.stack.append(p.number(_USHORT)),
    ord("J"): lambda p: p.stack.append(p.number(_INT)),
    0x8A: _Pickle.push_integer,
    ord("G"): lambda p: p.stack.append(p.number(_DOUBLE)),
    ord("X"): _Pickle.push_text,
    ord(")"): lambda p: p.stack.append(()),
    ord("]"): lambda p: p.stack.append([]),
    ord("}"): lambda p: p.stack.append({}),
    0x85: lambda p: p.tuple_of(1),
    0x86: lambda p: p.tuple_of(2),
    0x87: lambda p: p.tuple_of(3),
    ord("t"): lambda p: p.push(tuple(p.marked())),
    ord("a"): lambda p: p.append([p.stack.pop()]),
    ord("e"): lambda p: p.append(p.marked()),
    ord("s"): lambda p: p.set(p.pair()),
    ord("u"): lambda p: p.set(p.marked()),
    ord("q"): lambda p: p.put(p.byte()),
    ord("r"): lambda p: p.put(p.number(_UINT)),
    ord("h"): lambda p: p.stack.append(p.memo[p.byte()]),
    ord("j"): lambda p: p.stack.append(p.memo[p.number(_UINT)]),
    ord("c"): lambda p: p.stack.append(_global(p.line(), p.line())),
    ord("R"): _Pickle.reduce,
    ord("b"): _Pickle.build,
    ord("Q"): _Pickle.persistent,
}  # fmt: skip


# --- what came of it -----------------------------------------------------------------------------------------------------


def weigh(value: Any) -> int:
    """Entries of a nest of plain values and tensors, what is shared counted each time. Raises Damaged for what is too much,
    too deep, or neither."""
    known: dict[int, int] = {}

    def entries(part: Any, depth: int) -> int:
        if part is None or isinstance(part, bool | float | Tensor | torch.dtype):
            return 1
        if isinstance(part, str):
            return 1 + len(part) // 64
        if isinstance(part, int):
            if abs(part) > LARGEST_INTEGER:
                raise Damaged("a number has more than 64 bits")
            return 1
        if not isinstance(part, dict | list | tuple):
            raise Damaged(f"it holds a {type(part).__name__}, which is neither a plain value nor a tensor")
        if id(part) not in known:
            if depth > DEEPEST:
                raise Damaged("it is nested too deeply")
            known[id(part)] = MOST_ENTRIES  # should it hold itself
            inside = part.values() if isinstance(part, dict) else part
            count = 1
            for item in inside:
                count += entries(item, depth + 1)
                if count > MOST_ENTRIES:
                    raise Damaged(f"it has more than {MOST_ENTRIES} entries")
            known[id(part)] = count
        return known[id(part)]

    return entries(value, 0)


def plain(value: Any) -> Any:
    """The same with tensors on the CPU and dicts that are nothing more: what `load` gives back as it was. Raises as `weigh`."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: plain(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        inside = [plain(item) for item in value]
        return tuple(inside) if isinstance(value, tuple) else inside
    return value
