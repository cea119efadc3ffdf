"""The `.fwz` file: a whole compressed network as one stream. `docs/format.md` is the description, this is the order of things.

One function, `_code_network`, both writes and reads; what it is given is what it gives back.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featherweight.errors import ArtifactError, FeatherweightError, InputError
from featherweight.files.edits import Edit, Snapshot, check_state, replay
from featherweight.files.packed.coder import Coder, Decoder, Encoder
from featherweight.files.packed.edit_codes import Plain
from featherweight.files.packed.entries import Budget
from featherweight.files.packed.raw_bytes import Bulk
from featherweight.files.packed.state import Known, code_coded, code_parameter, code_tensor, same
from featherweight.network.copies import UnsupportedNetwork, bare, copied, fill, unstorable
from featherweight.weights.parametrized import coded
from featherweight.weights.views import View

MAGIC, VERSION = b"FZ", 5
HAS_BULK = 0x80
HEADER = 8  # magic, version, signature of the network, checksum
KINDS = {  # kind of code -> its sizes; only ever appended to
    "sparse": ("count",),
    "rows": ("count",),
    "factors": ("rank",),
    "scaled": ("count",),
    "shared": ("count",),
    "sparse_shared": ("count", "shared"),
    "sparse_scaled": ("count", "shared"),
}
PATTERNS = (  # only ever appended to; others are written out
    "... -> () (...)",
    "o i h w -> o (i h w)",
    "o i h w -> (i h) (o w)",
    "o i h w -> i (o h w)",
    "o i -> o i",
    "o i -> i o",
    "o i h w -> (o i) (h w)",
    "o i -> () (o i)",
)


def pack(snapshot: Snapshot, network: nn.Module) -> bytes:
    """The bytes of a `.fwz` file. `network`: of the user's own class, as it was before any edit; its values do not matter.

    Raises InputError for a snapshot that is not of such a network.
    """
    network, structural = bare(network), snapshot.structural()
    if any(edit["edit"] == "code" for edit in snapshot.edits[: len(structural)]):
        raise InputError("a snapshot to be packed must have its structural edits before its codes")
    coder, bulk = Encoder(), Bulk()
    _code_network(coder, bulk, network, snapshot)
    stream, large = coder.finish(), bulk.finish()
    body = _length(len(stream)) + stream + large if large else stream
    signature = _signature(network)
    version = VERSION | (HAS_BULK if large else 0)
    head = MAGIC + bytes([version, signature & 255])
    return head + zlib.crc32(body, zlib.crc32(head, signature)).to_bytes(4, "little") + body


def read(data: bytes, model: nn.Module) -> Snapshot:
    """The snapshot that was packed; `model` is of the user's own class. Raises ArtifactError, before anything is built, if it
    is damaged or of another network.
    """
    return _read(data, model)[0]


def unpack(data: bytes, model: nn.Module) -> nn.Module:
    """A copy of `model`, an instance of the class that was compressed, with the edits replayed and the state loaded. Bitwise."""
    _, network = _read(data, model)
    return network


def sections(data: bytes, model: nn.Module) -> list[tuple[str, int]]:
    """Where the bytes of a file go, in its order; they sum to its size. Fractions of bytes are shared out by largest rest."""
    model = bare(model)
    stream, large, overhead = _open(data, model)
    coder, bulk = Decoder(stream), Bulk(large)
    _code_network(coder, bulk, model, None)
    spent = {name: bits / 8 for name, bits in coder.spent.items()}
    for name, size in bulk.spent.items():
        spent[name] = spent.get(name, 0.0) + size
    rest = len(data) - overhead
    whole = {name: int(size) for name, size in spent.items()}
    order = sorted(spent, key=lambda name: whole[name] - spent[name])
    for number in range(max(0, rest - sum(whole.values()))):
        whole[order[number % len(order)]] += 1
    for _ in range(sum(whole.values()) - rest):
        whole[max(whole, key=lambda name: whole[name])] -= 1
    return [("header", overhead), *whole.items()]


def largest_file(model: nn.Module) -> int:
    """Bytes that no file of this network exceeds."""
    state = [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]
    return (1 << 20) + sum(5 * tensor.numel() * tensor.element_size() for tensor in state) // 2


def _open(data: bytes, model: nn.Module) -> tuple[bytes, bytes, int]:
    """The coded part, the bulk, and the bytes before them; checksum and signature are right."""
    if len(data) < HEADER or data[:2] != MAGIC:
        raise ArtifactError("this is not a .fwz file: it does not begin with the letters FZ and eight bytes of header")
    if data[2] & ~HAS_BULK != VERSION:
        raise ArtifactError(f"the file is of format version {data[2] & ~HAS_BULK}; this featherweight reads version {VERSION}")
    if len(data) > largest_file(model):
        raise ArtifactError(f"the file has {len(data)} bytes, more than any of a {type(model).__name__} has")
    signature = _signature(model)
    if data[3] != signature & 255:
        raise ArtifactError(f"the file is not of a {type(model).__name__}: names or shapes of its parameters differ")
    body = data[HEADER:]
    if zlib.crc32(body, zlib.crc32(data[:4], signature)) != int.from_bytes(data[4:8], "little"):
        raise ArtifactError(f"the file is damaged, or not of a {type(model).__name__}: its checksum is wrong")
    if not data[2] & HAS_BULK:
        return body, b"", HEADER
    length, place = 0, 0
    while place < min(len(body), 8):
        length |= (body[place] & 127) << 7 * place
        place += 1
        if body[place - 1] < 128:
            break
    if place + length > len(body):
        raise ArtifactError(f"the file ends too early: its coded part of {length} bytes is cut off")
    return body[place : place + length], body[place + length :], HEADER + place


def _read(data: bytes, model: nn.Module) -> tuple[Snapshot, nn.Module]:
    model = bare(model)
    stream, large, _ = _open(data, model)
    coder, bulk = Decoder(stream), Bulk(large)
    snapshot, network = _code_network(coder, bulk, model, None)
    coder.close()
    bulk.close()
    fill(network, snapshot.state)
    check_state(network)
    return snapshot, network


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a network. Raises UnsupportedNetwork where some of it is no tensor."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UnsupportedNetwork(unstorable(name, value))
    return state


def _signature(model: nn.Module) -> int:
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in _tensors(model).items()]
    return zlib.crc32(repr(shapes).encode())


# --- the network, one thing after the other -------------------------------------------------------------------------------


def _code_network(coder: Coder, bulk: Bulk, original: nn.Module, snapshot: Snapshot | None) -> tuple[Snapshot, nn.Module]:
    state = None if snapshot is None else {name: tensor.detach().cpu() for name, tensor in snapshot.state.items()}
    names = [*original.state_dict(), *(name for name, _ in original.named_modules())]
    dims = sum(sum(tensor.shape) for tensor in _tensors(original).values())
    plain = Plain(coder, names, 4096 + 8 * dims)
    coder.section = "structure"
    structural = plain.code(None if snapshot is None or not snapshot.structural() else snapshot.structural())
    network = _replayed(copied(original), structural or [])
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    given = {} if snapshot is None else {edit["parameter"]: edit for edit in snapshot.edits if edit["edit"] == "code"}
    if unknown := sorted(given.keys() - shapes.keys()):
        raise InputError(f"the snapshot has a code for {unknown[0]!r}, which {type(original).__name__} does not have")
    found = {name: _code_layout(coder, plain, name, shape, given.get(name)) for name, shape in shapes.items()}
    edits = [edit for _, edit in sorted(found.items()) if edit is not None]
    if snapshot is not None and [*(structural or []), *edits] != snapshot.edits:
        raise InputError("the snapshot's code edits are not as `Snapshot.of` writes them: one a parameter, in order of name")
    network = _replayed(network, edits)
    expected = network.state_dict(keep_vars=True)
    if state is not None:
        _check(state, expected, original)
    known, budget = Known(), Budget()
    done: dict[str, Tensor] = {}
    codes = coded(network)
    for name, shape in shapes.items():
        if name in codes:
            done |= code_coded(coder, bulk, budget, known, name, shape, network, state)
        else:
            value = None if state is None else state[name]
            done[name] = code_parameter(coder, bulk, budget, known, name, value, expected[name])
    first: dict[int, str] = {id(expected[name]): name for name in done}
    for name, tensor in expected.items():
        if name in done:
            continue
        if id(tensor) in first:  # tied: under another name, the same tensor
            done[name] = done[first[id(tensor)]]
            if state is not None and not same(state[name], done[name]):
                raise InputError(f"{name!r} is tied to {first[id(tensor)]!r}, but the snapshot holds another value for it")
            continue
        coder.section = f"{name}: values"
        value = None if state is None else state[name]
        alive = known.modules.get(name.rpartition(".")[0])
        done[name] = code_tensor(coder, bulk, budget, value, tuple(tensor.shape), tensor.dtype, alive)
        first[id(tensor)] = name
    return Snapshot([*(structural or []), *edits], {name: done[name] for name in expected}), network


def _replayed(network: nn.Module, edits: list[Edit]) -> nn.Module:
    try:
        return replay(network, edits)
    except ArtifactError:
        raise
    except (FeatherweightError, AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(f"the file's edits do not fit a {type(network).__name__}: {error}") from None


def _code_layout(coder: Coder, plain: Plain, name: str, shape: tuple[int, ...], edit: Edit | None) -> Edit | None:
    """The code edit of one parameter, or None."""
    kinds = ("", *KINDS)
    if edit is not None and edit["code"]["kind"] not in KINDS:
        raise InputError(f"{name!r} has a code of kind {edit['code']['kind']!r}; a packed file takes {', '.join(KINDS)}")
    kind = kinds[coder.choice(kinds.index(edit["code"]["kind"]) if edit else 0, f"code {min(len(shape), 2)}", len(kinds))]
    if not kind:
        return None
    pattern = edit["pattern"] if edit else ""
    usual = pattern in PATTERNS and not (edit and edit["sizes"])
    which = coder.choice(PATTERNS.index(pattern) if usual else len(PATTERNS), "pattern", len(PATTERNS) + 1)
    axes: Any = []
    if which < len(PATTERNS):
        pattern = PATTERNS[which]
    else:
        pattern, axes = plain.text(pattern), plain.code(edit["sizes"] if edit else None)
    sizes: dict[str, int] = {}
    for key in KINDS[kind]:
        sizes[key] = coder.number(edit["code"]["sizes"][key] if edit else 0, f"size {kind} {key}")
    rows, cols = _matrix(name, shape, pattern, axes)
    layout = {"kind": kind, "rows": rows, "cols": cols, "sizes": sizes}
    return {"edit": "code", "parameter": name, "pattern": pattern, "sizes": axes, "code": layout}


def _matrix(name: str, shape: tuple[int, ...], pattern: str, axes: Any) -> tuple[int, int]:
    try:
        return View(pattern, tuple((str(axis), int(size)) for axis, size in axes)).matrix_shape(shape)
    except (InputError, TypeError, ValueError) as error:
        raise ArtifactError(f"the file's view of {name!r} does not fit its shape {shape}: {error}") from None


def _check(state: Mapping[str, Any], expected: Mapping[str, Any], original: nn.Module) -> None:
    """Raises InputError unless the state to be packed is that of the network with its edits."""
    if differing := sorted(state.keys() ^ expected.keys()):
        side = "lacks" if differing[0] in expected else "holds"
        raise InputError(f"the snapshot is not of a {type(original).__name__} with its edits: it {side} {differing[0]!r}")
    for name, tensor in state.items():
        other = expected[name]
        if not isinstance(other, Tensor):
            raise InputError(f"{name!r} of the network is extra state, which a packed file cannot hold")
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            pair = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, other))
            raise InputError("the snapshot is not of this network: {!r} is {}, the network has {}".format(name, *pair))
