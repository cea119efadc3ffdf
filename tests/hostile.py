"""Hostile files, grown from the grammar of what is read, and the judge of what opening one may do.

A generator draws one file and says how to open it; `judged` opens it. `benchmarks/fuzz.py` runs many, `test_hostile.py` a few.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

sys.path.extend(str(Path(__file__).parent / part) for part in ("", "packed", "structure"))
import networks
import probes
from damage import forged, mutated
from ordinary import ORDINARY

from featherweight import artifact, edits, packed, zoo
from featherweight.coding import attach
from featherweight.edits import Snapshot
from featherweight.errors import ArtifactError
from featherweight.packed import container
from featherweight.packed.bulk import Bulk
from featherweight.packed.coder import Coder, Decoder, Encoder
from featherweight.packed.plain import Plain
from featherweight.structure import drop, prune, trace
from featherweight.views import WHOLE

Open = Callable[[], nn.Module]
Generator = Callable[[np.random.Generator, Path, tuple[str, ...]], Open]  # a file of one of these victims, in this folder
SECONDS, MEGABYTES = 1.0, 300.0


# --- the networks that the files claim to be of --------------------------------------------------------------------------


@dataclass(frozen=True)
class Victim:
    """A user's network, and the edits and state of honest files of it."""

    model: nn.Module
    honest: list[Snapshot]


def _cut(model: nn.Module, example: tuple[torch.Tensor, ...]) -> list[dict[str, Any]]:
    """Honest edits: half of what the class can cut, one site after the other, and a block where there is one."""
    network, done = copy.deepcopy(model), []
    for name in list(trace(network, example).sites)[:3]:
        graph = trace(network, example)
        if name in graph.sites and graph.site(name).size > 1:
            found = prune(network, graph, name, list(range(0, graph.site(name).size, 2)))
            done += [found.edit] if found.edit is not None else []
    graph = trace(network, example)
    found = drop(network, graph, next(iter(graph.blocks))) if graph.blocks else None
    done += [found.edit] if found is not None and found.edit is not None else []
    return [edits.structure_edit(edit) for edit in done]


def _coded(model: nn.Module, structural: list[dict[str, Any]], seed: int) -> Snapshot:
    """After these edits, a code of some kind on each of the first weights."""
    random = np.random.default_rng(seed)
    network = edits.replay(copy.deepcopy(model), structural)
    for name, parameter in list(network.named_parameters())[:4]:
        kind = str(random.choice(networks.KINDS[1:]))
        if parameter.dtype == torch.float32 and "parametrizations" not in name and parameter.numel() > 1:
            attach(network, name, WHOLE, networks.code_of(random, kind, 1, parameter.numel()))
    return Snapshot.of(network, structural)


def _of(make: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]) -> Victim:
    model, example = make()
    cut = _cut(model, example)
    return Victim(model, [_coded(model, cut[:stop], stop) for stop in range(len(cut) + 1)])


def _ordinary(name: str) -> Victim:
    return _of(lambda: (ORDINARY[name].make().eval(), ORDINARY[name].args))


def _small() -> Victim:
    return Victim(networks.Small(), [networks.coded_small(seed)[1] for seed in range(20)])


VICTIMS: dict[str, Callable[[], Victim]] = {
    "small": _small,
    "heads": lambda: _of(lambda: probes.build("fused attention")),
    "residual": lambda: _of(lambda: probes.build("residual")),
    "tabular": lambda: _ordinary("tabular"),
    "conv1d and gru": lambda: _ordinary("conv1d and gru"),
    "u-net": lambda: _ordinary("u-net"),
    "lenet5": lambda: Victim(zoo.lenet5(), [networks.sparse_lenet(600, 8)]),
    "resnet20": lambda: Victim(zoo.resnet20(), [_coded(zoo.resnet20(), [], 3)]),
}
ALL = tuple(VICTIMS)
LARGE = ("lenet5", "resnet20")  # take their time, and are drawn less often


@functools.cache
def victim(name: str) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VICTIMS[name]()


def _drawn(random: np.random.Generator, among: tuple[str, ...]) -> Victim:
    likely = np.array([0.2 if name in LARGE else 1.0 for name in among])
    return victim(str(random.choice(among, p=likely / likely.sum())))


# --- packed files --------------------------------------------------------------------------------------------------------


class Recorder(Coder):
    """Notes what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[int] = []

    def code(self, value: int, total: int, bounds: Any, find: Any) -> int:
        self.values.append(value)
        return value


class Author(Decoder):
    """A reader that draws what it reads, after a given beginning, and writes that down: a file of the right grammar."""

    def __init__(self, random: np.random.Generator, beginning: list[int]) -> None:
        super().__init__(b"")
        self.random, self.beginning, self.paper = random, beginning[::-1], Encoder()
        self.low, self.high = [(0.0, 0.0), (0.5, 0.0), (0.8, 0.1), (0.1, 0.8), (0.97, 0.01), (0.3, 0.3)][random.integers(6)]

    def code(self, value: int, total: int, bounds: Any, find: Any) -> int:
        if self.beginning:
            value = self.beginning.pop()
        else:
            dice = self.random.random()
            point = 0 if dice < self.low else total - 1 if dice < self.low + self.high else int(self.random.integers(total))
            value = find(point)
        self.paper.code(value, total, bounds, find)
        return value


def packed_file(random: np.random.Generator, folder: Path, among: tuple[str, ...] = ALL) -> Open:
    """Grown from the grammar, with hostile edits or without; or an honest file changed. The checksum is always right."""
    found = _drawn(random, among)
    model = found.model
    if random.random() < 0.5:
        honest = found.honest[random.integers(len(found.honest))]
        data = _packed(found, honest)
        hostile = forged(data, mutated(random, data[8:]), model)
        return lambda: packed.unpack(hostile, model)
    recorder = Recorder()
    if random.random() < 0.5:
        names = [*model.state_dict(), *(name for name, _ in model.named_modules())]
        try:
            Plain(recorder, names, 2**40).code(hostile_edits(random, found, plain=True))
        except (ArtifactError, AssertionError, ValueError):
            recorder.values = []  # what the format cannot say
    author, junk = Author(random, recorder.values), random.bytes(int(random.integers(1, 20_000)))
    bulk = Bulk(junk)
    try:
        container._code_network(author, bulk, model, None)
        used = junk[: len(junk) - len(bulk.rest())]
    except Exception:  # noqa: BLE001  the file ends here: what is judged is the reader of the file
        used = junk
    stream = author.paper.finish()
    head = b"FZ" + bytes([container.VERSION | (container.HAS_BULK if used else 0), container._signature(model) & 255]) + bytes(4)
    hostile = forged(head, container._length(len(stream)) + stream + used if used else stream, model)
    return lambda: packed.unpack(hostile, model)


_PACKED: dict[int, bytes] = {}


def _packed(found: Victim, honest: Snapshot) -> bytes:
    if id(honest) not in _PACKED:
        _PACKED[id(honest)] = packed.pack(honest, found.model)
    return _PACKED[id(honest)]


# --- artifacts -----------------------------------------------------------------------------------------------------------

NUMBERS = (0, 1, 2, 3, 7, 64, 65_536, 2**31, 2**53, 2**63, 10**30, -1, -(2**40))
WORDS = ("", ".", "..", "weight", "0", "__class__", "forward", "_parameters", "training", "a" * 3000, "\x1b[2J", "../x", "日本")
PATTERNS = (
    "o i -> o i",
    "o i -> i o",
    "... -> () (...)",
    "o i h w -> o (i h w)",
    "(g h) i -> h (g i)",
    "a -> a a",
    "(a b) -> a b",
)


def hostile_edits(random: np.random.Generator, found: Victim, plain: bool = False) -> list[Any]:
    """Honest edits with a few places changed, or edits with right types about what the network has; sometimes many of them."""
    if random.random() < 0.5:
        honest = found.honest[random.integers(len(found.honest))]
        result = json.loads(json.dumps(honest.structural() if plain else honest.edits))
        for _ in range(int(random.integers(0, 4))):
            result = changed(random, result, found)
    else:
        result = [grown_edit(random, found) for _ in range(int(random.integers(1, 4)))]
    if random.random() < 0.1 and isinstance(result, list):
        result = result * int(random.choice([2, 50, 1500]))
    return result


def changed(random: np.random.Generator, value: Any, found: Victim) -> Any:
    """The same data but at one place."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = str(random.choice(list(value)))
        return {**value, key: changed(random, value[key], found)} if random.random() < 0.9 else {**value, _word(random, found): 1}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = int(random.integers(len(value)))
        return [*value[:place], changed(random, value[place], found), *value[place + 1 :]]
    if isinstance(value, list):
        return [[], value * 2, value * 300, value[:1], value[::-1], [*value, 10**9], [value]][random.integers(7)]
    if isinstance(value, int) and random.random() < 0.5:
        return value + int(random.integers(-3, 4))
    return [_number(random), _word(random, found), None, True, 0.5, {}, [], float("nan")][
        random.choice(8, p=[0.4, 0.3] + [0.05] * 6)
    ]


def _number(random: np.random.Generator) -> int:
    return NUMBERS[random.integers(len(NUMBERS))]


def _word(random: np.random.Generator, found: Victim) -> str:
    names = [*found.model.state_dict(), *(name for name, _ in found.model.named_modules()), *WORDS]
    return names[random.integers(len(names))]


def grown_edit(random: np.random.Generator, found: Victim) -> dict[str, Any]:
    """One edit of the right shape about tensors, modules and numbers that the network has."""
    kind = random.choice(["structure", "code", "factor"])
    parameters = dict(found.model.named_parameters())
    name = str(random.choice(list(parameters)))
    shape = tuple(parameters[name].shape)
    if kind == "factor":
        pattern = PATTERNS[random.integers(len(PATTERNS))]
        return {"edit": "factor", "parameter": name, "view": pattern, "rank": int(random.integers(0, max(shape, default=1) + 2))}
    if kind == "code":
        size = int(np.prod(shape))
        fields = list(container.KINDS)
        code = str(random.choice(fields))
        sizes = {
            key: int(random.integers(0, size + 2)) if random.random() < 0.8 else _number(random) for key in container.KINDS[code]
        }
        layout = {"kind": code, "rows": 1, "cols": size, "sizes": sizes}
        return {"edit": "code", "parameter": name, "pattern": WHOLE.pattern, "sizes": [], "code": layout}
    cuts, keeps = [], []
    for _ in range(int(random.integers(0, 4))):
        tensor = str(random.choice(list(parameters)))
        dims = tuple(parameters[tensor].shape)
        if dims:
            dim = int(random.integers(len(dims)))
            share = np.flatnonzero(random.random(dims[dim]) < random.choice([0.3, 0.7, 1.0])).tolist()
            keeps.append(share or [0])
            cuts.append([tensor, dim, dims[dim], len(keeps) - 1])
    numbers = [
        (path, key, number)
        for path, module in found.model.named_modules()
        for key, number in vars(module).items()
        if type(number) is int
    ]
    attributes = []
    for _ in range(int(random.integers(0, 3))):
        path, key, number = numbers[random.integers(len(numbers))]
        attributes.append([path, key, number, int(random.integers(0, number + 2)) if 0 <= number < 2**40 else _number(random)])
    modules = [name for name, _ in found.model.named_modules()]
    identities = [str(random.choice(modules))] if random.random() < 0.3 else []
    change = {"kind": "cut", "sites": {}, "keeps": keeps, "cuts": cuts, "attributes": attributes, "identities": identities}
    return {"edit": "structure", "change": change}


def artifact_folder(random: np.random.Generator, folder: Path, among: tuple[str, ...] = ALL) -> Open:
    """Hostile edits and a hostile report; the weights are those of the edits where the edits can be replayed."""
    found = _drawn(random, among)
    model = found.model
    given = hostile_edits(random, found)
    state = found.honest[random.integers(len(found.honest))].state
    if random.random() < 0.5:
        try:
            state = edits.replay(copy.deepcopy(model), given).state_dict()
        except Exception:  # noqa: BLE001  the weights do not matter then: the file is refused before they are looked at
            state = {}
    report = changed(random, [{"stage": "a", "measured": {"score": 1.0, "parameters": 3, "bits": 7}}], found)
    written = {"format": 1, "edits": given, "recipe": {}, "report": report if random.random() < 0.2 else []}
    if random.random() < 0.1:
        written = changed(random, written, found)
    folder.mkdir(exist_ok=True)
    (folder / artifact.DESCRIPTION).write_text(json.dumps(written))
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, folder / artifact.WEIGHTS)
    return lambda: artifact.load(folder, model)


GENERATORS: dict[str, Generator] = {"packed": packed_file, "artifact": artifact_folder}


# --- the judge -----------------------------------------------------------------------------------------------------------

FORBIDDEN = ("exec", "compile", "import", "subprocess.", "os.", "shutil.", "socket.", "ctypes.", "pickle.", "marshal.", "code.")
HARMLESS = ("os.listdir", "os.scandir", "os.fwalk", "os.walk", "ctypes.dlsym")  # looking
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


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
            if isinstance(path, int) or (os.fspath(path).startswith(self.folder) and not (flags or 0) & WRITING):
                return
        elif not event.startswith(FORBIDDEN) or event in HARMLESS:
            return
        self.seen.append(f"{event} {arguments!r}"[:200])

    @contextmanager
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


@dataclass(frozen=True)
class Verdict:
    """How opening a file ended: `refused` by a named error or not; seconds of processor time; what the process grew by, MB."""

    refused: bool
    seconds: float
    grown: float
    faults: tuple[str, ...] = ()


def judged(open_: Open, folder: Path) -> Verdict:
    """Open a file. Its faults: an error that is not named or is long, time, memory, and what the interpreter was seen to do."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    faults: list[str] = []
    refused = False
    with warnings.catch_warnings(), watch().over(folder):
        warnings.simplefilter("ignore")
        try:
            open_()
        except ArtifactError as error:
            refused = True
            faults += [f"a message of {len(str(error))} characters"] if len(str(error)) > 1500 else []
        except Exception as error:  # noqa: BLE001  that is what is looked for
            faults.append(f"{type(error).__name__}: {error}"[:300])
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    faults += [f"{seconds:.1f} s"] if seconds > SECONDS else []
    faults += [f"{grown:.0f} MB"] if grown > MEGABYTES else []
    return Verdict(refused, seconds, grown, (*faults, *watch().seen))


def warm(folder: Path, among: tuple[str, ...] = ALL) -> None:
    """Open honest files of each once, so that what is imported lazily is there before anything is watched."""
    for name in among:
        found = victim(name)
        for honest in found.honest[:2]:
            packed.unpack(_packed(found, honest), found.model)
            written = artifact.Description(edits=honest.edits, recipe={}, report=[])
            artifact.save(folder / "warm", honest, written)
            artifact.load(folder / "warm", found.model)
