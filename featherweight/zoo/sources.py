"""MODEL as a network of an installed library: `timm:NAME`, `torchvision:NAME`, `hf:FOLDER`; and what is known of its inputs.

`timm:resnet50,num_classes=4` passes plain numbers on, `timm:resnet50.a1_in1k,pretrained` asks the library for its weights, which
takes its server. `hf:FOLDER` is any folder in the hub's layout (config.json and model.safetensors, or an index and shards); where
there is no such folder, the text is taken for the hub's id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import ArtifactError, DataError, InputError, short, shortened
from featherweight.files import libraries, storage
from featherweight.files.libraries import ARGUMENTS, Source
from featherweight.network.calls import Inputs

LIBRARIES = {"timm": "timm", "torchvision": "torchvision", "hf": "transformers"}
FORMS = tuple(f"{prefix}:{'FOLDER' if prefix == 'hf' else 'NAME'}" for prefix in LIBRARIES)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LARGEST_JSON = 2**24
TOKENS = 16  # of an example
OF_A_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "spiece.model", "preprocessor_config.json")


def is_source(text: str) -> bool:
    """Does it name a network of a library?"""
    return text.partition(":")[0] in LIBRARIES and ":" in text and ".py:" not in text


@dataclass(frozen=True)
class Named:
    """A MODEL of a library, taken apart."""

    prefix: str
    name: str  # of the network, or the folder
    arguments: dict[str, int]
    pretrained: bool


def split(text: str) -> Named:
    """Raises InputError."""
    prefix, _, rest = text.partition(":")
    name, *options = rest.split(",") if prefix != "hf" else [rest]
    known = ARGUMENTS[LIBRARIES[prefix]]
    arguments = {}
    for option in options:
        key, equals, value = option.partition("=")
        if option == "pretrained":
            continue
        if key not in known or not equals or not value.isdecimal() or not 1 <= len(value) <= 6 or not int(value):
            forms = ", ".join([*(f"{one}=NUMBER" for one in known), "pretrained"])
            raise InputError(f"{short(text)}: after the name may stand, each after a comma: {forms}; given {short(option)}")
        arguments[key] = int(value)
    if not name:
        raise InputError(f"{text} names no network: give {', '.join(FORMS)}")
    return Named(prefix, name, arguments, "pretrained" in options)


def network(text: str) -> nn.Module:
    """The network, in eval mode; `hf:` and `pretrained` with their weights, others with random ones.

    Raises LibraryMissing, InputError, and DataError where a server is asked that cannot be reached.
    """
    named = split(text)
    if named.prefix == "hf":
        return _of_folder(hub_folder(named.name), text)
    made = libraries.build(_source(named))
    if named.pretrained:
        made.load_state_dict(_pretrained(named).state_dict())
    return made


def source_of(text: str, made: nn.Module) -> Source | None:
    """What an artifact remembers of `made`, the network of `text`; None where that names no library's network."""
    if not is_source(text):
        return None
    named = split(text)
    if named.prefix != "hf":
        return _source(named)
    config = libraries.checked(_plain(getattr(made, "config").to_dict()))  # noqa: B009
    version = libraries.version_of("transformers")
    return Source(library="transformers", version=version, name=type(made).__name__, config=config)


def _source(named: Named) -> Source:
    library = LIBRARIES[named.prefix]
    version = libraries.version_of(library)
    return Source(library=library, version=version, name=named.name, arguments=named.arguments)  # type: ignore[arg-type]


def _plain(config: Any) -> Any:
    return json.loads(json.dumps(config, default=str))


def _pretrained(named: Named) -> nn.Module:
    try:
        if named.prefix == "timm":
            return libraries.library("timm", "timm").create_model(named.name, pretrained=True, **named.arguments)
        return libraries.library("torchvision", "torchvision").get_model(named.name, weights="DEFAULT", **named.arguments)
    except Exception as error:  # of a dozen kinds: no server, no such weights, another number of classes
        raise DataError(
            f"the weights of {named.prefix}:{named.name} could not be had: {type(error).__name__}: {shortened(str(error))}. "
            "Where no server is reached, give --weights FILE in place of pretrained"
        ) from error


# --- folders in the hub's layout -----------------------------------------------------------------------------------------


def hub_folder(text: str) -> Path:
    """The folder itself, or a snapshot of the hub's of that id. Raises InputError, DataError."""
    folder = Path(text)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{folder} has no config.json: hf:FOLDER is a folder in the hub's layout, as save_pretrained writes it"
            )
        return folder
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise InputError(f"there is no folder {folder} (given as hf:{short(text)})")
    hub = libraries.library("huggingface_hub", f"hf:{text}")
    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", *OF_A_TOKENIZER]
    try:
        return Path(hub.snapshot_download(text, allow_patterns=wanted))
    except Exception as error:
        raise DataError(
            f"there is no folder {text}, and the hub gives none of that id: {type(error).__name__}: {shortened(str(error))}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Raises ArtifactError where it is no object."""
    try:
        found = json.loads(storage.read(path, LARGEST_JSON, follow=True))  # the hub's own cache is of links
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {shortened(str(error))}") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is no JSON object")
    return found


def _of_folder(folder: Path, text: str) -> nn.Module:
    transformers = libraries.library("transformers", text)
    config = read_json(folder / "config.json")
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise InputError(f"{folder}/config.json names no one class under architectures: save the network by save_pretrained")
    kind = libraries.class_of(transformers, named[0])
    if "quantization_config" in config:
        raise InputError(f"{text} holds weights that are quantised already: start from the network as it was before")
    libraries.checked(config)
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has no model.safetensors: other files of weights may hold code; network.save_pretrained({str(folder)!r}) "
            "by a current transformers writes it"
        )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    asked = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        made, told = kind.from_pretrained(folder, dtype=torch.float32, **asked)
    except Exception as error:  # whatever the library raises at files and configurations that make no sense
        raise ArtifactError(f"{text} cannot be loaded: {type(error).__name__}: {shortened(str(error))}") from error
    wrong = [
        f"{word.removesuffix('_keys')} {name}"
        for word in ("missing_keys", "mismatched_keys")
        for name in sorted(map(str, told[word]))
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ArtifactError(f"{text} does not hold the weights of a {named[0]}: {', '.join(wrong[:5])}{more}")
    made.config.use_cache = False  # see files.libraries
    return made.eval()


# --- what is known of the inputs -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """How a network takes pictures: `size` pixels a side, cut from the middle `share` of them, channels normalised."""

    size: int = 224
    share: float = 0.875
    mean: tuple[float, ...] = IMAGENET[0]
    deviation: tuple[float, ...] = IMAGENET[1]
    channels: int = 3

    def changed(self, **asked: int) -> Pictures:
        return replace(self, **asked)  # type: ignore[arg-type]


def pictures(text: str, made: nn.Module) -> Pictures | None:
    """What the library says of the pictures that `text` takes; None where it does not say."""
    prefix = text.partition(":")[0] if is_source(text) else ""
    if prefix == "timm":
        config: Mapping[str, Any] = getattr(made, "pretrained_cfg", None) or {}
        channels, *sides = config.get("input_size") or (0, 0)
        sides = [split(text).arguments.get("img_size", sides[0])]
        if not channels:
            return None
        colours = tuple(config.get("mean", IMAGENET[0])), tuple(config.get("std", IMAGENET[1]))
        return Pictures(sides[0], config.get("crop_pct") or 0.875, *colours, split(text).arguments.get("in_chans", channels))
    if prefix == "torchvision":
        return _of_torchvision(split(text).name)
    size = getattr(getattr(made, "config", None), "image_size", None)
    if prefix == "hf" and isinstance(size, int):
        return Pictures(size, 1.0, channels=getattr(made.config, "num_channels", 3))
    return None


def _of_torchvision(name: str) -> Pictures | None:
    models = libraries.library("torchvision", f"torchvision:{name}")
    known: Any = next(iter(models.get_model_weights(name)), None)
    try:
        made = known.transforms()
        return Pictures(made.crop_size[0], made.crop_size[0] / made.resize_size[0], tuple(made.mean), tuple(made.std))
    except (AttributeError, TypeError, IndexError):  # a detector, a video, a pair of pictures
        return None


def example(text: str, made: nn.Module) -> tuple[Tensor, ...] | Inputs:
    """Inputs of batch size 1 such as the library says that its network takes. Raises InputError where it does not say.

    Pictures hold random numbers, so that every path carries some; tokens are random, too, and valid.
    """
    dice = torch.Generator().manual_seed(0)
    held = pictures(text, made)
    if held is not None:
        picture = torch.randn(1, held.channels, held.size, held.size, generator=dice)
        return Inputs((), {"pixel_values": picture}) if split(text).prefix == "hf" else (picture,)
    config = getattr(made, "config", None)
    if getattr(made, "main_input_name", None) == "input_ids" and isinstance(getattr(config, "vocab_size", None), int):
        longest = getattr(config, "max_position_embeddings", TOKENS)
        tokens = torch.randint(0, config.vocab_size, (1, min(TOKENS, longest or TOKENS)), generator=dice)  # type: ignore[union-attr]
        inputs = {"input_ids": tokens}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = tokens.clone()
        return Inputs((), inputs)
    raise InputError(f"nothing is known of the inputs of {text}: give their shape, such as --input 1x3x224x224, or --data")


def tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder in the hub's layout. Raises InputError."""
    transformers = libraries.library("transformers", f"the tokenizer of {folder}")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(
            f"{folder} holds no tokenizer that can be read: {type(error).__name__}: {shortened(str(error))}"
        ) from error
