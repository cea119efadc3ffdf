"""A description is bounded before anything is made of it: whatever its text, a short named error, soon, in little memory."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import pytest
from torch import nn

from featherweight.errors import ArtifactError
from featherweight.files import artifact, description
from featherweight.files.artifact import DESCRIPTION, WEIGHTS
from featherweight.files.edits import Snapshot

NET = nn.Linear(3, 2)
REST = '"edits":[],"recipe":{},"report":[]}'
HEAD = '{"format":1,"edits":[],"recipe":{},'

TEXTS: dict[str, str] = {
    "wrong rows": HEAD + '"report":[' + ",".join(["0"] * 1_000_000) + "]}",
    "wrong edits": '{"edits":[' + ",".join(["[]"] * 300_000) + '],"recipe":{},"report":[]}',
    "too many rows": HEAD + '"report":[' + ",".join(["{}"] * 300_000) + "]}",
    "too many exports": HEAD + '"report":[],"exports":{' + ",".join(f'"{n}":{{}}' for n in range(100_000)) + "}}",
    "wrong exports": HEAD + '"report":[],"exports":{' + ",".join(f'"{n}":0' for n in range(900)) + "}}",
    "many unknown keys": "{" + ",".join(f'"k{n}":0' for n in range(300_000)) + "," + REST,
    "an unknown key without end": '{"' + "k" * 10_000_000 + '":1,' + REST,
    "an unknown key with a line end": '{"a\\nb":1,' + REST,
    "a text without end": '{"model":"' + "m" * 10_000_000 + '",' + REST,
    "a number of many digits": '{"format":' + "1" * 100_000 + "," + REST,
    "a number of twenty digits": HEAD + '"report":[{"bits":' + "9" * 20 + "}]}",
    "a number that is too large for a float": HEAD + '"report":[{"score":1e999}]}',
    "not a number": HEAD + '"report":[{"score":NaN}]}',
    "infinity": HEAD + '"report":[{"score":-Infinity}]}',
    "a key twice": '{"format":2,"format":1,' + REST,
    "a key twice inside": HEAD + '"report":[{"a":1,"a":2}]}',
    "nesting": HEAD + '"report":[{"a":' + "[" * 5_000 + "]" * 5_000 + "}]}",
    "nesting that Python bears": HEAD + '"report":[{"a":' + "[" * 200 + "]" * 200 + "}]}",
    "lists without end": HEAD + '"report":[' + "[" * 2_000_000,
    "half of a surrogate pair": '{"model":"\\ud800",' + REST,
    "a mark of byte order": "\ufeff" + HEAD + '"report":[]}',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_description_beyond_measure_is_refused_soon_in_few_words(text: str, tmp_path: Path) -> None:
    artifact.save(tmp_path / "art", Snapshot.of(NET, []), artifact.Description(edits=[], recipe={}, report=[]))
    (tmp_path / "art" / DESCRIPTION).write_bytes(text.encode())
    began = time.process_time()
    with pytest.raises(ArtifactError, match=DESCRIPTION) as caught:
        artifact.load(tmp_path / "art", NET)
    assert time.process_time() - began < 3  # several times what it takes
    assert len(str(caught.value)) < 2_000


def test_a_wrong_entry_is_told_before_a_million_values_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "check_plain", lambda data: pytest.fail("they were looked at"))
    with pytest.raises(ValueError, match="edits: an entry is list, and all have to be objects"):
        description.description_from(b'{"format":1,"edits":[[' + b"[1,2]," * 100_000 + b'3]],"recipe":{},"report":[]}')


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    artifact.save(tmp_path / "art", Snapshot.of(NET, []), artifact.Description(edits=[], recipe={}, report=[]))
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        (tmp_path / "art" / DESCRIPTION).write_bytes((HEAD + '"report":[]}').encode(encoding))
        with pytest.raises(ArtifactError, match=DESCRIPTION):
            artifact.describe(tmp_path / "art")


def test_what_is_written_is_read_back_with_room(tmp_path: Path) -> None:
    """Units of a very large network: 30 layers of 11,000 kept ones; and measurements that are no numbers come back as none."""
    edit = {"edit": "structure", "change": {"keeps": [list(range(11_000)) for _ in range(30)]}}
    row = {"score": float("nan"), "bits": 2**62}
    described = artifact.Description(edits=[edit], recipe={}, report=[row])
    artifact.save(tmp_path / "art", Snapshot.of(NET, []), described)
    again = artifact.describe(tmp_path / "art")
    assert again.edits == described.edits and again.report == [{"score": None, "bits": 2**62}]
    artifact.note_export(tmp_path / "art", "x.onnx", {"bytes": 3})
    assert artifact.describe(tmp_path / "art").exports == {"x.onnx": {"bytes": 3}}


def header(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


HEADERS = {
    "too many tensors": header({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(60_000)}),
    "a header beyond the file": struct.pack("<Q", 2**63),
    "a header beyond measure": struct.pack("<Q", 2**24) + b" " * 2**24,
    "a shape beyond measure": header({"x": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}) + bytes(4),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_header_of_weights_beyond_measure_is_refused_soon(content: bytes, tmp_path: Path) -> None:
    artifact.save(tmp_path / "art", Snapshot.of(NET, []), artifact.Description(edits=[], recipe={}, report=[]))
    (tmp_path / "art" / WEIGHTS).write_bytes(content)
    began = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        artifact.load(tmp_path / "art", NET)
    assert time.process_time() - began < 2 and len(str(caught.value)) < 2_000
