"""Networks of installed libraries as data: what an artifact remembers of timm, torchvision and transformers, and building it.

A source is a library's name and version, a network's name there and plain arguments: never code, and nothing that makes the
library read a file or ask a server. It may come from a stranger: only names that the library itself lists are called, only
arguments of a short list are passed, and a configuration is counted without memory before it is built.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from featherweight.errors import ArtifactError, InputError, did_you_mean, short, shortened
from featherweight.network.collecting import uncollected

Library = Literal["timm", "torchvision", "transformers"]
Argument = Annotated[int, Field(ge=1, le=100_000)]
ARGUMENTS: dict[str, tuple[str, ...]] = {  # that may be asked for by name, and be stored
    "timm": ("num_classes", "in_chans", "img_size"),
    "torchvision": ("num_classes",),
    "transformers": (),
}
NAME = re.compile(r"[A-Za-z0-9_]{1,80}(\.[A-Za-z0-9_]{1,80})?", re.ASCII)
# Of a configuration: what runs code of a hub, loads kernels, reads files, or says where it once lay.
NOT_STORED = ("auto_map", "quantization_config", "_name_or_path", "name_or_path", "custom_pipelines", "use_kernels", "adapters")
LARGEST_NUMBER, MOST_REPEATS = 2**31, 2_000  # in a configuration: of any kind, and of layers, blocks, stages and experts
REPEATED = re.compile("layer|depth|block|stage|expert|repeat|num_heads|n_head")
HUGE = 2**26  # numbers that a network may have whatever its artifact holds; more by the size of that


class Source(BaseModel):
    """Where a network's class is, as data.

    library, version  the installed package that it was built from
    name              of the network there; of transformers, the class
    arguments         plain numbers, see ARGUMENTS
    config            of transformers, the configuration
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: Library
    version: str
    name: str
    arguments: dict[str, Argument] = {}
    config: dict[str, Any] | None = None

    def __str__(self) -> str:
        """As a MODEL of the command line; of transformers with the class where the folder stood."""
        prefix = "hf" if self.library == "transformers" else self.library
        return ",".join([f"{prefix}:{self.name}", *(f"{key}={value}" for key, value in self.arguments.items())])


class LibraryMissing(InputError):
    """A network is of a library that is not installed."""


def build(source: Source, most: int | None = None) -> nn.Module:
    """The network with random weights, in eval mode, from the library that is installed here.

    `most`: numbers that a configuration's network may have, counted without memory. Raises LibraryMissing, and InputError for a
    name or an argument that the library does not have.
    """
    unknown = [key for key in source.arguments if key not in ARGUMENTS[source.library]]
    if unknown:
        known = ", ".join(ARGUMENTS[source.library]) or "none"
        raise InputError(f"{source.library} networks take no argument {short(unknown[0])} here: there are {known}")
    if not NAME.fullmatch(source.name):
        raise InputError(f"{short(source.name)} is no name of a network of {source.library}")
    module = library(source.library, f"{source.library}:{source.name}")
    make = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}[source.library]
    with warnings.catch_warnings(), uncollected():
        warnings.simplefilter("ignore")  # of initialisations that take long and will change: the weights are loaded
        return make(module, source, most).eval()


def version_of(name: str) -> str:
    """The installed version; "" where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def library(name: str, wanted_for: str) -> ModuleType:
    """The installed library, imported. Raises LibraryMissing."""
    said = f"{wanted_for} needs {name}, which is not installed here: pip install {name}"
    try:
        if importlib.util.find_spec(name) is None:
            raise LibraryMissing(f"{said}, or give the network as file.py:function (in Python, as an instance of its class)")
        with uncollected():
            return importlib.import_module("torchvision.models" if name == "torchvision" else name)
    except (ImportError, OSError, RuntimeError) as error:  # there, but for another torch, or without what it needs itself
        raise LibraryMissing(
            f"{said.partition(', which')[0]}, and the installed one cannot be imported: {type(error).__name__}: "
            f"{shortened(str(error))}"
        ) from error


def require(name: str, known: Callable[[], Any], where: str) -> None:
    """Raises InputError where `name` is none of `known()`."""
    names = list(known())
    if name not in names:
        raise InputError(f"{where} has no network {name!r}.{did_you_mean(name, names)} It lists {len(names)} names")


def _timm(timm: Any, source: Source, most: int | None) -> nn.Module:
    base, _, tag = source.name.partition(".")  # resnet50.a1_in1k: an architecture and the training of its weights
    require(base, timm.list_models, "timm")
    if tag and source.name not in timm.list_pretrained(base + ".*"):
        tags = list(timm.list_pretrained(base + ".*"))
        raise InputError(f"timm has no weights {source.name!r}.{did_you_mean(source.name, tags)} There are: {', '.join(tags)}")
    return _called(lambda: timm.create_model(source.name, pretrained=False, **source.arguments), source)


def _torchvision(models: Any, source: Source, most: int | None) -> nn.Module:
    require(source.name, models.list_models, "torchvision")
    given: dict[str, Any] = {"weights": None} | source.arguments
    if source.name in _fetching(models):
        given["weights_backbone"] = None
    return _called(lambda: models.get_model(source.name, **given), source)


def _fetching(models: Any) -> list[str]:
    """Detectors and segmenters, whose default is to fetch weights of their first part."""
    return [*models.list_models(module=models.detection), *models.list_models(module=models.segmentation)]


def _called(make: Callable[[], Any], source: Source) -> nn.Module:
    try:
        made = make()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        given = f" with {', '.join(f'{k}={v}' for k, v in source.arguments.items())}" if source.arguments else ""
        raise InputError(
            f"{source.library} cannot build {source.name}{given}: {type(error).__name__}: {shortened(str(error))}"
        ) from error
    assert isinstance(made, nn.Module)
    return made


def _transformers(transformers: Any, source: Source, most: int | None) -> nn.Module:
    kind: Any = class_of(transformers, source.name)
    config = checked(source.config or {})
    try:
        made = kind.config_class.from_dict(dict(config))
    except Exception as error:  # whatever a configuration's own checks raise at values that make no sense
        raise InputError(
            f"{source.name} does not take its configuration: {type(error).__name__}: {shortened(str(error))}"
        ) from error
    made.use_cache = False  # a cache is state between calls: nothing that is traced, cut or compared
    if most is not None:
        with torch.device("meta"):
            numbers = sum(parameter.numel() for parameter in _called(lambda: kind(made), source).parameters())
        if numbers > most:
            raise ArtifactError(
                f"its configuration is of a network of {numbers:,} numbers, and its weights are of a far smaller one"
            )
    return _called(lambda: kind(made), source)


def class_of(transformers: Any, name: str) -> Any:
    """A network's class of transformers itself. Raises InputError."""
    kind: Any = getattr(transformers, name, None) if NAME.fullmatch(name) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel) and getattr(kind, "config_class", None)):
        raise InputError(
            f"transformers {importlib.metadata.version('transformers')} has no network {short(name)}: code that comes with a "
            "folder is not run; import it yourself and give file.py:function"
        )
    return kind


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without what is not to be stored. Raises InputError for numbers that no network has."""
    found = {key: value for key, value in config.items() if key not in NOT_STORED and "attn_implementation" not in key}

    def look(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for inner, part in value.items():
                look(str(inner), part)
        elif isinstance(value, list):
            for part in value:
                look(key, part)
        elif isinstance(value, int) and not isinstance(value, bool):
            bound = MOST_REPEATS if REPEATED.search(key) and "size" not in key else LARGEST_NUMBER
            if abs(value) > bound:
                raise InputError(f"the configuration says {shortened(key)}={short(value)}, and more than {bound:,} is not built")

    look("", found)
    return found
