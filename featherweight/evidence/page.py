"""One page of HTML that needs nothing else: style, script, pictures and data are inside, and its policy forbids any request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from featherweight.errors import StorageError
from featherweight.evidence import svg
from featherweight.evidence.svg import escaped
from featherweight.files import storage
from featherweight.files.description import WRITER

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


class Page:
    """Sections are added in order; what is given as text is escaped, and what is named `markup` is not."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[str] = []
        self.data: dict[str, Any] | None = None

    def add(self, markup: str) -> None:
        self.parts.append(markup)

    def heading(self, text: str, level: int = 2) -> None:
        self.add(f"<h{level}>{escaped(text)}</h{level}>")

    def paragraph(self, text: str, soft: bool = False) -> None:
        self.add(f"<p{' class=soft' if soft else ''}>{escaped(text)}</p>")

    def bullets(self, texts: Sequence[str]) -> None:
        self.add("<ul>" + "".join(f"<li>{escaped(text)}</li>" for text in texts) + "</ul>")

    def verdict(self, good: bool, text: str, reasons: Sequence[str]) -> None:
        """The first thing that is read: a sign and a sentence, and not a colour alone."""
        kind, sign = ("yes", "✓") if good else ("no", "✗")
        self.add(f'<p class="verdict {kind}">{sign} {escaped(text)}.</p>')
        self.bullets(reasons)

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Any]], left: bool = False) -> None:
        """Cells are text; one of type `Markup` is put in as it is."""
        head = "".join(f'<th scope="col">{escaped(header)}</th>' for header in headers)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell if isinstance(cell, Markup) else escaped(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        kind = ' class="left"' if left else ""
        self.add(
            f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figures(self, drawn: Sequence[tuple[str, str]]) -> None:
        """(markup, caption) side by side."""
        made = [f"<figure>{markup}<figcaption>{escaped(caption)}</figcaption></figure>" for markup, caption in drawn]
        self.add(f'<div class="charts">{"".join(made)}</div>')

    def details(self, summary: str, text: str) -> None:
        self.add(f"<details><summary>{escaped(summary)}</summary><pre tabindex=0>{escaped(text)}</pre></details>")

    def browser(self, kinds: Sequence[tuple[str, str]], examples: Sequence[dict[str, Any]]) -> None:
        """The browser of examples that page.js draws. kinds: (what an example has in `kinds`, its name in the list)."""
        options = "".join(f'<option value="{escaped(kind)}">{escaped(name)}</option>' for kind, name in (("all", "all"), *kinds))
        self.add(
            '<section id="browser" class="panel" aria-label="Examples"><div class="controls">'
            '<button id="before" type="button">&larr; before</button><button id="after" type="button">next &rarr;</button>'
            f'<label>show <select id="filter">{options}</select></label><label>example <select id="pick"></select></label>'
            '<span class="soft">keys: <kbd>&larr;</kbd> <kbd>&rarr;</kbd> <kbd>Home</kbd> <kbd>End</kbd></span></div>'
            '<p id="facts" aria-live="polite">This part is drawn by the script inside the page; it is off.</p>'
            '<div id="stage" class="scroll" tabindex="0"></div></section>'
        )
        self.data = {"examples": list(examples)}

    def html(self) -> str:
        folder = resources.files("featherweight.evidence")
        style, script = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        data = json.dumps(self.data, separators=(",", ":")).replace("</", "<\\/") if self.data else ""
        held = f'<script type="application/json" id="data">{data}</script><script>{script}</script>' if data else ""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(self.title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><style>{style}</style></head><body>{svg.symbols()}'
            f"<header><h1>{escaped(self.title)}</h1></header><main>{''.join(self.parts)}</main>"
            f"<footer>Written by featherweight {escaped(WRITER)}. This file needs no other, and asks for none.</footer>"
            f"{held}</body></html>\n"
        )

    def write(self, path: str | Path) -> int:
        """Bytes written. Raises StorageError."""
        content = self.html().encode()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            storage.replace(Path(path), lambda file: file.write(content))
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}. Free space or choose another file with -o") from error
        return len(content)


class Markup(str):
    """HTML of a cell, escaped by whoever made it."""
