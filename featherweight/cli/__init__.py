"""The command line: `commands` holds one function a command, the other files what they are pointed at and how things look."""

import gc
import os
import signal
import sys
from typing import Any

from featherweight.cli import overview
from featherweight.network.collecting import uncollected


def main() -> None:
    """The entry point."""
    overview.plain()
    if not overview.shown(sys.argv[1:]):
        with uncollected():
            from featherweight.cli.commands import app  # torch comes with it, which takes longer to import than help to read
            from featherweight.cli.failures import terminated
        signal.signal(signal.SIGTERM, terminated)
        gc.freeze()  # what was imported stays: no search has to look at it again
        app(prog_name="featherweight" if overview.COMPLETE in os.environ else None)  # which the shell's question is named after


def __getattr__(name: str) -> Any:
    if name == "app":
        from featherweight.cli.commands import app

        return app
    raise AttributeError(f"module 'featherweight.cli' has no attribute {name!r}")
