"""A network's structure on the command line, what a budget would cut, and packed files, through the real command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from featherweight.budget.costs import What
from featherweight.cli.commands import app
from featherweight.cli.outline import budget_of, cuts, outline
from featherweight.errors import InputError
from featherweight.files.edits import Snapshot
from featherweight.structure import trace
from featherweight.task import Task
from featherweight.weights.constrained import freeze
from featherweight.weights.sets import TopK
from featherweight.weights.targets import Target
from featherweight.zoo.networks import NETWORKS, lenet5


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def lenet() -> object:
    return trace(lenet5(), (torch.zeros(1, 1, 28, 28),))


def cut_for(what: What, amount: float) -> dict[str, Any]:
    """What a budget cuts of LeNet-5; its task has only to hold an example."""
    nothing: Any = None
    return cuts(lenet5(), Task((torch.zeros(1, 1, 28, 28),), nothing, nothing, nothing, nothing), what, amount)


def test_a_unit_costs_what_a_hand_count_says() -> None:
    sites = {site["site"]: site for site in outline(lenet())["sites"]}
    assert {name: site["units"] for name, site in sites.items()} == {"conv1": 20, "conv2": 50, "fc1": 500}
    # a filter of conv1: its own 25 weights at 24 x 24 places, and its 25 of each of 50 filters of conv2 at 8 x 8 places
    assert sites["conv1"]["macs_a_unit"] == 25 * 24 * 24 + 50 * 25 * 8 * 8
    assert sites["conv1"]["parameters_a_unit"] == 25 + 1 + 50 * 25
    assert sites["fc1"]["macs_a_unit"] == 800 + 10
    assert sites["fc1"]["parameters_a_unit"] == 800 + 1 + 10


def test_every_parameter_is_in_a_site_or_frozen_with_a_reason() -> None:
    found = outline(lenet())
    cut = {entry.split(" dim ")[0] for site in found["sites"] for entry in site["cuts"]}
    assert cut | set(found["frozen"]) == {name for name, _ in lenet5().named_parameters()}
    assert all(len(reason) > 5 for reason in found["frozen"].values())


@pytest.mark.third
@pytest.mark.parametrize("what", ["macs", "parameters", "bytes"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.2, 0.05])
def test_a_budget_is_kept_and_used(what: What, share: float) -> None:
    found = cut_for(what, share)
    used = found[what]["after"] / found[what]["before"]
    assert used <= share
    assert used > 0.7 * share or share == 1.0
    assert all(1 <= site["units"] <= site["of"] for site in found["kept"].values())


def test_more_budget_never_cuts_more() -> None:
    kept = [cut_for("macs", share)["kept"] for share in (0.1, 0.3, 0.6, 0.9)]
    for smaller, larger in pairwise(kept):
        assert all(smaller[name]["units"] <= larger[name]["units"] for name in smaller)


def test_a_budget_that_cannot_be_met_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"cannot be met.*Ask for 0\.\d+ % or more"):
        cut_for("macs", 0.001)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mac=50%", "Did you mean 'macs'"),
        ("macs", "a budget is"),
        ("macs=half", "a number"),
        ("macs=0", "above 0"),
        ("macs=150%", "at most 100"),
        ("latency_ms=50%", "milliseconds"),
        ("latency_ms=fast", "milliseconds"),
        ("latency_ms=0", "above 0"),
    ],
)
def test_a_budget_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        budget_of(text)


def test_inspect_shows_a_network() -> None:
    code, out, _ = run("inspect", "lenet5")
    assert code == 0
    assert "2,293,000 MACs" in out
    assert "an output of the network" in out
    code, out, _ = run("inspect", "resnet20", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["macs"] == 40_551_040
    assert found["blocks"]


def test_plan_shows_what_a_budget_would_cut() -> None:
    code, out, _ = run("plan", "lenet5", "--data", "digits", "--budget", "macs=50%", "--json")
    assert code == 0
    assert json.loads(out)["macs"]["before"] == 2_293_000
    code, _, err = run("plan", "lenet5", "--data", "digits")
    assert code == 2
    assert "--budget" in err


def pruned(folder: Path) -> Path:
    """An artifact of a pruned, untrained LeNet-5."""
    from featherweight.files import artifact

    torch.manual_seed(0)
    network = NETWORKS["lenet5"]()
    for name in ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"):
        freeze(network, name, Target(TopK(300)))
    described = artifact.Description(model="lenet5", data="digits", edits=Snapshot.of(network, []).edits, recipe={}, report=[])
    artifact.save(folder, Snapshot.of(network, []), described)
    return folder


def test_a_packed_file_loads_as_the_artifact_it_was_made_of(tmp_path: Path) -> None:
    import featherweight

    folder = pruned(tmp_path / "art")
    code, out, _ = run("pack", str(folder), "-o", str(tmp_path / "net.fwz"), "--json")
    assert code == 0
    assert json.loads(out)["path"] == str(tmp_path / "net.fwz")
    images = torch.rand(3, 1, 28, 28)
    from_folder, from_file = (featherweight.load(path, lenet5()) for path in (folder, tmp_path / "net.fwz"))
    assert torch.equal(from_folder(images), from_file(images))
    assert (tmp_path / "net.fwz").stat().st_size < (folder / "model.safetensors").stat().st_size
    code, out, _ = run("inspect", str(tmp_path / "net.fwz"), "--model", "lenet5", "--data", "digits", "--json")
    assert code == 0
    assert json.loads(out)["bytes"] == (tmp_path / "net.fwz").stat().st_size
    whole, file = json.loads(out)["measured"], str(tmp_path / "net.fwz")
    code, out, _ = run("inspect", file, "--model", "lenet5", "--input", "1x1x28x28", "--json")
    assert code == 0
    assert json.loads(out)["measured"] == whole | {"score": None}
    code, out, _ = run("inspect", file, "--model", "lenet5", "--json")
    assert code == 0
    sizes = json.loads(out)["measured"]
    assert (sizes["nonzeros"], sizes["macs"], sizes["uncounted"]) == (
        whole["nonzeros"],
        None,
        ["no input was given to count MACs on"],
    )
    code, _, err = run("inspect", str(tmp_path / "net.fwz"))
    assert code == 2
    assert "--model" in err


def test_a_packed_file_of_another_network_is_refused(tmp_path: Path) -> None:
    folder = pruned(tmp_path / "art")
    code, _, err = run("pack", str(folder), "--model", "lenet_300_100")
    assert code == 4
    assert "conv1.weight" in err
