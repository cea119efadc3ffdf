"""What a run is of, as plain data: a checkpoint is taken up only by a run of the same network and task."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import shortened
from featherweight.network import generators
from featherweight.network.calls import Inputs
from featherweight.task import Task

ADDRESS = re.compile(r"0x[0-9a-f]+")  # of an object in this process
MOST_TOLD = 3  # differences, of the tensors of a network

Fingerprint = dict[str, dict[str, Any]]  # part -> name -> what must be the same


def of_network(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name -> type, shape and a hash of the values of each tensor of a state dict."""
    return {name: _tensor(state[name]) for name in sorted(state)}


def of_task(task: Task, network: nn.Module) -> Fingerprint:
    """What can be told of a task: its example, how many batches epoch 0 has, and its optimizer; and the kinds of the modules.

    Its functions themselves cannot be told. Nothing that it draws is missed later: all generators are put back.
    """
    with generators.kept():
        leaves = Inputs.of(task.example_inputs).leaves()
        example = {str(i): _tensor(leaf) if isinstance(leaf, Tensor) else _text(leaf) for i, leaf in enumerate(leaves)}
        optimizer = task.optimizer([parameter for _, parameter in sorted(network.named_parameters())])
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        told = {
            "batches of epoch 0": len(task.batches(0)),
            "optimizer": _text([type(optimizer).__name__, *({key: group[key] for key in sorted(group)} for group in groups)]),
        }
    return {"example input": example, "task": told, "modules": {name: _kind(module) for name, module in network.named_modules()}}


def differences(then: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not the same, in words."""
    found = []
    for part in sorted(then.keys() | now.keys(), key=lambda part: (part != "run", part != "task", part)):
        before, after = then.get(part, {}), now.get(part, {})
        names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
        for name in names[:MOST_TOLD]:
            what = name if part in ("run", "task") else f"{part} {name}"
            sides = [side.get(name) for side in (before, after)]
            shown = [shortened(_without_hash(value), 120) for value in sides]
            if shown[0] == shown[1]:
                found.append(f"{what} has other values")
            else:
                found.append(f"{what} {shown[0]} then, {shown[1]} now")
        if len(names) > MOST_TOLD:
            found.append(f"and {len(names) - MOST_TOLD} more of the same part")
    return found


def _tensor(tensor: Tensor) -> str:
    plain = tensor.detach().cpu()
    plain = plain.dequantize() if plain.is_quantized else plain.to_dense() if plain.layout != torch.strided else plain
    numbers = plain.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} #{hashlib.sha256(numbers.data).hexdigest()[:32]}"


def _without_hash(value: Any) -> str:
    return "none" if value is None else value.partition(" #")[0] if isinstance(value, str) else repr(value)


def _kind(module: nn.Module) -> str:
    return f"{type(module).__name__}({_text(module.extra_repr(), quoted=False)})"


def _text(value: Any, quoted: bool = True) -> str:
    return shortened(ADDRESS.sub("", repr(value) if quoted else str(value)), 2000)
