"""`featherweight shrink`, through the real command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from featherweight.cli import jobs
from featherweight.cli.commands import app
from featherweight.recipe import reading
from featherweight.recipes import GOALS, RECIPES
from featherweight.run import shrunk

OWN = """
import torch
from torch import nn
from featherweight import Task

dice = torch.Generator().manual_seed(0)
inputs = torch.randn(96, 6, generator=dice)
labels = inputs[:, :3].argmax(1)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))

task = Task((inputs[:1],), list(zip(inputs.split(16), labels.split(16))),
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            lambda model: 100 * float((model(inputs).argmax(1) == labels).float().mean()),
            lambda p: torch.optim.Adam(p, 1e-2))
strict = Task(task.example_inputs, task.train, task.loss, lambda model: sum(w.numel() for w in model.parameters()),
              task.optimizer)
"""
OURS = ("own.py:net", "--data", "own.py:task")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def test_a_goal_is_reached_and_every_step_is_a_recipe(place: Path) -> None:
    given = ("shrink", *OURS, "--to", "weights=3x", "--epochs", "4", "--lose", "100")
    told = json.loads(call(*given, "-o", "small", "--recipe-out", "steps.yaml", "--json").stdout)
    assert told["met"] and told["kept"] and told["measured"] <= told["choice"]["limit"]
    assert reading.read("steps.yaml").to_dict() == told["choice"]["recipe"]
    assert json.loads((place / "small/compression.json").read_text())["recipe"] == told["choice"]["recipe"]
    assert not (place / "small.work").exists()
    shown = call(*given, "--dry-run").stdout
    assert "chosen" in shown and "zeros" in shown and not (place / "other").exists()


def test_an_interrupted_run_goes_on_with_what_was_chosen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    given = ("shrink", "own.py:net", "--data", "own.py:strict", "--to", "parameters=60%", "--epochs", "1", "-o", "small")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "compress", interrupted)
        told = call(*given, "--lose", "9", code=130)
    assert "interrupted" in told.stderr and (place / "small.work/choice.json").exists()
    again = call(*given, "--lose", "9", code=1)  # the score is the number of weights, of which more than 9 are lost
    assert "going on with what was chosen before" in again.stderr and "channels" in again.stdout
    assert "goal      at most" in again.stdout and ", met" in again.stdout and "MORE than the 9 allowed" in again.stdout


def test_a_goal_that_is_missed_is_tightened_and_an_interrupted_run_of_it_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, compressed = shrunk.settled, jobs.compress

    def larger(choice: Any, *arguments: Any) -> Any:
        done = measured(choice, *arguments)
        return done if choice.before else replace(done, measured=1.2 * done.measured)

    def interrupted(network: Any, recipe: Any, *arguments: Any, **named: Any) -> Any:
        if named["workdir"].name == "2":
            raise KeyboardInterrupt
        return compressed(network, recipe, *arguments, **named)

    monkeypatch.setattr(shrunk, "settled", larger)
    given = ("shrink", *OURS, "--to", "parameters=60%", "--epochs", "1", "-o", "small", "--recipe-out", "steps.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "compress", interrupted)
        told = call(*given, code=130).stderr
    assert "run 2 of at most 3" in told and "small holds the nearest so far" in told
    first = (place / "steps.yaml").read_text()
    found = json.loads(call(*given, "--json").stdout)
    assert found["met"] and len(found["runs"]) == 2 and found["runs"][1]["amount"] < found["runs"][0]["amount"]
    assert (place / "steps.yaml").read_text() != first and not (place / "small.work").exists()
    assert json.loads((place / "small/compression.json").read_text())["recipe"] == found["choice"]["recipe"]


def test_what_cannot_be_is_refused(place: Path) -> None:
    assert "one of the two" in call("shrink", *OURS, "-o", "small", code=2).stderr
    assert "one of the two" in call("shrink", *OURS, "--to", "2ms", "--faster", "2x", "-o", "small", code=2).stderr
    assert "macs=50%" in call("shrink", *OURS, "--to", "50", "-o", "small", code=2).stderr
    assert "--dry-run" in call("shrink", *OURS, "--to", "2ms", code=2).stderr
    assert "--weights" in call("shrink", "lenet5", "--data", "digits", "--to", "100kB", "-o", "small", code=2).stderr
    refused = call("shrink", *OURS, "--to", "weights=40x", "-o", "small", code=2).stderr
    assert "cannot be reached" in refused and "ask for that or more" in refused and not (place / "small").exists()


def test_recipes_are_listed_by_what_they_are_for() -> None:
    named = [name for names in GOALS.values() for name in names]
    assert sorted(named) == sorted(RECIPES)
    shown = call("recipes").stdout
    places = [shown.index(text) for goal, names in GOALS.items() for text in (goal, *names)]
    assert places[0] >= 0 and all(name in shown for name in named) and "20 epochs" in shown
