"""What is generated of the pages is as the script makes it, and what they explain is there. `.ci/run` builds the site."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import typer
import yaml

import featherweight
from featherweight import recipes
from featherweight.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NO_RESULTS = (
    "format.md",
    "command_line.md",
    "compared.md",
    "scale.md",
)  # a format, settings, versions; a table of `reproduce plan`


def script(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_generated_parts_are_as_the_script_makes_them() -> None:
    made = dict(script("generate").pages())
    assert len(made) > 15
    stale = [str(page.relative_to(ROOT)) for page, text in made.items() if page.read_text() != text]
    assert stale == [], "run docs/site/generate.py"


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    page = (DOCS / "api.md").read_text()
    shown = set(re.findall(r"auto(?:function|class|module):: (?:[\w.]+\.)?(\w+)", page))
    shown |= set(re.findall(r"members: (.*)", page)[-1].split(", "))
    missing = {name for name in featherweight.__all__ if name not in ("__version__", "recipes", "structure")} - shown
    assert missing == set()
    assert set(recipes.RECIPES) <= shown


def test_every_recipe_and_page_of_methods_is_listed() -> None:
    listed = (DOCS / "methods" / "README.md").read_text()
    assert [name for name in recipes.RECIPES if f"`{name}`" not in listed] == []
    pages = {page.name for page in (DOCS / "methods").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", listed))


@cache
def said() -> str:
    """All texts of the package but docstrings, what is filled in as `..`."""
    texts = []
    for file in sorted((ROOT / "featherweight").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else ".." for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


MESSAGES = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.M)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_is_one_that_is_given(message: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in message.split("..") if part)
    assert re.search(pattern, said()), message


def test_a_message_that_nobody_gives_is_found() -> None:
    assert len(MESSAGES) > 55
    assert not re.search(re.escape("the network is too cheerful"), said())


def test_a_request_to_another_host_is_found(tmp_path: Path) -> None:
    build = script("build")
    (tmp_path / "a.html").write_text('<p><a href="https://example.org">fine</a></p><link rel="stylesheet" href="own.css">')
    assert build.requests(tmp_path) == []
    (tmp_path / "b.html").write_text('<script src="https://example.org/x.js"></script>')
    (tmp_path / "c.html").write_text('<link rel="stylesheet" href="//fonts.example.org/x.css">')
    (tmp_path / "d.css").write_text("p { background: url(https://example.org/x.png) }")
    assert len(build.requests(tmp_path)) == 3


# --- numbers -------------------------------------------------------------------------------------------------------------

MARKED = re.compile(r"<!-- (measured|networks)\b.*?<!-- end of \1 -->", re.S)
NOT_PROSE = re.compile(r"```.*?```|`[^`]+`|\]\([^)]*\)|arXiv [\d., ]+\d|\d{4}\.\d{5}", re.S)  # code, links, names of papers
RESULT = re.compile(r"\d+\.\d+|\d[\d.]* ?%|\d[\d.,]*x\b|\d[\d.,]* (?:times|points?|percent)\b|\d,\d{3}")
TYPED = (  # settings, versions and what papers published: (page, the words around it)
    ("README.md", "Python 3.11 or newer"),
    ("README.md", "PyTorch 2.9 or newer"),
    ("README.md", "developed with 2.13"),
    ("README.md", "torch-pruning 1.6.1"),
    ("README.md", "Apache-2.0"),
    ("joint.md", "Published for LeNet-5: 2.57 K weights in 2 and 3 bits, 0.89 kB of weight data alone, 2.73 kB with the index"),
    ("joint.md", "(the paper: 0.3)"),
    ("progressive-admm.md", "Published for LeNet-5 by the papers: 167 and 246 times fewer weights"),
    ("progressive-admm.md", "A small language model at 90 % zeros"),
    ("progressive-admm.md", "A residual above 0.1"),
)


def typed(page: str, text: str) -> list[str]:
    """Decimals, percents, times and thousands of a page outside of generated blocks and code, but for those that are allowed."""
    prose = NOT_PROSE.sub(" ", MARKED.sub(" ", text))
    prose = " ".join(prose.split())
    for name, words in TYPED:
        prose = prose.replace(words, "") if name == page else prose
    return [prose[max(0, hit.start() - 30) : hit.end() + 20] for hit in RESULT.finditer(prose)]


def test_no_result_is_typed_by_hand() -> None:
    folders = ("", "methods", "tutorials", "extend")
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *(page for name in folders for page in sorted((DOCS / name).glob("*.md")))]
    pages = [page for page in pages if page.name not in NO_RESULTS]
    found = {page.name: hits for page in pages if (hits := typed(page.name, page.read_text()))}
    assert found == {}, "read them from rows by docs/site/generate.py, or say it in words; a setting goes into code or into TYPED"


def test_a_result_that_is_typed_is_found() -> None:
    for text in ("kept 95.3 of it", "1.4 times as fast", "6 points more", "a loss of 3 %", "200,000 files", "10x smaller"):
        assert typed("README.md", text) != [], text
    allowed = "<!-- measured: x -->\n95.3\n<!-- end of measured --> `--set macs=50%`, arXiv 1811.01907, Python 3.11 or newer"
    assert typed("README.md", allowed) == []


def test_what_is_allowed_is_there() -> None:
    pages = {page.name: " ".join(page.read_text().split()) for page in [*(DOCS / "methods").glob("*.md"), ROOT / "README.md"]}
    assert [words for page, words in TYPED if words not in re.sub(r"\]\([^)]*\)", "", pages[page])] == []


def test_every_decision_tells_its_day() -> None:
    """Its figures are of that day, which the page of decisions says."""
    listed = re.findall(
        r"^- \[.*\]\((.*)\) \(20\d\d-\d\d-\d\d, `[0-9a-f]{7}`\)$", (DOCS / "decisions" / "README.md").read_text(), re.M
    )
    assert sorted(listed) == sorted(page.name for page in (DOCS / "decisions").glob("*.md") if page.name != "README.md")


PARTS = ("```text\n", "**Source.**", "| parameter | |", "**When it wins.**", "## Measured\n", "## Pitfalls\n")


@pytest.mark.parametrize(
    "page", sorted({*(DOCS / "methods").glob("*.md")} - {DOCS / "methods" / "README.md"}), ids=lambda page: page.stem
)
def test_a_page_of_a_method_has_its_six_parts(page: Path) -> None:
    """Equation, source, parameters, when it wins, a measured row, pitfalls; in this order."""
    text = page.read_text()
    at = [text.find(part) for part in PARTS]
    assert -1 not in at and at == sorted(at), [part for part, place in zip(PARTS, at, strict=True) if place < 0]
    assert "<!-- measured: " in text[at[4] : at[5]]


def test_every_extra_is_in_the_readme_and_no_other() -> None:
    """With the packages of those that a user asks for."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = (ROOT / "README.md").read_text().partition("| extra | needed by |")[2].partition("\n\n")[0]
    named = [name for row in rows.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(named) == sorted(extras)
    told = {row.split("|")[1].strip(" `"): row.split("|")[3].strip() for row in rows.splitlines()[2:]}
    asked = {name: ", ".join(re.split(r"[\[<>=]", one)[0] for one in extras[name]) for name in told if name in extras}
    assert told | asked | {"benchmarks": told["benchmarks"]} == told


def test_every_cell_beside_other_tools_can_be_checked() -> None:
    """None is empty; each of ours names what there is; each heading has a version."""
    head, _, *rows = [line for line in (DOCS / "compared.md").read_text().splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in (head, *rows)]
    assert len({len(row) for row in table}) == 1 and all(all(row) for row in table[1:])
    assert all(re.search(r"\d+\.\d+", name) for name in table[0][1:])
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for what, ours, *_ in table[1:]:
        functions, named = re.findall(r"`fw\.(\w+)", ours), re.findall(r"`featherweight (\w+)", ours)
        assert functions or named, what
        assert all(hasattr(featherweight, name) for name in functions) and set(named) <= set(commands), what


def test_every_dependency_is_in_the_notices_of_third_parties() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=]", one)[0] for one in asked} - {"featherweight"}
    notices = (ROOT / "THIRD_PARTY.md").read_text()
    assert [name for name in sorted(names) if not re.search(rf"^\|[^|]*\b{re.escape(name)}\b[^|]*\|", notices, re.M)] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == featherweight.__version__
    assert f"## {featherweight.__version__}" in (ROOT / "CHANGELOG.md").read_text()
