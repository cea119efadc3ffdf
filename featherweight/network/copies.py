"""Copies of a network and of its state, whatever its owner made of the module.

Everything that copies a user's network calls `copied`, everything that stores one calls `state_of`, and everything that fills one
from a file calls `fill`. `copy.deepcopy` and `load_state_dict` alone fail on, or silently change, networks with computed tensors
(old weight norm, pruning masks), locks, wrappers, marks on parameters, parameters that share memory, or no memory at all.
"""

from __future__ import annotations

import copy
import copyreg
import pickle
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from featherweight.errors import InputError

EXTRA = "_extra_state"  # the last part of the name that torch gives what `get_extra_state` returns
SHARDED = ("FullyShardedDataParallel", "FSDPModule")


class UnsupportedNetwork(InputError):
    """A network in a state or a wrapper in which it cannot be copied, stored or filled."""


# --- wrappers ------------------------------------------------------------------------------------------------------------


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own network: `torch.compile`, `DataParallel` and `DistributedDataParallel` around it taken off; the same object,
    not a copy. Its names have no `_orig_mod.` or `module.` before them.

    Raises UnsupportedNetwork for what is sharded over processes (FSDP) and for lazy modules that have not run yet.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    for path, module in model.named_modules():
        if any(kind.__name__ in SHARDED for kind in type(module).__mro__):
            raise UnsupportedNetwork(
                f"{path or 'the network'!r} is sharded over processes (FSDP), so no process has its weights: gather a full state "
                "dict, load it into the plain network, and give that"
            )
    lazy = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if is_lazy(tensor)]
    if lazy:
        raise UnsupportedNetwork(
            f"{', '.join(lazy)} {'has' if len(lazy) == 1 else 'have'} no shape yet, since a lazy module takes it from its first "
            "input: run the network once on an example"
        )
    return model


def _inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for any other module."""
    # by name: importing torch._dynamo to ask for its class takes longer than most that is done here
    if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        return module._modules["_orig_mod"]
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner: nn.Module = module.module
        return inner
    return None


def bare(model: nn.Module) -> nn.Module:
    """`unwrapped(model)`; where wrappers stand inside it too, a copy without them, whose names are those of the user's class."""
    network = unwrapped(model)
    return copied(network) if any(_inside(module) is not None for module in network.modules()) else network


# --- copies --------------------------------------------------------------------------------------------------------------


def copied(model: nn.Module) -> nn.Module:
    """A deep copy of `unwrapped(model)`, also of wrappers inside it, that shares no parameter or buffer with it.

    Tied parameters and those that lie in the same memory do so in the copy, among themselves. Marks (Python attributes) on
    parameters, `requires_grad`, modes and hooks are kept; gradients are not. Tensors that were computed from others are copied
    without their history. Expanded tensors get memory of their own. What cannot be copied (locks, open files, generators) is
    shared with the original.

    Raises UnsupportedNetwork, also for a member whose own copying fails.
    """
    return _copied(unwrapped(model), wrappers=False)


def copied_whole(model: nn.Module, share: bool = False) -> nn.Module:
    """The same, but wrappers inside are copied too, so that all names are those of `unwrapped(model)`.

    share  the parameters are those of `model` itself: for a copy in which some are replaced, and none is written to
    """
    return _copied(unwrapped(model), wrappers=True, share=share)


def _copied(network: nn.Module, wrappers: bool, share: bool = False) -> nn.Module:
    memo: dict[int, Any] = {id(parameter): parameter for parameter in network.parameters()} if share else {}
    _copy_tensors(network, memo)
    _share(network, memo)
    try:
        # innermost first: a wrapper's copy is the copy of what it holds
        for module in () if wrappers else reversed([*network.modules()]):
            if (inner := _inside(module)) is not None:
                memo[id(module)] = copy.deepcopy(inner, memo)
        return copy.deepcopy(network, memo)
    except Exception as error:  # whatever a stranger's __deepcopy__ or __setstate__ raises
        raise UnsupportedNetwork(
            f"this {type(network).__name__} cannot be copied: {type(error).__name__}: {error}. Give the member that fails a "
            "__deepcopy__, or take it off the network for as long"
        ) from error


def _copy_tensors(network: nn.Module, memo: dict[int, Any]) -> None:
    """Put into `memo` the copies of all parameters, and of buffers that share memory with one or are expanded."""
    parameters = {id(p) for p in network.parameters()}
    tensors = {id(t): t for t in [*network.parameters(), *network.buffers()]}
    held: dict[int, list[Tensor]] = {}  # by where the memory begins
    for tensor in tensors.values():
        if (place := _memory(tensor)) is not None:
            held.setdefault(place, []).append(tensor)
    for together in held.values():
        if memo.keys() & {*map(id, together)}:  # shared
            continue
        if len(together) > 1 and not parameters.isdisjoint(map(id, together)):
            memory = together[0].untyped_storage().clone()
            for tensor in together:
                data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                data.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
                memo[id(tensor)] = _like(tensor, data.clone() if is_expanded(data) else data)
    for number, tensor in tensors.items():
        if number not in memo and type(tensor) in (Tensor, nn.Parameter) and (number in parameters or is_expanded(tensor)):
            memo[number] = _like(tensor, tensor.detach().clone())
    for number, tensor in tensors.items():  # after all copies: a mark may be another parameter
        _share(list(vars(tensor).values()), memo)
        if number not in memo and isinstance(tensor, nn.Parameter) and type(tensor).__deepcopy__ is nn.Parameter.__deepcopy__:
            memo[number] = copy.deepcopy(tensor, memo)  # of a class of its own
        if number in memo and memo[number] is not tensor:
            for mark, value in vars(tensor).items():
                vars(memo[number]).setdefault(mark, copy.deepcopy(value, memo))


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    """`data` as a parameter where `tensor` is one, and as trainable."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, tensor.requires_grad)
    return data.requires_grad_(tensor.requires_grad)


def _memory(tensor: Tensor) -> int | None:
    """Where a plain tensor's memory begins; None where it has none of its own (meta, sparse, quantised, empty)."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    return tensor.untyped_storage().data_ptr() or None


def is_expanded(tensor: Tensor) -> bool:
    """Do several entries lie in one place of memory, so that it cannot be written to?"""
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.numel():
        return False
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


UNCOPYABLE = (  # what an object raises that cannot be taken apart
    TypeError, RuntimeError, ValueError, AttributeError, OSError, pickle.PicklingError, copy.Error,
)  # fmt: skip
ATOMIC = (type(None), int, float, complex, bool, str, bytes, type, torch.dtype, torch.device, torch.Size, range)
EMPTYABLE = (dict, OrderedDict, list, set, tuple)  # a module holds a dozen of them, mostly empty


def _share(root: Any, memo: dict[int, Any]) -> None:
    """Put into `memo` all that `copy.deepcopy(root)` would fail on: computed tensors, detached; else the object itself.

    Goes the way that deepcopy itself goes, through containers and what an object says of itself by `__reduce_ex__`.
    """
    waiting, seen, alive = [root], set[int](), []
    while waiting:
        value = waiting.pop()
        if isinstance(value, ATOMIC) or (type(value) in EMPTYABLE and not value) or id(value) in seen or id(value) in memo:
            continue
        seen.add(id(value))
        alive.append(value)  # an id is of one object only while that lives
        if isinstance(value, Tensor):
            if value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
                memo.setdefault(id(memo), []).append(value)  # as deepcopy itself keeps alive what it has met
            else:
                waiting += vars(value).values()
        elif type(value) in (list, tuple, set, frozenset):
            waiting += value
        elif type(value) is dict:
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, types.MethodType):
            waiting.append(value.__self__)
        elif hasattr(type(value), "__deepcopy__"):
            waiting += vars(value).values() if hasattr(value, "__dict__") else ()
        elif type(value) not in copy._deepcopy_dispatch:  # type: ignore[attr-defined]
            try:
                waiting += [part for part in _reduced(value) if part is not None]
            except UNCOPYABLE:
                memo[id(value)] = value


def _reduced(value: Any) -> Iterator[Any]:
    """The parts of an object that deepcopy copies. Raises what the object raises."""
    reductor = copyreg.dispatch_table.get(type(value))
    found = reductor(value) if reductor else value.__reduce_ex__(4)
    if isinstance(found, str):  # the name of a global: kept as it is
        return
    for number, part in enumerate(found):
        if number in (3, 4) and part is not None:  # iterators over items
            yield from part
        elif number > 0:
            yield part


# --- state ---------------------------------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of `unwrapped(model)`: name -> tensor, each a copy on the CPU. Tied tensors under all their names.

    Raises UnsupportedNetwork for what no file of ours can hold, by name: extra state that is no tensor, quantised and sparse
    tensors, tensors on the meta device.
    """
    network = bare(model)
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if (problem := unstorable(name, value)) is not None:
            raise UnsupportedNetwork(problem)
        # a conjugate or negative view says so in a flag, which a file does not hold
        state[name] = value.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
    return state


def unstorable(name: str, value: Any) -> str | None:
    """Why an entry of a state dict cannot be stored, and the way out; None where it can."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        if name.rpartition(".")[2] == EXTRA:
            return (
                f"{name!r}, what get_extra_state() gives, is a {kind}, and files of ours hold tensors: return a tensor, or keep "
                "it in buffers"
            )
        return (
            f"{name!r} in the state is a {kind}, and files of ours hold tensors. A network that torch.ao.quantization made is "
            "quantised already: give the float network that it was made from"
        )
    if value.is_quantized:
        return f"{name!r} is quantised already ({value.dtype}): give the float network that it was made from"
    if value.layout != torch.strided:
        return f"{name!r} is sparse ({value.layout}): hold it as a dense tensor, for instance by .to_dense()"
    if value.is_meta:
        return f"{name!r} is on the meta device and has no values: load weights first"
    return None


def fill(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `state` into `network`, in place, strictly. Tensors on the meta device get memory, on the CPU, and expanded ones get
    their own; tied tensors stay tied, and parameters keep their marks.

    Raises UnsupportedNetwork where a tensor on the meta device is in no state dict, and RuntimeError as `load_state_dict`.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old tensor, whose id is its own only while it lives
    for path, module in network.named_modules():
        _refuse_lost(path, module)
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is None or not (tensor.is_meta or is_expanded(tensor)):
                continue
            if id(tensor) not in made:
                data = torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().clone()
                made[id(tensor)] = _like(tensor, data), tensor
                vars(made[id(tensor)][0]).update(vars(tensor))
            setattr(module, name, made[id(tensor)][0])
    network.load_state_dict(dict(state))
    recompute(network)


def _refuse_lost(path: str, module: nn.Module) -> None:
    """Raise UnsupportedNetwork where a module holds a tensor on the meta device that no state dict will fill."""
    lost = [name for name in module._non_persistent_buffers_set if (held := module._buffers[name]) is not None and held.is_meta]
    again = hooked(module)
    lost += [name for name, value in vars(module).items() if isinstance(value, Tensor) and value.is_meta and name not in again]
    if lost:
        raise UnsupportedNetwork(
            f"{f'{path}.{lost[0]}'.lstrip('.')!r} is on the meta device and in no state dict, so no file holds it: build the "
            "network on the CPU"
        )


def hooked(module: nn.Module) -> dict[str, tuple[str, str]]:
    """The tensors that torch's own hooks set before each call of `module` (masked weights, old weight and spectral norm): name ->
    (class of the hook, the function of torch.nn.utils that takes it off).
    """
    found: dict[str, tuple[str, str]] = {}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            found[str(hook._tensor_name)] = type(hook).__name__, "prune.remove"
        elif isinstance(hook, WeightNorm):
            found[hook.name] = type(hook).__name__, "remove_weight_norm"
        elif isinstance(hook, SpectralNorm):
            found[hook.name] = type(hook).__name__, "remove_spectral_norm"
    return found


@torch.no_grad()
def recompute(network: nn.Module) -> None:
    """Compute anew, from their parameters as they are now, the tensors that torch's own hooks set before each call."""
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=False))
            elif isinstance(hook, (BasePruningMethod, WeightNorm)):
                hook(module, ())
