"""The networks that hostile files claim to be of: small ones with much in them, and two of usual size."""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.extend(str(Path(__file__).parent / part) for part in ("", "packed", "../structure"))
import networks
import probes

from featherweight import zoo
from featherweight.files import edits, packed
from featherweight.files.edits import Snapshot
from featherweight.files.packed import container
from featherweight.structure import drop, prune, trace
from featherweight.weights.parametrized import attach, coded
from featherweight.weights.views import WHOLE

TABLE = edits.USUAL_TABLE  # levels or shared values, which a code of few entries may have as well


@dataclass
class Victim:
    """A user's network, and the edits and state of honest files of it; what is asked of it often is kept."""

    model: nn.Module
    honest: list[Snapshot]
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def names(self) -> list[str]:
        """Of tensors and modules."""
        return self.once("names", lambda: [*self.model.state_dict(), *(name for name, _ in self.model.named_modules())])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the parameters."""
        return self.once("shapes", lambda: {name: tuple(p.shape) for name, p in self.model.named_parameters()})

    def numbers(self) -> list[tuple[str, str, int]]:
        """The whole numbers that its modules hold."""
        return self.once(
            "numbers",
            lambda: [
                (path, key, number)
                for path, module in self.model.named_modules()
                for key, number in vars(module).items()
                if type(number) is int
            ],
        )

    def packed(self, number: int) -> bytes:
        """An honest packed file."""
        return self.once(("packed", number), lambda: packed.pack(self.honest[number], self.model))

    def signature(self) -> int:
        return self.once("signature", lambda: container._signature(self.model))

    def plain(self, number: int) -> str:
        """The edits of an honest file, as JSON."""
        return self.once(("plain", number), lambda: json.dumps(self.honest[number].edits))

    def sizes(self) -> tuple[int, int]:
        return self.once("sizes", lambda: sizes(self.model))

    def outgrown(self, network: nn.Module) -> str:
        """What a network that was opened has more of than this one; "" if nothing. A code counts as the weight that it gives; it
        may take 16 bytes for each of its entries, and a table.
        """
        parameters, buffers = sizes(network)
        mine = self.sizes()
        if parameters > mine[0] or buffers > mine[1]:
            return f"a network of {parameters} parameters and {buffers} entries of buffers, more than {mine}"
        for name, viewed in coded(network).items():
            held = [*viewed.code.buffers(), *_list(network, name).parameters(recurse=False)]
            taken = sum(tensor.numel() * tensor.element_size() for tensor in held)
            entries = viewed.code.rows * viewed.code.cols
            if taken > 16 * entries + 8 * max(TABLE, entries) + 64:
                return f"a code of {taken} bytes on {name}, of {entries} entries"
        return ""


def _list(network: nn.Module, name: str) -> nn.Module:
    path, _, attribute = name.rpartition(".")
    return network.get_submodule(f"{path}.parametrizations.{attribute}".lstrip("."))


def sizes(network: nn.Module) -> tuple[int, int]:
    """Entries of all parameters, and of all buffers, without those of codes; a coded weight counts as it is computed."""
    codes = sum(viewed.code.rows * viewed.code.cols for viewed in coded(network).values())
    parameters = sum(p.numel() for name, p in network.named_parameters() if "parametrizations." not in name)
    return codes + parameters, sum(b.numel() for name, b in network.named_buffers() if "parametrizations." not in name)


# --- honest edits --------------------------------------------------------------------------------------------------------


def _cut(model: nn.Module, example: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    """Half of what the class can cut, one site after the other, and a block where there is one."""
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


def _of(model: nn.Module, *example: Tensor) -> Victim:
    cut = _cut(model.eval(), example)
    low = [{"edit": "factor", "parameter": name, "view": "o i -> o i", "rank": 1} for name in _wide(model)]
    return Victim(model, [*(_coded(model, cut[:stop], stop) for stop in range(len(cut) + 1)), _coded(model, low, 9)])


def _wide(model: nn.Module) -> list[str]:
    """Weights of linear layers that can be factored."""
    return [f"{name}.weight" for name, m in model.named_modules() if type(m) is nn.Linear and min(m.weight.shape) > 2][:1]


# --- the networks --------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Queries, keys and values from one layer, split into heads by a number that the module holds."""

    def __init__(self, dim: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Sequence(nn.Module):
    """A convolution over time, a recurrence and a class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.gru, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, sound: Tensor) -> Tensor:
        return self.out(self.gru(torch.relu(self.norm(self.conv(sound))).transpose(1, 2))[0][:, -1])


class UNet(nn.Module):
    """A skip, group norm and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(2, 6), nn.ReLU())
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        down = self.down(image)
        return self.out(torch.cat([down, self.up(self.deep(down))], 1))


def _small() -> Victim:
    return Victim(networks.Small(), [networks.coded_small(seed)[1] for seed in range(20)])


def _lenet() -> Victim:
    return Victim(zoo.lenet5(), [networks.sparse_lenet(600, 8)])


def _layers() -> Victim:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    return _of(model, torch.ones(2, 5))


def _resnet() -> Victim:
    model = zoo.CifarResNet(1, zoo.PadShortcut)
    return Victim(model, [_coded(model, [], 3)])


VICTIMS: dict[str, Callable[[], Victim]] = {
    "small": _small,
    "layers": _layers,
    "residual": lambda: _of(probes.Residual(4), torch.ones(2, 3, 6, 6)),
    "attention": lambda: _of(Attention(), torch.ones(2, 5, 8)),
    "sequence": lambda: _of(Sequence(), torch.ones(2, 3, 7)),
    "u-net": lambda: _of(UNet(), torch.ones(1, 2, 6, 6)),
    "lenet5": _lenet,
    "resnet8": _resnet,
}  # fmt: skip
ALL = tuple(VICTIMS)
LARGE = ("lenet5", "resnet8")  # take their time, and are drawn less often


@functools.cache
def victim(name: str) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VICTIMS[name]()


def drawn(random: np.random.Generator, among: tuple[str, ...]) -> Victim:
    likely = np.array([0.015 if name in LARGE else 1.0 for name in among])
    return victim(among[random.choice(len(among), p=likely / likely.sum())])
