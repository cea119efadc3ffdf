"""Builds the documentation: `python docs/site/build.py [FOLDER]`, by default build/site; its first page is index.html in it.

Pages are copied as they lie in the repository, with what they link to, so that a link is the same there, in an editor and on the
site. Warnings are errors: a link to a page or heading that is not there fails. So does a page that would ask another host for
anything. Search is Sphinx's own, which works from files, without a server.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "THIRD_PARTY.md",
    "benchmarks/README.md",
    "benchmarks/*/README.md",
    "docs/**/*.md",
)
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
ASKED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["'](?:https?:)?//|<link\b(?![^>]*rel="canonical")[^>]*\bhref=["'](?:https?:)?//"""
)
IMPORTED = re.compile(r"""@import|url\(["']?(?:https?:)?//""")


def gathered(folder: Path) -> None:
    """The pages, and the files that they link to; a link to a folder becomes one to its README.md."""
    pages = sorted({page for pattern in PAGES for page in ROOT.glob(pattern)})
    for page in pages:
        target = folder / page.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = page.read_text()
        for _, link, _, _ in LINK.findall(text):
            found = (page.parent / link).resolve()
            if "://" not in link and found.is_file() and found.suffix != ".md" and found.is_relative_to(ROOT):
                copy = folder / found.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, copy)
        target.write_text(LINK.sub(lambda link, page=page: _to_a_page(link, page), text))


def _to_a_page(link: re.Match[str], page: Path) -> str:
    folder = (page.parent / link[2]).is_dir() and "://" not in link[2]
    return f"{link[1]}{link[2].rstrip('/')}/README.md{link[3] or ''}{link[4]}" if folder else link[0]


def requests(folder: Path) -> list[str]:
    """What a reader's browser would be sent to another host for."""
    found = [f"{page}: {hit}" for page in folder.rglob("*.html") for hit in ASKED.findall(page.read_text())]
    return found + [f"{sheet}: {hit}" for sheet in folder.rglob("*.css") for hit in IMPORTED.findall(sheet.read_text())]


def build(folder: Path) -> int:
    """Sphinx's exit code, or 1 where a page asks another host."""
    from sphinx.cmd.build import build_main

    pages = folder.with_name(f"{folder.name}-pages")
    shutil.rmtree(pages, ignore_errors=True)
    gathered(pages)
    failed = build_main(["-b", "html", "-W", "--keep-going", "-q", "-c", str(Path(__file__).parent), str(pages), str(folder)])
    (folder / "index.html").write_text(
        '<!doctype html><meta http-equiv="refresh" content="0; url=docs/index.html"><title>featherweight</title>\n'
    )
    asked = requests(folder)
    sys.stderr.writelines(f"{hit}\n" for hit in asked)
    return failed or bool(asked)


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build" / "site"))
