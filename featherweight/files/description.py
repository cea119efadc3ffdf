"""What compression.json holds, and how its text is read: JSON that is bounded before anything is made of it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featherweight.errors import did_you_mean, shortened
from featherweight.files.libraries import Source
from featherweight.network.collecting import uncollected
from featherweight.structure.plain import MOST_CONTAINERS, MOST_VALUES, TOO_MANY, check_plain
from featherweight.version import __version__

WRITER = __version__  # the version that files name as theirs
FORMAT: Literal[1] = 1
# A graph of 5,000 operations takes 6 MB; 30 layers of 11,000 units cut take 5 MB of numbers.
LARGEST_DESCRIPTION = 32 * 2**20  # bytes
MOST_EDITS, MOST_ROWS, MOST_EXPORTS = 10_000, 1_000, 1_000


class Description(BaseModel):
    """What compression.json holds.

    model, data    the built-in names, if such were used; they are never imported
    source         of a network that an installed library builds: the library, its version and the network's name there, as data
    exports        file name -> what `export.export` measured of it
    exported       the network itself, as `structure.exported` writes it, where its class cannot express what was cut
    """

    model_config = ConfigDict(extra="forbid")

    format: Annotated[Literal[1], Field(description="format version")] = FORMAT
    featherweight: str = ""
    model: str | None = None
    data: str | None = None
    source: Source | None = None
    edits: list[dict[str, Any]]
    exported: dict[str, Any] | None = None
    recipe: dict[str, Any]
    report: list[dict[str, Any]]
    exports: dict[str, dict[str, Any]] = {}

    def text(self) -> str:
        """As JSON. Without a source it names none, so that earlier versions read it."""
        return self.model_dump_json(indent=1, exclude={"source"} if self.source is None else None)


def description_from(text: bytes) -> Description:
    """Check and read. Raises ValueError, which says what is wrong, and RecursionError for lists in lists without end."""
    if text.count(b"[") + text.count(b"{") > MOST_CONTAINERS or text.count(b",") + text.count(b":") > MOST_VALUES:
        raise ValueError(f"it has {TOO_MANY}")
    with uncollected():  # JSON has no cycles, and over 400,000 new lists the search takes most of the time
        data = json.loads(text.decode("utf-8"), object_pairs_hook=_object, parse_constant=_refuse_constant)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    unknown = [key for key in data if key not in Description.model_fields]
    if unknown:
        shown = [f"{shortened(key)!r}.{did_you_mean(key, Description.model_fields)}" for key in unknown[:5]]
        raise ValueError(f"there is no key {' and none '.join(shown)}")
    # One wrong entry is told, before a million values are looked at, and before pydantic makes a record of each.
    for name, most in (("edits", MOST_EDITS), ("report", MOST_ROWS), ("exports", MOST_EXPORTS)):
        part = data.get(name)
        if isinstance(part, list | dict) and len(part) > most:
            raise ValueError(f"{name}: it has {len(part)} entries, more than {most}")
        for entry in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            if not isinstance(entry, dict):
                raise ValueError(f"{name}: an entry is {type(entry).__name__}, and all have to be objects")
    check_plain(data)
    try:
        return Description.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:5]
        raise ValueError("; ".join(f"{shortened('.'.join(map(str, one['loc'])))}: {one['msg']}" for one in found)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shortened(twice)!r} is given twice")
    return made


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")
