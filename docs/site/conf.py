"""Sphinx's settings. `build.py` copies the pages to where they are built, as they lie in the repository, and calls it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from featherweight.version import __version__

project = "featherweight"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
exclude_patterns = ["docs/site"]
default_role = "code"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they are in the source, and a signature of the schema's types would fill a screen
python_maximum_signature_line_length = 100
html_theme = "furo"
html_title = "featherweight"
html_show_sourcelink = False
html_show_copyright = False
smartquotes = False
html_theme_options = {"top_of_page_buttons": []}
suppress_warnings = [
    "myst.header",  # benchmarks' pages are written by programs, and may leave a level of headings out
    "misc.highlighting_failure",
]

NAME = re.compile(r"(\s*)((?:[\w%.*]+(?:, [\w.]+)*)(?:\s\(.*?\))?)\s{2,}(\S.*)")  # of a parameter, and what is said of it


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are for readers of the source: paragraphs, `name  meaning` lines, examples. Made into what Sphinx reads."""
    out: list[str] = []
    inside = False  # an item of a list
    example = False
    for line in lines:
        if line.lstrip().startswith(">>>"):
            if not example:
                out.append("")
            example = True
        if not line.strip():
            out.append("")
            inside = example = False
        elif example:
            out.append(line.strip() if line.lstrip().startswith((">>>", "...")) else line)
        elif found := NAME.fullmatch(line):
            out += ["", f"* **{escaped(found[2])}**: {escaped(found[3])}"]
            inside = True
        elif inside and line.startswith("  "):
            out.append(f"  {escaped(line.strip())}")
        else:
            if inside:
                out.append("")
            inside = False
            out.append(escaped(line.strip()))
    lines[:] = out


def escaped(text: str) -> str:
    """Without signs that mean something in reStructuredText, but in code and in *emphasis*."""
    parts = re.split(r"(`[^`]+`|(?<!\w)\*\w+\*(?!\w))", text)
    return "".join(part if number % 2 else re.sub(r"([*|\\]|_(?=\W|$)|`)", r"\\\1", part) for number, part in enumerate(parts))


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", plain_docstring)
