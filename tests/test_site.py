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
import yaml

import featherweight
from featherweight import recipes

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


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
    """All texts of the package, what is filled in as `..`."""
    texts = []
    for file in sorted((ROOT / "featherweight").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else ".." for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


MESSAGES = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.M)


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_is_one_that_is_given(message: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in message.split(".."))
    assert re.search(pattern, said()), message


def test_a_message_that_nobody_gives_is_found() -> None:
    assert len(MESSAGES) > 25
    assert not re.search(re.escape("the network is too cheerful"), said())


def test_a_request_to_another_host_is_found(tmp_path: Path) -> None:
    build = script("build")
    (tmp_path / "a.html").write_text('<p><a href="https://example.org">fine</a></p><link rel="stylesheet" href="own.css">')
    assert build.requests(tmp_path) == []
    (tmp_path / "b.html").write_text('<script src="https://example.org/x.js"></script>')
    (tmp_path / "c.html").write_text('<link rel="stylesheet" href="//fonts.example.org/x.css">')
    (tmp_path / "d.css").write_text("p { background: url(https://example.org/x.png) }")
    assert len(build.requests(tmp_path)) == 3


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
