"""A sample of the hostile files that `benchmarks/fuzz.py` opens by the hundred thousand, and the judge itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hostile import GENERATORS, judged, warm
from torch import nn

from featherweight.errors import ArtifactError

FEW = ("tabular", "residual")


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_hostile_file_ends_in_a_named_error_or_a_network(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    warm(tmp_path, FEW)
    verdicts = [judged(GENERATORS[kind](random, tmp_path / "hostile", FEW), tmp_path) for _ in range(60)]
    assert [verdict.faults for verdict in verdicts if verdict.faults] == []
    assert {verdict.refused for verdict in verdicts} == {True, False}


def test_the_judge_sees_what_a_reader_must_not_do(tmp_path: Path) -> None:
    def written() -> nn.Module:
        (tmp_path / "new").write_text("x")
        return nn.Identity()

    def elsewhere() -> nn.Module:
        Path(__file__).read_text()
        return nn.Identity()

    def started() -> nn.Module:
        subprocess.run([sys.executable, "-c", ""], check=True)
        return nn.Identity()

    def executed() -> nn.Module:
        exec("x = 1")
        return nn.Identity()

    def removed() -> nn.Module:
        os.remove(tmp_path / "new")
        return nn.Identity()

    def unnamed() -> nn.Module:
        raise KeyError("x")

    def named() -> nn.Module:
        raise ArtifactError("this is damaged")

    for bad in (written, elsewhere, started, executed, removed, unnamed):
        assert judged(bad, tmp_path).faults, bad.__name__
    assert judged(named, tmp_path).refused and not judged(named, tmp_path).faults
