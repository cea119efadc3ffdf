"""`csv:PATH` and `jsonl:PATH`: texts with labels, for a network of `hf:FOLDER` and by its tokenizer.

PATH is a file, of which a part is held out, or a folder with train.csv and val.csv (or test.csv; .jsonl alike). A row has a text
and a label (`text=` and `label=` name other columns). Labels are what the network's configuration names, or class numbers, or
any texts, which are numbered in their order.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from featherweight.errors import DataError, InputError, short, shortened
from featherweight.files import storage
from featherweight.network.devices import device_of, placed
from featherweight.network.evaluating import evaluating
from featherweight.task import Task
from featherweight.zoo import own_data, sources
from featherweight.zoo.own_data import Given, logits_in, require_outputs

BATCH, RATE, LENGTH = 32, 5e-5, 128
LARGEST_FILE = 2**31
TEST = ("val", "validation", "test")


@dataclass(frozen=True)
class Rows:
    """All texts and their class numbers; the places to train on and to score on."""

    texts: Sequence[str]
    labels: Tensor
    train: Tensor
    test: Tensor
    classes: int


@dataclass(frozen=True)
class Tokenised:
    """Batches (inputs by name, labels) of the rows at `order`, padded to the longest of each batch."""

    rows: Rows
    order: Tensor
    batch: int
    tokenizer: Any
    length: int
    device: torch.device

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for places in self.order.split(self.batch):
            texts = [self.rows.texts[place] for place in places.tolist()]
            yield placed((tokenised(self.tokenizer, texts, self.length), self.rows.labels[places]), self.device)


def tokenised(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """(texts, tokens) int64 each: what the tokenizer says that its network takes."""
    return dict(tokenizer(list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt"))


def task(given: Given, model: str, network: nn.Module) -> Task:
    """The Task: AdamW at 5e-5 (`rate=` for another), cross-entropy, percent right; the example is the first text.

    Raises InputError where the model is not of `hf:`, DataError for a file that makes no sense.
    """
    if not model.startswith("hf:"):
        raise InputError(
            f"{given.form}: holds texts, which only the tokenizer of an hf: MODEL makes numbers of: give --data file.py:task"
        )
    tokenizer = sources.tokenizer(sources.hub_folder(model.removeprefix("hf:")))
    config: Any = network.config
    if tokenizer.pad_token is None:  # a decoder's: what is padded is masked, and any token will do
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    rows = read(given, getattr(config, "label2id", None) or {})
    batch, rate = int(given.settings.get("batch", BATCH)), float(given.settings.get("rate", RATE))
    most = getattr(config, "max_position_embeddings", None) or LENGTH
    length = min(int(given.settings.get("length", LENGTH)), most)
    of = functools.partial(Tokenised, rows, batch=batch, tokenizer=tokenizer, length=length)

    def train(epoch: int) -> Tokenised:
        dice = torch.Generator().manual_seed(1_000_003 * given.seed + epoch)
        return of(rows.train[torch.randperm(len(rows.train), generator=dice)], device=given.device)

    def loss(network: nn.Module, batch: Any) -> Tensor:
        inputs, labels = batch
        logits = logits_in(network(**inputs))
        require_outputs(logits, rows.classes)
        return F.cross_entropy(logits, labels)

    def score(network: nn.Module) -> float:
        batches = of(rows.test, device=device_of(network))
        with evaluating(network), torch.inference_mode():
            return own_data.accuracy(network, batches, rows.classes, lambda net, inputs: logits_in(net(**inputs)))

    def optimizer(parameters: Iterable[Parameter]) -> Optimizer:
        return AdamW(parameters, lr=rate)

    example = placed(tokenised(tokenizer, rows.texts[:1], length), given.device)
    return Task(example, train, loss, score, optimizer, logits=logits_in)


# --- rows ----------------------------------------------------------------------------------------------------------------


def read(given: Given, known: dict[str, int]) -> Rows:
    """`known`: name of a class -> its number, as the network's configuration says. Raises DataError."""
    columns = (str(given.settings.get("text", "text")), str(given.settings.get("label", "label")))
    files = [given.path]
    if given.path.is_dir():
        ending = f".{given.form}"
        files = [given.path / f"train{ending}"]
        files += [given.path / f"{name}{ending}" for name in TEST if (given.path / f"{name}{ending}").is_file()][:1]
        if not files[0].is_file() or len(files) == 1:
            raise DataError(
                f"{given.form}: {given.path} needs train{ending} and one of {', '.join(f'{n}{ending}' for n in TEST)}"
            )
    found = [_pairs(path, given.form, columns) for path in files]
    numbers = _numbers([label for _, label in found[0]], known)
    unknown = [label for pairs in found for _, label in pairs if label not in numbers]
    if unknown:
        raise DataError(f"{given.form}: {files[-1]} has the label {short(unknown[0])}, which the training part has not")
    names = {number: name for name, number in numbers.items()}
    labels = [torch.tensor([numbers[label] for _, label in pairs]) for pairs in found]
    test = labels[1] if len(labels) > 1 else None
    train, tested, classes = own_data.parts(labels[0], test, given.held, f"{given.form}: {given.path}", names)
    return Rows([text for pairs in found for text, _ in pairs], torch.cat(labels), train, tested, classes)


def _numbers(labels: Sequence[str], known: dict[str, int]) -> dict[str, int]:
    """Label -> class number."""
    names = set(labels)
    if names <= known.keys():
        return {name: int(number) for name, number in known.items()}
    if all(name.isdecimal() and len(name) < 7 for name in names):
        return {name: int(name) for name in names}
    return {name: number for number, name in enumerate(sorted(names))}


def _pairs(path: Path, form: str, columns: tuple[str, str]) -> list[tuple[str, str]]:
    """(text, label) of each row. Raises DataError with the line of the first row that is none."""
    try:
        text = storage.read(path, LARGEST_FILE, follow=True).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""))) if form == "csv" else _objects(text)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else shortened(str(error))
        raise DataError(f"{form}: {path} cannot be read: {said}") from None
    pairs = []
    for number, row in enumerate(rows, start=2 if form == "csv" else 1):
        held = [row.get(column) if isinstance(row, dict) else None for column in columns]
        if not isinstance(held[0], str) or not isinstance(held[1], str | int) or held[1] == "":
            names = ", ".join(map(str, row)) if isinstance(row, dict) else "no object"
            raise DataError(
                f"{form}: {path}, row {number}: no text under {columns[0]!r} or no label under {columns[1]!r} (there are: "
                f"{shortened(names)}); text=NAME and label=NAME after the path name others"
            )
        pairs.append((held[0], str(held[1])))
    if not pairs:
        raise DataError(f"{form}: {path} holds no rows")
    return pairs


def _objects(text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return found
