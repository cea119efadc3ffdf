"""How a command ends that failed: a message, an exit code, and the traceback where it is asked for."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from featherweight.cli import console, usercode
from featherweight.cli.overview import DEBUG
from featherweight.errors import DataWarning, FeatherweightError, InputError

BROKEN_PIPE = 128 + 13  # as a shell tells of SIGPIPE
WHOLE = f"{DEBUG}=1 before the command shows the whole traceback"


def terminated(number: int, frame: Any) -> None:
    """SIGTERM, which schedulers and containers send, is what Ctrl-C is: a run saves first."""
    there = signal.getsignal(signal.SIGINT)  # a monitor's own while a run is going on
    (there if callable(there) else signal.default_int_handler)(signal.SIGINT, frame)


def warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    """A warning of ours as a note; another as Python shows it."""
    if issubclass(category, DataWarning):
        console.note(f"warning: {message}")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def quiet() -> None:
    """PyTorch's exporter writes the graphs that it could not follow, hundreds of lines, before an error that says so in one."""
    if not os.environ.get(DEBUG):
        for name in ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export"):
            logging.getLogger(name).setLevel(logging.ERROR)


def tell(error: Exception) -> int:
    """Says on standard error what went wrong; the exit code."""
    if isinstance(error, BrokenPipeError):  # who reads our output has enough of it, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would fail, too
        return BROKEN_PIPE
    if os.environ.get(DEBUG):
        for line in "".join(traceback.format_exception(error)).splitlines():
            sys.stderr.write(f"{console.printable(line)}\n")
    if isinstance(error, FeatherweightError):
        if vars(error).get("told"):  # by the process that it is of
            return error.exit_code
        console.note(f"error: {error}")
        return error.exit_code
    theirs = usercode.excerpt(error)
    if theirs is not None:
        console.note(f"error: your own code failed; {WHOLE}:\n{theirs}")
        return InputError.exit_code
    said = usercode.shortened(f"{type(error).__name__}: {error}")
    if "DataLoader worker" in str(error):
        console.note(
            "error: a worker of a DataLoader failed. What it wrote is above; num_workers=0 shows the error where it happens. "
            "Workers that are spawned import your file by its name, so no other module may have that name, and what they are "
            f"given has to be defined at the top level of the file, no lambda and no function in a function; {WHOLE}:\n{said}"
        )
        return InputError.exit_code
    frame = traceback.extract_tb(error.__traceback__)[-1]
    console.note(
        f"error: {said}\nThis has no message of its own yet, which is a fault of featherweight ({Path(frame.filename).name}, "
        f"line {frame.lineno}): please report it; {WHOLE}"
    )
    return FeatherweightError.exit_code
