"""Two processes of a gloo group, forked: what they import is there already."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

NEEDS_GLOO = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(), reason="torch.distributed with gloo is not here"
)


def in_two(folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """What `work(rank)` gives in each of two processes of a group; None of one that died or failed."""
    folder.mkdir()
    children = []
    for rank in (0, 1):
        child = os.fork()
        if not child:
            try:
                os.environ["GLOO_SOCKET_IFNAME"] = "lo"
                torch.set_num_threads(1)
                distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
                torch.save(work(rank), folder / f"{rank}.pt")
                distributed.barrier()
                os._exit(0)
            except BaseException:  # noqa: BLE001 - the parent's pytest must not go on in the child
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    paths = [folder / f"{rank}.pt" for rank in (0, 1)]
    return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]
