"""The text that a machine has: Python's documentation topics and docstrings, licences, man pages; split by document, as tokens.

It is read from where it is found and is not shipped. `digest` and the number of characters say whether two machines have the
same. Tokens are pieces of at most a word, a byte-level BPE learned on the training part.
"""

from __future__ import annotations

import ast
import functools
import gzip
import hashlib
import itertools
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LICENCES, MANUALS, SECTIONS = Path("/usr/share/common-licenses"), Path("/usr/share/man"), ("man1", "man5", "man7", "man8")
LONGEST = 100_000  # characters of a document, so that no tool's manual is most of the text
HELD, TEST = 0.04, 0.04  # shares of the documents
PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+")
Pair = tuple[int, int]


@dataclass(frozen=True)
class Corpus:
    """Documents in order of name, by part."""

    train: tuple[str, ...]
    held: tuple[str, ...]
    test: tuple[str, ...]

    @functools.cached_property
    def digest(self) -> str:
        found = hashlib.sha256()
        for part in (self.train, self.held, self.test):
            for text in part:
                found.update(hashlib.sha256(text.encode()).digest())
        return found.hexdigest()

    @property
    def characters(self) -> dict[str, int]:
        return {part: sum(map(len, getattr(self, part))) for part in ("train", "held", "test")}


def corpus(seed: int = 0) -> Corpus:
    """What this machine has. A document's part follows from the seed and its name, so that more documents move none."""
    parts: dict[str, list[str]] = {"train": [], "held": [], "test": []}
    seen = set()
    for name, text in sorted(_documents()):
        if len(text) < 500 or text in seen:
            continue
        seen.add(text)
        draw = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") / 2**64
        parts["test" if draw < TEST else "held" if draw < TEST + HELD else "train"].append(text[:LONGEST])
    return Corpus(*(tuple(parts[part]) for part in ("train", "held", "test")))


def _documents() -> Iterator[tuple[str, str]]:
    from pydoc_data import topics

    yield from ((f"topic {name}", text) for name, text in topics.topics.items())
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in library.rglob("*.py"):
        name = path.relative_to(library).as_posix()
        if not {"site-packages", "test", "tests", "lib2to3", "idlelib"} & set(name.split("/")):
            yield f"docstrings {name}", "\n\n".join(_docstrings(path))
    for path in LICENCES.iterdir() if LICENCES.is_dir() else ():
        if not path.is_symlink():
            yield f"licence {path.name}", path.read_text(errors="ignore")
    for section in SECTIONS:
        for path in (MANUALS / section).glob("*.gz"):
            if not path.is_symlink() and not path.name.startswith("gcloud"):  # twenty thousand pages from one template
                yield f"manual {path.name}", _unroffed(gzip.decompress(path.read_bytes()).decode(errors="ignore"))


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_text(errors="ignore"))
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text if isinstance(node, ast.Module) else f"{node.name}: {text}"


def _unroffed(text: str) -> str:
    """Words from the first heading on, without roff's marks: comments and definitions go, arguments of other requests stay."""
    lines = []
    for line in re.sub(r"\A.*?^(?=\.S[Hh] )", "", text, flags=re.DOTALL | re.MULTILINE).split("\n"):
        if line.startswith((".", "'")):
            if re.match(r"['.]\s*(\\\"|so|de|ds|nr|if|ie|el|ad|nh|hy|ft|ne|\.|tr|rm|rr|TH)", line):
                continue
            line = re.sub(r"^['.]\s*\S+\s*", "", line).replace('"', "")
        lines.append(line)
    plain = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\s[-+]?\d+|\\[&|^/,c%]|\\\*(\(..|\[[^]]*\]|.)", "", "\n".join(lines))
    plain = re.sub(r"\\\((aq|cq|oq)", "'", re.sub(r"\\\[(aq|cq|oq)\]", "'", plain))
    plain = re.sub(r"\\-|\\\((em|en|mi|hy|bu)|\\\[(em|en|mi|hy|bu)\]", "-", plain)
    plain = re.sub(r"\\\(..|\\\[[^]]*\]", "", plain).replace("\\e", "\\")
    return re.sub(r"\n{3,}", "\n\n", plain).strip()


# --- tokens --------------------------------------------------------------------------------------------------------------


def learned(texts: Iterable[str], tokens: int) -> list[Pair]:
    """Merges of byte-level BPE, the first 256 tokens being the bytes: the most frequent pair, of equals the least."""
    words = Counter(piece for text in texts for piece in PIECE.findall(text))
    held = [list(word.encode()) for word in words]
    counts = list(words.values())
    pairs: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, word in enumerate(held):
        for pair in itertools.pairwise(word):
            pairs[pair] += counts[place]
            where[pair].add(place)
    merges: list[Pair] = []
    for token in range(256, tokens):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for place in sorted(where[best]):
            for pair in itertools.pairwise(held[place]):
                pairs[pair] -= counts[place]
            held[place] = _merged(held[place], best, token)
            for pair in itertools.pairwise(held[place]):
                pairs[pair] += counts[place]
                where[pair].add(place)
        del pairs[best]
    return merges


def _merged(word: list[int], pair: Pair, token: int) -> list[int]:
    found, place = [], 0
    while place < len(word):
        whole = place + 1 < len(word) and (word[place], word[place + 1]) == pair
        found.append(token if whole else word[place])
        place += 2 if whole else 1
    return found


def encoded(texts: Iterable[str], merges: list[Pair]) -> Tensor:
    """All texts behind one another, a zero byte after each: (tokens,) int64."""
    rank = {pair: number for number, pair in enumerate(merges)}

    @functools.cache
    def pieces(word: str) -> list[int]:
        found = list(word.encode())
        while len(found) > 1:
            first = min(itertools.pairwise(found), key=lambda pair: rank.get(pair, len(rank)))
            if first not in rank:
                break
            found = _merged(found, first, 256 + rank[first])
        return found

    return torch.tensor([token for text in texts for word in (*PIECE.findall(text), "\0") for token in pieces(word)])
