"""Engines: several processes that train one network, each on its share of every batch. One process asks nothing and pays nothing.

What the loop asks is in `Engine`, which stands for one process. `Processes` is the same over a group of torch.distributed, as
torchrun or `accelerate launch` start it. Process 0 decides: it cuts, ranks, scores and writes files, and the others are told what
came of it (`decided`). Gradients are summed (`reduce`), so a step is that of one process with the whole batch, but for the order
of sums; where anything else looks at a whole batch (batch norms, ranges of activations), that is summed too (`together`).
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from featherweight.errors import FeatherweightError, InputError, TrainingError, shortened
from featherweight.network import generators
from featherweight.network.calls import changed, first_tensor
from featherweight.training.norms import synchronised
from featherweight.training.shards import share_out

T = TypeVar("T")
BUCKET = 2**23  # entries that are summed at once
MOST_CAUSES = 8  # of an error, that are looked at
PATIENCE = datetime.timedelta(hours=2)  # with another process's decision, such as a search; one that died is seen at once


class ProcessLost(TrainingError, RuntimeError):
    """Another process of the run has ended, or does not answer."""


class Engine:
    """One process. `rank`: its number, `size`: how many there are. `accelerator`: accelerate's, for its precision. `shard`: do
    networks lie in shards while they train?"""

    rank, size, shard = 0, 1, False

    def __init__(self, accelerator: Any = None) -> None:
        self.accelerator = accelerator

    @property
    def device(self) -> torch.device | None:
        """The one that the accelerator gives this process."""
        return self.accelerator.device if self.accelerator is not None else None

    @property
    def is_main(self) -> bool:
        """Does this process decide, score, and write files?"""
        return self.rank == 0

    def share(self, batch: Any) -> tuple[Any, float]:
        """This process's samples of a batch, and how much of the batch they are."""
        return batch, 1.0

    def together(self, *modules: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Around a training: what looks at the whole batch inside `modules` sees the batch of all processes."""
        return contextlib.nullcontext()

    def computing(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Around a forward pass: the precision asked for, and numbers drawn that are each process's own."""
        return self.accelerator.autocast() if self.accelerator is not None else contextlib.nullcontext()

    def backward(self, loss: Tensor, share: float) -> None:
        """The gradients of this process's part of the loss."""
        loss.backward()

    def reduce(self, parameters: Iterable[Tensor], loss: Tensor, share: float) -> Tensor:
        """Gradients become those of the whole batch; its loss."""
        return loss

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the batch, of a mean over this process's share; without a gradient."""
        return value.detach()

    def lowest(self, values: Tensor) -> Tensor:
        """Entry by entry, the lowest of all processes."""
        return values

    def total(self, tensors: Sequence[Tensor]) -> None:
        """Sums over all processes, in place."""

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Make them, in place, what they are in process 0."""

    def mine(self, number: int) -> bool:
        """Is this one of things that are dealt out this process's?"""
        return True

    def share_out(self, network: nn.Module) -> None:
        """Puts a network that is about to train into shards, where that is asked (`shard`)."""

    def agreed(self, answer: bool) -> bool:
        """What process 0 answers, where every process has to do the same."""
        return answer

    def answered(self) -> contextlib.AbstractContextManager[None]:
        """Around a run: where torch itself waits for another process that has ended, that is said."""
        return contextlib.nullcontext()

    def decided(self, make: Callable[[], T]) -> T:
        """What `make` gives in process 0, or its error, in every process; and the random generators as they stand there."""
        return make()


ALONE = Engine()


class Processes(Engine):
    """The processes of `group`; None: all that torch.distributed knows.

    shard  while a stage trains, weights, gradients, the optimizer's state and duals lie in shards over the processes (FSDP2);
           between trainings, where process 0 decides, each has the whole network
    """

    def __init__(self, group: Any = None, accelerator: Any = None, *, shard: bool = False) -> None:
        super().__init__(accelerator)
        self.group, self.shard = group, shard
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self._share = 1.0

    def share(self, batch: Any) -> tuple[Any, float]:
        """The samples from rank / size of the batch on. A process without one takes the first sample, of weight 0, since every
        process has to take part in every sum. Raises InputError for a batch without tensors."""
        first = first_tensor(batch)
        if first is None or not first.shape[0]:
            raise InputError(
                "a batch is shared among processes by the first dimension of its tensors, and this one holds none with "
                "samples: give batches that are tensors, or nests of them"
            )
        count = first.shape[0]
        low, high = count * self.rank // self.size, count * (self.rank + 1) // self.size
        self._share = (high - low) / count
        low, high = (low, high) if high > low else (0, 1)
        part = changed(batch, lambda tensor: tensor[low:high] if tensor.ndim and tensor.shape[0] == count else tensor)
        return part, self._share

    @contextlib.contextmanager
    def together(self, *modules: nn.Module) -> Iterator[None]:
        self.same([tensor for module in modules for tensor in (*module.parameters(), *module.buffers())])
        with synchronised(modules, self._sum, lambda: self._share > 0):
            yield

    @contextlib.contextmanager
    def computing(self, step: int) -> Iterator[None]:
        """What a network draws differs between processes, and the generator that batches are drawn from stays alike."""
        before = torch.get_rng_state()
        torch.manual_seed(zlib.crc32(before.numpy().tobytes()) + (step * self.size + self.rank) * 2**32)
        try:
            with super().computing(step):
                yield
        finally:
            torch.set_rng_state(before)

    def backward(self, loss: Tensor, share: float) -> None:
        (loss * share).backward()

    def reduce(self, parameters: Iterable[Tensor], loss: Tensor, share: float) -> Tensor:
        """One sum a bucket. A gradient that no process has stays None, and one in shards has been summed."""
        held = [parameter for parameter in parameters if not hasattr(parameter, "device_mesh")]
        told = torch.tensor([0.0 if p.grad is None else 1.0 for p in held], device=loss.device)
        told = torch.cat([told, loss.detach().reshape(1).to(told) * share])
        self._sum(told)
        for parameter, has in zip(held, (told[:-1] > 0).tolist(), strict=True):
            if has and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.total([p.grad for p in held if p.grad is not None])
        return told[-1]

    def mean(self, value: Tensor) -> Tensor:
        return self._sum(value.detach() * self._share)

    def lowest(self, values: Tensor) -> Tensor:
        with _answered():
            distributed.all_reduce(values, distributed.ReduceOp.MIN, self.group)
        return values

    def total(self, tensors: Sequence[Tensor]) -> None:
        for bucket in _buckets(tensors):
            self._flat(bucket, self._sum)

    def same(self, tensors: Iterable[Tensor]) -> None:
        for bucket in _buckets([tensor.detach() for tensor in tensors if not hasattr(tensor, "device_mesh")]):
            self._flat(bucket, self._told)

    def mine(self, number: int) -> bool:
        return number % self.size == self.rank

    def share_out(self, network: nn.Module) -> None:
        if self.shard:
            share_out(network, self.group)

    def agreed(self, answer: bool) -> bool:
        return bool(self._told(torch.tensor(float(answer), device=self._place())) > 0) if self.shard else answer

    def decided(self, make: Callable[[], T]) -> T:
        told: list[Any] = [None]
        if self.is_main:
            try:
                told = [(make(), generators.states() | {"cuda": []})]  # a device's own is seeded at every step
            except Exception as error:  # the others have to hear of it, whatever it is
                with _answered():
                    distributed.broadcast_object_list([_Failed(error)], self._main(), self.group)
                raise
        with _answered():
            distributed.broadcast_object_list(told, self._main(), self.group)
        if isinstance(told[0], _Failed):
            raise told[0].error()
        value, random = told[0]
        if not self.is_main:
            generators.restore(random)
        return value

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            causes: list[BaseException | None] = [error]
            while causes[-1] is not None and len(causes) < MOST_CAUSES:
                causes.append(causes[-1].__cause__ or causes[-1].__context__)
            lost = next((one for one in causes if _is_of_the_group(one)), None)
            if lost is None or any(isinstance(one, ProcessLost) for one in causes):
                raise
            raise _lost(lost) from error

    def _place(self) -> torch.device:
        """Where the group's tensors lie."""
        cpu = "gloo" in distributed.get_backend(self.group)
        return torch.device("cpu") if cpu else torch.device("cuda", torch.cuda.current_device())

    def _main(self) -> int:
        return distributed.get_global_rank(self.group, 0) if self.group is not None else 0

    def _sum(self, tensor: Tensor) -> Tensor:
        with _answered():
            distributed.all_reduce(tensor, distributed.ReduceOp.SUM, self.group)
        return tensor

    def _told(self, tensor: Tensor) -> Tensor:
        with _answered():
            distributed.broadcast(tensor, self._main(), self.group)
        return tensor

    def _flat(self, tensors: Sequence[Tensor], send: Callable[[Tensor], Tensor]) -> None:
        """`send` all of them as one."""
        flat = send(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        with torch.no_grad():
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))


class _Failed:
    """An error on its way to the other processes: its class, and what it says."""

    def __init__(self, error: Exception) -> None:
        named = isinstance(error, FeatherweightError)
        self.kind = type(error) if named else TrainingError
        self.said = error.args if named else (f"process 0 failed: {type(error).__name__}: {shortened(str(error))}",)

    def error(self) -> Exception:
        made = self.kind.__new__(self.kind)  # its own __init__ may take something else
        made.args = self.said
        vars(made)["told"] = True  # by process 0
        return made


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of one type, each of BUCKET entries or of one tensor."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        held = by_type.setdefault(tensor.dtype, [])
        held.append(tensor)
        if sum(one.numel() for one in held) >= BUCKET:
            yield by_type.pop(tensor.dtype)
    yield from by_type.values()


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    """Around what waits for the other processes. Raises ProcessLost."""
    try:
        yield
    except FeatherweightError:
        raise
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: BaseException) -> ProcessLost:
    said = (str(error).strip().splitlines() or [""])[0]
    return ProcessLost(
        "another process of this run has ended, or does not answer (look at what it said): nothing half-written is left, and "
        f"the same command goes on from the last checkpoint ({shortened(said)})"
    )


def _is_of_the_group(error: BaseException | None) -> bool:
    """Does torch.distributed say that a process does not answer? gloo's errors are known by the file that they name."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def engine_of(given: Any) -> Engine:
    """The engine of what `compress` is given: None, an Engine, a ProcessGroup of torch.distributed, or accelerate's Accelerator.

    Raises InputError for anything else, and for an Accelerator that shards the network or scales the loss.
    """
    if given is None or isinstance(given, Engine):
        return given or ALONE
    if isinstance(given, distributed.ProcessGroup):
        return Processes(given)
    if not hasattr(given, "num_processes") or not hasattr(given, "autocast"):
        raise InputError(
            f"engine is an accelerate.Accelerator or a process group, such as torch.distributed.group.WORLD; given a "
            f"{type(given).__name__}"
        )
    how = getattr(given.distributed_type, "value", "NO")
    if how in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise InputError(
            f"this Accelerator shards the network ({how}), and stages cut and code whole weights: launch it without, and give "
            "engine=fw.Processes(shard=True), which shards what trains, or impose fw.TopK in your own loop by fw.constrain"
        )
    if given.mixed_precision not in ("no", "bf16"):
        raise InputError(
            f"this Accelerator trains in {given.mixed_precision}, whose loss has to be scaled: give mixed_precision='bf16', "
            "or 'no'"
        )
    return Processes(None, given) if given.num_processes > 1 else Engine(given)


@contextlib.contextmanager
def launched(device: str) -> Iterator[Engine]:
    """The engine of a command: the processes that torchrun or `accelerate launch` has started, else this one alone.

    accelerate itself is asked only where its launcher was told a precision.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    if several and not distributed.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(local(device))
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
            yield engine_of(importlib.import_module("accelerate").Accelerator(cpu=device == "cpu"))
        else:
            yield Processes() if several else ALONE
    finally:
        if several and distributed.is_initialized():
            distributed.destroy_process_group()


def local(device: str) -> str:
    """The device of that name that is this process's: of several on one machine each takes its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
