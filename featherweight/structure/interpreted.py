"""A stored graph as a module: its operations are run one after the other, and nothing is turned into source code.

A graph from a file may ask for any amount of memory and time. Before it runs on inputs of new shapes it is therefore run once
without memory, on meta tensors, and what it would take is added up: see `limits`. What it takes beyond is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._python_dispatch import _disable_current_modes

from featherweight.errors import ArtifactError
from featherweight.network.calls import tensors_of
from featherweight.structure.costs import check_call, check_result, cost, foreseen
from featherweight.structure.operations import ARITHMETIC, DEVICE, LARGEST_INTEGER, BadArgument, Slot, makes_tensors

FREE_BYTES, BYTES_A_BYTE = 64 * 2**20, 256
FREE_WORK, REUSE = 5 * 10**8, 64
RESHAPING = ("t_", "transpose_", "squeeze_", "unsqueeze_", "detach_", "requires_grad_")
MOST_SIGNATURES = 64  # shapes of inputs that are remembered as checked
_FAILURES = (
    *(RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError),
    *(ArithmeticError, AssertionError, NotImplementedError, MemoryError),
)  # what torch raises for arguments that do not fit


class GraphArtifactError(ArtifactError, RuntimeError):
    """A stored graph that does not run on the inputs given, or would take too much memory or time. A RuntimeError too, as from
    any network that is given inputs that it was not made for."""


@dataclass(frozen=True)
class Instruction:
    """One operation. `result`: the number of the slot that it fills; `frees`: slots that nothing reads afterwards."""

    operation: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: int
    name: str
    frees: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """The graph: inputs and tensors by slot, the instructions in order, and the output.

    `written`: the nodes as plain data, from which the module can be stored again. Never changed, so copies share it.
    """

    inputs: tuple[tuple[str, int], ...]
    tensors: tuple[tuple[str, int], ...]
    instructions: tuple[Instruction, ...]
    output: Any
    slots: int
    written: list[Any]

    @functools.cached_property
    def reshapes(self) -> bool:
        """Does an operation change the form of its operand in place? It gets another name of a weight then, not the weight."""
        names = (getattr(getattr(step.operation, "overloadpacket", None), "__name__", "") for step in self.instructions)
        return any(name in RESHAPING for name in names)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


class Interpreted(nn.Module):
    """A network read from a file: parameters and buffers under the names of the network that it came from, and a program.

    Called with the inputs in order, or by name. Runs on the device of its inputs. Raises GraphArtifactError.

    allowance   multiplies the memory and the work that a call may take (see `limits`). Raise it for a network you trust
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._checked: dict[Any, bool] = {}
        self.allowance = 1.0

    def extra_repr(self) -> str:
        return f"{len(self._program.instructions)} operations on {', '.join(name for name, _ in self._program.inputs)}"

    def forward(self, *inputs: Any, **by_name: Any) -> Any:
        given = self._given(inputs, by_name)
        tensors = {name: _held(self, name) for name, _ in self._program.tensors}
        if torch.compiler.is_dynamo_compiling():  # what is traced there is this very code
            return run(self._program, given, tensors)
        if _is_traced(given):  # no memory is used, and errors go to the tracer as they are
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                bare = {name: _bare(tensor) for name, tensor in tensors.items()}
                self._check([_bare(value) for value in given], bare)
            return run(self._program, given, tensors)
        if self._check(given, tensors):
            given = [_copy(value) for value in given]
        if self._program.reshapes:
            tensors = {name: tensor.view_as(tensor) for name, tensor in tensors.items()}
        try:
            return run(self._program, given, tensors)
        except _FAILURES as error:
            raise GraphArtifactError(f"the stored graph does not run on {_shapes(given)}: {_line(error)}") from error

    def _given(self, inputs: Sequence[Any], by_name: Mapping[str, Any]) -> list[Any]:
        names = [name for name, _ in self._program.inputs]
        rest = names[len(inputs) :]
        if len(inputs) > len(names) or by_name.keys() != set(rest):
            raise TypeError(
                f"the network takes {', '.join(names)}; it was given {len(inputs)} inputs and {sorted(by_name)} by name"
            )
        return [*inputs, *(by_name[name] for name in rest)]

    def _check(self, given: Sequence[Any], tensors: Mapping[str, Tensor]) -> bool:
        """Does a call on inputs of these shapes write into them? Raises GraphArtifactError where it would take too much. Asked
        once a shape."""
        signature = (self.allowance, _plain(given))
        if signature in self._checked:
            return self._checked[signature]
        try:
            writes = dry_run(self._program, given, tensors, limits(given, tensors.values(), self.allowance))
        except GraphArtifactError:
            raise
        except _FAILURES as error:
            raise GraphArtifactError(f"the stored graph does not run on {_shapes(given)}: {_line(error)}") from error
        if len(self._checked) >= MOST_SIGNATURES:
            self._checked.clear()
        self._checked[signature] = writes
        return writes


@dataclass(frozen=True)
class Limits:
    """What one call may take: bytes alive at one time beside the weights, and work in multiplications or entries touched."""

    bytes: float
    work: float


def limits(given: Sequence[Any], weights: Iterable[Tensor], allowance: float = 1.0) -> Limits:
    """What a call on these inputs may take, times `allowance`.

    Memory: 64 MiB, and 256 bytes for each byte of the inputs and of the weights. Work: 5e8, and 64 for each pair of an input
    entry and a weight, since a layer uses a weight at most once for each position of its input. Networks that were published
    stay well below both.
    """
    weights = list(weights)
    tensors = _tensors(given)
    held = sum(t.numel() * t.element_size() for t in (*tensors, *weights))
    entries, parameters = sum(t.numel() for t in tensors), sum(t.numel() for t in weights)
    most = Limits(FREE_BYTES + BYTES_A_BYTE * held, FREE_WORK + REUSE * entries * parameters)
    return Limits(most.bytes * allowance, most.work * allowance)


def run(program: Program, given: Sequence[Any], tensors: Mapping[str, Any]) -> Any:
    """The output of the graph; memory is let go as soon as nothing reads it any more."""
    slots: list[Any] = [None] * program.slots
    device = next((value.device for value in tensors_of([*given, *tensors.values()])), torch.device("cpu"))
    _place(program, slots, given, tensors)
    for step in program.instructions:
        slots[step.result] = _call(step, slots, device)
        for number in step.frees:
            slots[number] = None
    return _filled(program.output, slots, device)


def dry_run(program: Program, given: Sequence[Any], tensors: Mapping[str, Tensor], most: Limits) -> bool:
    """Run the graph on tensors without memory, adding up what it would take; does it write into its inputs? Raises
    GraphArtifactError beyond `most`."""
    meta = torch.device("meta")
    slots: list[Any] = [None] * program.slots
    bare = {name: _bare(tensor) for name, tensor in tensors.items()}
    inputs = [_bare(value) for value in given]
    _place(program, slots, inputs, bare)
    alive = _Alive([*slots])
    handed = _Alive(inputs).free
    work, writes = 0.0, False
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for step in program.instructions:
            args = tuple(_filled(value, slots, meta) for value in step.args)
            kwargs = {name: _filled(value, slots, meta) for name, value in step.kwargs.items()}
            if makes_tensors(step.operation):
                kwargs["device"] = meta
            check_call(step.operation, args, kwargs)
            if work + (ahead := foreseen(step.operation, args, kwargs)) > most.work:  # where even the dry run would take long
                raise _too_much(step, "work", work + ahead, most.work, given)
            writes |= _writes(step.operation) and bool(handed & _Alive(args[:1]).free)
            result = slots[step.result] = _result(step.operation, args, kwargs)
            check_result(result)
            spent = cost(step.operation, args, kwargs, result)
            work += spent.work
            alive.add(result)
            if work > most.work:
                raise _too_much(step, "work", work, most.work, given)
            if alive.bytes + spent.scratch > most.bytes:
                raise _too_much(step, "bytes of memory", alive.bytes + spent.scratch, most.bytes, given)
            for number in step.frees:
                alive.remove(slots[number])
                slots[number] = None
    return writes


@functools.cache
def _writes(operation: Any) -> bool:
    """Does it write into its first operand?"""
    schema = getattr(operation, "_schema", None)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


class _Alive:
    """The bytes of the storages that values in use share, beside those of inputs and weights."""

    def __init__(self, free: Sequence[Any]) -> None:
        self.free = {t.untyped_storage()._cdata for t in _tensors(free)}
        self.users: dict[int, int] = {}
        self.bytes = 0

    def add(self, value: Any) -> None:
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.free:
                before = self.users.get(storage._cdata, 0)
                self.users[storage._cdata] = before + 1
                self.bytes += 0 if before else storage.nbytes()

    def remove(self, value: Any) -> None:
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            if storage._cdata in self.users:
                self.users[storage._cdata] -= 1
                if not self.users[storage._cdata]:
                    del self.users[storage._cdata]
                    self.bytes -= storage.nbytes()


def _held(module: Any, name: str) -> Tensor:
    tensor: Tensor = functools.reduce(getattr, name.split("."), module)
    return tensor


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for entry in value for tensor in _tensors(entry)] if isinstance(value, (list, tuple)) else []


def _place(program: Program, slots: list[Any], given: Sequence[Any], tensors: Mapping[str, Any]) -> None:
    for (_, number), value in zip(program.inputs, given, strict=True):
        slots[number] = value
    for name, number in program.tensors:
        slots[number] = tensors[name]


def _call(step: Instruction, slots: Sequence[Any], device: torch.device) -> Any:
    args = [_filled(value, slots, device) for value in step.args]
    kwargs = {name: _filled(value, slots, device) for name, value in step.kwargs.items()} if step.kwargs else {}
    return _result(step.operation, args, kwargs)


def _result(operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if isinstance(operation, torch._ops.OpOverload):
        return operation(*args, **kwargs)
    if operation is ARITHMETIC["getitem"]:
        if not isinstance(args[0], (list, tuple)) or not isinstance(args[1], int):
            raise BadArgument("getitem picks one of several results by its number")
        return args[0][args[1]]
    if any(isinstance(value, (list, tuple, str, Tensor)) for value in args):
        raise BadArgument(f"{operation.__name__} is for numbers")
    result = operation(*args)
    if isinstance(result, int) and abs(result) > LARGEST_INTEGER:
        raise BadArgument(f"{operation.__name__} gives a number of more than 64 bits")
    return result


def _filled(value: Any, slots: Sequence[Any], device: torch.device) -> Any:
    """An argument with results of earlier operations in their places."""
    kind = type(value)
    if kind is Slot:
        return slots[value.number]
    if kind is list or kind is tuple:
        return kind(_filled(entry, slots, device) for entry in value)
    if kind is dict:
        return {name: _filled(part, slots, device) for name, part in value.items()}
    return device if value is DEVICE else value


def _bare(value: Any) -> Any:
    """Tensors' shapes, strides and types without their memory; of a size that is still open, the example's."""
    if isinstance(value, (list, tuple)):
        return [_bare(entry) for entry in value]
    if not isinstance(value, Tensor):
        return value
    sizes, steps = ([_whole(size) for size in numbers] for numbers in (value.shape, value.stride()))
    return torch.empty_strided(sizes, steps, dtype=value.dtype, device="meta")


def _whole(size: Any) -> int:
    return size if type(size) is int else int(size.node.hint)


def _copy(value: Any) -> Any:
    """Of an input that the graph writes into: the caller's own stays as it is."""
    if isinstance(value, (list, tuple)):
        return [_copy(entry) for entry in value]
    return value.clone() if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    """What a call's cost depends on, of an input."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(_plain(entry) for entry in value)
    return value if isinstance(value, (int, float, bool, str, type(None))) else type(value)


def _is_traced(given: Sequence[Any]) -> bool:
    if get_proxy_mode() is not None:
        return True
    return any(isinstance(tensor, FakeTensor) for tensor in _tensors(given))


def _too_much(step: Instruction, what: str, amount: float, most: float, given: Sequence[Any]) -> GraphArtifactError:
    return GraphArtifactError(
        f"the stored graph would take more {what} than {_shapes(given)} and its weights allow ({amount:.2g} of {most:.2g}, at "
        f"{step.name}). If you trust where it comes from, raise `network.allowance`"
    )


def _shapes(given: Sequence[Any]) -> str:
    tensors = _tensors(given)
    more = f" and {len(tensors) - 20} more" if len(tensors) > 20 else ""
    return "inputs of " + (", ".join(str(tuple(tensor.shape)) for tensor in tensors[:20]) or "no tensor") + more


def _line(error: BaseException) -> str:
    return next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)[:300]
