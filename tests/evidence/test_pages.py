"""Pages: well-formed, alone, small, readable; and in Chromium without an error or a request, every control at work."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, MISSING, drive
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from featherweight import compress, recipes
from featherweight.cli.commands import app
from featherweight.cli.inputs import network as network_of
from featherweight.errors import ArtifactError, InputError
from featherweight.evidence import evidence_page, optimise, report_page, study, svg
from featherweight.evidence.examples import Examples, of_sequences
from featherweight.evidence.page import Page
from featherweight.zoo import datasets, dna, sequences, tasks

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Structure(HTMLParser):
    """Every tag closed in order; ids, links and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(page: Path) -> Structure:
    """A page that stands alone: no address of anything else, ids once, labels for controls, small."""
    text = page.read_text()
    found = Structure()
    found.feed(text)
    found.close()
    assert found.open == [] and len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("data:", "#")) for link in found.links), found.links
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S*", text) == []
    assert "url(" not in text and "@import" not in text and "fetch(" not in text and "XMLHttpRequest" not in text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text and "@media print" in text
    assert not re.search(r"(?<![\w+/])(nan|NaN|inf)(?![\w+/])", text) and page.stat().st_size < evidence_page.LARGEST
    assert text.count("<svg") >= 1 and text.count("<title>") >= text.count('role="img"')
    return found


class Sized(nn.Module):
    """A little recurrent network on bases: fast, and with all that the page can show."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.recurrent(x.transpose(1, 2))[0].mean(1))


def noisy(network: nn.Module, size: float) -> nn.Module:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return network


@pytest.fixture(scope="module")
def examples() -> Examples:
    return of_sequences(sequences.planted((10, 15, 15), length=40))


def two(size: float) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense, small = Sized(), Sized()
    small.load_state_dict(dense.state_dict())
    return dense.eval(), noisy(small, size).eval()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, examples: Examples) -> Path:
    dense, small = two(0.3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimise.optimise, "__kwdefaults__", {**optimise.optimise.__kwdefaults__, "steps": 5})
        torch.manual_seed(1)
        found = study.examine(dense, small, examples, other=Sized(), untrained=Sized())
        look = evidence_page.looks(dense, small, found)
        built = evidence_page.build(found, (dense, small), ("a<b", "small"), look=look, about={"data": "<planted>"})
    path = tmp_path_factory.mktemp("page") / "evidence.html"
    assert built.write(path) == path.stat().st_size
    return path


def test_the_page_stands_alone(page: Path) -> None:
    found = checked(page)
    assert {"browser", "stage", "facts", "filter", "pick", "before", "after", "data"} <= set(found.ids)
    assert "Evidence: a<b and small" in found.texts and "<planted>" in found.texts, "names are escaped, and come out as they are"


def test_the_data_is_that_of_the_networks(page: Path, examples: Examples) -> None:
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    shown = json.loads(held)["examples"]
    assert len(shown) == len(examples) == 30
    one = next(example for example in shown if example["marks"][0]["name"] == "planted")
    number = examples.names.index(one["name"])
    assert examples.planted is not None and examples.codes is not None
    assert [one["marks"][0]["start"], one["marks"][0]["end"]] == examples.planted[number].tolist()
    assert one["letters"] == dna.decoded(examples.codes)[number]
    dense, _ = two(0.3)
    leaf = examples.inputs[number : number + 1].clone().requires_grad_()
    logits = dense(leaf)
    (gradient,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], leaf)
    row = ((gradient - gradient.mean(1, keepdim=True)) * leaf).sum(1)[0].detach().numpy()
    import base64

    bytes_of = np.frombuffer(base64.b64decode(one["dense"]), dtype=np.int8)
    np.testing.assert_allclose(bytes_of / 127, row / np.abs(row).max(), atol=0.005)
    strip = np.frombuffer(base64.b64decode(one["strips"]["dense, prefix"]), dtype=np.uint8)
    with torch.no_grad():
        alone = dense(examples.inputs[number : number + 1, :, :30]).softmax(1)[0, 1].item()
    assert strip[29] / 255 == pytest.approx(alone, abs=0.003)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here: the script is checked by Chromium alone")
def test_the_script_is_javascript(tmp_path: Path) -> None:
    script = resources.files("featherweight.evidence").joinpath("page.js").read_text()
    (tmp_path / "page.js").write_text(script)
    subprocess.run(["node", "--check", str(tmp_path / "page.js")], check=True)
    (tmp_path / "page.js").write_text(script + "}")
    assert subprocess.run(["node", "--check", str(tmp_path / "page.js")], capture_output=True).returncode != 0


CONTROLS = """
const facts = document.getElementById("facts"), stage = document.getElementById("stage");
const said = function () { return facts.textContent.split(":")[0]; };
const press = function (key) { document.body.dispatchEvent(new KeyboardEvent("keydown", { key: key, bubbles: true })); };
told.first = said();
told.letters = stage.querySelectorAll("use").length;
told.strips = stage.querySelectorAll("rect[fill^=rgb]").length;
document.getElementById("after").click(); told.after = said();
document.getElementById("before").click(); told.before = said();
press("ArrowRight"); press("ArrowRight"); told.right = said();
press("ArrowLeft"); told.left = said();
press("End"); told.end = said();
press("Home"); told.home = said();
const pick = document.getElementById("pick"), filter = document.getElementById("filter");
pick.value = "4"; pick.dispatchEvent(new Event("change")); told.picked = said();
told.filtered = {};
for (const option of filter.options) {
  filter.value = option.value; filter.dispatchEvent(new Event("change"));
  told.filtered[option.value] = facts.textContent.startsWith("No example") ? 0 : Number(said().split(" of ")[1]);
}
told.colours = [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color];
told.wide = document.documentElement.scrollWidth > window.innerWidth;
"""


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_every_control_works_in_chromium(page: Path) -> None:
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    kinds = [example["kinds"] for example in json.loads(held)["examples"]]
    told = drive(page, CONTROLS)
    assert told["wrong"] == [] and told["requests"] == []
    assert told["letters"] > 20 and told["strips"] == 4 * 40
    steps = ("first", "after", "before", "right", "left", "end", "home", "picked")
    assert [told[step] for step in steps] == [f"{n} of 30" for n in (1, 2, 1, 3, 2, 30, 1, 5)]
    expected = {kind: sum(kind in one for one in kinds) for kind in ("flip", "lost", "won", "worst")}
    assert told["filtered"] == {"all": 30} | expected and expected["worst"] == 10
    assert told["wide"] is False


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_it_is_dark_and_narrow_where_asked(page: Path) -> None:
    told = drive(page, CONTROLS, size="400,800", dark=True)
    assert told["wrong"] == [] and told["wide"] is False
    assert told["colours"] == ["rgb(21, 22, 26)", "rgb(236, 236, 241)"]


# --- the commands --------------------------------------------------------------------------------------------------------


def call(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(4, 16, 9), nn.Linear(16, 2)

    def forward(self, bases):
        return self.fc(torch.relu(self.conv(bases)).amax(2))

def net():
    torch.manual_seed(0)
    return Net()
"""
DATA = ("--data", "tfbs:own.fa")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Peaks of one's own, a network, and two artifacts of it: `near` keeps most weights, `far` a fiftieth."""
    folder = tmp_path_factory.mktemp("place")
    held = sequences.planted((40, 20, 20))
    rows = []
    for part in (held.train, held.validation, held.test):
        rows += list(zip(dna.decoded(part.codes), part.labels.tolist(), strict=True))
    (folder / "own.fa").write_text("".join(f">{label}\n{letters}\n" for letters, label in rows))
    (folder / "own.py").write_text(OWN)
    network, task = network_of(f"{folder}/own.py:net"), sequences.task(str(folder / "own.fa"))
    for name, ratio in (("near", 1.2), ("far", 50)):
        recipe = recipes.progressive_admm(keep=(f"{ratio}x",), epochs=0, retrain_epochs=0, fisher=0, sweep=False)
        compress(network, recipe, task).save(folder / name, model="own.py:net")
    return folder


@pytest.fixture
def place(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def test_the_command_compares_and_requires(place: Path) -> None:
    given = (*DATA, "--model", "own.py:net", "--json", "--examples", "20")
    told = json.loads(
        call("evidence", "own.py:net", "near", *given, "--require", "pearson=.9", "--require", "same_answers=.5").stdout
    )
    assert told["numbers"]["pearson"] > 0.9 and told["unmet"] == [] and told["examples"] == 20
    assert told["numbers"]["floor_pearson"] < told["numbers"]["pearson"] and "labels of the file" in told["how"]
    told = json.loads(call("evidence", "own.py:net", "far", *given, "--require", "pearson=.9", code=1).stdout)
    assert told["verdict"]["same"] is False and told["unmet"][0].startswith("pearson is 0.")
    refused = call("evidence", "near", "near", *given, "--require", "pearsn=.9", code=2)
    assert "Did you mean 'pearson'" in refused.stderr
    assert "give name=least" in call("evidence", "near", "near", *given, "--require", "pearson", code=2).stderr


def test_a_dense_network_needs_its_weights(place: Path) -> None:
    given = ("near", *DATA, "--model", "own.py:net")
    assert "--weights FILE" in call("evidence", "deepmotif_rnn", *given, code=2).stderr.replace("\n", " ")
    refused = call("evidence", "far", *given, "--weights", "dense.safetensors", code=2)
    assert "leave --weights out" in refused.stderr


def test_a_page_is_written_whatever_the_requirement(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimise.optimise, "__kwdefaults__", {**optimise.optimise.__kwdefaults__, "steps": 5})
    path = tmp_path / "page.html"
    given = (*DATA, "--model", "own.py:net", "-o", str(path), "--require", "auc=.999", "--yardstick", "far")
    said = call("evidence", "own.py:net", "near", *given, code=1)
    assert "error: auc is " in said.stderr and f"wrote {path}" in said.stdout.replace("\n", "")
    texts = checked(path).texts
    assert any(text.startswith("✗ Less than was required. ") for text in texts) and any("required: auc is" in t for t in texts)


def test_the_page_of_runs(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    call("report", "near", "far", "-o", str(path))
    texts = checked(path).texts
    assert "Compression: 2 runs" in texts and any("progressive_admm (50x: 2 % of its targets' weights)" in text for text in texts)
    assert any(text.startswith("Came of it, dense to 50x: score ") for text in texts)
    assert "sparse: count" in "".join(texts) and "conv.weight" in texts
    alone = report_page.build([place / "near"])
    assert alone.title == "Compression: near"
    with pytest.raises(InputError, match="given twice"):
        report_page.build([place / "near", place / "near"])
    with pytest.raises(ArtifactError, match="not an artifact"):
        report_page.build([tmp_path])


@pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
def test_the_page_of_runs_in_chromium(place: Path, tmp_path: Path) -> None:
    report_page.build([place / "near", place / "far"]).write(tmp_path / "report.html")
    told = drive(tmp_path / "report.html", "told.charts = document.querySelectorAll('main svg').length;")
    assert told == {"charts": 2, "wrong": [], "requests": []}


def test_what_a_foreign_artifact_says_is_escaped(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "near", tmp_path / "near")
    description = tmp_path / "near/compression.json"
    held = json.loads(description.read_text())
    held["recipe"]["name"] = "</script><script>alert(1)</script>"
    held["report"][1]["stage"] = "<img src=x onerror=alert(1)>"
    held["edits"].append({"edit": "structure", "change": {"kind": "cut", "cuts": [["<b>", 0, 9, 5], 3], "keeps": []}})
    description.write_text(json.dumps(held))
    report_page.build([tmp_path / "near"]).write(tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in text and "<img src" not in text and "&lt;img src=x" in text
    checked(tmp_path / "r.html")


def test_the_front_is_what_nothing_beats() -> None:
    points = [(10.0, 90.0), (5.0, 80.0), (7.0, 95.0), (20.0, 95.0), (4.0, 70.0), (5.0, 85.0)]
    beaten = [p for p in points if any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]
    assert report_page.front(points) == sorted(set(points) - set(beaten)) == [(4, 70), (5, 85), (7, 95)]


# --- images --------------------------------------------------------------------------------------------------------------


def test_images_are_compared_on_a_grid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A network that reads the upper left corner, and one that reads the lower right."""

    class Corner(nn.Module):
        def __init__(self, place: int) -> None:
            super().__init__()
            self.fc, self.place = nn.Linear(3 * 64, 10), place

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x[:, :, self.place : self.place + 8, self.place : self.place + 8].flatten(1))

    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=dice)
    held = datasets.Dataset(pixels, torch.arange(30) % 10, pixels, torch.arange(30) % 10)
    monkeypatch.setattr(datasets, "cifar10", lambda: held)
    from featherweight.evidence.examples import of_images

    looked = of_images("cifar10", 24)
    assert len(looked) == 24 and torch.equal(looked.inputs, tasks.normalised_photographs(pixels[:24]))
    torch.manual_seed(0)
    dense, same, other = Corner(0), Corner(0), Corner(24)
    same.load_state_dict(dense.state_dict())
    found = study.examine(dense, noisy(same, 1e-3), looked, untrained=other)
    assert found.dense.maps.shape == (24, 64) and found.agreement.medians()["pearson"] > 0.99
    assert found.floor is not None and found.floor.medians()["pearson"] < 0.2
    grid = found.dense.maps.reshape(24, 8, 8)
    assert grid[:, :2, :2].min() > 0 and grid[:, 2:].max() == 0
    assert found.verdict.same and "fixed bar" in " ".join(found.verdict.reasons)
    apart = study.examine(dense, other, looked)
    assert not apart.verdict.same and apart.deletion["dense, small's"][2] == 0 < apart.deletion["dense, own"][5]
    built = evidence_page.build(apart, (dense, other), ("dense", "other"), about={})
    built.write(tmp_path / "images.html")
    texts = checked(tmp_path / "images.html").texts
    assert "Where they disagree" in texts and "only small wrong" in texts
    if CHROMIUM is not None:
        told = drive(tmp_path / "images.html", "told.views = document.querySelectorAll('#stage image').length;")
        assert told == {"views": 4, "wrong": [], "requests": []}


def test_many_large_pictures_leave_the_page_small(tmp_path: Path) -> None:
    dice = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (150, 3, 100, 80), dtype=torch.uint8, generator=dice)
    labels = torch.arange(150) % 3
    looked = Examples("images", pixels.float(), labels, ("a", "b", "c"), tuple(map(str, range(150))), "", pictures=pixels)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    built = evidence_page.build(study.examine(network, network, looked), (network, network), ("a", "b"), about={})
    assert 1_000_000 < built.write(tmp_path / "large.html") < evidence_page.LARGEST
    assert built.data is not None and 20 < len(built.data["examples"]) < 120


def test_png_is_what_it_is_made_of() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    import base64

    raw = base64.b64decode(svg.png(pixels).partition(",")[2])
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(raw):
        (length,) = struct.unpack(">I", raw[place : place + 4])
        name, content = raw[place + 4 : place + 8], raw[place + 8 : place + 8 + length]
        assert struct.unpack(">I", raw[place + 8 + length : place + 12 + length])[0] == zlib.crc32(name + content)
        chunks[name] = content
        place += 12 + length
    assert struct.unpack(">IIBB", chunks[b"IHDR"][:10]) == (7, 5, 8, 2)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(5, 22)
    assert not rows[:, 0].any() and np.array_equal(rows[:, 1:].reshape(5, 7, 3), pixels)


# --- the verdict ---------------------------------------------------------------------------------------------------------


def test_the_verdict_is_by_the_yardstick_and_says_no(examples: Examples) -> None:
    dense, near = two(0.02)
    _, far = two(3.0)
    _, other = two(0.3)
    torch.manual_seed(9)
    floor = Sized()
    yes = study.examine(dense, near, examples, other=other, untrained=floor)
    no = study.examine(dense, far, examples, other=other, untrained=floor)
    assert yes.verdict.same and yes.verdict.says.startswith("Yes: ")
    assert (
        not no.verdict.same
        and no.verdict.says.startswith("No: ")
        and "below that of two dense networks" in " ".join(no.verdict.reasons)
    )
    torch.manual_seed(7)
    nothing = study.examine(dense, near, examples, other=Sized(), untrained=other)
    assert not nothing.verdict.same and "yardstick is no better than the floor" in nothing.verdict.says
    assert "a yardstick is missing" in " ".join(study.examine(dense, near, examples).verdict.reasons)


def test_the_verdict_is_of_numbers_alone() -> None:
    good = {"pearson": 0.90, "top": 0.8, "auc": 0.99, "dense_auc": 0.99, "p_of_loss": 0.5}
    good |= {"yardstick_pearson": 0.94, "yardstick_top": 0.9, "floor_pearson": 0.2}
    assert study.judged(good).same
    for change, says in (
        ({"pearson": 0.88}, "does not read the same evidence, though it answers as well"),
        ({"top": 0.79}, "does not read the same evidence, though"),
        ({"auc": 0.97, "p_of_loss": 0.001}, "reads the same evidence, but answers worse"),
        ({"auc": 0.97, "p_of_loss": 0.001, "pearson": 0.1}, "and answers worse"),
        ({"floor_pearson": 0.9}, "Nothing can be said"),
    ):
        verdict = study.judged(good | change)
        assert not verdict.same and says in verdict.says
    assert study.judged(good | {"auc": 0.97}).same, "it may be chance"
    alone = {name: value for name, value in good.items() if not name.startswith(("yardstick", "floor"))}
    assert "without a yardstick" in study.judged(alone).says and not study.judged(alone | {"pearson": 0.84}).same


def test_networks_of_other_problems_are_refused(examples: Examples) -> None:
    dense, small = two(0.1)
    three = nn.Sequential(nn.Flatten(), nn.Linear(160, 3))
    with pytest.raises(InputError, match="2 and 3 classes"):
        study.examine(dense, three, examples)
    with pytest.raises(InputError, match="no example"):
        study.examine(dense, small, Examples("other", torch.zeros(0, 4, 9), torch.zeros(0).long(), ("a", "b"), (), ""))
    with pytest.raises(InputError, match="no positive one"):
        study.examine(dense, small, Examples("other", torch.rand(3, 4, 9), torch.zeros(3).long(), ("a", "b"), ("x",) * 3, ""))


def test_a_page_needs_a_place(tmp_path: Path) -> None:
    from featherweight.errors import StorageError

    (tmp_path / "file").write_text("")
    empty: Any = Page("x")
    with pytest.raises(StorageError, match="cannot write"):
        empty.write(tmp_path / "file" / "page.html")
