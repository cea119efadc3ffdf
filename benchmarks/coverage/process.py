"""Many rows: each in a process of its own, with limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.measure import half_size, measure
from benchmarks.coverage.peer import torch_pruning
from benchmarks.coverage.suites import stand_in_for_torchvision

SECONDS, GIGABYTES = {"one": 300, "peer": 120, "half": 120}, 10  # of processor time: the machine has other work
SECONDS_DRAWN = 120  # each part of a network drawn from timm's list
PARTS = {"one": measure, "peer": torch_pruning, "half": half_size}


def in_process(part: str, suite: str, name: str) -> dict[str, Any]:
    """Measure in a forked process with limits of time and memory, so that a crash costs a row and nothing else."""
    reader, writer = os.pipe()
    seconds = SECONDS_DRAWN if suite == "timm" else SECONDS[part]
    child = os.fork()
    if child == 0:
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            row = PARTS[part](suite, name)
        except BaseException as error:  # noqa: BLE001 - whatever happens is the row
            row = {"crash": f"{type(error).__name__}: {error}"[:300]}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(row))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return {"crash": f"more than {seconds} s"}
    return dict(json.loads(answer)) if answer else {"crash": "killed (memory)"}


def warm_up() -> None:
    """Import once what every child needs."""
    from featherweight.structure import prune, trace

    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    prune(model, trace(model, (torch.randn(1, 3, 8, 8),)), "0", [0, 1])
    import transformers

    transformers.utils.is_torchvision_available()  # asked once, before there is a stand-in
    stand_in_for_torchvision()
    with contextlib.suppress(ImportError):
        import pytorchcv.model_provider  # noqa: F401
    with contextlib.suppress(ImportError):
        import timm  # noqa: F401
