"""The README.md of an artifact: what it is, and the lines that open it in a fresh process."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from featherweight.files.description import Description
from featherweight.network.calls import Inputs

BUILT_IN = re.compile(r"[a-z][a-z0-9_]{1,60}", re.ASCII)
OWN = re.compile(r"([A-Za-z_]\w{0,60})\.py:([A-Za-z_]\w{0,60})", re.ASCII)  # in the folder where Python is started
CLASS = re.compile(r"[A-Za-z_]\w{0,60}", re.ASCII)


@dataclass(frozen=True)
class Opened:
    """How an artifact is opened. `kind`: the name of the network's class, `example`: what it is called with, where known."""

    kind: str
    example: Inputs | None


UNKNOWN = Opened("", None)


def text(described: Description, opened: Opened) -> str:
    """The file. Its Python block is run as it stands, in the artifact's folder, where it names all that it needs."""
    kind = opened.kind if CLASS.fullmatch(opened.kind) else "the class that was compressed"
    said, lines = _network(described, kind)
    call = _call(opened.example) if opened.example is not None else "inputs"
    code = ["import torch", "import featherweight as fw", *lines, "with torch.no_grad():", f"    output = network.eval()({call})"]
    if call == "inputs":
        code = ["import featherweight as fw", *lines, "network.eval()  # call it as before"]
    name = described.recipe.get("name")
    recipe = f" by the recipe `{name}`" if isinstance(name, str) and BUILT_IN.fullmatch(name) else ""
    block = re.sub(r"\n(?=network)", "\n\n", "\n".join(code), count=1)  # imports apart, as formatters want them
    return (
        f"# A network made small by featherweight {described.featherweight}\n\n"
        f"{said[0].upper()}{said[1:]}{recipe}. `compression.json` says what was done and measured, `model.safetensors` holds the "
        f"weights; neither holds code. In this folder:\n\n```python\n{block}\n```\n\n"
        "`featherweight inspect .` measures it anew, `featherweight export .` writes ONNX.\n"
    )


def _network(described: Description, kind: str) -> tuple[str, list[str]]:
    """What the network is, in words, and the lines that make it."""
    source = described.source
    if described.exported is not None:
        return "a network that is stored as a graph", ['network = fw.load(".")']
    if source is not None:
        said = f"a {source.name} of {source.library} {source.version}"
        return said, [f'network = fw.load(".")  # builds it by {source.library}, which has to be installed']
    if described.model is not None and BUILT_IN.fullmatch(described.model):
        name = described.model
        return f"a {name}", [f"from featherweight.zoo import {name}", f'network = fw.load(".", {name}())']
    if (own := OWN.fullmatch(described.model or "")) is not None:
        lines = [
            f"from {own[1]} import {own[2]}  # your own code: its folder on PYTHONPATH",
            f'network = fw.load(".", {own[2]}())',
        ]
        return f"a {kind}", lines
    return f"a {kind}", [f'network = fw.load(".", model)  # model: a {kind}, made as before']


def _call(example: Inputs) -> str:
    """The example as Python, random or zero; `inputs` where it is more than tensors."""
    if not all(isinstance(value, Tensor) for value in (*example.args, *example.kwargs.values())):
        return "inputs"
    named = [f"{name}={_tensor(value, 'mask' in name)}" for name, value in example.kwargs.items()]
    return ", ".join([*map(_tensor, example.args), *named])


def _tensor(value: Any, shown: bool = False) -> str:
    """`shown`: a mask, of which all is shown."""
    sizes = ", ".join(map(str, value.shape))
    if value.is_floating_point():
        return f"torch.randn({sizes})" if str(value.dtype) == "torch.float32" else f"torch.randn({sizes}, dtype={value.dtype})"
    return f"torch.{'ones' if shown else 'zeros'}({sizes}, dtype={value.dtype})"
