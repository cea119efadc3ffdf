"""The command line: `commands` holds one function a command, the other files what they are pointed at and how things look."""

from featherweight.cli.commands import app, main

__all__ = ["app", "main"]
