"""The package as a user gets it: wheel and sdist are built, a wheel of each is installed where no source is, and both run.

    .venv/bin/python .ci/package.py

The dependencies are those of this environment: an environment of its own holds the package alone and sees them behind itself.
Extras are resolved by pip beside them, nothing is installed; where no index answers in time, that is said and stops nothing.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("onnx", "evidence", "images", "hf", "accelerate", "lightning")  # timm and torchvision ask for a torch of their own
SECONDS = 180  # to resolve them
CONFLICT = ("ResolutionImpossible", "conflicting dependencies", "does not provide the extra")
NEEDED = ("py.typed", "evidence/page.css", "evidence/page.js", "recipes/imagenet")


def run(*command: str | Path, where: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=where, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def built(what: str, source: Path, folder: Path) -> Path:
    """A wheel or sdist of a source tree, by the backend itself."""
    script = f"from setuptools import build_meta; build_meta.build_{what}({str(folder)!r})"
    before = set(folder.iterdir())
    run(sys.executable, "-c", script, where=source)
    (made,) = set(folder.iterdir()) - before
    return made


def tracked(folder: Path) -> Path:
    """What git knows of this tree, changes of the day included, and no more."""
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", where=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as opened:
        return {name: opened.read(name) for name in opened.namelist() if not name.endswith("RECORD")}


def installed(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with this wheel in it."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, where=ROOT)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")  # found after what is installed here
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall", "--ignore-installed", wheel, where=folder)
    run(*pip, "check", where=folder)
    return python


def resolve(wheel: Path) -> str:
    """What pip says of the extras: a conflict ends the program."""
    words = ("-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet", f"{wheel}[{','.join(EXTRAS)}]")
    try:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"extras were not resolved: no answer within {SECONDS} seconds"
    said = done.stdout + done.stderr
    if any(sign in said for sign in CONFLICT):
        raise SystemExit(said)
    return f"extras resolve: {', '.join(EXTRAS)}" if not done.returncode else f"extras were not resolved: {said.strip()[-300:]}"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        there = Path(place)
        source, out, again = tracked(there / "source"), there / "dist", there / "again"
        out.mkdir()
        again.mkdir()
        sdist, wheel = built("sdist", source, out), built("wheel", source, out)
        with tarfile.open(sdist) as opened:
            opened.extractall(there / "unpacked", filter="data")
        (unpacked,) = (there / "unpacked").iterdir()
        held, second = files(wheel), files(built("wheel", unpacked, again))
        assert held == second, f"the sdist's wheel differs: {sorted(held.keys() ^ second.keys())}"
        assert all(name.startswith("featherweight") for name in held), sorted(held)
        assert all(any(one.startswith(f"featherweight/{name}") for one in held) for name in NEEDED), (
            "files beside the modules are missing"
        )
        assert any(name.endswith("licenses/LICENSE") for name in held), "the licence is missing"
        python = installed(wheel, there / "environment")
        where = run(python, "-c", "import featherweight; print(featherweight.__file__)", where=there).strip()
        assert Path(where).is_relative_to(there / "environment"), f"{where} was imported and not what was installed"
        asked = run(python, "-m", "featherweight", "--version", where=there)
        listed = run(there / "environment" / "bin" / "featherweight", "recipes", where=there)
        assert asked.strip() and "progressive_admm" in listed
        sys.stdout.write(f"{wheel.name}, {sdist.name}: {len(held)} files; built, installed, run\n{resolve(wheel)}\n")


if __name__ == "__main__":
    main()
