"""What training keeps about parameters, carried over to the entries that survive a cut: optimizers, averages, schedulers.

A scheduler holds the optimizer and not the parameters, and the optimizer stays the same object, so schedulers need nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from featherweight.structure.cut import Result
from featherweight.structure.edit import Cut, Edit, Moved


def carry(optimizer: Optimizer, result: Result) -> None:
    """Let `optimizer` hold the parameters of the smaller network, with momentum and moments of the entries that stay.

    Tensors of its state that have the parameter's shape (SGD's momentum, Adam's moments) are cut alike; all else (step counts)
    is kept.
    Parameters that went whole leave their group. Changes the optimizer in place; parameters it does not hold are ignored.
    """
    moved = {id(m.old): m for m in result.moved}
    for group in optimizer.param_groups:
        parameters = []
        for parameter in group["params"]:
            change = moved.get(id(parameter))
            if change is None:
                parameters.append(parameter)
                continue
            state = optimizer.state.pop(parameter, None)
            if change.new is None:
                continue
            parameters.append(change.new)
            if state is not None:
                optimizer.state[change.new] = {key: _carried(value, change) for key, value in state.items()}
        group["params"] = parameters


def _carried(value: object, change: Moved) -> object:
    if isinstance(value, Tensor) and value.shape == change.old.shape:
        return change.select(value)
    return value


def carry_average(average: Mapping[str, Tensor], edits: Iterable[Edit]) -> dict[str, Tensor]:
    """An exponential moving average kept as name -> tensor, cut by these edits. (One kept as a module is another instance:
    `replay` it.)
    """
    result = dict(average)
    for edit in edits:
        cuts: dict[str, list[Cut]] = {}
        for cut in edit.cuts:
            cuts.setdefault(cut.tensor, []).append(cut)
        with torch.no_grad():
            result = {name: Moved(t, None, tuple(cuts.get(name, ()))).select(t) for name, t in result.items()}
        gone = tuple(f"{path}." for path in edit.identities)
        result = {name: t for name, t in result.items() if not (gone and name.startswith(gone))}
    return result
