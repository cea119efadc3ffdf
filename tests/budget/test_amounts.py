"""One way of asking: shares, sizes and times as text, the same in Python, in recipe files and on the command line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import featherweight as fw
from featherweight import Constrain, Rule, TopK, Units
from featherweight.budget.amounts import milliseconds, share, size
from featherweight.cli.inputs import recipe
from featherweight.errors import FeatherweightError, InputError
from featherweight.recipe.reading import from_dict


@pytest.mark.parametrize(
    ("read", "given", "found"),
    [
        (share, "50%", 0.5), (share, "4x", 0.25), (share, 0.3, 0.3), (share, None, None), (share, "100kB", "100kB"),
        (share, "0x", "0x"), (size, "100kB", 1e5), (size, " 1.5 MiB ", 1.5 * 2**20), (size, "25%", 0.25), (size, "0.5", 0.5),
        (milliseconds, "2ms", 2.0), (milliseconds, "500 us", 0.5), (milliseconds, "1.5s", 1500.0), (milliseconds, 3, 3),
    ],
)  # fmt: skip
def test_amounts_are_read(read: Any, given: Any, found: Any) -> None:
    assert read(given) == found


@pytest.mark.parametrize(("read", "given"), [(size, "2ms"), (milliseconds, "2x"), (milliseconds, "50%"), (milliseconds, "1kB")])
def test_the_unit_of_something_else_is_refused(read: Any, given: str) -> None:
    with pytest.raises(InputError, match="given"):
        read(given)


def test_they_mean_the_same_everywhere() -> None:
    units = Units("l1", bytes="100kB")  # type: ignore[arg-type]
    assert units.budget == ("bytes", 100_000) and units.share is None
    assert Units("l1", macs="4x").share == 0.25  # type: ignore[arg-type]
    rule = Rule("weights", TopK(), keep="10x")  # type: ignore[arg-type]
    assert Constrain("a", (rule,)).rules[0].keep == 0.1 and Constrain("a", (rule,), keep="50%").keep == 0.5  # type: ignore[arg-type]
    for setting, budget in {"bytes=100kB": ("bytes", 1e5), "bytes=4x": ("bytes", 0.25), "latency_ms=2ms": ("latency_ms", 2),
                            "latency_ms=2": ("latency_ms", 2), "macs=50%": ("macs", 0.5)}.items():  # fmt: skip
        stage = recipe("l1_filters", [setting]).stages[1]
        assert isinstance(stage, fw.CutUnits) and stage.units.budget == budget
        key, _, text = setting.partition("=")
        made = {"name": "a", "stages": [{"name": "cut", "units": {"criterion": "l1", key: text}}]}
        read = from_dict(made).stages[0]
        assert isinstance(read, fw.CutUnits) and read.units.budget == budget
        assert from_dict(from_dict(made).to_dict()) == from_dict(made)
    with pytest.raises(FeatherweightError, match="--faster"):
        recipe("l1_filters", ["latency_ms=2x"])
    with pytest.raises(FeatherweightError, match="a share to keep"):
        Units("l1", bytes=3)


def test_a_size_is_kept_in_bytes() -> None:
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    done = fw.prune(network, (torch.randn(1, 8),), bytes="1kB")
    held = sum(tensor.numel() * tensor.element_size() for tensor in done.model.state_dict().values())
    assert 900 < held <= 1000 and done.rows[-1].spent is not None and done.rows[-1].spent.asked == 1000
