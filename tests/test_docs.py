"""What the documents show works: every Python block runs, every command line is one that the program takes, every link leads
somewhere, and the examples of public docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shlex
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import featherweight
from featherweight.cli import app, inputs, oneshot, outline
from featherweight.cli.benchmarks import benchmarks
from featherweight.errors import FeatherweightError
from featherweight.recipes import FILES, RECIPES
from featherweight.run.goals import Goal
from featherweight.zoo import own_data, sources
from featherweight.zoo.networks import NETWORKS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


OTHERS = sorted(ROOT.glob("benchmarks/*/README.md"))  # on the site, too


def told(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def test_a_block_is_of_a_language_that_is_looked_at() -> None:
    """`text` is for formulas, drawings and forms: a program in it would be run by nobody."""
    found = {(told(page), name) for page in (*PAGES, *OTHERS) for name in re.findall(r"^```(.+)$", page.read_text(), re.M)}
    assert {name for _, name in found if not name.startswith("{")} <= {"python", "console", "sh", "text"}
    assert not [
        told(page) for page in (*PAGES, *OTHERS) for block in blocks(page, "text") if "import " in block or "= fw." in block
    ]


def run_python(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The page's blocks, one after the other, in `folder`, where `net.py` is that of the first page; no name is given to them."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        code = compile(block, str(page), "exec")
        if "import onnxruntime" in block and importlib.util.find_spec("onnxruntime") is None:
            break  # an extra, which the oldest environment has not
        exec(code, names)
    return names


START = ROOT / "docs" / "index.md"
NET = blocks(START, "python")[0]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs_as_it_stands_from_the_top_of_the_page_to_its_end(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(run_python(page, tmp_path, monkeypatch)) > 4, "nothing was run"
    for words in commands(page):  # a recipe in a file is one that the page wrote
        for recipe in asked(words, "--recipe"):
            inputs.recipe(recipe, asked(words, "--set"))


def test_net_py_is_one_file_and_every_page_that_names_it_says_where_it_is() -> None:
    assert blocks(ROOT / "README.md", "python")[0] == NET
    silent = [page.name for page in PAGES if "net.py:" in (text := page.read_text()) and not shows_net(page, text)]
    assert silent == []


def shows_net(page: Path, text: str) -> bool:
    """A page that is shown as a file, that has its functions, or that links to the one that has them."""
    shown = all(re.search(rf"^def {name}\(", text, re.M) for name in ("model", "task"))
    linked = re.search(r"\]\([./]*index\.md#a-network-to-try-it-on\)", text)
    return shown or bool(linked) or page.parent.name == "decisions" or page.name in ("command_line.md", "CHANGELOG.md")


# --- command lines -------------------------------------------------------------------------------------------------------

GROUP: Any = typer.main.get_command(app)


def commands(page: Path) -> list[list[str]]:
    """The words of each command line of ours in a block."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    lines = [line[2:] for line in lines if line.startswith("$ ")] + "\n".join(blocks(page, "sh")).splitlines()
    lines += re.findall(r"^    (featherweight .*)$", page.read_text(), re.M) if page in OTHERS else []
    return [words for line in lines if (words := ours(shlex.split(line, comments=True)))]


def ours(words: list[str]) -> list[str]:
    """What follows `featherweight`, also as a module in a launcher's line."""
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["featherweight"]:
        return words[words.index("-m") + 2 :]
    return words[1:] if words[:1] == ["featherweight"] else []


def inline(page: Path) -> list[list[str]]:
    """The words of each command that stands in a sentence or a table; what is left out there as `..` is left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    found = []
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        try:
            words = [word for word in shlex.split(code.replace("\\|", "|")) if word not in ("..", "...")]
        except ValueError:
            continue  # an apostrophe, no command
        named = words[:1] == ["featherweight"] and words[1:2] and words[1] in GROUP.commands
        if named or (len(words) > 1 and words[0] in GROUP.commands and any(word.startswith("-") for word in words)):
            found.append(words[1:] if named else words)
    return found


def asked(words: list[str], option: str) -> list[str]:
    """The values of an option, but for placeholders such as FILE."""
    return [word for before, word in pairwise(words) if before == option and not word.isupper()]


def check_names(words: list[str], page: Path) -> None:
    """What a command line names is there: the recipe and its keys, network, data, goal, benchmark."""
    for recipe in asked(words, "--recipe"):
        if not recipe.endswith(".yaml"):
            inputs.recipe(recipe, asked(words, "--set"))
    for data in asked(words, "--data"):
        assert is_code(data, page) or own_data.is_own(data) or data in inputs.BUILT_IN_DATA or data.startswith("tfbs:"), data
    for option, prefix in (("--to", ""), ("--faster", "faster=")):
        for goal in asked(words, option):
            Goal.of(prefix + goal)
    for budget in asked(words, "--budget"):
        outline.budget_of(budget)
    assert set(asked(words, "--criterion")) <= set(oneshot.CRITERIA)
    if words[0] == "reproduce" and len(words) > 1 and not words[1].isupper():
        assert words[1] in reproducible(), words[1]
    if words[0] == "recipes" and len(words) > 1 and not words[1].isupper():
        assert words[1] in (*RECIPES, *FILES), words[1]


reproducible = cache(benchmarks)  # reads every script


def is_code(text: str, page: Path) -> bool:
    """`file.py:name` of a file that pages show, or of the checkout."""
    file, name = text.rsplit(":", 1) if ".py:" in text else ("", "")
    if (ROOT / file).is_file():
        return re.search(rf"^(def {name}\(|{name} = )", (ROOT / file).read_text(), re.M) is not None
    shown = {"net.py": NET}.get(file, "\n".join(blocks(page, "python")))
    return bool(file) and re.search(rf"^(def {name}\(|{name} = )", shown, re.M) is not None


@pytest.mark.parametrize("page", [page for page in (*PAGES, *OTHERS) if commands(page)], ids=told)
def test_a_command_line_is_one_that_the_program_takes(page: Path) -> None:
    for words in commands(page):
        context = GROUP.commands[words[0]].make_context(words[0], words[1:])  # raises where an option is not there
        check_names(words, page)
        model = context.params.get("model")
        assert model is None or is_code(model, page) or sources.is_source(model) or model in NETWORKS, model
        for target in ("target", "dense", "small"):
            named = context.params.get(target)
            if isinstance(named, str):  # `small` is also an option
                assert is_code(named, page) or is_made(named, page) or named in NETWORKS, named


def is_made(target: str, page: Path) -> bool:
    """An artifact or a file that a line of the page writes or calls the reader's, that is there, or of a library."""
    text, name = page.read_text(), re.escape(target)
    made = re.findall(r'(?:-o |--output |pack |\.save\(")([^\s"]+)', text)
    yours = re.search(rf"your[^.]{{0,60}}{name}|{name}[^.]{{0,20}}your", text)
    return target in made or yours is not None or sources.is_source(target) or (ROOT / target).exists()


@pytest.mark.parametrize("page", [page for page in (*PAGES, *OTHERS) if inline(page)], ids=told)
def test_a_command_in_a_sentence_has_options_and_names_that_there_are(page: Path) -> None:
    for words in inline(page):
        try:
            GROUP.commands[words[0]].make_context(words[0], words[1:])
        except Exception as error:
            if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):  # it is a part, such as `export --format`
                raise
        check_names(words, page)


def test_a_wrong_name_in_a_command_line_is_found() -> None:
    page = ROOT / "README.md"
    right = shlex.split("compress lenet5 --data digits --recipe l1_filters --set macs=50%")
    check_names(right, page)
    for at, wrong in ((3, "digit"), (5, "l1_filter"), (7, "mac=50%")):
        with pytest.raises((AssertionError, FeatherweightError)):
            check_names([*right[:at], wrong, *right[at + 1 :]], page)


FOREIGN = re.compile(r"imagefolder:|hf:|(?:csv|npz|jsonl):|\S+\.(?:pth|pt|safetensors|csv)\b|tfbs:(?!planted)")


def test_a_line_of_the_readme_that_needs_a_file_says_whose() -> None:
    """It is of this repository, made by the page, or called yours in the line."""
    text = (ROOT / "README.md").read_text()
    made = set(re.findall(r'torch\.save\(.*?, "(\S+)"\)', text))
    lines = "\n".join(blocks(ROOT / "README.md", "console")).split("\n$ ")
    needs = [line for line in lines if {word for word in FOREIGN.findall(line) if not (ROOT / word).exists()} - made]
    assert len(needs) >= 2
    assert [line for line in needs if "your" not in line] == []


def test_the_readme_s_line_without_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the files that its blocks make."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "README.md", "python")[:2]:
        exec(compile(block, "README.md", "exec"), names)
    (words,) = [words for words in commands(ROOT / "README.md") if "runs/half" in words]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "runs" / "half" / "model.safetensors").exists()


@pytest.mark.parametrize("page", PAGES, ids=told)
def test_a_link_to_a_file_leads_to_one(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_a_file_that_is_named_is_there() -> None:
    """In pages, docstrings and comments."""
    written = [*PAGES, *(path for room in ("featherweight", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py"))]
    named = {(path, name) for path in written for name in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`", path.read_text())}
    assert len(named) > 50
    places = ("", "featherweight", "benchmarks")
    assert not [each for each in named if not any((ROOT / place / each[1]).exists() for place in places)]


MODULES = [
    module.name
    for module in pkgutil.walk_packages(featherweight.__path__, "featherweight.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_give_what_they_say(name: str) -> None:
    torch.manual_seed(0)
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
