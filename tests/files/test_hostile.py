"""A sample of the hostile files that `benchmarks/fuzz` opens by the hundred thousand, and the judge itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import GENERATORS, MEGABYTES, Case, judged, victim, warm
from torch import nn

from featherweight.errors import ArtifactError

FEW = ("small", "layers")


@pytest.fixture(scope="module", autouse=True)
def _warmed(tmp_path_factory: pytest.TempPathFactory) -> None:
    warm(tmp_path_factory.mktemp("warm"), FEW, graphs=False)


@pytest.mark.third
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_hostile_file_ends_in_a_named_error_or_a_network(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    verdicts = [
        judged(GENERATORS[kind](random, tmp_path / "hostile", FEW), tmp_path) for _ in range(75)
    ]  # `featherweight reproduce fuzz`: 400,000
    assert [verdict.faults for verdict in verdicts if verdict.faults] == []
    ends = Counter(f"{verdict.kind} {verdict.outcome}" for verdict in verdicts)
    wanted = ("mutated refused", "grown refused", "grown opened")
    if kind == "artifact":
        wanted = ("edits refused", "report refused", "report opened", "description refused", "graph refused", "graph ran")
    assert all(ends[end] for end in wanted), ends


@pytest.mark.long
def test_the_judge_sees_what_a_reader_must_not_do(tmp_path: Path) -> None:
    def written() -> None:
        (tmp_path / "new").write_text("x")

    def elsewhere() -> None:
        Path(__file__).read_text()

    def started() -> None:
        subprocess.run([sys.executable, "-c", ""], check=True)

    def executed() -> None:
        exec("x = 1")

    def removed() -> None:
        os.remove(tmp_path / "new")

    def unnamed() -> None:
        raise KeyError("x")

    def long() -> None:
        raise ArtifactError("x" * 2000)

    def slow() -> None:
        until = time.process_time() + 1.1
        while time.process_time() < until:
            pass

    def large() -> None:
        torch.ones(2**20 * (int(MEGABYTES) + 20), dtype=torch.uint8)

    def named() -> None:
        raise ArtifactError("this is damaged")

    for bad in (written, elsewhere, started, executed, removed, unnamed, long, slow, large):
        assert judged(Case("bad", bad), tmp_path).faults, bad.__name__
    found = judged(Case("good", named), tmp_path)
    assert found.refused and not found.faults


def test_the_judge_sees_that_a_network_has_grown() -> None:
    found = victim("layers")
    assert found.outgrown(found.model) == ""
    wider = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    assert "more than" in found.outgrown(wider)
