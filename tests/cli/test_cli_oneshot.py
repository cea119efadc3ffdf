"""Commands without training and without data, and what is remembered of them on this machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from featherweight.budget.costs import Spent
from featherweight.cli import console, inputs, remembered
from featherweight.cli.commands import app
from featherweight.errors import InputError
from featherweight.recipe.schema import CutUnits
from featherweight.run import cut_units

NET = """
from torch import nn
def model():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)]
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), *head)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words), prog_name="featherweight")
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


INPUT, L1 = ("--input", "1x3x12x12"), ("--recipe", "l1_filters")


def test_each_command_writes_an_artifact_that_later_ones_open_alone(place: Path) -> None:
    asked = {"prune": ("--macs", "60%"), "factorize": ("--macs", "70%"), "quantize": ("--bits", "4")}
    for name, options in asked.items():
        call(name, "net.py:model", *INPUT, *options, "-o", name)
        told = call("inspect", name)
        assert "The files agree with their report" in told.stdout and "score" not in told.stdout
    report = json.loads(call("prune", "net.py:model", *INPUT, "-o", "half", "--json").stdout)["rows"]
    dense, small = (row["measured"]["macs"] for row in report)
    assert 0.25 * dense < small <= 0.5 * dense and report[-1]["measured"]["score"] is None
    call("pack", "prune")
    call("export", "prune", "--format", "pt2")
    assert (place / "prune/model.fwz").is_file() and (place / "prune/model.pt2").is_file()


def test_milliseconds_and_their_runtime_reach_the_search_from_each_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, str]] = []

    def within(amount: float, *given: Any) -> Any:
        asked.append((amount, given[-1]))
        return given[-3], Spent("latency_ms", amount, 9.0, amount, runtime=given[-1])

    monkeypatch.setattr(cut_units, "within", within)
    told = call("prune", "net.py:model", *INPUT, "--ms", "2", "--runtime", "onnx", "-o", "art").stdout
    assert "latency_ms in onnx: asked 2, measured 2 of 9" in told
    planned = call("plan", "net.py:model", *INPUT, "--budget", "500us", "--runtime", "c").stdout
    assert "latency_ms in c: asked 0.5" in planned
    assert asked == [(2.0, "onnx"), (0.5, "c")]
    l1 = inputs.recipe("l1_filters", ["latency_ms=3ms", "runtime=onnx"]).stages[1]
    assert isinstance(l1, CutUnits) and (l1.units.latency_ms, l1.units.runtime) == (3.0, "onnx")
    shown = console._cut(asdict(l1.units))
    assert "keep 3 ms on this machine in onnx, uniform" in shown
    assert "one budget" in call("prune", "net.py:model", *INPUT, "--ms", "2", "--macs", "50%", "-o", "art", code=2).stderr
    assert "for a budget of latency_ms" in call("prune", "net.py:model", *INPUT, "--runtime", "c", "-o", "art", code=2).stderr
    assert "--set runtime=onnx" in call("plan", "lenet5", "--recipe", "l1_filters", "--runtime", "onnx", code=2).stderr


def test_elsewhere_and_where_another_lies_now_the_command_asks(place: Path) -> None:
    call("prune", "net.py:model", *INPUT, "-o", "art")
    shutil.copytree("art", "copy")
    refused = call("inspect", "copy", code=2)
    assert "--model net.py:model" in refused.stderr and "--input 1x3x224x224" in refused.stderr, "with what it needs"
    call("inspect", "copy", "--model", "net.py:model", *INPUT)
    described = json.loads(Path("art/compression.json").read_text())
    Path("art/compression.json").write_text(json.dumps(described | {"model": "other.py:model"}))
    assert "no code" in call("inspect", "art", code=2).stderr
    Path("art/compression.json").write_text(json.dumps(described))
    Path("net.py").unlink()
    assert "no code" in call("inspect", "art", code=2).stderr, "the file that was typed is gone"


def test_what_is_remembered_lies_in_the_user_s_own_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))
    remembered.keep(place / "art", remembered.Typed("net.py:model", "npz:x.npz,batch=4", ("1x3",)))
    typed = remembered.of(place / "art")
    assert typed == remembered.Typed(f"{place}/net.py:model", f"npz:{place}/x.npz,batch=4", ("1x3",))
    (kept,) = (place / "state/featherweight/made").iterdir()
    assert remembered.of(place / "other") is None
    kept.write_text("{")
    assert remembered.of(place / "art") is None
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    remembered.keep(place / "art", typed)  # nowhere to write: later commands ask
    assert remembered.of(place / "art") is None


def test_with_data_it_is_scored_and_criteria_may_look_at_it(place: Path) -> None:
    dice = np.random.default_rng(0)
    np.savez(place / "x.npz", x=dice.normal(size=(24, 3, 12, 12)), y=np.arange(24) % 4)
    told = call("prune", "net.py:model", "--data", "npz:x.npz,batch=8", "--criterion", "taylor", "-o", "art")
    assert "score" in told.stdout
    assert "agree with their report" in call("inspect", "art").stdout
    refused = call("prune", "net.py:model", *INPUT, "--criterion", "taylor", "-o", "art2", code=2)
    assert "taylor looks at labels" in refused.stderr
    told = call(
        "plan",
        "net.py:model",
        "--data",
        "npz:x.npz,batch=8",
        "--recipe",
        "l1_filters",
        "--set",
        "multiple=1",
        "--set",
        "epochs=3",
    )
    assert "warning: sizes may be no multiple of 8 channels" in told.stdout
    assert "3 epochs of 16 samples" in told.stdout and "hours on this machine (cpu" in told.stdout
    assert "warning" not in call("plan", "net.py:model", "--data", "npz:x.npz", *L1).stdout
    assert (
        "of 2 sites are cut to no multiple"
        in call("plan", "net.py:model", *INPUT, "--budget", "macs=60%", "--multiple", "1").stdout
    )


def test_mistakes_are_named(place: Path) -> None:
    assert (
        "--multiple is auto or a whole number"
        in call("prune", "net.py:model", *INPUT, "--multiple", "x", "-o", "a", code=2).stderr
    )
    assert "nothing is known of the inputs" in call("prune", "net.py:model", "-o", "a", code=2).stderr
    assert "timm:resnet1,x" in call("inspect", "timm:resnet1,x", code=2).stderr
    assert "npz:PATH" in call("inspect", "lenet5", "--data", "npy:x", code=2).stderr


def weights(path: Path, held: object) -> Path:
    torch.save(held, path)
    return path


def test_weights_are_found_in_checkpoints_and_under_wrappers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    state = inputs.network("net.py:model").state_dict()
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    save_file(wrapped, "a.safetensors")
    forms = [Path("a.safetensors"), weights(Path("b.pt"), {"state_dict": wrapped, "epoch": 3})]
    forms += [weights(Path("c.pth"), {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}})]
    for path in forms:
        loaded = inputs.network("net.py:model", path)
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        assert "'module.', which is left off" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"0\.weight is missing"):
        inputs.network("net.py:model", weights(Path("d.pt"), {"state_dict": {"x.weight": torch.zeros(1)}}))
    assert "the weights are those under 'state_dict'" in capsys.readouterr().err


def test_prune_takes_inputs_without_labels(place: Path) -> None:
    np.savez("x.npz", x=np.random.default_rng(0).standard_normal((80, 3, 12, 12)).astype(np.float32))
    words = ("prune", "net.py:model", "--data", "npz:x.npz,batch=16", "--no-refit", "--reconstruct", "4", "-o", "art", "--json")
    report = json.loads(call(*words).stdout)["rows"]
    assert report[-1]["said"][0].startswith("reconstruct: mean squared difference")
    assert report[0]["measured"]["score"] == 100 > report[-1]["measured"]["score"]
    assert "taylor looks at labels" in call(*words, "--criterion", "taylor", code=2).stderr
