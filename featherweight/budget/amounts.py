"""How much, as text: shares ("50%", "4x" fewer), bytes ("100kB"), milliseconds ("2ms"); in Python, files and on the command line.

A text with the unit of something else is refused by name, and never read as a number of this one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from featherweight.errors import InputError, require, short

NUMBER = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([A-Za-z%]*)\s*")
BYTES = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
LEAST_SIZE = 16.0  # bytes: a number between a share and this is neither a share nor the size of a network


def parts(given: Any) -> tuple[float, str] | None:
    """The number and the unit of a text such as "100 kB"; None where it is no text of that form."""
    told = NUMBER.fullmatch(given) if isinstance(given, str) else None
    return (float(told[1]), told[2]) if told else None


def share(given: Any) -> Any:
    """`"50%"` as 0.5 and `"4x"` (fewer) as 0.25; anything else as it is."""
    told = parts(given)
    if told is None or told[1] not in ("%", "x") or (told[1] == "x" and not told[0]):
        return given
    return told[0] / 100 if told[1] == "%" else 1 / told[0]


def size(given: Any) -> Any:
    """A share of the bytes, as `share`, or bytes: `"100kB"` as 100000.0. Raises InputError for another unit."""
    told = parts(given)
    if told is not None and told[1] in BYTES:
        return told[0] * BYTES[told[1]]
    if told is not None and told[1] not in ("", "%", "x"):
        raise InputError(f"bytes are a share to keep ('50%', '4x' fewer) or a size ('100kB', '1.5MB'), given {short(given)}")
    found = share(given)
    return told[0] if told is not None and isinstance(found, str) else found


def milliseconds(given: Any) -> Any:
    """`"2ms"`, `"2"` and `"500us"` as milliseconds. Raises InputError for another unit, such as a share."""
    told = parts(given)
    if told is None:
        return given
    number, unit = told
    if unit in ("%", "x"):
        raise InputError(
            f"latency_ms is a number of milliseconds, such as 2 or '2ms', given {short(given)}; so many times faster than now is "
            "what `shrink` reaches (--faster 2x)"
        )
    if unit and unit not in MILLISECONDS:
        raise InputError(f"latency_ms is a number of milliseconds, such as 2 or '2ms', given {short(given)}")
    return number * MILLISECONDS.get(unit, 1.0)


def read_fields(held: Any, read: Callable[[Any], Any], *names: str) -> None:
    """Amounts that a frozen dataclass was given as text ("50%", "100kB") as numbers, also where it was made without pydantic."""
    for name in names:
        object.__setattr__(held, name, found := read(getattr(held, name)))
        require((found is None or isinstance(found, int | float), f"{name} cannot be read as an amount: {short(found)}"))
