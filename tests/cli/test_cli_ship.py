"""`featherweight export` and `bench`, through the real commands."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from featherweight import Constrain, Recipe, Rule, TopK, compress, structure
from featherweight.cli.commands import app
from featherweight.cli.inputs import network, task
from featherweight.files import artifact
from featherweight.files.artifact import save_cut
from featherweight.recipes.low_rank import decompose
from featherweight.structure import trace
from featherweight.zoo import own_data

OWN = """
import torch
from torch import nn
from featherweight import Task

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 3))

again = net

class Values(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).real

task = Task((torch.ones(1, 1, 8, 8),), lambda epoch: [torch.ones(2, 1, 8, 8)],
            lambda model, batch: model(batch).sum(), lambda model: 0.0, lambda p: torch.optim.SGD(p, lr=0.1))
"""
OURS = ("--model", "own.py:net", "--data", "own.py:task")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's own.py and two artifacts of its network: `thin`, of low rank, and `masked`."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    made, work = network("own.py:net", None), task("own.py:task", 0)
    compress(made, decompose("channel", targets="2.weight", ranks={"2.weight": 2}), work).save("thin")
    masked = Constrain("masked", (Rule("2.weight", TopK()),), keep=0.1)
    compress(made, Recipe("mask", (masked,)), work).save("masked", model="own.py:net")
    return tmp_path


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def test_export_writes_runs_and_notes_the_file(place: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    told = json.loads(call("export", "thin", *OURS, "--json").stdout)
    assert told["path"] == "thin/model.onnx" and told["relative"] < 1e-5 and told["opset"] == 18
    session = onnxruntime.InferenceSession("thin/model.onnx")
    images = torch.rand(3, 1, 8, 8)
    (outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    made = network("own.py:net", None)
    assert not torch.allclose(torch.from_numpy(outputs), made(images), atol=1e-3), "the file must hold the compressed network"
    noted = json.loads((place / "thin/compression.json").read_text())["exports"]
    assert noted == {"model.onnx": told}
    shown = call("inspect", "thin", *OURS).stdout
    assert re.search(r"model\.onnx: differed from the network by \S+ of the largest output", shown)
    assert json.loads(call("inspect", "thin", *OURS, "--json").stdout)["exports"] == noted


def test_export_of_a_program_to_a_given_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_data, "varies", lambda data: True)  # asked for any length first, as texts are, and it takes one
    told = call("export", "masked", *OURS, "--format", "pt2", "-o", "own.pt2", "--fixed-batch")
    shown = told.stdout
    assert "of the example's length alone" in told.stderr and "other sizes as in the example" in shown
    assert "own.pt2: " in shown and "batch size 1 only" in shown and (place / "own.pt2").stat().st_size > 1000
    assert json.loads((place / "masked/compression.json").read_text())["exports"] == {}


def test_export_of_a_network_that_needs_no_class(place: Path) -> None:
    made, work = network("own.py:net", None), task("own.py:task", 0)
    cut = structure.prune(made, trace(made, work.example_inputs), {"0": [0, 1, 2]}, where="graph")
    save_cut("cut", cut.model)
    told = json.loads(call("export", "cut", "--data", "own.py:task", "--format", "pt2", "--json").stdout)
    assert told["path"] == "cut/model.pt2" and told["relative"] < 1e-5


def test_bench_compares_with_the_first(place: Path) -> None:
    arguments = ("own.py:net", "thin", "masked", *OURS, "--runtime", "eager", "--batch", "16", "--batch", "1", "--rounds", "7")
    told = json.loads(call("bench", *arguments, "--json").stdout)
    assert [(t["variant"], t["batch"]) for t in told["timings"]] == [
        (name, batch) for batch in (16, 1) for name in ("own.py:net", "thin", "masked")
    ]
    for compared in told["comparisons"]:
        gain = max(compared["ratio"], 1 / compared["ratio"]) - 1
        assert compared["baseline"] == "own.py:net"
        assert (compared["verdict"] == "no difference seen") == (gain <= max(compared["spread"], 0.03))
    shown = call("bench", *arguments).stdout
    assert shown.splitlines()[0].startswith("variant") and "against the first" in shown


def test_bench_takes_a_network_that_a_target_names(place: Path) -> None:
    arguments = ("--data", "own.py:task", "--runtime", "eager", "--rounds", "7", "--json")
    told = json.loads(call("bench", "own.py:net", "masked", *arguments).stdout)
    assert [timing["variant"] for timing in told["timings"]] == ["own.py:net", "masked"]
    refused = CliRunner().invoke(app, ["bench", "own.py:again", "masked", *arguments])
    assert refused.exit_code == 2 and "give --model" in re.sub(r"\s+", " ", refused.stderr), "code named by a file only"


@pytest.mark.third
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bench", "thin", "thin", *OURS), "given twice"),
        (("bench", "nothing", *OURS), "nothing is not an artifact"),
        (("bench", "thin", *OURS, "--runtime", "eagre"), "Did you mean 'eager'"),
        (("bench", "thin", *OURS, "--threads", "0"), "threads must be"),
        (("bench", "thin", *OURS, "--device", "gpu"), "there is no device 'gpu' here"),
        (("inspect", "thin", *OURS, "--device", "gpu"), "there is no device 'gpu' here"),
        (("bench", "thin"), "--model"),
        (("bench", "own.py:net"), "--data"),
        (("export", "thin", "--model", "own.py:net"), "--data"),
        (("export", "thin", *OURS, "--format", "onxn"), "format must be one of onnx, pt2"),
        (("export", "thin", *OURS, "--opset", "11"), "at least 18"),
        (("export", "own.py:net", "--data", "own.py:task"), "give -o FILE"),
        (("export", "own.py:Values", "--data", "own.py:task", "-o", "x.onnx"), "ONNX has no form of"),
    ],
)
def test_mistakes_are_named(place: Path, arguments: tuple[str, ...], says: str) -> None:
    if "ONNX" in says:
        pytest.importorskip("onnxscript")
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code in (1, 2, 4), result.output
    assert says in re.sub(r"\s+", " ", result.stderr)
    assert not (place / "x.onnx").exists()


def test_without_onnx_runtime_it_says_what_to_install(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for arguments in (("export", "thin", *OURS), ("bench", "thin", "masked", *OURS)):
        assert "featherweight[onnx]" in call(*arguments, code=1).stderr.replace("\n", "")
    assert not (place / "thin/model.onnx").exists()


def test_export_in_integers_is_scored_from_the_file(place: Path) -> None:
    pytest.importorskip("onnxruntime")
    told = json.loads(call("export", "masked", *OURS, "--integers", "--float", "4", "--samples", "2", "--score", "--json").stdout)
    assert told["integers"]["layers"] == ["0", "2", "4"] and told["integers"]["left"] == {"4": "as asked"}
    assert told["integers"]["samples"] == 2 and told["score"] == 0.0
    shown = call("export", "masked", *OURS, "--integers", "--float-ends").stdout
    assert "integers: 1 of 3 layers, calibrated on 2 samples" in shown and "in float32: 4 (first or last)" in shown
    for more, says in ((("--float", "five"), "no layer with weights is named 'five'"), (("--samples", "0"), "at least 1")):
        assert says in call("export", "masked", *OURS, "--integers", *more, code=2).stderr
    wanted = ("export", "own.py:net", "--input", "1x1x8x8", "-o", "x.onnx")
    assert "give --data" in call(*wanted, "--integers", code=2).stderr


def test_export_as_c(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(call("export", "masked", *OURS, "--format", "c", "--no-check", "--json").stdout)
    assert told["path"] == "masked/model.c" and told["relative"] is None and told["sparse"] == ["2"]
    assert (place / "masked/model.c").read_text().startswith("/* Written by featherweight")
    assert json.loads((place / "masked/compression.json").read_text())["exports"] == {"model.c": told}
    assert (
        "--integers and --weights are for ONNX" in call("export", "masked", *OURS, "--format", "c", "--integers", code=2).stderr
    )
    refused = call("export", "masked", *OURS, "--format", "c", "--score", "--no-check", code=2).stderr
    assert "give one of the two" in refused
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        summed = OWN.replace("lambda model: 0.0", "lambda model: float(model(torch.ones(3, 1, 8, 8)).detach().sum())")
        (place / "summed.py").write_text(summed)
        scored = ("export", "masked", "--model", "own.py:net", "--data", "summed.py:task", "--format", "c", "--score")
        shown = call(*scored).stdout
        wanted = float(artifact.load("masked", network("own.py:net", None))(torch.ones(3, 1, 8, 8)).detach().sum())
        told = re.search(r"score of the file: (\S+)", shown)
        assert told is not None and float(told[1]) == pytest.approx(wanted, abs=0.006) and abs(wanted) > 0.1
        assert "compiled and run: differs by" in shown and "1 layers over their non-zeros, 2 over all their weights" in shown
        assert "model.c: differed from the network by" in call("inspect", "masked", *OURS).stdout
        timed = json.loads(
            call("bench", "masked", *OURS, "--runtime", "eager", "--runtime", "c", "--rounds", "5", "--json").stdout
        )
        assert [one["runtime"] for one in timed["timings"]] == ["eager", "c"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "there is no C compiler" in call("export", "masked", *OURS, "--format", "c", "--score", code=1).stderr
