"""Writes what is generated of the pages: `python docs/site/generate.py`. `tests/test_site.py` asserts that it was run.

`docs/command_line.md` comes from the commands themselves, `benchmarks/README.md` from the headings of the benchmarks. Between
`<!-- measured: NAME -->` and `<!-- end of measured -->` stand rows of the benchmarks: NAME is a recipe's, or `README: WORDS`,
the row of the README's table that begins with them, `channels: NAMES`, rows of methods that cut channels, `times`, how long
each recipe took, `untrained: WAYS`, what was done without training (`;` between them), or `table: FOLDER: WORDS`, of a table in
that benchmark's page the lines whose first cell begins with them (without words, all lines of the first).
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import typer

from featherweight.cli import app

DOCS = ROOT / "docs"
COMMAND_LINE = DOCS / "command_line.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"
MEASURED = re.compile(r"<!-- measured: (.*?) -->\n.*?<!-- end of measured -->", re.S)
TOP = """# Command line

What `featherweight --help` and `featherweight COMMAND --help` say, on one page. It is written from the commands by
`docs/site/generate.py`.
"""


def pages() -> Iterator[tuple[Path, str]]:
    """Each page with a generated part, and what it has to be."""
    yield COMMAND_LINE, command_line()
    yield BENCHMARKS, benchmarks()
    for page in [ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]:
        if MEASURED.search(text := page.read_text()):
            yield page, MEASURED.sub(functools.partial(_filled, page), text)


def _filled(page: Path, found: re.Match[str]) -> str:
    return f"<!-- measured: {found[1]} -->\n{measured(found[1], page)}\n<!-- end of measured -->"


def benchmarks() -> str:
    pages = sorted((ROOT / "benchmarks").glob("*/README.md"))
    titles = [(page.parent.name, page.read_text().partition("\n")[0].lstrip("# ")) for page in pages]
    listed = "\n".join(f"- [{title}]({name}/README.md)" for name, title in titles)
    return f"# Benchmarks\n\nEach page is written from committed rows by `featherweight reproduce`.\n\n{listed}\n"


# --- the command line ----------------------------------------------------------------------------------------------------


def command_line() -> str:
    group: Any = typer.main.get_command(app)
    codes, debug = group.commands["compress"].epilog.removeprefix("Exit codes: ").rsplit(". ", 1)
    told = [f"| {code} | {means.rstrip('. ')} |" for code, means in re.findall(r"(\d+) (.*?)(?=\. \d|$)", codes)]
    top = [TOP, "| exit code | means |", "|---|---|", *told, "", debug, ""]
    return "\n".join([*top, *(_command(name, command) for name, command in group.commands.items() if not command.hidden)])


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(["$ featherweight", name, *_usage(command)])
    lines = [f"## {name}", "", *_paragraphs(command.help or ""), "```text", usage, "```", ""]
    rows = [row for parameter in command.params if (row := _parameter(parameter, context))]
    if rows:
        lines += ["| | what | default |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _usage(command: Any) -> Iterator[str]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    yield "[OPTIONS]"
    for argument in arguments:
        shown = (argument.metavar or argument.name.upper()).strip("[]")
        many = "..." if argument.nargs == -1 and not shown.endswith("...") else ""
        yield (shown if argument.required else f"[{shown}]") + many


def _parameter(parameter: Any, context: Any) -> str:
    said = " ".join((getattr(parameter, "help", None) or "").split())
    if getattr(parameter, "hidden", False):
        return ""
    if parameter.param_type_name == "argument":
        name = f"`{(parameter.metavar or parameter.name.upper()).strip('[]')}`"
        return f"| {name} | {_cell(said)} | |"
    word = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    names = ", ".join(f"`{name}{word}`" for name in parameter.opts)
    if parameter.secondary_opts:
        names += ", " + ", ".join(f"`{name}`" for name in parameter.secondary_opts)
    default = parameter.default
    told = "" if default is None or isinstance(default, bool | list | tuple) or callable(default) else f"`{default}`"
    return f"| {names} | {_cell(said)} | {'required' if parameter.required else told} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def _paragraphs(text: str) -> list[str]:
    return [part for paragraph in inspect.cleandoc(text).split("\n\n") for part in (" ".join(paragraph.split()), "")]


# --- what was measured ---------------------------------------------------------------------------------------------------


def measured(name: str, page: Path) -> str:
    """A table, and links to the benchmarks that it is from."""
    kind, _, words = name.partition(": ")
    if kind == "times":
        return _times(page)
    if kind == "README":
        return _of_the_readme(words, page)
    if kind == "untrained":
        return _untrained(words.split("; "), page)
    if kind == "table":
        return _of_a_table(*words.partition(": ")[::2], page)
    return _of_channels(words.split(", "), page) if kind == "channels" else _of_a_recipe(name, page)


def _of_the_readme(words: str, page: Path) -> str:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {words}")]
    if len(rows) != 1:
        raise SystemExit(f"{page}: the README's table has {len(rows)} rows that begin with {words!r}")
    what, found, again, _ = (cell.strip() for cell in rows[0].strip("|").split(" | "))
    return f"{what}: **{found}**. Again by {again.replace('](', f']({_up(page)}')}."


def _of_a_table(folder: str, words: str, page: Path) -> str:
    """Of the first table in a benchmark's page that has such lines, the head and these lines."""
    for lines in re.findall(r"(?:^\|.*\n)+", (ROOT / "benchmarks" / folder / "README.md").read_text(), re.M):
        head, rule, *rows = lines.splitlines()
        if found := [row for row in rows if row.startswith(f"| {words}")]:
            source = f"[benchmarks/{folder}]({_up(page)}benchmarks/{folder}/README.md)"
            return "\n".join([f"From {source}, which says how:", "", head, rule, *found])
    raise SystemExit(f"{page}: no table of benchmarks/{folder} has a line that begins with {words!r}")


def _untrained(ways: list[str], page: Path) -> str:
    """A line for each network of benchmarks/untrained, a column for each way."""
    lines = (ROOT / "benchmarks" / "untrained" / "rows.jsonl").read_text().splitlines()
    rows = {row["row"]: row for row in map(json.loads, lines)}
    table = []
    for kind in dict.fromkeys(name.split(", ")[0] for name in rows):
        of = [rows[f"{kind}, {way}"] for way in ways]
        table.append(f"| {kind} | {of[0]['dense']:.1f} | {' | '.join(map(_score, of))} |")
    source = f"[benchmarks/untrained]({_up(page)}benchmarks/untrained/README.md)"
    head = f"Six small networks, trained before and not afterwards ({source}):"
    return "\n".join([head, "", f"| network | dense | {' | '.join(ways)} |", "|---|---|" + "---|" * len(ways), *table])


def _of_a_recipe(name: str, page: Path) -> str:
    lines = (ROOT / "benchmarks" / "ordinary" / "rows.jsonl").read_text().splitlines()
    found = [row for row in map(json.loads, lines) if row["row"].rsplit(", ", 1)[1] == name]
    if not found:
        raise SystemExit(f"{page}: benchmarks/ordinary has no row of {name!r}")
    table = [f"| {_network(row)} | {row['dense']:.1f} | {_score(row)} | {_rival(row)} |" for row in found]
    source = f"[benchmarks/ordinary]({_up(page)}benchmarks/ordinary/README.md)"
    head = f"`{name}` as it is by default, on six small networks; magnitude is the plain way to the same size ({source}):"
    return "\n".join([head, "", "| network | dense | this | magnitude |", "|---|---|---|---|", *table])


def _times(page: Path) -> str:
    """Epochs and seconds of every recipe as it is by default, over the six ordinary networks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in map(json.loads, (ROOT / "benchmarks" / "ordinary" / "rows.jsonl").read_text().splitlines()):
        if "refused" not in row:
            found.setdefault(row["row"].rsplit(", ", 1)[1], []).append(row)
    table = []
    for name, rows in found.items():
        seconds = sorted(row["seconds"] for row in rows)
        cells = [f"`{name}`", f"{max(row['epochs'] for row in rows)}", f"{statistics.median(seconds):.0f}"]
        table.append(f"| {' | '.join(cells)} | {seconds[0]:.0f} to {seconds[-1]:.0f} |")
    source = f"[benchmarks/ordinary]({_up(page)}benchmarks/ordinary/README.md)"
    head = f"Six small networks, one thread of a shared machine ({source}):"
    return "\n".join([head, "", "| recipe | epochs | seconds, median | least to most |", "|---|---|---|---|", *table])


def _of_channels(names: list[str], page: Path) -> str:
    """Rows of these methods on ResNet-20 and ResNet-56, the seed and the epochs that all of them have."""
    lines = (ROOT / "benchmarks" / "channels" / "rows.jsonl").read_text().splitlines()
    rows = {row["row"]: row for row in map(json.loads, lines)}
    table = []
    for network in ("ResNet-20", "ResNet-56"):
        for name in names:
            for saved in ("47.0 %", "52.6 %"):
                for how, key in ((name, f"{name}, {saved}"), (f"{name}, knapsack", f"{name}, knapsack, {saved}")):
                    if row := rows.get(key if network == "ResNet-20" else f"{network}, {key}"):
                        before = "" if row["before"] is None else f"{row['before']:.2f}"
                        table.append(f"| {network} | {how} | {saved} | {before} | {row['top1']:.2f} |")
    if not table:
        raise SystemExit(f"{page}: benchmarks/channels has no row of {names}")
    source = f"[benchmarks/channels]({_up(page)}benchmarks/channels/README.md)"
    head = f"CIFAR-10, top-1 before and after the same few epochs of fine-tuning, one seed; more, and how, in {source}:"
    return "\n".join([head, "", "| network | units by | fewer MACs | before | after |", "|---|---|---|---|---|", *table])


def _network(row: dict[str, Any]) -> str:
    return row["row"].rsplit(", ", 1)[0]


def _score(row: dict[str, Any]) -> str:
    return "refused, with the reason" if "refused" in row else f"{row['score']:.1f}"


def _rival(row: dict[str, Any]) -> str:
    if "refused" in row or "at" not in row:
        return ""
    return f"{row['magnitude']:.1f}" if "magnitude" in row else row["at"]


def _up(page: Path) -> str:
    return "../" * (len(page.relative_to(ROOT).parts) - 1)


def main() -> None:
    for page, text in pages():
        page.write_text(text)


if __name__ == "__main__":
    main()
