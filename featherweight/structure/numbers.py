"""Which whole numbers of a network's modules a cut changes, and to what.

Asked where surgery writes an edit and again where one is replayed, so that what `prune` writes can always be replayed and nothing
else can be. Torch's own layers say how long their tensors are: those numbers follow from the cut tensors. A number of the user's
own is *explained* by a cut if it gets smaller by what the cut does to one of the ways in which code names a size:

    a multiple of the whole dimension      channels x 7 x 7 before a linear layer
    an axis of the dimension in a view     heads, size of a head, groups, repeats
    a stretch of the dimension             parts of a split, bounds of a slice, an index, padding
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.padding import _ConstantPadNd

from featherweight.structure.entries import Cut

Number = int | tuple[int, ...]

WRITTEN: dict[type, tuple[str, ...]] = {  # layers of torch -> those of their own numbers that surgery writes
    _ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    _NormBase: ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.RNNBase: ("input_size", "hidden_size", "proj_size"),
    nn.PReLU: ("num_parameters",),
    nn.MultiheadAttention: ("embed_dim", "num_heads", "head_dim", "kdim", "vdim"),
    nn.Unflatten: ("unflattened_size",),
    nn.ChannelShuffle: ("groups",),
    _ConstantPadNd: ("padding",),
}


def as_number(value: Any) -> Number | None:
    """An int or a tuple or list of ints; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, (tuple, list)) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        return tuple(value)
    return None


class Numbers:
    """What the cuts of one edit make of whole numbers. `tensors`: all of the network, under all their names, before the cut."""

    def __init__(self, tensors: Mapping[str, Tensor], cuts: Iterable[Cut]) -> None:
        self.tensors = tensors
        self.cuts = {(id(tensors[cut.tensor]), cut.dim): cut for cut in cuts if cut.tensor in tensors}
        self.distinct = {(cut.size, cut.blocks, cut.keep) for cut in cuts}
        self._after: dict[int, set[int]] = {}

    def allows(self, path: str, module: nn.Module, name: str, before: Number, after: Number) -> bool:
        """May the number `name` of this module, the one at `path`, go from `before` to `after`?"""
        if name.startswith("_") or as_number(vars(module).get(name)) != before or before == after:
            return False
        own = _torch_numbers(type(module))  # type: ignore[arg-type]  # classes can be hashed
        if name in own:
            if not own[name]:
                return False
            known = self.of_torch(path, module).get(name)
            if known is not None:
                return known == after
        return self.explains(before, after)

    def explains(self, before: Number, after: Number) -> bool:
        """Is each number unchanged, or made smaller by a cut?"""
        if isinstance(before, int) or isinstance(after, int):
            return isinstance(before, int) and isinstance(after, int) and self._smaller(before, after)
        pairs = list(zip(before, after, strict=False))
        return len(before) == len(after) and all(b == a or self._smaller(b, a) for b, a in pairs)

    def _smaller(self, before: int, after: int) -> bool:
        if not 0 <= after < before:
            return False
        if before not in self._after:
            self._after[before] = {n for size, blocks, keep in self.distinct for n in _afterwards(before, size, blocks, keep)}
        return after in self._after[before]

    def of_torch(self, path: str, module: nn.Module) -> dict[str, Number | None]:
        """The numbers that a layer of torch holds about its own tensors, after the cut; None where no tensor tells."""
        prefix = f"{path}." if path else ""

        def found(leaf: str) -> Tensor | None:
            """Under a parametrization the tensor is the original behind it."""
            names = (leaf, *(f"parametrizations.{leaf}.original{part}" for part in ("", "1")), f"{leaf}_v")
            return next((self.tensors[prefix + name] for name in names if prefix + name in self.tensors), None)

        def size(leaf: str, dim: int) -> int | None:
            tensor = found(leaf)
            if tensor is None or tensor.dim() <= dim:
                return None
            cut = self.cuts.get((id(tensor), dim))
            return cut.left if cut is not None else tensor.shape[dim]

        def parts(count: int) -> int:
            """How many of so many equal parts of the weight's first dimension keep an entry."""
            tensor = found("weight")
            cut = None if tensor is None else self.cuts.get((id(tensor), 0))
            return count if cut is None or count < 1 or cut.size % count else len({e // (cut.size // count) for e in cut.keep})

        if isinstance(module, _ConvNd):
            a, b, groups = size("weight", 0), size("weight", 1), parts(module.groups)
            if a is None or b is None:
                return {}
            transposed = isinstance(module, _ConvTransposeNd)
            return {
                "groups": groups,
                "in_channels": a if transposed else b * groups,
                "out_channels": b * groups if transposed else a,
            }
        if isinstance(module, nn.Linear):
            return {"out_features": size("weight", 0), "in_features": size("weight", 1)}
        if isinstance(module, nn.Embedding):
            return {"num_embeddings": size("weight", 0), "embedding_dim": size("weight", 1)}
        if isinstance(module, _NormBase):
            return {"num_features": size("weight", 0) or size("running_mean", 0)}
        if isinstance(module, nn.GroupNorm):
            channels = size("weight", 0)
            return {"num_channels": channels, "num_groups": None if channels is None else parts(module.num_groups)}
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            own = [size("weight", dim) for dim in range(len(module.normalized_shape))]
            return {"normalized_shape": None if None in own else tuple(n for n in own if n is not None)}
        if isinstance(module, nn.RNNBase):
            hidden = size("weight_hr_l0", 1) if module.proj_size else size("weight_hh_l0", 1)
            rest: dict[str, Number | None] = {"proj_size": size("weight_hr_l0", 0)} if module.proj_size else {}
            return {"input_size": size("weight_ih_l0", 1), "hidden_size": hidden} | rest
        return {"num_parameters": size("weight", 0)} if isinstance(module, nn.PReLU) else {}


@lru_cache(maxsize=1024)
def _torch_numbers(kind: type) -> dict[str, bool]:
    """What torch's layers among the bases of a class are made with -> does surgery write it?"""
    found: dict[str, bool] = {}
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") and issubclass(base, nn.Module) and base is not nn.Module:
            names = {*inspect.signature(base.__init__).parameters, *getattr(base, "__constants__", ()), *base.__annotations__}
            found |= dict.fromkeys(names, False)
    for base, names_written in WRITTEN.items():
        if issubclass(kind, base):
            found |= dict.fromkeys(names_written, True)
    return found


def _afterwards(before: int, size: int, blocks: int, keep: tuple[int, ...]) -> set[int]:
    """All that a cut may make of the number `before`, where it has to do with the dimension at all."""
    kept: NDArray[np.int64] = np.array(keep, dtype=np.int64)
    entries = size * blocks
    found: set[int] = set()
    if before % entries == 0:
        found.add(before // entries * len(keep))
    if before % size == 0:
        found.add(before // size * (len(keep) // blocks))
    if before > entries or before < 1:
        return found
    if entries % before == 0:
        rest = entries // before
        for inner in (step for step in range(1, rest + 1) if rest % step == 0):
            found.add(int(np.count_nonzero(np.bincount(kept // inner % before))))
    sums = np.zeros(entries + 1, dtype=np.int64)
    sums[kept + 1] = 1
    np.cumsum(sums, out=sums)
    stretches = sums[before:] - sums[:-before]
    found |= set(np.unique(stretches).tolist()) - {0}
    return found | {int(stretches[0]), int(stretches[-1])}
