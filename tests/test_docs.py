"""What the documents show works: every Python block runs, every command line is one that the program takes, every link leads
somewhere, and the examples of public docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import featherweight
from featherweight.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


class MyNet(nn.Module):
    """The reader's network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def loader() -> DataLoader[Any]:
    dice = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(24, 3, 32, 32, generator=dice), torch.arange(24) % 4)
    return DataLoader(data, 8)


def train(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The reader's loop."""
    for images, labels in loader():
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs_as_it_stands_from_the_top_of_the_page_to_its_end(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names: dict[str, Any] = {"MyNet": MyNet, "train_loader": loader(), "test_loader": loader(), "train": train}
    torch.manual_seed(0)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    assert len(names) > 4, "nothing was run"


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]
    return [words for words in found if words[0] == "featherweight"]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_a_command_line_is_one_that_the_program_takes(page: Path) -> None:
    group = typer.main.get_command(app)
    for _, name, *arguments in commands(page):
        command = group.commands[name]  # type: ignore[attr-defined]
        context = command.make_context(name, arguments, resilient_parsing=False)  # raises where an option is not there
        assert context.params


@pytest.mark.parametrize("page", PAGES, ids=IDS)
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
