"""What `featherweight --help` shows and the shell completes, without torch: to import it takes longer than to read the page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer
import typer.core

from featherweight.version import __version__

DEBUG = "FEATHERWEIGHT_DEBUG"
COMPLETE = "_FEATHERWEIGHT_COMPLETE"  # set where a shell asks for completions
HERE = ("-h", "--help", "--version", "--install-completion", "--show-completion")
EPILOG = (
    "Exit codes: 0 done. 1 the demo or a goal was missed, evidence is less than required, or an error of no other kind. 2 a "
    "wrong argument, name or recipe. 3 data missing or damaged. 4 an artifact or checkpoint damaged or foreign, or inspect "
    "disagrees with the report. 5 training cannot go on, such as a loss that is NaN. 6 files cannot be written. 130 interrupted; "
    "the same command goes on. "
    f"{DEBUG}=1 before a command shows the traceback of an error."
)
LOOKS = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "epilog": EPILOG,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
_COMMANDS = """\
compress: Compress MODEL on the data by the recipe, and write the artifact to DIR. Ctrl-C saves; the same command goes on.
plan: Show what `compress` would do, with exact names and sizes, or which units a budget would cut; and run nothing.
recipes: List the built-in recipes by what they are for, or show one: its parameters and itself as YAML, to be saved as a file.
demo: Train LeNet-5 on scikit-learn's digits and leave a twentieth of its weights. Nothing is downloaded; a minute or two.
shrink: Reach a goal: pick and chain what fits, by its cost as measured and short probes on batches held out, and run it.
prune: Cut channels, neurons and heads of MODEL without training; write the artifact to DIR. --data (labels or none) scores it.
factorize: Replace layers of MODEL by two thin ones without training, and write the artifact to DIR. With --data it is scored.
quantize: Round the weights of MODEL to few levels without training, and write the artifact to DIR. With --data it is scored.
inspect: Measure an artifact or packed file anew, from its files alone; or show a MODEL's structure: what can go, and why not.
pack: Pack an artifact's network into one entropy-coded file, every byte counted, bitwise the same when loaded.
export: Write TARGET as an ONNX model, a torch.export program or C, run the file, and say how far it is from the network.
bench: Time networks against A, in turns: faster, slower, or no difference seen where times spread more than they differ.
evidence: Does SMALL look at what DENSE looks at? Compare attributions and answers beside a yardstick and a floor; write a page.
report: Write what was asked of one or more runs and what came of it as a page: accuracy against sizes, stages, layers.
reproduce: Run a benchmark of a checkout and rewrite its table; without NAME, list them. Further arguments go to the benchmark.
"""
COMMANDS = dict(line.split(": ", 1) for line in _COMMANDS.splitlines())  # as the docstrings of the commands begin


class Group(typer.core.TyperGroup):
    """Commands whose help shows a flag alone, without the type of its value."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        return _bare(super().get_params(ctx))

    def get_command(self, ctx: typer.Context, name: str) -> Any:  # type: ignore[override]
        command = super().get_command(ctx, name)
        if command is not None:
            _bare(command.get_params(ctx))
        return command


def _bare(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
    return parameters


def plain() -> None:
    """Where NO_COLOR is set, help and errors of options have no colour and no bold either: see no-color.org."""
    if os.environ.get("NO_COLOR"):
        from typer import rich_utils

        rich_utils.COLOR_SYSTEM = None


def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Makes trained PyTorch networks small and fast, and measures what came out."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def shown(arguments: list[str]) -> bool:
    """Were these answered here? All but a command are, and the shell's question for the name of one."""
    if COMPLETE in os.environ:
        if not _is_first(os.environ):
            return False
    elif arguments and arguments[0].partition("=")[0] not in HERE:
        return False
    app = typer.Typer(cls=Group, **LOOKS)  # type: ignore[arg-type]
    app.callback(invoke_without_command=True)(root)
    for name, line in COMMANDS.items():
        app.command(name, help=line)(_nothing)
    app(arguments or ["--help"], prog_name="featherweight", standalone_mode=False)
    return True


def _is_first(asked: Mapping[str, str]) -> bool:
    """Is it the first word after the program's name that the shell completes? bash tells its number, others the line."""
    line = asked.get("_TYPER_COMPLETE_ARGS", "")
    number = int(asked["COMP_CWORD"]) if "COMP_CWORD" in asked else len(line.split()) - (not line.endswith(" "))
    return number <= 1


def _nothing() -> None: ...
