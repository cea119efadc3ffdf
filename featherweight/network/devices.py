"""Devices: where a network is, what goes there with it, and when its work is done.

Projections and codes are where the weight is. Statistics, rankings and choices are on the CPU, wherever the network is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from featherweight.errors import InputError
from featherweight.network.calls import Inputs, tensors_of

CPU = torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU where there is none."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return CPU if first is None else first.device


def placed(value: Any, device: torch.device | str) -> Any:
    """The same with every tensor on `device`: of `Inputs`, tuples, lists and dicts, whatever is nested in what."""
    if isinstance(value, Inputs):
        return value.map(lambda tensor: tensor.to(device))
    return _pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


@contextmanager
def on_one_device(network: nn.Module, batch: Any) -> Iterator[None]:
    """Around a task's loss: where it fails on a batch that is elsewhere than the network, says so. Raises InputError."""
    try:
        yield
    except RuntimeError as error:
        here = device_of(network)
        others = {str(tensor.device) for tensor in tensors_of(batch)} - {str(here)}
        if not others:
            raise
        raise InputError(
            f"the task's `loss` fails on a batch on {', '.join(sorted(others))}, and the network is on {here}: make the batches "
            f"there (built-in tasks: device={str(here)!r}), or move them in `loss`, for instance images.to({str(here)!r})"
        ) from error


def chosen(name: str | torch.device) -> torch.device:
    """The device of that name. Raises InputError where there is none here."""
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("nothing can run on meta")
        if device.type != "cpu":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"there is no device {str(name)!r} here ({reason}): give cpu, {_accelerator()}") from error
    return device


def _accelerator() -> str:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return f"or {found.type}, which this machine has" if found else "since torch sees no accelerator on this machine"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given: a call of a GPU's returns when it is queued."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(*[device] if device.type != "mps" else [])


def multiplies_bfloat16(device: torch.device = CPU) -> bool:
    """Has this device instructions that multiply bfloat16? Of processors AVX512_BF16 is asked for: where it is emulated (AVX2), a
    step of ResNet-56 takes ten times as long as in float32. Of GPUs, CUDA's from compute capability 8.0 on have them."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()  # public in newer PyTorch only, as get_capabilities


@contextmanager
def on_threads(count: int | None = None) -> Iterator[None]:
    """Inside, torch runs on so many threads; afterwards on as many as before, whatever a library inside has said to OpenMP."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
