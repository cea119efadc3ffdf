"""What a training under ADMM needs on several devices: memory by part, and what each device sends a step. Nothing is trained.

The network's own forward and backward pass and its optimizer's step run on tensors without values (`FakeTensorMode`), and what
lives is counted; a dual is what the driver holds of a small weight, entry for entry. In shards (FSDP2) weights, gradients,
moments and duals are divided by the devices; whole (each device has all), they are not. Buffers of the communication and what an
allocator loses are in no part.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from featherweight.errors import InputError, shortened
from featherweight.network.calls import Example, Inputs
from featherweight.weights.drivers import ADMM, CLOSING, Driver
from featherweight.weights.sets import Set, TopK
from featherweight.weights.targets import Target
from featherweight.weights.views import View

SAMPLE = 64  # rows and columns of the weight whose dual is looked at
ROUNDS = 31  # sums in which the threshold of a mask over shards is found, at most, of float32
COLLECT = 64  # operations between looks for what nothing holds any more
COPIES = 4  # of a weight in float32 that its projection holds besides, at most: magnitudes, places, the matrix
AHEAD = 2  # blocks that are whole at once where weights lie in shards: the one that computes and the next


@dataclass(frozen=True)
class Needs:
    """`parts`: bytes a device, by what they are for; `sent`: bytes that a device sends a step, by what; `flops` of all a step."""

    parameters: int
    targets: int  # parameters that ADMM drives
    devices: int
    sharded: bool
    parts: dict[str, int]
    sent: dict[str, int]
    flops: int

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Counted:
    """What a step of a network holds and does on one device that has all of it. Bytes, but for `parameters`, `targets`, `driven`
    (their number) and `flops`."""

    parameters: int
    targets: int
    driven: int
    weights: int
    targets_bytes: int
    gradients: int
    moments: int
    duals: int
    activations: int
    buffers: int
    projection: int
    block: int  # the largest
    rest: int  # the largest that is in no block
    every: int
    flops: int

    def on(self, devices: int, sharded: bool) -> Needs:
        """On each of so many devices, with a share of the batch like the one that was counted."""
        part, ring = devices if sharded else 1, 2 * (devices - 1) / devices
        parts: dict[str, float] = {
            "weights": self.weights / part,
            "gradients": self.gradients / part,
            "optimizer": self.moments / part,
            "Z and U": self.duals / part,
            "activations": self.activations,
            "buffers": self.buffers,
            "one projection": self.projection / part,
        }
        sent: dict[str, float]
        if sharded:
            parts["blocks made whole"] = AHEAD * self.block + self.rest
            sent = {"weights, gathered twice": ring * self.weights, "gradients, summed": ring / 2 * self.gradients}
            sent["thresholds"] = ring * 8 * ROUNDS * self.driven / self.every
        else:
            told = (self.duals + self.targets_bytes) / self.every
            sent = {"gradients, summed": ring * self.gradients, "projections, told": told if devices > 1 else 0}
        return Needs(
            self.parameters, self.targets, devices, sharded, {name: round(size) for name, size in parts.items() if size},
            {name: round(size) for name, size in sent.items() if size}, devices * self.flops,
        )  # fmt: skip

    def least(self, memory: int, most: int = 2**14) -> int | None:
        """The fewest devices with so many bytes each that hold it in shards, by doubling; None where none do."""
        counts = [2**power for power in range(most.bit_length())]
        return next((count for count in counts if self.on(count, True).bytes <= memory), None)


def count(
    build: Callable[[], nn.Module],
    example: Example | Inputs,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.AdamW,
    *,
    kind: Set | None = None,
    driver: Driver | None = None,
) -> Counted:
    """What a step takes of the network that `build` gives, on `example`, a device's share of a batch. `driver` drives every
    weight of two or more dimensions, but embeddings, towards `kind`; by default ADMM towards a mask. A pace
    that is left open is a projection in CLOSING steps.

    Raises InputError where the network cannot be built or run without values.
    """
    kind, driver = kind or TopK(SAMPLE), driver or ADMM(0.1, CLOSING, coupling="proximal")
    driver = driver if driver.every else replace(driver, every=CLOSING)  # type: ignore[type-var]
    try:
        with torch.device("meta"):
            network = build()
        with FakeTensorMode(allow_non_fake_inputs=True):
            _without_values(network)
            held = list({id(p): p for p in network.parameters()}.values())
            inputs = Inputs.of(example).map(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
            live = Live()
            for parameter in held:
                parameter.register_post_accumulate_grad_hook(live.is_gradient)
            with live, FlopCounterMode(display=False) as counter:
                _step(network, inputs)
            made = optimizer(held)
            made.step()
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise InputError(
            f"the network cannot be built and trained without values ({type(error).__name__}: {shortened(str(error))}), so "
            "what it takes is not known: give one whose forward pass asks no tensor for its values"
        ) from error
    names = set(matrices(network))
    driven = [p for name, p in network.named_parameters() if name in names]
    duals = {dtype: dual(driver, kind, dtype) for dtype in {p.dtype for p in driven}}
    return Counted(
        parameters=sum(p.numel() for p in held),
        targets=sum(p.numel() for p in driven),
        driven=len(driven),
        weights=sum(map(_bytes, held)),
        targets_bytes=sum(map(_bytes, driven)),
        gradients=sum(_bytes(p) for p in held if p.grad is not None),
        moments=sum(_bytes(t) for state in made.state.values() for t in state.values() if isinstance(t, Tensor) and t.ndim),
        duals=round(sum(p.numel() * duals[p.dtype] for p in driven)),
        activations=live.peak,
        buffers=sum(map(_bytes, network.buffers())),
        projection=max((p.numel() * 4 * COPIES for p in driven), default=0),
        block=max(map(_size, _blocks(network)), default=0),
        rest=max(map(_size, _rest(network)), default=0),
        every=driver.every or 1,
        flops=counter.get_total_flops(),
    )


def matrices(network: nn.Module) -> list[str]:
    """The parameters of two or more dimensions that are no embedding's, nor share an embedding's memory."""
    tables = {id(m.weight) for m in network.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    return [name for name, p in network.named_parameters() if p.ndim > 1 and id(p) not in tables]


def dual(driver: Driver, kind: Set, dtype: torch.dtype) -> float:
    """Bytes that the driver holds for an entry of a weight of this type beside it."""
    weight = torch.randn(SAMPLE, SAMPLE, generator=torch.Generator().manual_seed(0)).to(dtype)
    state = driver.start(weight, Target(kind, View("o i -> o i")), None)
    return sum(_bytes(value) for value in state.values() if isinstance(value, Tensor)) / weight.numel()


class Live(TorchDispatchMode):
    """Inside, the bytes of what was made and is still held are counted, but for gradients: `now`, and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.made = 0
        self._seen: dict[int, int] = {}  # storage -> bytes

    def __enter__(self) -> Any:
        gc.freeze()  # so that a look for what hangs together in a ring looks at little
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        gc.unfreeze()

    def is_gradient(self, parameter: Tensor) -> None:
        """What has become of a parameter's gradient is no activation."""
        if parameter.grad is not None:
            self._gone(parameter.grad.untyped_storage()._cdata)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.made += 1
        if self.made % COLLECT == 0:
            gc.collect()  # what is computed again hangs in a ring with the exception that stops that early
        made = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in _pytree.tree_leaves(made):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            place, size = storage._cdata, storage.nbytes()
            if place not in self._seen and place not in given:
                self._seen[place] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, place)
        return made

    def _gone(self, place: int) -> None:
        self.now -= self._seen.pop(place, 0)


def _without_values(network: nn.Module) -> None:
    """From the meta device, where a network is built and cast, to the CPU, inside a FakeTensorMode."""
    made: dict[int, Tensor] = {}
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if id(old) not in made:
                    empty = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    made[id(old)] = nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty
                held[name] = made[id(old)]  # type: ignore[assignment]


def _step(network: nn.Module, inputs: Inputs) -> None:
    """Forward and backward, of the mean of what the network puts out, in its own precision."""
    network.train()
    _mean(inputs.call(network)).backward()


def _mean(found: Any) -> Tensor:
    outputs = [one for one in _pytree.tree_leaves(dict(found) if hasattr(found, "keys") else found) if isinstance(one, Tensor)]
    return sum((one.float().square().mean() for one in outputs if one.requires_grad), torch.zeros(()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _size(module: nn.Module) -> int:
    return sum(map(_bytes, module.parameters()))


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What fully_shard is put on: the members of lists of modules; of a network without, itself."""
    found = [one for module in network.modules() if isinstance(module, (nn.ModuleList, nn.Sequential)) for one in module]
    yield from found or [network]


def _rest(network: nn.Module) -> Iterator[nn.Module]:
    """What is in no block, such as an embedding or a head."""
    inside = {id(one) for block in _blocks(network) for one in block.modules()}
    yield from (one for one in network.modules() if id(one) not in inside and not list(one.children()))
