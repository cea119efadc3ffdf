"""The user's own data as a Task, by a path: `imagefolder:PATH`, `npz:PATH`, `csv:PATH` and `jsonl:PATH`.

After the path may stand settings, each after a comma: `imagefolder:photos,size=64,batch=32`. No code is run, and nothing is
read before the first batch or score but the names of files, and of text the first line.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import DataError, DataWarning, InputError, did_you_mean, short
from featherweight.zoo import sources

SETTING = re.compile(r"([a-z]{1,20})=([\w.%-]{1,60})")
WHOLE_NUMBERS = {"size": 8192, "batch": 65_536, "workers": 256, "length": 65_536, "channels": 16}  # setting -> the most
KNOWN = {  # form -> its settings
    "imagefolder": ("size", "channels", "batch", "workers", "rate", "held"),
    "npz": ("batch", "rate", "held"),
    "csv": ("text", "label", "length", "batch", "rate", "held"),
    "jsonl": ("text", "label", "length", "batch", "rate", "held"),
}
FORMS = tuple(f"{form}:PATH" for form in KNOWN)
MOST_NAMED = 8  # classes in a message
HELD_OUT = 0.2  # of each class, where no part is for testing


@dataclass(frozen=True)
class Given:
    """What `--data FORM:PATH,key=value` says. `settings`: whole numbers, shares and names, as they are named in KNOWN."""

    form: str
    path: Path
    settings: Mapping[str, Any]
    seed: int
    device: torch.device

    @property
    def held(self) -> float:
        """The share of each class that is held out to score on, where the data have no such part."""
        return float(self.settings.get("held", HELD_OUT))


def is_own(text: str) -> bool:
    """Is it data by a path?"""
    return text.partition(":")[0] in KNOWN and ":" in text and ".py:" not in text


def varies(text: str) -> bool:
    """Are its inputs of several lengths, as texts are?"""
    return is_own(text) and text.partition(":")[0] in ("csv", "jsonl")


def given(text: str, seed: int, device: torch.device) -> Given:
    """Raises InputError for settings that there are not, DataError where nothing is at the path."""
    form, _, rest = text.partition(":")
    path, *options = rest.split(",")
    while options and SETTING.fullmatch(options[0]) is None:  # a comma of the path itself
        path = f"{path},{options.pop(0)}"
    settings = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in KNOWN[form] or SETTING.fullmatch(option) is None:
            near = did_you_mean(key[:40], KNOWN[form])
            raise InputError(
                f"{form}: has no setting {short(option)}.{near} There are: {', '.join(KNOWN[form])}, each as key=value"
            )
        settings[key] = _setting(form, key, value)
    if not path or not Path(path).exists():
        raise DataError(f"there is no file or folder {path or 'of that name'} (given as {short(text)})")
    return Given(form, Path(path), settings, seed, device)


def _setting(form: str, key: str, value: str) -> Any:
    if key in WHOLE_NUMBERS:
        least, most = int(key != "workers"), WHOLE_NUMBERS[key]
        if not value.isdecimal() or not least <= int(value) <= most:
            raise InputError(f"{form}: {key} is a whole number from {least} to {most:,}, given {short(value)}")
        return int(value)
    if key in ("rate", "held"):
        try:
            number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if not 0 < number < (1 if key == "held" else 1000):
            raise InputError(f"{form}: {key} is a number above 0{' and below 1' if key == 'held' else ''}, given {short(value)}")
        return number
    return value


def absolute(text: str) -> str:
    """The same data from any folder."""
    form, _, rest = text.partition(":")
    return f"{form}:{Path(rest).absolute()}"  # settings hold no slash, and stay at the end


# --- what the forms share ------------------------------------------------------------------------------------------------


def logits_in(output: Any) -> Tensor:
    """The logits of a network's output: itself, `.logits`, ["logits"], or the first of several. Raises InputError."""
    held = getattr(output, "logits", None)
    if held is None and isinstance(output, Mapping):
        held = output.get("logits")
    if held is None:
        held = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(held, Tensor) and held.ndim >= 2:
        return held
    raise InputError(
        f"the network gives a {type(output).__name__} in which no logits (batch, classes) are found: give --data file.py:task"
    )


def require_outputs(logits: Tensor, classes: int) -> None:
    """Raises InputError where the data have more classes than the network has outputs."""
    if logits.shape[1] < classes:
        raise InputError(
            f"the data have {classes} classes and the network {logits.shape[1]} outputs: build it with as many, such as "
            f"timm:NAME,num_classes={classes}"
        )


def split(labels: Tensor, held: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places (train, test): the share `held` of each class, at least one of each that has two, by a permutation of the seed."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test = []
    for label in labels.unique().tolist():
        own = order[labels[order] == label]
        test.append(own[: max(1, int(held * len(own))) if len(own) > 1 else 0])
    tested = torch.cat(test)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[tested] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def same_classes(trained: Collection[str], scored: Collection[str], what: str, train: str, test: str) -> None:
    """Of two parts, `train` and `test`, the names of the classes that have samples there. Raises DataError where only `test` has
    one, and warns where only `train` has: the score then says nothing of it."""
    if unknown := [name for name in scored if name not in trained]:
        raise DataError(f"{what}: {test} has {_classes(unknown)}, which {train} has not")
    if lacking := [name for name in trained if name not in scored]:
        said = f"{what}: {test} has no sample of {_classes(lacking)}, which {train} has: the score says nothing of "
        warnings.warn(said + ("it" if len(lacking) == 1 else "them"), DataWarning, stacklevel=2)


def _classes(names: Sequence[str]) -> str:
    shown = ", ".join(short(name) for name in names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"the class{'es' if len(names) > 1 else ''} {shown}{more}"


def accuracy(network: nn.Module, batches: Any, classes: int, call: Callable[[nn.Module, Any], Tensor]) -> float:
    """Percent of the labels that have the largest logit. `batches`: of (inputs, labels)."""
    right = total = 0
    for inputs, labels in batches:
        logits = call(network, inputs)
        require_outputs(logits, classes)
        right += int((logits.argmax(1) == labels.to(logits.device)).sum())
        total += labels.numel()
    return 100.0 * right / total


def pictures(model: str, network: nn.Module | None, settings: Mapping[str, Any]) -> sources.Pictures:
    """How the network takes pictures: as its library says, 224 pixels and ImageNet's colours where none does, and as is asked."""
    known = sources.pictures(model, network) if network is not None else None
    asked = {key: settings[key] for key in ("size", "channels") if key in settings}
    found = (known or sources.Pictures()).changed(**asked)
    if found.channels not in (1, 3):
        raise InputError(
            f"imagefolder: pictures have 1 or 3 channels, and the network takes {found.channels}: give --data file.py:task"
        )
    return found


def parts(
    labels: Tensor, test: Tensor | None, held: float, what: str, names: Mapping[int, str] | None = None
) -> tuple[Tensor, Tensor, int]:
    """(places to train on, places to score on, classes) of class numbers; `test`: labels of a part of its own, after the others.
    `names`: class number -> its name, where it has one.

    Raises DataError for labels that are no class numbers, for one class, and for classes that only the test part has; warns of
    classes that it has not.
    """

    def named(part: Tensor) -> list[str]:
        return [(names or {}).get(number, str(number)) for number in part.unique().tolist()]

    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most > 100_000:
        raise DataError(f"{what}: class numbers go from 0 to 100,000, and the labels from {least} to {most}")
    if least == most:
        raise DataError(f"{what}: every label is {least}, and there is nothing to tell apart")
    classes = most + 1
    if test is None:
        train, tested = split(labels, held, seed=0)  # the same for every seed: no run sees another's test part
        if not len(tested):
            raise DataError(f"{what}: one sample a class and none to score on: give a part for testing")
        same_classes(named(labels), named(labels[tested]), what, "the training part", "the part held out")
        return train, tested, classes
    same_classes(named(labels), named(test), what, "the training part", "the test part")
    return torch.arange(len(labels)), torch.arange(len(labels), len(labels) + len(test)), classes
