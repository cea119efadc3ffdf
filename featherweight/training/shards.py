"""A network in shards over processes, by torch's `fully_shard` (FSDP2): each holds a part of every parameter, of its gradient and
of what the optimizer keeps of it, and the whole of a block only while that block computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.utils import parametrize

from featherweight.network.devices import device_of


def share_out(network: nn.Module, group: Any) -> None:
    """Put `network`, the same in all processes of `group`, into shards, in place: its parameters become DTensors.

    Gradients are summed over the processes, not averaged: each has its share of the batch's mean loss.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    joined: Any = group or distributed.group.WORLD
    mesh = DeviceMesh.from_group(joined, device_of(network).type)
    for module in (*_blocks(network), network):
        made = fully_shard(module, mesh=mesh)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)  # gloo has no other


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What is made whole at once: the members of lists of modules, inner ones first. One that shares a parameter with what is
    outside of it stays with what is in no block."""
    owners = _owners(network)
    lists = [one for one in network.modules() if isinstance(one, (nn.ModuleList, nn.Sequential))]
    members = [one for held in lists if not isinstance(held, parametrize.ParametrizationList) for one in held]
    for block in reversed(list(dict.fromkeys(members))):
        inside = _owners(block)
        if inside and all(owners[number] == count for number, count in inside.items()):
            yield block


def _owners(network: nn.Module) -> Counter[int]:
    """id of a parameter -> how many modules hold it."""
    return Counter(id(parameter) for module in network.modules() for parameter in module.parameters(recurse=False))


def whole(value: Any, keep: bool = True) -> Any:
    """What is nested in dicts, lists and tuples, its tensors on the CPU, and those in shards whole. Every process takes part, and
    one that does not `keep` them has empty ones."""
    if isinstance(value, dict):
        return {key: whole(part, keep) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(part, keep) for part in value)
    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    return value.to("cpu", copy=True) if keep else value.new_empty(0, device="cpu")
