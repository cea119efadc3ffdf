"""The user's own code: files imported under their own names, functions called, and errors shown by their last lines there."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from featherweight.errors import DataError, InputError, did_you_mean

FRAMES_SHOWN = 4  # of a traceback, the last in the user's files
LINES_SHOWN = 6  # of an exception's own text: PyTorch's may have hundreds
PACKAGE = Path(__file__).resolve().parent.parent
FOLDERS: set[Path] = set()  # of the files imported so far


def split(text: str) -> tuple[Path | None, str]:
    """(file, name) of `file.py:name`; (None, "") for a built-in name."""
    file, colon, name = text.rpartition(":")
    if text.endswith(".py"):
        raise InputError(f"{text} is a file: say what to take from it, {text}:name")
    return (Path(file), name) if colon and file.endswith(".py") else (None, "")


def named(text: str, file: Path, name: str) -> Any:
    """What `name` is in `file`. Raises InputError."""
    if not file.is_file():
        raise InputError(f"there is no file {file} (given as {text})")
    module = imported(file.resolve())
    if name not in vars(module):
        own = [key for key, value in vars(module).items() if not key.startswith("_") and _is_of(value, module)]
        raise InputError(f"{file} has no {name!r}.{did_you_mean(name, own)} It has: {', '.join(own) or 'nothing of its own'}")
    return vars(module)[name]


def _is_of(value: Any, module: ModuleType) -> bool:
    """Is it the file's own, and not what it imports?"""
    return not isinstance(value, ModuleType) and getattr(value, "__module__", module.__name__) == module.__name__


@functools.cache
def imported(file: Path) -> ModuleType:
    """The user's file as a module, run once, with its own folder importable as for `python file.py`.

    It has its own name where no other module has that, since workers of a DataLoader that are spawned (the default on macOS and
    Windows) find a class by the name of its module, in the folders of `sys.path`, which they are given.
    """
    FOLDERS.add(file.parent)
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    loaded = sys.modules.get(file.stem)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == file:
        return loaded  # another file of the user's has imported it
    digest = hashlib.blake2b(bytes(file), digest_size=4).hexdigest()
    name = file.stem if _is_found_by_name(file) else f"_user_{digest}_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None and specification.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{file} cannot be imported:\n{excerpt(error) or _words(error)}") from error
    return module


def _is_found_by_name(file: Path) -> bool:
    """Does `import NAME` give this file, and no module of Python, of a package or of another folder?"""
    if file.stem in sys.modules or file.stem in sys.stdlib_module_names or "." in file.stem:
        return False
    importlib.invalidate_caches()
    found = importlib.util.find_spec(file.stem)
    return found is not None and found.origin is not None and Path(found.origin).resolve() == file


def called(text: str, function: Any, *arguments: Any) -> Any:
    """`function(*arguments)`, or without them where it takes none. Raises InputError with the user's lines where it fails."""
    if not callable(function):
        raise InputError(f"{text} must be a function, it is {_kind(function)}")
    try:
        takes = inspect.signature(function).parameters
    except ValueError:
        takes = {"of a builtin": None}  # type: ignore[assignment]
    try:
        return function(*arguments if takes else ())
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{text} failed:\n{excerpt(error) or _words(error)}") from error


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def excerpt(error: BaseException) -> str | None:
    """The last lines of the user's files on the way to an error, and the error; None where the way led through none of them."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    if isinstance(error, SyntaxError) and error.filename is not None and _is_theirs(error.filename):
        return "".join(traceback.format_exception_only(error)).rstrip()
    if not frames:
        return None
    return "".join(traceback.format_list(frames[-FRAMES_SHOWN:])) + _words(error)


def place(error: BaseException) -> str:
    """` (net.py, line 12, in forward)`, the last line of the user's on the way to an error; empty where there is none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})" if frames else ""


def _is_theirs(filename: str) -> bool:
    path = Path(filename)
    if not path.is_absolute() or "site-packages" in path.parts or PACKAGE in path.parents:
        return False
    return any(folder in path.parents for folder in FOLDERS)


def _words(error: BaseException) -> str:
    """`KeyError: 'x'`: an error's type and text, the middle of a long text left out."""
    return shortened("".join(traceback.format_exception_only(error)).rstrip())


def shortened(text: str, lines: int = LINES_SHOWN) -> str:
    """The first and the last lines of a long text, half of `lines` each."""
    every = text.splitlines()
    if len(every) <= lines:
        return text
    left_out = f"... ({len(every) - lines} lines more)"
    return "\n".join([*every[: lines - lines // 2], left_out, *every[-(lines // 2) :]])
