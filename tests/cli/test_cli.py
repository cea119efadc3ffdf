"""The command line, through the real command: what it prints, where, with which exit code, and what it leaves on the disk."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from featherweight import __version__, cli, errors
from featherweight.cli import console, display, overview
from featherweight.cli import inputs as given
from featherweight.cli.commands import app
from featherweight.measurement import Measurement
from featherweight.recipe.reading import from_dict
from featherweight.recipes import RECIPES
from featherweight.run.watch import Progress
from featherweight.zoo import datasets

ROOT = Path(__file__).resolve().parent.parent.parent

OWN = '''
"""A user's file: a network and a task small enough to train in no time."""
import math, os, time
import torch
from torch import nn
from featherweight import Task

SLEEP = float(os.environ.get("SLEEP", 0))

def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

def batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    inputs = torch.randn(4, 32, 6, generator=generator)
    return [(x, (x.sum(1) > 0).long()) for x in inputs]

def loss(model, batch):
    time.sleep(SLEEP)
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def score(model):
    with torch.no_grad():
        return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in batches(999)) * 25

def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)

task = Task((torch.ones(1, 6),), batches, loss, score, sgd)

def seeded(seed):
    assert seed == 3
    return task

def broken():
    return [][0]

def not_a_network():
    return 7

bad = Task((torch.ones(1, 6),), batches, lambda model, batch: loss(model, batch) * math.nan, score, sgd)
'''

RECIPE = {
    "name": "mine",
    "stages": [
        {"name": "dense", "train": {"epochs": 2}},
        {
            "name": "half",
            "rules": [{"targets": "*.weight", "set": {"kind": "top_k"}}],
            "keep": 0.5,
            "driver": {"kind": "admm", "rho": 0.1, "every": 2},
            "train": {"epochs": 2},
            "retrain": {"epochs": 1},
        },
    ],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the user's own.py and mine.yaml."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output or code == 2  # a tail of the user's own is shown with code 2
    return result


OURS = ("own.py:net", "--data", "own.py:task", "--recipe", "mine.yaml")


def compressed(*more: str, code: int = 0) -> Result:
    return call("compress", *OURS, "-o", "out", *more, code=code)


def message(result: Result) -> str:
    """Standard error as one line, since what a test looks for may be folded."""
    return re.sub(r"\s+", " ", result.stderr)


# --- what works ----------------------------------------------------------------------------------------------------------


def test_compress_writes_an_artifact_and_nothing_else(place: Path) -> None:
    result = compressed()
    assert sorted(path.name for path in place.iterdir() if path.name != "__pycache__") == ["mine.yaml", "out", "own.py"]
    files = ["README.md", "compression.json", "model.safetensors", "report.html"]
    assert sorted(path.name for path in (place / "out").iterdir()) == files
    assert "half" in result.stdout and "2.0x" in result.stdout and "out/model.safetensors" in result.stdout
    assert f"{(place / 'out/model.safetensors').stat().st_size:,} bytes" in result.stdout
    lines = [
        line.split(":")[0] for line in result.stderr.splitlines()
    ]  # where it stands at the start of a phase, if not at a terminal
    assert [line for line in lines if "done" in line] == ["stage dense done", "stage half done"]
    assert [line for line in lines if "done" not in line] == [
        "stage 1/2 dense, train",
        "stage 2/2 half, train",
        "stage 2/2 half, retrain",
    ]
    described = json.loads((place / "out/compression.json").read_text())
    assert (described["model"], described["data"]) == ("own.py:net", "own.py:task"), "hints that are shown and never run"


def test_compress_twice_replaces_the_artifact(place: Path) -> None:
    compressed()
    compressed("--set", "stages.1.keep=0.25")
    assert json.loads((place / "out/compression.json").read_text())["recipe"]["stages"][1]["keep"] == 0.25
    assert not list(place.glob(".out*")) and not (place / "out.work").exists()


def test_json_is_one_object_and_all_of_stdout(place: Path) -> None:
    told = json.loads(compressed("--json", "--set", "stages.0.train.epochs=0").stdout, parse_constant=pytest.fail)
    assert told["files"]["model.safetensors"] == (place / "out/model.safetensors").stat().st_size
    assert [row["stage"] for row in told["rows"]] == ["dense", "half"]
    assert told["rows"][0]["loss"] is None, "no training, no loss: NaN is not JSON"


def test_seed_decides_the_weights(place: Path) -> None:
    states = []
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        call("compress", *OURS, "-o", folder, "--seed", seed)
        states.append((place / folder / "model.safetensors").read_bytes())
    assert states[0] == states[1] != states[2]


def test_a_task_may_be_a_function_of_the_seed(place: Path) -> None:
    call("plan", "own.py:net", "--data", "own.py:seeded", "--recipe", "mine.yaml", "--seed", "3")
    failed = call("plan", "own.py:net", "--data", "own.py:seeded", "--recipe", "mine.yaml", "--seed", "4", code=2)
    assert "assert seed == 3" in failed.stderr


def test_weights_are_loaded(place: Path) -> None:
    module = given.network("own.py:net")
    save_file({name: tensor + 5 for name, tensor in module.state_dict().items()}, place / "w.safetensors")
    call("compress", *OURS, "-o", "out", "--weights", "w.safetensors", "--set", "stages.0.train.epochs=0")
    assert float(load_file(place / "out/model.safetensors")["0.bias"].mean()) > 3


def test_inspect_measures_what_the_report_says(place: Path) -> None:
    compressed()
    shown = call("inspect", "out", "--model", "own.py:net", "--data", "own.py:task")
    assert "The files agree with their report" in shown.stdout
    told = json.loads(call("inspect", "out", "--model", "own.py:net", "--data", "own.py:task", "--json").stdout)
    assert told["agrees"] and told["measured"] == told["claimed"]
    assert sum(held["nonzeros"] for held in told["weights"].values()) == 32  # half of 6 x 8 + 8 x 2
    assert told["files"] == {path.name: path.stat().st_size for path in (place / "out").iterdir()}


@pytest.mark.parametrize(("key", "value"), [("score", 99.9), ("nonzeros", 7), ("bits", 1), ("macs", 1), ("parameters", 1)])
def test_inspect_exits_with_4_where_the_report_lies(place: Path, key: str, value: float) -> None:
    compressed()
    path = place / "out/compression.json"
    described = json.loads(path.read_text())
    described["report"][-1]["measured"][key] = value
    path.write_text(json.dumps(described))
    lying = call("inspect", "out", "--model", "own.py:net", "--data", "own.py:task", code=4)
    assert lying.stdout.count("DIFFERS") == 1 and "disagree" in lying.stderr
    assert json.loads(call("inspect", "out", "--model", "own.py:net", "--data", "own.py:task", "--json", code=4).stdout)[
        "differs"
    ]


def test_inspect_never_runs_code_that_an_artifact_names(place: Path) -> None:
    compressed()
    (place / "evil.py").write_text("open('ran', 'w')\nnet = None\n")
    path = place / "out/compression.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "evil.py:net", "data": "evil.py:net"}))
    assert "--model" in message(call("inspect", "out", code=2))
    assert "--data" in message(call("inspect", "out", "--model", "own.py:net", code=2))
    assert not (place / "ran").exists()


def test_plan_runs_nothing_and_shows_sizes(place: Path) -> None:
    shown = call("plan", *OURS)
    assert "0.weight" in shown.stdout and "later" in shown.stdout and "32" in shown.stdout
    told = json.loads(call("plan", *OURS, "--json", "--set", "stages.0.train.epochs=0").stdout)
    half = told["stages"][1]
    assert half["budget"] == {"size": 32, "of": 64}
    assert sum(target["size"] for target in half["targets"]) == 32, "nothing is trained before: the sizes are known"
    assert half["train"]["steps"] == 8
    assert call("compress", *OURS, "-o", "out", "--dry-run").stdout == shown.stdout
    assert not (place / "out").exists() and not (place / "out.work").exists()


@pytest.mark.long
def test_plan_of_every_built_in_recipe(place: Path) -> None:
    for name in RECIPES:
        told = json.loads(call("plan", "lenet5", "--data", "digits", "--recipe", name, "--json").stdout)
        assert any(stage["targets"] or stage["units"] or stage["adaptive"] for stage in told["stages"])


def test_recipes_lists_all_and_shows_one_as_a_file(place: Path) -> None:
    listed = call("recipes").stdout
    for name, function in RECIPES.items():
        assert name in listed and function().source in listed
        shown = call("recipes", name).stdout
        assert from_dict(yaml.safe_load(shown)) == function(), "what is shown can be saved and used"
        for parameter in given.parameters(name):
            assert re.search(rf"^#\s+{parameter[0]}\s", shown, re.MULTILINE)
    assert "Did you mean 'progressive_admm'" in message(call("recipes", "progresive", code=2))


def test_settings_are_typed_by_the_recipe() -> None:
    set_ = ["keep=3x,15x", "rho=1e-2", "rho_max=0.5", "dense_epochs=2", "targets=*.weight"]
    built = given.recipe("progressive_admm", set_)
    assert built == RECIPES["progressive_admm"](keep=("3x", "15x"), rho=0.01, rho_max=0.5, dense_epochs=2, targets="*.weight")
    assert [stage.name for stage in built.stages][-2:] == ["3x", "15x"]


def test_settings_reach_into_a_file(place: Path) -> None:
    built = given.recipe(
        "mine.yaml",
        ["stages.1.rules.0.targets=*.weight", "stages.1.driver.rho=1e-3", "stages.1.distill.weight=1"],
    )
    assert built.stages[1].rules[0].targets == "*.weight"
    assert built.stages[1].driver.rho == 1e-3  # type: ignore[union-attr]
    assert built.stages[1].distill is not None and built.stages[1].distill.weight == 1


def test_reproduce_lists_runs_and_corrects(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featherweight.cli.benchmarks.__file__", str(place / "featherweight/cli/benchmarks.py"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert "checkout" in message(call("reproduce", code=2))
    for name in ("one_two", "lib", "broken"):
        (place / "benchmarks" / name).mkdir(parents=True)
    runs = (
        'import sys\nfrom benchmarks.lib import helper\ndef main():\n    open("ran", "w").write(" ".join(sys.argv[helper.x:]))\n'
        'if __name__ == "__main__":\n    main()\n'
    )
    (place / "benchmarks/one_two/run.py").write_text(f'"""Counts."""\n{runs}')
    (place / "benchmarks/lib/helper.py").write_text("x = 1\n")
    (place / "benchmarks/broken/run.py").write_text("def main(:\n")
    listed = call("reproduce").stdout
    assert "one-two" in listed and "Counts." in listed and "helper" not in listed
    assert "Did you mean 'one-two'" in message(call("reproduce", "one-tow", code=2))
    call("reproduce", "one-two", "--table", "x")
    assert (place / "ran").read_text() == "--table x"


def test_help_needs_no_torch_and_tells_what_the_commands_are() -> None:
    """The page is made of a list, so that nothing is imported for it: the list is what the commands say of themselves."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {name: " ".join(one.help.split("\n\n")[0].split()) for name, one in commands.items()} == overview.COMMANDS
    told = "import sys; sys.argv[1:] = ['--help']; from featherweight.cli import main; main(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "reproduce" in done.stdout
    told_with_all = CliRunner().invoke(app, ["--help"], prog_name="featherweight").stdout
    assert told_with_all.split() == done.stdout.removesuffix("False\n").split()


PROGRAM = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
from featherweight.cli import main
main()
"""


def completing(*words: str) -> dict[str, str]:
    """What bash sets where the last of the words is completed."""
    return {overview.COMPLETE: "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": f"{len(words) - 1}"}


@pytest.mark.parametrize(
    ("arguments", "env", "found"), [(["--version"], {}, __version__), ([], completing("featherweight", "ex"), "export")]
)
def test_the_version_and_names_of_commands_need_no_torch(arguments: list[str], env: dict[str, str], found: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=True, env=os.environ | env
    )
    assert told.stdout.split() == [found] and told.stderr.split()[-1] == "False"


def test_a_shell_completes_options(monkeypatch: pytest.MonkeyPatch) -> None:
    env = completing("featherweight", "export", "--for")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert not overview.shown([]), "options are known where the commands are"
    assert CliRunner().invoke(app, [], env=env, prog_name="featherweight").stdout.split() == ["--format"]


def test_inspect_exports_once_and_no_cycles_are_searched_for_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cold start it is to take at most half as long again as importing the library and building the network."""
    searched: list[bool] = []
    real = torch.export.export
    monkeypatch.setattr(
        torch.export, "export", lambda *given, **named: (searched.append(gc.isenabled()), real(*given, **named))[1]
    )
    assert json.loads(call("inspect", "lenet5", "--json").stdout)["macs"] == 2_293_000
    assert searched == [False] and gc.isenabled()


def test_what_was_imported_for_a_command_is_searched_for_cycles_neither_then_nor_later(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Commands(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name != "app":
                raise AttributeError(name)
            seen.append(gc.isenabled())
            return lambda **named: seen.append(gc.isenabled() and gc.get_freeze_count() > 10_000)

    monkeypatch.setitem(sys.modules, "featherweight.cli.commands", Commands("featherweight.cli.commands"))
    monkeypatch.setattr(sys, "argv", ["featherweight", "inspect", "lenet5"])
    try:
        cli.main()
    finally:
        gc.unfreeze()
    assert seen == [False, True]


def test_the_demo_uses_parameters_that_the_recipe_has() -> None:
    from featherweight.cli.commands import DEMO, DEMO_RATIO

    built = given.recipe("progressive_admm", [f"{key}={value}" for key, value in DEMO.items()])
    assert built.stages[0].train.epochs > 0, "the demo trains its own dense network"
    assert built.stages[-1].keep is not None and 1 / built.stages[-1].keep >= DEMO_RATIO


def test_help_documents_every_exit_code() -> None:
    told = re.sub(r"[\s│]+", " ", call("--help").stdout)
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.FeatherweightError):
            assert f" {kind.exit_code} " in told
    assert " 130 " in told


# --- what a user gets wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("lenet55", "--data", "digits", "--recipe", "mine.yaml"), "Did you mean 'lenet5'?"),
        (("lenet5", "--data", "digit", "--recipe", "mine.yaml"), "Did you mean 'digits'?"),
        (("lenet5", "--data", "digits", "--recipe", "progressive"), "Did you mean 'progressive_admm'?"),
        (("lenet5", "--data", "digits", "--recipe", "gone.yaml"), "cannot read the recipe gone.yaml"),
        (("own.py:nett", "--data", "own.py:task", "--recipe", "mine.yaml"), "Did you mean 'net'?"),
        (("own.py", "--data", "own.py:task", "--recipe", "mine.yaml"), "own.py:name"),
        (("gone.py:net", "--data", "own.py:task", "--recipe", "mine.yaml"), "there is no file gone.py"),
        (("own.py:broken", "--data", "own.py:task", "--recipe", "mine.yaml"), "return [][0]"),
        (("own.py:not_a_network", "--data", "own.py:task", "--recipe", "mine.yaml"), "it gave int"),
        (("own.py:net", "--data", "own.py:SLEEP", "--recipe", "mine.yaml"), "must be a function"),
        (("own.py:net", "--data", "own.py:net", "--recipe", "mine.yaml"), "it gave Sequential"),
        (("own.py:net", "--data", "digits", "--recipe", "mine.yaml"), "does not take the example of digits"),
        ((*OURS, "--weights", "gone.safetensors"), "there is no file of weights"),
        ((*OURS, "--set", "stages.1.kep=1"), "Did you mean 'keep'?"),
        ((*OURS, "--set", "stages.2.keep=1"), "entries 0 to 1"),
        ((*OURS, "--set", "stages.1.keep=2"), "keep is a share in (0, 1]"),
        ((*OURS, "--set", "stages"), "give key=value"),
        ((*OURS, "--set", "stages.1.rules.0.targets=fc"), "matches no parameter"),
        (("own.py:net", "--data", "own.py:task", "--recipe", "progressive_admm", "--set", "keep=0"), "keep holds"),
        (("own.py:net", "--data", "own.py:task", "--recipe", "progressive_admm", "--set", "keep=50"), "keep holds"),
        (("lenet5", "--data", "digits", "--recipe", "l1_filters", "--set", "mac=2x", "--set", "epochs=-1"), "2 mistakes"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_named(place: Path, arguments: tuple[str, ...], told: str) -> None:
    failed = call("compress", *arguments, "-o", "out", code=2)
    assert told in message(failed), failed.stderr
    assert not failed.stdout and not (place / "out").exists()


def test_all_mistakes_of_a_recipe_at_once(place: Path) -> None:
    failed = call(
        "plan", "lenet5", "--data", "digits", "--recipe", "progressive_admm", "--set", "kep=3x", "--set", "epochs=x", code=2
    )
    assert "2 mistakes" in failed.stderr and "Did you mean 'keep'" in message(failed) and "epochs='x'" in message(failed)
    wrong = json.loads(json.dumps(RECIPE))
    wrong["stages"][1] |= {"kep": 1, "train": {"epochs": "many"}}
    (place / "wrong.json").write_text(json.dumps(wrong))
    failed = call("plan", "own.py:net", "--data", "own.py:task", "--recipe", "wrong.json", code=2)
    assert "2 mistakes" in failed.stderr and "Did you mean 'keep'" in message(failed) and "many" in message(failed)


def test_a_recipe_that_is_not_text(place: Path) -> None:
    (place / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "binary.yaml is not YAML" in message(
        call("plan", "own.py:net", "--data", "own.py:task", "--recipe", "binary.yaml", code=2)
    )


def test_a_user_file_with_an_error_shows_its_own_lines(place: Path) -> None:
    (place / "typo.py").write_text("import math\n\ndef net():\n    return math.nothing\n\nx = undefined_name\n")
    failed = call("plan", "typo.py:net", "--data", "own.py:task", "--recipe", "mine.yaml", code=2)
    assert "line 6" in failed.stderr and "undefined_name" in failed.stderr and "given.py" not in failed.stderr
    (place / "syntax.py").write_text("def net(:\n")
    assert "SyntaxError" in call("plan", "syntax.py:net", "--data", "own.py:task", "--recipe", "mine.yaml", code=2).stderr


def test_weights_of_another_network(place: Path) -> None:
    save_file({"0.weigth": given.network("own.py:net").state_dict()["0.weight"]}, place / "other.safetensors")
    told = message(call("compress", *OURS, "-o", "out", "--weights", "other.safetensors", code=2))
    assert "0.weigth is not in the network. Did you mean '0.weight'?" in told and "2.bias is missing" in told
    (place / "no.safetensors").write_bytes(b"nothing")
    call("compress", *OURS, "-o", "out", "--weights", "no.safetensors", code=4)


def test_missing_data_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setenv("FEATHERWEIGHT_DATA", str(place / "data"))
    monkeypatch.setattr(datasets.downloads, "opened", offline)
    told = message(call("compress", "lenet5", "--data", "mnist", "--recipe", "progressive_admm", "-o", "out", code=3))
    assert "train-images-idx3-ubyte" in told and "FEATHERWEIGHT_DATA" in told
    assert not (place / "out").exists() and not (place / "out.work").exists(), "said before anything is made"


def test_output_folder_of_somebody_else(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out/thesis.txt").write_text("mine")
    assert "not an artifact" in message(compressed(code=2))
    assert [path.name for path in (place / "out").iterdir()] == ["thesis.txt"] and not (place / "out.work").exists()


def test_output_folder_that_cannot_be(place: Path) -> None:
    (place / "file").write_text("")
    assert "cannot write" in message(call("compress", *OURS, "-o", "file/out", code=6))


def test_nan_loss(place: Path) -> None:
    failed = call("compress", "own.py:net", "--data", "own.py:bad", "--recipe", "mine.yaml", "-o", "out", code=5)
    assert "the loss is nan" in message(failed) and not (place / "out").exists()


def test_damaged_artifacts(place: Path) -> None:
    ours = ("--model", "own.py:net", "--data", "own.py:task")
    call("inspect", "nothing", *ours, code=4)
    compressed()
    for name in ("model.safetensors", "compression.json"):
        shutil.copytree("out", "cut")
        content = (place / "cut" / name).read_bytes()
        (place / "cut" / name).write_bytes(content[: len(content) // 2])
        assert name in message(call("inspect", "cut", *ours, code=4))
        shutil.rmtree("cut")
    path = place / "out/compression.json"
    for report in ([], [{}], [{"measured": {"score": "high"}}]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"report": report}))
        assert "report" in message(call("inspect", "out", *ours, code=4))


def test_an_artifact_of_another_network(place: Path) -> None:
    compressed()
    assert "LeNet5" in message(call("inspect", "out", "--model", "lenet5", "--data", "digits", code=4))


def test_control_characters_of_a_foreign_artifact_stay_out_of_the_terminal(place: Path) -> None:
    compressed()
    path = place / "out/compression.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"featherweight": "\x1b[2J[red]", "model": "\x1b]0;x\x07"}))
    for result in (call("inspect", "out", code=2), call("inspect", "out", "--model", "own.py:net", "--data", "own.py:task")):
        assert "\x1b" not in result.output and "\x07" not in result.output


def test_random_weights_are_pointed_out(place: Path) -> None:
    settings = ("--set", "stages.0.train.epochs=0", "--set", "stages.1.train.epochs=0", "--set", "stages.1.retrain.epochs=0")
    noted = call("compress", "lenet5", "--data", "digits", "--recipe", "mine.yaml", *settings, "-o", "out")
    assert "random weights" in message(noted)
    shown = call("inspect", "out")
    assert "lenet5 on digits" in shown.stdout, "built-in names are recorded"


# --- interruption, another run's folder, a disk that is full --------------------------------------------------------------


def started(*arguments: str, sleep: float = 0.0, file_bytes: int | None = None) -> subprocess.Popen[str]:
    """The command in a process of its own."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    environment = os.environ | {"OMP_NUM_THREADS": "1", "SLEEP": str(sleep), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "featherweight", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=limit)


def test_interrupted_it_saves_and_says_how_to_go_on(place: Path) -> None:
    arguments = ("compress", *OURS, "-o", "out", "--set", "stages.0.train.epochs=1", "--set", "stages.1.train.epochs=4")
    process = started(*arguments, sleep=0.2)
    deadline = time.monotonic() + 300
    while not (place / "out.work/checkpoint.pt").exists() and time.monotonic() < deadline:  # the dense stage is done
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # what schedulers send; it is handed to what Ctrl-C asks
    out, told = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in told and not out, told
    assert told.splitlines()[-1].strip() == f"python -m featherweight {' '.join(arguments)}".replace("*", "'*'")
    assert (place / "out.work/checkpoint.pt").exists() and not (place / "out").exists()
    other = call(*arguments, "--seed", "1", code=2)
    assert "unfinished run" in message(other) and "seed" in message(other)
    going = call(*arguments)
    assert "going on from the checkpoint" in message(going) and "stage dense done" not in going.stderr
    assert not (place / "out.work").exists()
    call("compress", *OURS, "-o", "whole", "--set", "stages.0.train.epochs=1", "--set", "stages.1.train.epochs=4")
    assert (place / "out/model.safetensors").read_bytes() == (place / "whole/model.safetensors").read_bytes()


def test_a_workdir_that_is_given_is_kept_and_cannot_be_mixed_up(place: Path) -> None:
    compressed("--workdir", "w")
    assert (place / "w/checkpoint.pt").exists()
    assert "another recipe" in message(compressed("--workdir", "w", "--set", "stages.1.keep=0.3", code=2))
    (place / "w/checkpoint.pt").write_bytes(b"damaged")
    assert "damaged" in message(compressed("--workdir", "w", code=4))


def test_a_full_disk(place: Path) -> None:
    process = started("compress", *OURS, "-o", "out", file_bytes=600)
    out, told = process.communicate(timeout=300)
    assert process.returncode == 6 and "Traceback" not in told and "Free space" in told, told
    assert not (place / "out").exists() and not out


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A suite that was started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_interrupt_ends_at_once(interruptible: None) -> None:
    with pytest.raises(KeyboardInterrupt), display.Display(["a"]):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the first one only asks
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_monitor_stops_after_the_first_interrupt(interruptible: None) -> None:
    step = Progress("a", "train", 1, 2, 0.5, None, {}, 1.0)
    with display.Display(["a"]) as shown:
        shown(step)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            shown(step)


def test_what_could_not_be_counted_is_compared_too() -> None:
    without, counted = Measurement(50.0, 1, 1, 32, None, ("a reason",)), Measurement(50.0, 1, 1, 32, 7)
    assert console.compared(without, without)[1] == []
    assert console.compared(without, counted)[1] == ["MACs"]


@pytest.mark.parametrize("width", [80, 120])
def test_live_lines_fit_the_terminal(width: int) -> None:
    shown = display.Display(["dense", "20x"])
    shown(Progress("20x", "train", 10, 920, 0.25, 98.7654, {"stage2.0.shortcut.conv.weight": 0.5, "b": 0.1}, 3700.0))
    screen = console.Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    screen.print(shown)
    first, second, *_ = screen.export_text().splitlines()
    assert "stage 2/2 20x, train" in first and "10/920" in first and "1:01:40 left" in first and len(first) <= width
    assert "loss 0.2500" in second and "98.77" in second and "0.500 at stage2.0.shortcut.conv.weight" in second


def test_help_shows_a_flag_alone_and_no_colour_means_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.COLOR_SYSTEM", "auto")
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for words in (("recipes",), ("export", "--help")):
        assert "\x1b" in call(*words).stdout, "or nothing is shown by the rest of this"
    monkeypatch.setenv("NO_COLOR", "1")
    overview.plain()
    for words in (("--help",), *((name, "--help") for name in overview.COMMANDS), ("recipes",)):
        shown = call(*words).stdout
        assert "\x1b" not in shown and "<bool>" not in shown
    assert "\x1b" not in call("expotr", code=2).stderr
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", None)
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" not in call("recipes").stdout, "piped"


def test_a_warning_about_the_data_is_a_note(place: Path) -> None:
    x, y = np.zeros((8, 6), np.float32), np.arange(8) % 2
    np.savez(place / "a.npz", x=x, y=y, x_test=x[:2], y_test=np.zeros(2, np.int64))
    said = message(call("plan", "own.py:net", "--data", "npz:a.npz", "--recipe", "mine.yaml"))
    assert "warning: npz: a.npz: the test part has no sample of the class '1'" in said and "DataWarning" not in said
