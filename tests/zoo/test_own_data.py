"""The user's own data by a path: how it is asked for, split and named where it makes no sense; pictures, arrays and texts."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherweight.errors import DataError, DataWarning, FeatherweightError, InputError
from featherweight.network.devices import CPU
from featherweight.task import Task
from featherweight.zoo import arrays, imagefolder, own_data, sources, texts
from featherweight.zoo.sources import Pictures


def given(text: str, seed: int = 0) -> own_data.Given:
    return own_data.given(text, seed, CPU)


def test_settings_stand_after_the_path(tmp_path: Path) -> None:
    place = tmp_path / "a,b"
    place.mkdir()
    asked = given(f"imagefolder:{place},size=32,held=10%,rate=0.5")
    assert (asked.path, asked.settings) == (place, {"size": 32, "held": 0.1, "rate": 0.5})
    assert own_data.absolute(f"imagefolder:{place},size=32") == f"imagefolder:{place},size=32"
    for wrong in ("size=0", "size=x", "sise=3", "held=2", "rate=-1", "batch=99999999"):
        with pytest.raises(InputError):
            given(f"imagefolder:{place},{wrong}")
    with pytest.raises(DataError, match="there is no file or folder"):
        given(f"npz:{tmp_path}/none.npz")
    assert own_data.is_own("csv:x") and not own_data.is_own("csv.py:x") and not own_data.is_own("digits")


def test_a_part_is_held_out_of_every_class_and_the_same_for_all() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    train, test = own_data.split(labels, 0.2, 0)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(16)) and labels[test].bincount().tolist() == [2, 1]
    assert torch.equal(own_data.split(labels, 0.2, 0)[1], test)


def test_logits_are_found_in_what_networks_give() -> None:
    logits = torch.ones(2, 3)
    for output in (logits, {"logits": logits}, (logits, None), types.SimpleNamespace(logits=logits)):
        assert own_data.logits_in(output) is logits
    with pytest.raises(InputError, match="no logits"):
        own_data.logits_in({"x": logits})
    with pytest.raises(InputError, match=r"have 4 classes and the network 3 outputs.*num_classes=4"):
        own_data.require_outputs(logits, 4)


# --- pictures ------------------------------------------------------------------------------------------------------------


def folder(root: Path, names: dict[str, int]) -> Path:
    """Empty files: names alone are looked at."""
    for name, count in names.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").touch()
    return root


def test_classes_are_folders_in_train_and_val_or_one_part_is_held_out(tmp_path: Path) -> None:
    parts = imagefolder.scan(folder(tmp_path / "a", {"train/cat": 3, "train/dog": 2, "val/dog": 1}), 0.2)
    assert (
        parts.classes == ("cat", "dog") and parts.train.labels.tolist() == [0, 0, 0, 1, 1] and parts.test.labels.tolist() == [1]
    )
    assert parts.train.paths[3] == b"dog/0.png"
    parts = imagefolder.scan(folder(tmp_path / "b", {"cat": 10, "dog": 5}), 0.2)
    assert parts.test.labels.bincount().tolist() == [2, 1] and len(parts.train) == 12
    assert not set(parts.test.paths) & set(parts.train.paths)


def test_classes_that_are_not_scored_are_named_in_every_form_and_no_label_is_shifted(tmp_path: Path) -> None:
    names = {"train/ant": 2, "train/bee": 1, "train/cat": 2, "val/ant": 0, "val/cat": 2}
    with pytest.warns(DataWarning, match=r"val has no sample of the classes 'ant', 'bee', which .*train has: .*nothing of them"):
        parts = imagefolder.scan(folder(tmp_path / "a", names), 0.2)
    assert parts.test.labels.tolist() == [2, 2] and parts.test.paths[0] == b"cat/0.png"
    with pytest.warns(DataWarning, match=r"part held out has no sample of the class 'bee'"):
        imagefolder.scan(folder(tmp_path / "b", {"ant": 3, "bee": 1}), 0.2)
    with pytest.warns(DataWarning, match="test part has no sample of the classes '0', '2', '3'"):
        arrays.task(given(saved(tmp_path / "a.npz", x=X, y=Y, x_test=X[:1], y_test=Y[1:2])))
    (tmp_path / "texts").mkdir()
    rows(tmp_path / "texts/train.csv", ["up", "down", "flat"])
    rows(tmp_path / "texts/val.csv", ["flat", "up"])
    with pytest.warns(DataWarning, match="test part has no sample of the class 'down'"):
        assert texts.read(given(f"csv:{tmp_path / 'texts'}"), {}).labels.tolist() == [2, 0, 1, 1, 2]
    rows(tmp_path / "texts/val.csv", ["flat", "left"])
    with pytest.raises(DataError, match="'left', which the training part has not"):
        texts.read(given(f"csv:{tmp_path / 'texts'}"), {"up": 0, "down": 1, "flat": 2, "left": 3})


WRONG: dict[str, tuple[dict[str, int], str]] = {
    "no class": ({}, "needs a folder for each of two classes or more, and has none"),
    "one class": ({"cat": 2}, "has one, 'cat'"),
    "an empty class": ({"cat": 2, "dog": 0}, "dog holds no picture"),
    "no val": ({"train/cat": 2, "train/dog": 2}, "has train/ and no val/"),
    "a class of val's own": ({"train/cat": 1, "train/dog": 1, "val/cow": 1}, "has the class 'cow', which .*train has not"),
    "nothing to score on": ({"cat": 1, "dog": 1}, "one picture a class and none to score on"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_folder_that_makes_no_sense_is_said(tmp_path: Path, case: tuple[dict[str, int], str]) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=case[1]):
        imagefolder.scan(folder(tmp_path / "x", case[0]), 0.2)
    with pytest.raises(DataError, match="is no folder"):
        imagefolder.scan(tmp_path / "y", 0.2)


def test_what_is_cut_from_a_picture_depends_on_seed_epoch_and_number_alone(tmp_path: Path) -> None:
    names = imagefolder.scan(folder(tmp_path / "a", {"cat": 3, "dog": 3}), 0.2).train

    def cuts(seed: int, epoch: int | None) -> list[Any]:
        return [imagefolder.Decoded(names, Pictures(size=8), seed, epoch)._cut(64, 48, index) for index in range(20)]

    assert cuts(0, 1) == cuts(0, 1) != cuts(0, 2) and cuts(0, 1) != cuts(1, 1)
    assert set(cuts(0, None)) == {((11.0, 3.0, 53.0, 45.0), False)}, "to score: the middle 7/8 of the shorter side"
    for (left, top, right, bottom), _ in cuts(0, 1):
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 48


def test_without_a_decoder_and_for_a_damaged_picture_the_batch_says_so(tmp_path: Path) -> None:
    task = imagefolder.task(
        given(f"imagefolder:{folder(tmp_path / 'a', {'cat': 3, 'dog': 3})},batch=2,workers=0"), Pictures(size=8)
    )
    with pytest.raises(DataError, match=r"needs Pillow, which is not installed|\.png cannot be decoded: UnidentifiedImageError"):
        next(iter(task.batches(0)))
    assert len(task.batches(0)) == 2 and task.example_inputs[0].shape == (1, 3, 8, 8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = pytest.importorskip("PIL.Image", reason="an optional package: decodes pictures")
    root, dice = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label in range(4):
            place = root / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = dice.integers(0, 60, (12, 16, 3)) + 60 * (np.arange(3) == label % 3) + 30 * (label == 3)
                image.fromarray(pixels.astype("uint8")).save(place / f"{number}.{'png' if number % 2 else 'jpg'}")
    return root


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_pictures_are_the_same_whoever_decodes_them(pictures: Path) -> None:
    def batches(workers: int, epoch: int) -> list[tuple[Tensor, Tensor]]:
        task = imagefolder.task(given(f"imagefolder:{pictures},batch=5,workers={workers}"), Pictures(size=8))
        state = torch.get_rng_state()
        found = list(task.batches(epoch))
        assert torch.equal(torch.get_rng_state(), state), "the caller's generator stands where it stood"
        return found

    alone, together = batches(0, 1), batches(2, 1)
    assert len(alone) == len(together) == 4
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(batches(0, 2)[0][0], alone[0][0])


def test_a_task_of_pictures_trains_and_scores(pictures: Path) -> None:
    task = imagefolder.task(given(f"imagefolder:{pictures},batch=8,workers=0,rate=0.1"), Pictures(size=12))
    network = small()
    optimizer = task.optimizer(network.parameters())
    before = task.loss(network, next(iter(task.batches(0))))
    for epoch in range(6):
        for batch in task.batches(epoch):
            optimizer.zero_grad()
            task.loss(network, batch).backward()
            optimizer.step()
    assert task.loss(network, next(iter(task.batches(0)))) < before and task.evaluate(network) >= 50


# --- arrays --------------------------------------------------------------------------------------------------------------


def saved(path: Path, **held: Any) -> str:
    np.savez(path, **held)
    return f"npz:{path}"


DICE = np.random.default_rng(0)
X, Y = DICE.normal(size=(20, 6)), np.arange(20) % 4


def test_arrays_are_classes_or_values(tmp_path: Path) -> None:
    network = nn.Linear(6, 4)
    task = arrays.task(given(saved(tmp_path / "a.npz", x=X, y=Y) + ",batch=4"))
    assert task.example_inputs[0].dtype == torch.float32 and len(task.batches(0)) == 4
    assert task.loss(network, next(iter(task.batches(0)))).ndim == 0 and 0 <= task.evaluate(network) <= 100
    task = arrays.task(given(saved(tmp_path / "b.npz", x=X, y=X[:, :4], x_test=X[:3], y_test=X[:3, :4])))
    assert task.logits is None and task.evaluate(network) < 0 and len(task.batches(0)) == 1
    task = arrays.task(given(saved(tmp_path / "c.npz", x=np.full((20, 6), 255, np.uint8), y=Y)))
    assert float(task.example_inputs[0].max()) == 1, "pixels"


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"x": X}, "holds x, and needs x and y"),
    "other names": ({"images": X, "labels": Y}, "holds images, labels, and needs x and y"),
    "half of a test part": ({"x": X, "y": Y, "x_test": X}, "x_test and y_test or neither"),
    "other counts": ({"x": X, "y": Y[:7]}, r"y of shape \(7,\): x is \(samples, ...\), with a label for each in y"),
    "other shapes": ({"x": X, "y": Y, "x_test": X[:, :2], "y_test": Y}, r"samples of x have shape \(6,\), and of x_test \(2,\)"),
    "one class": ({"x": X, "y": 0 * Y}, "every label is 0"),
    "labels below 0": ({"x": X, "y": Y - 1}, "class numbers go from 0"),
    "an unknown class": ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "the test part has the class '4'"),
    "texts": ({"x": X.astype(str), "y": Y}, "arrays of no numbers"),
    "pickles": ({"x": np.array([{}], dtype=object), "y": Y}, "cannot be read: .*allow_pickle"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_arrays_that_do_not_go_together_are_said(tmp_path: Path, case: tuple[dict[str, Any], str]) -> None:
    with pytest.raises(DataError, match=case[1]):
        arrays.task(given(saved(tmp_path / "a.npz", **case[0])))


def test_a_file_of_no_arrays_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 no zip")
    with pytest.raises(DataError, match="cannot be read"):
        arrays.task(given(f"npz:{tmp_path / 'a.npz'}"))


# --- texts ---------------------------------------------------------------------------------------------------------------


class Words:
    """What is asked of a tokenizer."""

    pad_token, eos_token, pad_token_id = "-", "-", 0

    def __call__(self, given: list[str], *, max_length: int, **_: Any) -> dict[str, Tensor]:
        rows = [[len(word) for word in text.split()][:max_length] for text in given]
        longest = max(map(len, rows))
        return {"input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows])}


class Reader(nn.Module):
    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(max_position_embeddings=4, **config)
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor) -> Any:
        return types.SimpleNamespace(logits=self.out(self.embedding(input_ids).mean(1)))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "tokenizer", lambda folder: Words())
    monkeypatch.setattr(sources, "hub_folder", Path)


def rows(path: Path, labels: list[Any]) -> Path:
    if path.suffix == ".csv":
        path.write_text("text,label\n" + "".join(f'"some words, {n}",{label}\n' for n, label in enumerate(labels)))
    else:
        path.write_text("".join(json.dumps({"text": f"some words {n}", "label": label}) + "\n" for n, label in enumerate(labels)))
    return path


def test_texts_are_read_by_the_tokenizer_of_the_network(tmp_path: Path, reads: None) -> None:
    for name in ("a.csv", "a.jsonl"):
        path = rows(tmp_path / name, ["pos", "neg"] * 5)
        network = Reader()
        task = texts.task(given(f"{path.suffix[1:]}:{path},batch=4"), "hf:x", network)
        assert isinstance(task, Task) and len(task.batches(0)) == 2
        inputs, labels = next(iter(task.batches(0)))
        assert inputs["input_ids"].shape == (4, 3) and set(labels.tolist()) <= {0, 1} and network.config.pad_token_id == 0
        assert task.loss(network, (inputs, labels)).ndim == 0 and 0 <= task.evaluate(network) <= 100
    with pytest.raises(InputError, match="only the tokenizer of an hf: MODEL"):
        texts.task(given(f"csv:{tmp_path / 'a.csv'}"), "timm:x", Reader())


def test_labels_are_the_configuration_s_names_or_numbers_or_texts_in_order(tmp_path: Path) -> None:
    def labels(values: list[Any], known: dict[str, int]) -> list[int]:
        return texts.read(given(f"jsonl:{rows(tmp_path / 'a.jsonl', values)}"), known).labels.tolist()

    assert labels(["no", "yes", "no"], {"yes": 0, "no": 1}) == [1, 0, 1]
    assert labels([2, 0, 1] * 2, {}) == [2, 0, 1] * 2 == labels(["2", "0", "1"] * 2, {})
    assert labels(["b", "a", "c"] * 2, {"x": 0}) == [1, 0, 2] * 2


def test_rows_that_make_no_sense_are_said_with_their_number(tmp_path: Path) -> None:
    def said(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(FeatherweightError) as caught:
            texts.read(given(f"{name.rpartition('.')[2]}:{tmp_path / name}"), {})
        return str(caught.value)

    assert "row 2: no text under 'text' or no label under 'label' (there are: words, label)" in said(
        "a.csv", "words,label\nx,1\n"
    )
    assert "row 3" in said("b.csv", "text,label\nx,1\ny\n")
    assert "line 2" in said("c.jsonl", '{"text": "x", "label": 1}\nno json\n')
    assert (
        "row 1" in said("d.jsonl", "[1]\n")
        and "holds no rows" in said("e.jsonl", "\n")
        and "every label" in said("f.csv", "text,label\nx,1\n")
    )
    (tmp_path / "parts").mkdir()
    rows(tmp_path / "parts/train.csv", ["a", "b"])
    with pytest.raises(DataError, match=r"needs train\.csv and one of val\.csv"):
        texts.read(given(f"csv:{tmp_path / 'parts'}"), {})
    rows(tmp_path / "parts/val.csv", ["a", "c"])
    with pytest.raises(DataError, match="has the label 'c', which the training part has not"):
        texts.read(given(f"csv:{tmp_path / 'parts'}"), {})
