"""The .fwz files of the benchmarks: a later version reads them as the rows of their benchmark say they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from featherweight import zoo
from featherweight.files import packed
from featherweight.structure.count import count_macs
from featherweight.weights.parametrized import plain

HOME = Path(__file__).parents[3] / "benchmarks"
BENCHMARKS, FEW_BITS = HOME / "lenet5_storage", HOME / "cifar_bits"
ROWS = [json.loads(line) for line in (BENCHMARKS / "rows.jsonl").read_text().splitlines()]
RUN_SMALL = HOME / "ship"


def with_files(home: Path) -> list[dict[str, Any]]:
    return [row for line in (home / "rows.jsonl").read_text().splitlines() if (row := json.loads(line)).get("file")]


SHIPPED, RUN = with_files(FEW_BITS), with_files(RUN_SMALL)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["row"])
def test_the_file_is_as_its_row_says(row: dict[str, Any]) -> None:
    file = BENCHMARKS / "artifacts" / row["file"]
    weights = [w for name, w in plain(packed.load(file, zoo.lenet5())).named_parameters() if name.endswith("weight")]
    assert file.stat().st_size == row["storage"]["file"]
    assert sum(int(w.count_nonzero()) for w in weights) == row["left"]
    assert max(w.abs().unique().numel() for w in weights) == row["bits"]


@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: row["row"])
def test_every_filter_has_its_few_levels(row: dict[str, Any]) -> None:
    file = FEW_BITS / "artifacts" / row["file"]
    network = plain(packed.load(file, zoo.resnet20_projection()))
    assert file.stat().st_size == row["storage"]["file"]
    bits = 1 if "binary" in row["row"] else int(row["row"].split(" bits")[0][-1])
    most = 2 ** (bits - 1)  # sizes: +-1 .. +-2^(bits-1)
    layers = [weight for weight in network.parameters() if weight.ndim > 1]
    assert len(layers) == 22 and all(filter.abs().unique().numel() <= most for weight in layers for filter in weight)


def test_a_tenth_of_the_weights_is_left() -> None:
    row = next(row for row in RUN if row["row"] == "ResNet-20, 10x fewer weights")
    network = plain(packed.load(RUN_SMALL / "artifacts" / row["file"], zoo.resnet20_projection()))
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    assert sum(int(weight.count_nonzero()) for weight in weights) == round(0.1 * sum(weight.numel() for weight in weights))
    assert (RUN_SMALL / "artifacts" / row["file"]).stat().st_size == row["storage"]["file"]


def test_half_of_the_blocks_are_left_and_half_of_the_work() -> None:
    row = next(row for row in RUN if row["row"] == "ResNet-56, half and integers")
    network, whole = packed.load(RUN_SMALL / "artifacts" / row["file"], zoo.resnet56_projection()), zoo.resnet56_projection()
    example = torch.zeros(1, 3, 32, 32)
    macs, of = (count_macs(one, (example,))[0] for one in (network, whole))
    assert macs is not None and of is not None and 0.4 * of < macs <= 0.5 * of
    stages = [(stage, getattr(whole, name)) for name, stage in network.named_children() if name.startswith("stage")]
    assert all(sum(isinstance(block, nn.Identity) for block in stage) >= 2 for stage, _ in stages)
    assert all(len(stage) == len(before) == 9 for stage, before in stages)


def test_every_file_has_a_row() -> None:
    for home, rows in ((BENCHMARKS, ROWS), (FEW_BITS, SHIPPED), (RUN_SMALL, RUN)):
        assert {row["file"] for row in rows} == {file.name for file in home.glob("artifacts/*.fwz")}
