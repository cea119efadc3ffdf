"""The states of all generators that a run may draw from: torch's, on the CPU and on CUDA, numpy's and Python's global ones."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

States = dict[str, Any]  # plain data and tensors, fit for a checkpoint
NUMPY_WORDS, PYTHON_WORDS = 624, 625  # of a Mersenne Twister: numpy keeps its position apart


def states() -> States:
    """As they are now. CUDA's where it is in use; numpy's unless it was given another kind of generator."""
    version, words, gauss = random.getstate()
    found: States = {"torch": torch.get_rng_state(), "python": [version, torch.tensor(words), gauss], "numpy": None, "cuda": []}
    numpy: Any = np.random.get_state(legacy=True)
    if numpy[0] == "MT19937":
        _, key, position, has_gauss, cached = numpy
        found["numpy"] = [torch.tensor(key.astype(np.int64)), int(position), int(has_gauss), float(cached)]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def restore(saved: States) -> None:
    """Put all generators where they were. A state of CUDA is for the device of its number, if there is one here."""
    torch.set_rng_state(saved["torch"])
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    if saved["numpy"] is not None:
        key, position, has_gauss, cached = saved["numpy"]
        np.random.set_state(("MT19937", key.numpy().astype(np.uint32), position, has_gauss, cached))
    if saved["cuda"] and torch.cuda.is_available():
        for device, state in enumerate(saved["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Whatever is drawn inside, the caller's generators stand afterwards where they stood before."""
    before = states()
    try:
        yield
    finally:
        restore(before)


def problem(saved: Any) -> str:
    """What is wrong with states from a file; "" if nothing is."""
    match saved:
        case {"torch": Tensor() as cpu, "python": [3, Tensor() as words, None | float()], "numpy": numpy, "cuda": list() as cuda}:
            pass
        case _:
            return "they are not the states of torch, Python and numpy"
    expected = torch.get_rng_state()
    if cpu.dtype != torch.uint8 or cpu.shape != expected.shape:
        return f"torch's has shape {tuple(cpu.shape)} and {cpu.dtype}, not {tuple(expected.shape)} and torch.uint8"
    if not _words(words, PYTHON_WORDS) or not 0 <= int(words[-1]) <= NUMPY_WORDS:
        return f"Python's is not {PYTHON_WORDS} words of 32 bits"
    match numpy:
        case None:
            pass
        case [Tensor() as key, int() as position, int() as has_gauss, float()]:
            if not _words(key, NUMPY_WORDS) or not 0 <= position <= NUMPY_WORDS or has_gauss not in (0, 1):
                return f"numpy's is not {NUMPY_WORDS} words of 32 bits and a position"
        case _:
            return f"numpy's is not {NUMPY_WORDS} words of 32 bits and a position"
    if not all(isinstance(state, Tensor) and state.dtype == torch.uint8 and state.ndim == 1 for state in cuda):
        return "CUDA's are not bytes"
    return ""


def _words(words: Tensor, count: int) -> bool:
    return words.dtype == torch.int64 and words.shape == (count,) and bool(((words >= 0) & (words < 2**32)).all())
