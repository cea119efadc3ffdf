"""What `make` installs: every package pinned and hashed, the build backend too, and no address of an index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "requirements").glob("*.txt"))
NAME = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Package -> its version and the hashes that are accepted."""
    found: dict[str, tuple[str, list[str]]] = {}
    for line in path.read_text().replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            named = NAME.match(line)
            assert named, f"{path.name}: not pinned: {line[:80]}"
            found[normal(named[1])] = (named[2], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_package_has_a_version_and_hashes(path: Path) -> None:
    packages = pinned(path)
    assert packages and all(hashes for _, hashes in packages.values())
    assert all(len(hashes) == len(set(hashes)) for _, hashes in packages.values())
    assert "://" not in path.read_text() and "--" not in re.sub("--hash", "", path.read_text()), "no address, no option"


def test_the_lock_has_all_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    wanted += [line for extra in ("onnx", "docs", "evidence") for line in project["project"]["optional-dependencies"][extra]]
    locked = {name for path in FILES for name in pinned(path)}
    assert {normal(re.match(r"[\w.-]+", line)[0]) for line in wanted} <= locked  # type: ignore[index]


def test_the_build_backend_is_the_one_in_the_lock() -> None:
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    version, hashes = pinned(ROOT / "requirements/packages.txt")["setuptools"]
    assert backend == f"setuptools=={version}" and hashes


def test_nothing_is_installed_without_its_hash() -> None:
    """The project itself is installed without looking for anything else."""
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if re.search(r"\binstall\b", line)]
    assert len(lines) == 3
    assert "--require-hashes --no-deps" in lines[0] and "--no-deps --no-build-isolation --editable ." in lines[1]
    assert "uv" in lines[2].lower(), "the tool that writes the lock, which no build needs"
