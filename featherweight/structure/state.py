"""What training keeps about parameters, carried over to the entries that survive a cut: optimizers, averages, schedulers.

A scheduler holds the optimizer and not the parameters, and the optimizer stays the same object, so schedulers need nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.structure.cut import Result
from featherweight.structure.edit import Cut, Edit, Moved, replay
from featherweight.structure.errors import StructureError
from featherweight.weights.optimizers import chain

NEW_ONE = "build a new optimizer from the smaller network"


class NotCarried(StructureError):
    """State of an optimizer or an average whose entries cannot be matched to those of a parameter that was cut."""


def carry(optimizer: Any, result: Result) -> None:
    """Let `optimizer` hold the parameters of the smaller network, with momentum and moments of the entries that stay.

    Of its state, tensors of the parameter's shape (momentum, moments, copies in another precision) are cut alike, those that
    are factored or broadcast over some of its dimensions (Adafactor's rows and columns) along those that they have; numbers
    (step counts) are kept. Parameters that went whole leave their group. An optimizer that wraps another is carried with it.
    Changes the optimizer in place, if all of it can be carried; parameters it does not hold are ignored.
    Raises NotCarried, before anything is changed, for state of other shapes (Shampoo's preconditioners, LBFGS's history,
    quantised blocks), and for an optimizer that holds none of the parameters that were cut.
    """
    moved = {id(m.old): m for m in result.moved}
    optimizers = chain(optimizer)
    groups = {id(group): group for one in optimizers for group in one.param_groups}.values()
    held = {id(p) for group in groups for p in group["params"]}
    parameters = [m for m in result.moved if isinstance(m.old, nn.Parameter)]
    if parameters and not any(id(m.old) in held for m in parameters):
        raise NotCarried(
            f"{type(optimizer).__name__} holds none of the parameters that were cut (copies in another precision, or those of "
            f"another network): {NEW_ONE}"
        )
    for one in optimizers:
        _require_no_list_of_its_own(one, moved)
    carried = [_states(one, moved) for one in optimizers]
    for one, states in zip(optimizers, carried, strict=True):
        for parameter in list(getattr(one, "state", {})):
            change = moved.get(id(parameter))
            if change is not None:
                del one.state[parameter]
                if change.new is not None:
                    one.state[change.new] = states[id(parameter)]
    for group in groups:
        now = [moved[id(p)].new if id(p) in moved else p for p in group["params"]]
        group["params"] = [parameter for parameter in now if parameter is not None]


def _require_no_list_of_its_own(optimizer: Any, moved: Mapping[int, Moved]) -> None:
    """Parameters that an optimizer keeps outside its groups (LBFGS does) would go on being the old ones."""
    for key, value in getattr(optimizer, "__dict__", {}).items():
        if isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) and id(one) in moved for one in value):
            raise NotCarried(f"{type(optimizer).__name__} keeps parameters outside its groups, in {key!r}: {NEW_ONE}")


def _states(optimizer: Any, moved: Mapping[int, Moved]) -> dict[int, Any]:
    """id of each parameter that was cut and is still there -> its state, cut."""
    owner, states = type(optimizer).__name__, getattr(optimizer, "state", {})
    # what does not match one parameter's shape is of no parameter's entries, though a square one has the same shape
    others = {
        key
        for parameter, state in states.items()
        if isinstance(state, Mapping) and isinstance(parameter, Tensor)
        for key, value in state.items()
        if isinstance(value, Tensor) and value.numel() > 1 and not _readings(tuple(value.shape), tuple(parameter.shape), "", ())
    }
    changes = [(state, moved[id(p)]) for p, state in states.items() if id(p) in moved and moved[id(p)].new is not None]
    return {id(change.old): _state(owner, state, change, others) for state, change in changes}


def _state(owner: str, state: Any, change: Moved, others: set[Any]) -> Any:
    """The state of one parameter, cut."""
    if not isinstance(state, Mapping):
        raise NotCarried(f"{owner} keeps a {type(state).__name__} for a parameter, where a dict was expected: {NEW_ONE}")
    return {key: _carried(f"{owner}'s {key!r}", str(key), value, change, key in others) for key, value in state.items()}


def _carried(what: str, key: str, value: Any, change: Moved, other: bool) -> Any:
    if not isinstance(value, Tensor):
        leaves = torch.utils._pytree.tree_leaves(value)
        if any(isinstance(leaf, Tensor) and leaf.numel() > 1 for leaf in leaves):
            raise NotCarried(f"{what} is a {type(value).__name__} of tensors, whose entries are not known: {NEW_ONE}")
        return value
    if value.numel() <= 1 and value.shape != change.old.shape:
        return value
    shape = tuple(change.old.shape)
    names = sorted({cut.tensor for cut in change.cuts})
    refusal = NotCarried(
        f"{what} of {', '.join(names)} has shape {tuple(value.shape)}, which cannot be matched to the {shape} of the parameter "
        f"that was cut: {NEW_ONE}"
    )
    if other or "precond" in key.lower():
        raise refusal
    if tuple(value.shape) == shape:
        return change.select(value)
    found = {str([kept.tolist() for kept in one]): one for one in _readings(tuple(value.shape), shape, key, change.cuts)}
    if len(found) != 1:
        raise refusal
    for dim, kept in enumerate(next(iter(found.values()))):
        if kept.numel() != value.shape[dim]:
            value = value.index_select(dim, kept.to(value.device))
    return value.clone()


def _readings(shape: tuple[int, ...], whole: tuple[int, ...], key: str, cuts: Iterable[Cut]) -> list[list[Tensor]]:
    """Every way in which the dimensions of a state tensor may be some of the parameter's, in order, a 1 standing for any: the
    entries of each that stay. What is named for rows lacks the last dimension, for columns the one before, where it matters."""
    keep = {}
    for cut in cuts:
        if cut.blocks > 1:
            return []  # each block keeps entries of its own
        keep[cut.dim] = torch.tensor(cut.keep)
    readings = []
    for dims in itertools.combinations(range(len(whole)), len(shape)):
        if all(size in (1, whole[dim]) for size, dim in zip(shape, dims, strict=True)):
            entries = [
                keep[dim] if dim in keep and size > 1 else torch.arange(size) for size, dim in zip(shape, dims, strict=True)
            ]
            readings.append((dims, entries))
    if len(readings) > 1 and len(shape) == len(whole) - 1:
        lacks = len(whole) - 1 if "row" in key.lower() else len(whole) - 2 if "col" in key.lower() else None
        readings = [one for one in readings if lacks is None or lacks not in one[0]]
    return [entries for _, entries in readings]


def carry_average(average: Mapping[str, Tensor] | nn.Module, edits: Iterable[Edit]) -> dict[str, Tensor]:
    """An average of the weights, cut by these edits: one kept as name -> tensor, or as a module, which is cut in place.

    A module may be `AveragedModel` or another wrapper of the averaged network; names may carry the prefix of one. The result is
    the average by its own names. Raises NotCarried where no tensor that was cut is in the average, or its shape is another.
    """
    edits = list(edits)
    if isinstance(average, nn.Module):
        network = average
        while isinstance(getattr(network, "module", None), nn.Module) and not _has(network, edits):
            network = network.module  # type: ignore[assignment]
        if not _has(network, edits):
            raise NotCarried(_MISSING)
        replay(network, edits)
        return dict(average.state_dict())
    result = dict(average)
    for edit in edits:
        prefix = _prefix(result, edit)
        cuts: dict[str, list[Cut]] = {}
        for cut in edit.cuts:
            cuts.setdefault(prefix + cut.tensor, []).append(cut)
        for name in cuts.keys() & result.keys():
            for cut in cuts[name]:
                if result[name].dim() <= cut.dim or result[name].shape[cut.dim] != cut.size:
                    raise NotCarried(
                        f"the average holds {name!r} of shape {tuple(result[name].shape)}, and the cut was made for {cut.size} "
                        f"entries along dimension {cut.dim}: give the average of the network as it was before the cut"
                    )
        with torch.no_grad():
            result = {name: Moved(t, None, tuple(cuts.get(name, ()))).select(t) for name, t in result.items()}
        gone = tuple(f"{prefix}{path}." for path in edit.identities)
        result = {name: t for name, t in result.items() if not (gone and name.startswith(gone))}
    return result


_MISSING = "the average holds none of the tensors that were cut: give one by the network's own names, with or without a prefix"


def _prefix(average: Mapping[str, Tensor], edit: Edit) -> str:
    """What stands before the network's names in those of the average."""
    tensors = [cut.tensor for cut in edit.cuts]
    wanted = tensors or [f"{path}." for path in edit.identities]
    for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        if any(name == prefix + one or (not tensors and name.startswith(prefix + one)) for one in wanted for name in average):
            return prefix
    if wanted:
        raise NotCarried(_MISSING)
    return ""


def _has(network: nn.Module, edits: list[Edit]) -> bool:
    names = dict(network.named_modules(remove_duplicate=False)).keys() | network.state_dict().keys()
    return all(cut.tensor in names for edit in edits for cut in edit.cuts) and all(
        path in names for edit in edits for path in edit.identities
    )
