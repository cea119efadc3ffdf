"""The whole chain of commands on a network and a task in the user's own file, and what is said where that code goes wrong."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from featherweight.cli import console, inputs, jobs, usercode
from featherweight.cli.commands import app
from featherweight.cli.outline import budget_of
from featherweight.errors import InputError
from featherweight.files import artifact
from featherweight.measurement import Measurement
from featherweight.recipe.reading import from_dict
from featherweight.recipes import RECIPES
from featherweight.run.report import Row, score, table
from featherweight.zoo.networks import NETWORKS

SOUND = """
import torch
from torch import nn
from featherweight import Task

class Sound(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.gru, self.out = nn.Conv1d(3, 8, 3, padding=1), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, sound):
        hidden = torch.relu(self.conv(sound)).transpose(1, 2)
        return self.out(self.gru(hidden)[0][:, -1])

def model():
    torch.manual_seed(0)
    return Sound()

def batches(epoch):
    g = torch.Generator().manual_seed(epoch)
    return [(torch.randn(8, 3, 10, generator=g), torch.randint(0, 4, (8,), generator=g)) for _ in range(2)]

def loss(network, batch):
    return nn.functional.cross_entropy(network(batch[0]), batch[1])

def share(network):
    with torch.no_grad():
        return sum(float((network(x).argmax(1) == y).float().mean()) for x, y in batches(9)) / 2

def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)

def task_of(**changed):
    parts = dict(example_inputs=(torch.ones(1, 3, 10),), train=batches, loss=loss, evaluate=share, optimizer=adam)
    return Task(**parts | changed)

task = task_of()

def failing_loss(network, batch):
    raise KeyError("in my loss")

def failing_score(network):
    return {}["no score"]

def dumped(network, batch):
    raise RuntimeError("\\n".join(f"line {n}" for n in range(300)))

in_loss = task_of(loss=failing_loss)
in_score = task_of(evaluate=failing_score)
long_text = task_of(loss=dumped)
another_name = task_of(example_inputs={"music": torch.ones(1, 3, 10)})
other_shape = task_of(example_inputs=(torch.ones(1, 5, 10),))
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's sound.py."""
    (tmp_path / "sound.py").write_text(SOUND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words), prog_name="featherweight")
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def compressed(model: str = "sound.py:model", data: str = "sound.py:task", out: str = "art", code: int = 0) -> Result:
    words = ("--recipe", "l1_filters", "--set", "epochs=1", "--set", "macs=70%")
    return call("compress", model, "--data", data, *words, "-o", out, code=code)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of sound.py, made once, and what was told."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "sound.py").write_text(SOUND)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "told").write_text(compressed().stdout)
    return folder


@pytest.fixture
def art(made: Path, place: Path) -> Path:
    """The same artifact in `place`."""
    return Path(shutil.copytree(made / "art", place / "art"))


def commands(text: str) -> list[list[str]]:
    """The lines that are a command, as words."""
    lines = [line.removeprefix("next:").strip() for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("featherweight ")]


def test_compress_ends_with_the_commands_that_go_on_and_each_of_them_works(made: Path, art: Path) -> None:
    told = commands((made / "told").read_text())
    assert [words[0] for words in told] == ["inspect", "bench", "export", "pack"]
    for words in told:
        fast = {"bench": ("--runtime", "eager", "--rounds", "5"), "export": ("--format", "pt2")}.get(words[0], ())
        call(*words, *fast)
    assert (art / "model.fwz").exists() and (art / "model.pt2").exists()


def test_prune_without_data_does_so_too_and_sums_up_what_there_is_less_of(place: Path) -> None:
    done = call("prune", "sound.py:model", "--input", "1x3x10", "--macs", "60%", "-o", "cut")
    assert "fewer MACs, 1." in done.stdout, "what there is least of comes first"
    told = commands(done.stdout)
    assert [words[0] for words in told] == ["inspect", "bench", "export", "pack"]
    for words in told:
        call(*words, *{"bench": ("--runtime", "eager", "--rounds", "5"), "export": ("--format", "pt2")}.get(words[0], ()))


def test_what_an_artifact_needs_is_said_as_the_exact_command(art: Path) -> None:
    for words in (("inspect", "art"), ("export", "art", "--format", "pt2"), ("pack", "art")):
        refused = call(*words, code=2)
        assert "no code" in refused.stderr and "Traceback" not in refused.output
        (said,) = commands(refused.stderr)
        assert said[: len(words)] == list(words), "the same command, with what it lacks"
        call(*said)


def test_code_that_came_along_or_is_no_plain_text_is_not_offered(place: Path, art: Path) -> None:
    path = place / "art/compression.json"
    (place / "art/sound.py").write_text(SOUND)
    hints = ("art/sound.py:model", "../x.py:net", "/tmp/x.py:net", "a.py:net; rm -rf .", "a.py:net\nb", "\x1b[2Ja.py:net")
    for hint in (*hints, "$(x).py:n"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": hint}))
        refused = call("inspect", "art", code=2)
        assert "FILE.py:FUNCTION" in refused.stderr and hint not in refused.stderr


def test_what_is_noted_of_code_is_plain_and_tells_no_folders(tmp_path: Path) -> None:
    assert jobs.noted("lenet5", NETWORKS) == "lenet5"
    assert jobs.noted("src/net.py:make", NETWORKS) == "src/net.py:make"
    assert jobs.noted("/home/me/secret/net.py:make", NETWORKS) == jobs.noted("../net.py:make", NETWORKS) == "net.py:make"
    assert jobs.noted("my net.py:make", NETWORKS) is None


def test_structure_needs_a_shape_and_no_data(art: Path) -> None:
    shown = json.loads(call("inspect", "sound.py:model", "--input", "1x3x10", "--json").stdout)
    assert shown == json.loads(call("inspect", "sound.py:model", "--data", "sound.py:task", "--json").stdout)
    planned = json.loads(call("plan", "sound.py:model", "--budget", "macs=80%", "--input", "1x3x10", "--json").stdout)
    assert planned["macs"]["after"] <= 0.8 * planned["macs"]["before"]
    assert "--input 1x3x224x224" in call("inspect", "sound.py:model", code=2).stderr.replace("\n", " ")
    assert "not both" in call("inspect", "sound.py:model", "--input", "1x3x10", "--data", "digits", code=2).stderr
    assert "give --data" in call("inspect", "art", "--input", "1x3x10", code=2).stderr
    call("export", "art", "--model", "sound.py:model", "--input", "1x3x10", "--format", "pt2")


@pytest.mark.parametrize("name", NETWORKS)
def test_structure_of_built_in_networks_reads_no_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.zoo import datasets as data
    from featherweight.zoo import tasks

    def read() -> None:
        raise AssertionError("data was read")

    for source in ("digits", "mnist", "cifar10"):
        monkeypatch.setattr(data, source, read)
    for source in tasks.TASKS:
        assert inputs.task(source, 0).example_inputs[0].abs().max() > 0
    monkeypatch.setattr("featherweight.cli.outline.outline", lambda graph: {"macs": 1})
    monkeypatch.setattr("featherweight.cli.artifacts.trace", lambda network, example: None)
    assert json.loads(call("inspect", name, "--json").stdout) == {"macs": 1}


def test_a_plan_reads_no_data_either(monkeypatch: pytest.MonkeyPatch) -> None:
    from featherweight.zoo import datasets as data

    monkeypatch.setattr(data, "mnist", lambda: pytest.fail("data was read"))
    planned = json.loads(
        call("plan", "lenet5", "--data", "mnist", "--recipe", "l1_filters", "--set", "epochs=2", "--json").stdout
    )
    assert [stage["train"]["steps"] for stage in planned["stages"]][-1] == 2 * 469


def test_a_plan_knows_how_many_batches_an_epoch_has() -> None:
    from featherweight.zoo import tasks

    assert len(tasks.digits().batches(0)) == tasks.BATCHES["digits"]
    assert {"mnist": -(-60_000 // 128), "cifar10": -(-50_000 // 128)}.items() <= tasks.BATCHES.items()


def test_inputs_have_a_shape_and_a_type() -> None:
    first, second = inputs.shapes(["2x3", "1x4:int64"]).example_inputs
    assert first.shape == (2, 3) and first.dtype == torch.float32 and first.abs().min() > 0
    assert second.shape == (1, 4) and second.dtype == torch.int64
    wrongs = {"3,4": "sizes of one input", "0x3": "sizes", "1x3:int6": "Did you mean 'int64'", "99999x99999": "more than"}
    for wrong, said in wrongs.items():
        with pytest.raises(InputError, match=said):
            inputs.shapes([wrong])


@pytest.mark.parametrize(("asked", "kept"), [("50%", 0.5), ("0.5", 0.5), (".5", 0.5), ("12.5 %", 0.125)])
def test_a_share_is_one_thing_everywhere(asked: str, kept: float) -> None:
    assert budget_of(f"macs={asked}") == ("macs", kept)
    built = inputs.recipe("l1_filters", [f"macs={asked}"])
    assert built == RECIPES["l1_filters"](macs=kept)
    data = built.to_dict()
    (cut,) = [stage for stage in data["stages"] if stage["kind"] == "cut_units"]
    cut["units"]["macs"] = asked if asked.endswith("%") else kept
    assert from_dict(data) == built
    (low_rank,) = [stage for stage in inputs.recipe("decompose", [f"macs={asked}"]).stages if stage.kind == "constrain"]
    assert low_rank.macs == kept
    with pytest.raises(InputError, match="did you mean macs=50%"):
        budget_of("macs=50")


def test_a_share_reaches_into_a_recipe_that_is_a_file(place: Path) -> None:
    stage = {"name": "50%", "units": {"criterion": "l1", "macs": "40%"}}
    (place / "r.json").write_text(json.dumps({"name": "r", "stages": [stage]}))
    read = inputs.recipe("r.json", ["stages.0.units.macs=30%"])
    assert read.stages[0].name == "50%" and read.stages[0].units is not None and read.stages[0].units.macs == 0.3
    assert inputs.recipe("r.json").stages[0].units.macs == 0.4  # type: ignore[union-attr]


# --- the user's code -----------------------------------------------------------------------------------------------------


def test_a_users_file_is_found_by_its_name_as_spawned_workers_find_it(place: Path) -> None:
    """Pickle writes a class as its module's name, and a spawned worker has the same folders in sys.path."""
    (place / "mine_alone.py").write_text("class Numbers: pass\n")
    module = usercode.imported(place / "mine_alone.py")
    found = importlib.util.find_spec(module.__name__)
    assert module.__name__ == "mine_alone" and found is not None and found.origin == str(place / "mine_alone.py")
    assert isinstance(pickle.loads(pickle.dumps(module.Numbers())), module.Numbers)
    (place / "taker.py").write_text("import mine_alone\n")
    assert usercode.imported(place / "taker.py").mine_alone is module, "one file, one module"


@pytest.mark.parametrize("name", ["json.py", "torch.py", "this.py", "a.b.py"])
def test_a_users_file_takes_no_other_modules_name(place: Path, name: str) -> None:
    held = sys.modules.get(Path(name).stem)
    (place / name).write_text("made = 1\n")
    module = usercode.imported(place / name)
    assert module.made == 1 and module.__name__ != Path(name).stem and sys.modules.get(Path(name).stem) is held


def test_two_files_of_one_name_are_two_modules(place: Path) -> None:
    for folder in ("a", "b"):
        (place / folder).mkdir()
        (place / folder / "twin_net.py").write_text(f"here = {folder!r}\n")
    first, second = (usercode.imported(place / folder / "twin_net.py") for folder in ("a", "b"))
    assert (first.here, second.here) == ("a", "b") and first.__name__ != second.__name__


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("in_loss", 'raise KeyError("in my loss")'),
        ("in_score", 'return {}["no score"]'),
        ("long_text", "lines more"),
        ("another_name", "does not take the example of sound.py:another_name (music="),
        ("other_shape", "(sound.py, line 12, in forward)"),
    ],
)
def test_an_error_of_the_users_code_is_a_few_lines_with_the_place(place: Path, data: str, says: str) -> None:
    failed = compressed(data=f"sound.py:{data}", code=2)
    assert says in re.sub(r"\s+", " ", failed.stderr), failed.stderr
    assert "Traceback" not in failed.output and "featherweight/" not in failed.stderr
    assert len(failed.stderr.splitlines()) < 20 and not (place / "art").exists()


def test_a_network_that_cannot_be_followed_is_said_in_a_sentence(place: Path) -> None:
    """PyTorch's exporter logs and prints the graph so far, some 150 lines."""
    source = "from torch import nn\nclass N(nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"
    (place / "branch.py").write_text(source)
    failed = call("inspect", "branch.py:N", "--input", "1x3", code=1)
    assert "depends on the values of a tensor" in failed.stderr and len(failed.stderr.splitlines()) < 4


def test_files_that_are_no_target_are_named(place: Path) -> None:
    assert "say what to take from it, sound.py:name" in call("inspect", "sound.py", code=2).stderr
    assert "there is no file gone.fwz" in call("inspect", "gone.fwz", code=4).stderr


@pytest.mark.parametrize("width", [60, 80, 120])
def test_results_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "output", lambda: console.Console(width=width, highlight=False))
    measured = Measurement(0.9717, 431_080, 21_553, 8 * 431_080, 2_293_000)
    row = Row("tuned", measured, 0.05, {"a": (1, 20)}, 12, 60.0, 0.1, {"a": 0.031})
    console.results([row], Path("out"), {"model.safetensors": 1}, ["featherweight inspect out"])
    _, line, *rest = capsys.readouterr().out.splitlines()
    assert "0.9717" in line and "2,293,000" in line and "21,553" in line, "a number is not folded"
    assert len(line) <= width and rest[-1] == "next: featherweight inspect out"


def test_the_whole_traceback_is_shown_where_it_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "FEATHERWEIGHT_DEBUG=1" in compressed(data="sound.py:in_loss", code=2).stderr
    monkeypatch.setenv("FEATHERWEIGHT_DEBUG", "1")
    whole = compressed(data="sound.py:in_loss", code=2).stderr
    assert "Traceback (most recent call last)" in whole and "contract.py" in whole


def test_an_error_without_a_message_of_its_own_is_one_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise AttributeError("nobody thought of it")

    monkeypatch.setattr("featherweight.cli.outline.outline", broken)
    failed = call("inspect", "lenet5", code=1)
    assert "nobody thought of it" in failed.stderr and "report it" in failed.stderr and "Traceback" not in failed.output


@pytest.mark.parametrize("output", ["[x]", "x.sum()", "x.flatten(1)[:, :3]", "{'logits': x.flatten(1)}"])
def test_what_built_in_data_cannot_score_is_named(place: Path, output: str) -> None:
    (place / "odd.py").write_text(f"from torch import nn\nclass N(nn.Module):\n    def forward(self, x): return {output}\n")
    from featherweight.zoo import tasks

    made = usercode.imported(place / "odd.py").N()
    for scored in (tasks.digits().evaluate, lambda network: tasks.digits().loss(network, next(iter(tasks.digits().batches(0))))):
        with pytest.raises(InputError, match="class logits"):
            scored(made)


# --- what is printed -----------------------------------------------------------------------------------------------------

EVIL = "x\x1b[2J\x07\u202e\x9b31m[red]y[/red]\nThe files agree with their report.\r"


def test_names_from_files_are_one_line_without_controls() -> None:
    assert console.printable(EVIL) == "x?[2J???31m[red]y[/red]?The files agree with their report.?"
    assert len(console.printable("x" * 1_000_000)) < 3000
    assert str(console.written("[red]x[/red]")) == "[red]x[/red]" and not console.written("[red]x[/red]").spans


def test_a_name_with_a_line_break_forges_no_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = artifact.Description(featherweight=EVIL, data=EVIL, model=EVIL, edits=[], recipe={}, report=[])
    from featherweight.files.edits import Snapshot

    artifact.save(place / "art", Snapshot([], {"x": torch.ones(1)}), made)
    path = place / "art/compression.json"
    for change in ({}, {EVIL: 1}, {"edits": [{"edit": EVIL}], "model": "lenet5", "data": "digits"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        for words in (("inspect", "art"), ("inspect", "art", "--json"), ("pack", "art"), ("export", "art"), ("bench", "art")):
            result = CliRunner().invoke(app, list(words))
            assert result.exit_code in (2, 4), result.output
            assert "\nThe files agree" not in result.output
            assert all(letter.isprintable() or letter == "\n" for letter in result.output)
    console.json_object({EVIL: EVIL})
    said = capsys.readouterr().out
    assert json.loads(said) == {EVIL: EVIL} and all(letter.isprintable() or letter == "\n" for letter in said)


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        ([98.654, 97.0], ["98.65", "97.00"]),
        ([0.97171, 0.9683], ["0.9717", "0.9683"]),
        ([-0.2613, -1.045], ["-0.261", "-1.045"]),
        ([0.00123, 0.00119], ["0.001230", "0.001190"]),
        ([0.0, 100.0], ["0.00", "100.00"]),
    ],
)
def test_a_score_has_the_digits_that_tell_its_rows_apart(scores: list[float], shown: list[str]) -> None:
    rows = [Row("s", Measurement(s, 1, 1, 32, 1), None, {}, 0, 0.0, None, {}) for s in scores]
    assert [line[1] for line in table(rows)] == shown
    assert "points" not in console.change(*scores)


def test_a_change_of_the_score_is_told_in_its_own_unit() -> None:
    assert console.change(0.877, 0.81) == "score 0.8770 to 0.8100, 0.0670 lower"
    assert console.change(98.5, 98.75) == "score 98.50 to 98.75, 0.25 higher"
    assert score(float("nan")) == "nan"


def test_tests_reach_no_network_and_have_an_empty_home() -> None:
    import os
    import socket
    import urllib.request

    assert os.environ["HOME"] == os.environ["FEATHERWEIGHT_DATA"] and set(os.listdir(os.environ["HOME"])) <= {".cache", ".local"}
    reached = next(kind for kind in BaseException.__subclasses__() if kind.__name__ == "NetworkReached")
    with pytest.raises(reached):
        urllib.request.urlopen("http://192.0.2.1/", timeout=1)
    with pytest.raises(reached), socket.socket() as made:
        made.connect_ex(("192.0.2.1", 80))
    with pytest.raises(reached):
        socket.getaddrinfo("example.org", 80)
