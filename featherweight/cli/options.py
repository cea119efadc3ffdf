"""What the options of several commands are called and mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featherweight.cli import inputs
from featherweight.zoo import own_data, sources
from featherweight.zoo.networks import NETWORKS

MODELS = ", ".join((*NETWORKS, *sources.FORMS))
DATA = ", ".join((*inputs.BUILT_IN_DATA, *own_data.FORMS))
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help=f"{', '.join((*NETWORKS, *sources.FORMS))}; or file.py:function, which returns a module."
    ),
]
Data = Annotated[str, typer.Option("--data", metavar="D", help=f"{DATA}, or tfbs:PATH; or file.py:task, a Task or seed -> Task.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", metavar="R", help="A built-in recipe (see `recipes`), or a .yaml or .json file.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A parameter of the recipe (keep=5x,10x), or a path in a file's data (stages.1.keep=0.1).",
    ),
]
Weights = Annotated[Path | None, typer.Option(metavar="FILE", help="A .safetensors, .pt or .pth file with the trained weights.")]
Workdir = Annotated[Path | None, typer.Option(metavar="W", help="Folder for checkpoints. Default: DIR.work, removed at the end.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds torch and the task.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: torch's own choice.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where networks run: cpu, cuda, cuda:1 ..")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="An artifact, a packed file (.fwz), or a MODEL.")]
TargetModel = Annotated[str | None, typer.Option("--model", help="The network; default: the one that the artifact names.")]
TargetData = Annotated[str | None, typer.Option("--data", help="The task; default: the one that the artifact names.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="1x3x224x224",
        help="Shape of an input, in place of --data; again for each further one. 1x16:int64 for other types than float32, "
        "tokens=1x16:int64 by name.",
    ),
]
Runtime = Annotated[
    str, typer.Option("--runtime", metavar="R", help="In which milliseconds are met: eager, or onnx or c, as `export` writes it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
