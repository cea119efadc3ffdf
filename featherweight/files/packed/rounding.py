"""Rounding of a snapshot's floating-point numbers before it is scored, so that its file is small and still exact."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from featherweight.errors import InputError, did_you_mean
from featherweight.files.edits import Snapshot

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def rounded(snapshot: Snapshot, precision: str, tensors: Iterable[str] = ("*",)) -> Snapshot:
    """A snapshot whose floating-point numbers are rounded to `precision`; their type stays. Score this one, then pack it.

    precision  "float32" (as they are), "float16", "bfloat16", or "fixed2" to "fixed24": whole multiples of a power of two, the
               smallest that leaves every number of the tensor within that many bits, sign included
    tensors    names in the state, or patterns with * and ?; of a code, only its free numbers are rounded
    Under "fixed", a running variance that would become 0 becomes one step. Raises InputError.
    """
    bits = re.fullmatch(r"fixed(\d\d?)", precision)
    if precision not in TYPES and not (bits and 2 <= int(bits[1]) <= 24):
        near = did_you_mean(precision, [*TYPES, "fixed8"])
        raise InputError(f"precision {precision!r} is not float32, float16, bfloat16 or fixed2 to fixed24.{near}")
    patterns = tuple(tensors)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in snapshot.state):
            raise InputError(f"no tensor of the snapshot is named {pattern!r}.{did_you_mean(pattern, snapshot.state)}")
    state = dict(snapshot.state)
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not any(fnmatchcase(name, pattern) for pattern in patterns) or _discrete(name):
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name!r} has NaN or infinite entries and cannot be rounded")
        if bits:
            state[name] = _fixed(tensor, int(bits[1]), name.endswith("running_var"))
        else:
            state[name] = tensor.to(TYPES[precision]).to(tensor.dtype)
            if not bool(torch.isfinite(state[name]).all()):
                raise InputError(f"{name!r} has entries beyond the range of {precision}; bfloat16 has the range of float32")
    return Snapshot(snapshot.edits, state)


def _discrete(name: str) -> bool:
    """A buffer of a code: its levels are small whole numbers already, and belong to its indices."""
    return ".code." in name and "parametrizations." in name


def _fixed(tensor: Tensor, bits: int, positive: bool) -> Tensor:
    largest = float(tensor.abs().max()) if tensor.numel() else 0.0
    if largest == 0.0:
        return tensor.clone()
    most = (1 << bits - 1) - 1
    exponent = int(torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent) - bits  # one too fine at most by two
    values = tensor.double()
    while float(torch.ldexp(values, torch.tensor(-exponent)).round().abs().max()) > most:
        exponent += 1
    whole = torch.ldexp(values, torch.tensor(-exponent)).round()
    if positive:
        whole = torch.where(values > 0, whole.clamp_min(1), whole)
    return (torch.ldexp(whole, torch.tensor(exponent)) + 0.0).to(tensor.dtype)  # + 0.0: no negative zeros
