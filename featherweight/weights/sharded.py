"""Weights that lie in shards over processes (FSDP2): a projection is of the whole weight, and gives each process its shard.

The largest entries are found by bisection on the threshold, from counts summed over processes; no process has the whole weight.
Other sets gather one weight at a time, project it in the first process, and scatter. Shards may be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from featherweight.errors import InputError
from featherweight.weights.drivers import State, packed, unpacked
from featherweight.weights.sets import TopK
from featherweight.weights.sizes import keys_of
from featherweight.weights.targets import Target


def is_sharded(tensor: Any) -> bool:
    """Is it a DTensor?"""
    return hasattr(tensor, "device_mesh")


def shard(tensor: Any) -> Tensor:
    """This process's part of a tensor, in the same memory; a tensor that is not sharded itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def largest_of_all(values: Tensor, count: int, group: Any = None) -> Tensor:
    """Which entries (bool, of the shape of `values`) of this process's part are among the `count` largest in magnitude of all
    processes'. Of equal ones those of the first processes, and there the first. As many sums over processes as a number has bits.
    """
    keys = keys_of(values.reshape(-1)) if values.numel() else values.new_empty(0, dtype=torch.int64)
    low, high = 0, 1 << (63 if values.dtype == torch.float64 else 31)  # at least `count` entries have keys >= low, fewer >= high
    if count == 0 or _total((keys >= 0).sum(), group) < count:
        return torch.full(values.shape, count > 0, dtype=torch.bool, device=values.device)
    while high - low > 1:
        middle = (low + high) // 2
        if _total((keys >= middle).sum(), group) >= count:
            low = middle
        else:
            high = middle
    above, equal = keys > low, keys == low
    ties = torch.zeros(distributed.get_world_size(group), dtype=torch.int64, device=values.device)
    ties[distributed.get_rank(group)] = equal.sum()
    distributed.all_reduce(ties, group=group)
    free = count - _total(above.sum(), group) - int(ties[: distributed.get_rank(group)].sum())
    return (above | (equal & (equal.cumsum(0) <= free))).view(values.shape)


def _total(number: Tensor, group: Any) -> int:
    total = number.to(torch.int64).reshape(1)
    distributed.all_reduce(total, group=group)
    return int(total)


@dataclass(frozen=True)
class Sharded(Target):
    """A target whose weight is sharded as `like` is (a DTensor, of which the layout alone is looked at): what is given and comes
    back are shards."""

    like: Any = None

    @classmethod
    def of(cls, target: Target, name: str, weight: Any) -> Sharded:
        """Raises InputError for a weight that is sharded in another way than FSDP2 does it, and for masked levels."""
        mesh, placements = weight.device_mesh, weight.placements
        if mesh.ndim != 1 or not placements[0].is_shard():
            raise InputError(
                f"parameter {name!r} is sharded as {placements} over a mesh of {mesh.ndim} dimensions; sets are imposed on "
                "shards of one dimension, as fully_shard makes them: leave tensor parallelism out, or impose sets before"
            )
        if target.within() != target.set:
            raise InputError(
                f"parameter {name!r} is sharded, and levels under a mask are not imposed on shards: gather the network first"
            )
        return cls(target.set, target.view, target.masked, target.fisher, weight.detach())

    @property
    def group(self) -> Any:
        return self.like.device_mesh.get_group()

    def check(self) -> None:
        """Raises InputError for a size that the whole weight has no room for."""
        self.set.check(self.view.to_matrix(torch.zeros((), device=self.like.device).expand(tuple(self.like.shape))))

    def cut(self, tensor: Any) -> Tensor:
        """This process's part of a tensor that every process has whole, or that is sharded or a part already."""
        if is_sharded(tensor) or tensor.shape != self.like.shape:
            return shard(tensor)
        from torch.distributed.tensor import distribute_tensor

        like = self.like
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None).to_local()

    def whole(self, part: Tensor) -> Tensor:
        """On the CPU of the first process what all parts make up; empty in the others."""
        made = self._gathered(part)
        return made.to("cpu") if self._first else made.new_empty(0, device="cpu")

    def whole_support(self, support: Tensor | None, weight: Tensor) -> Tensor | None:
        """The same of a mask, which is None in a process where all of it is ones."""
        some = self.total(torch.tensor(float(support is not None), device=self.like.device))
        return self.whole(torch.ones_like(weight) if support is None else support) if float(some) else None

    def whole_state(self, state: State) -> State:
        """The same of what a driver keeps."""
        held = {key: self.whole(value) if isinstance(value, Tensor) else value for key, value in state.items() if key != "kept"}
        if "kept" in state:
            kept = self.whole(unpacked(state["kept"], state["pulled_to"].shape).to(torch.uint8))
            held["kept"] = packed(kept.bool())
        return held

    def cut_state(self, state: State) -> State:
        """The inverse of `whole_state`; a state of this process's part stays as it is."""
        if state["pulled_to"].shape != self.like.shape:
            return state
        held = {key: self.cut(value) if isinstance(value, Tensor) else value for key, value in state.items() if key != "kept"}
        if "kept" in state:
            held["kept"] = packed(self.cut(unpacked(state["kept"], self.like.shape)))
        return held

    def told(self, make: Callable[[], Mapping[str, int]], names: Sequence[str]) -> dict[str, int]:
        """What the first process makes: a size by name."""
        made = make() if self._first else dict.fromkeys(names, 0)
        sizes = torch.tensor([made[name] for name in names], device=self.like.device)
        distributed.broadcast(sizes, distributed.get_global_rank(self.group, 0), self.group)
        return dict(zip(names, sizes.tolist(), strict=True))

    def kept(self, weight: Tensor, squares: Tensor | None = None) -> Tensor:
        if isinstance(self.set, TopK):
            return largest_of_all(self.weighed(weight, squares), self.set.size(), self.group)
        whole = self._gathered(self.weighed(weight, squares))
        return self._scattered(Target(self.set, self.view).kept(whole).to(weight.dtype) if self._first else whole) != 0

    def project(self, weight: Tensor, squares: Tensor | None = None) -> Tensor:
        if self.set.selects:
            return torch.where(self.kept(weight, squares), weight, 0.0)
        whole = self._gathered(weight)
        return self._scattered(Target(self.set, self.view).project(whole) if self._first else whole)

    def norm(self, part: Tensor | float) -> float:
        """The norm of the whole, of a shard or of its norm."""
        local = torch.as_tensor(part, dtype=torch.float64, device=self.like.device)
        return float(self.total(local.square().sum()).sqrt())

    def total(self, part: Tensor) -> Tensor:
        """The sum over processes of a number."""
        distributed.all_reduce(part, group=self.group)
        return part

    def violation(self, weight: Tensor) -> float:
        whole = self.norm(weight)
        return self.norm(weight - self.project(weight)) / whole if whole > 0 else 0.0

    @property
    def _first(self) -> bool:
        return distributed.get_rank(self.group) == 0

    def _gathered(self, part: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        like = self.like
        return DTensor.from_local(
            part.contiguous(), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        ).full_tensor()

    def _scattered(self, whole: Tensor) -> Tensor:
        """Each process's shard of what the first has."""
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.contiguous(), self.like.device_mesh, self.like.placements).to_local()


def refuse_beside(names: Iterable[str], driver: Any) -> None:
    """Raises InputError for what is not imposed on shards."""
    first = next(iter(names), None)
    if first is None:
        return
    if driver is not None and driver.kind != "admm":
        raise InputError(
            f"parameter {first!r} is sharded, and {type(driver).__name__} is not imposed on shards: give ADMM, or gather the "
            "network"
        )
