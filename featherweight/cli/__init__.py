"""The command line: `commands` holds one function a command, the other files what they are pointed at and how things look."""

import os
import sys
from typing import Any

from featherweight.cli import overview


def main() -> None:
    """The entry point."""
    overview.plain()
    if not overview.shown(sys.argv[1:]):
        from featherweight.cli.commands import app  # torch comes with it, which takes longer to import than help to read

        app(prog_name="featherweight" if overview.COMPLETE in os.environ else None)  # which the shell's question is named after


def __getattr__(name: str) -> Any:
    if name == "app":
        from featherweight.cli.commands import app

        return app
    raise AttributeError(f"module 'featherweight.cli' has no attribute {name!r}")
