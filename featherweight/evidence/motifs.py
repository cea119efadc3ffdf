"""Motifs: what attributions say that a network looks for, as weight matrices, and what they are called.

A motif is a matrix of probabilities (length, 4), a row a position, in the order A C G T.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featherweight.errors import DataError, InputError, short
from featherweight.evidence.compare import benjamini_hochberg
from featherweight.files import storage
from featherweight.network.devices import on_threads

Array = np.ndarray
WIDTH = 15  # bases of a seqlet
SEQLETS = 200  # of the surest positives
ROOM = 3  # bases by which a seqlet may be shifted: more, and the alignment finds sites by itself, whatever the maps say
ROUNDS = 10  # of their alignment
PSEUDOCOUNT = 0.5  # of each base in a position, where log-odds are made of counts
LARGEST_FILE, LONGEST = 2**26, 200  # bytes; positions of a motif


class MotifsDamaged(DataError, ValueError):
    """A file of motifs is there, but cannot be read as one."""


@dataclass(frozen=True)
class Motif:
    """A name and probabilities (length, 4)."""

    name: str
    matrix: Array

    def reverse_complement(self) -> Motif:
        return Motif(self.name, self.matrix[::-1, ::-1])


def information(matrix: Array) -> Array:
    """Bits of each position, 0 for an even one to 2 for one base: (length,)."""
    safe = np.clip(matrix, 1e-12, 1)
    return 2 + (safe * np.log2(safe)).sum(axis=1)


def consensus(matrix: Array) -> str:
    """The likeliest base of each position."""
    return "".join("ACGT"[number] for number in matrix.argmax(axis=1))


def trimmed(matrix: Array, width: int = WIDTH) -> Array:
    """The `width` positions in a row that hold the most information."""
    if len(matrix) <= width:
        return matrix
    sums = np.convolve(information(matrix), np.ones(width), mode="valid")
    start = int(sums.argmax())
    return matrix[start : start + width]


# --- files ---------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[Motif]:
    """Motifs of a JASPAR file: `>name` and a row a position of four counts, or four rows `A [ .. ]` of counts a position.

    Raises MotifsDamaged, with the line, and for a file that is not there.
    """
    path = Path(path)
    try:
        with storage.opened(path, follow=True) as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise MotifsDamaged(f"the file of motifs {path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise MotifsDamaged(f"{path} has more than {LARGEST_FILE:,} bytes")
    found: list[Motif] = []
    rows: list[tuple[int, str]] = []
    name, began = "", 0
    for number, line in enumerate([*content.decode("latin-1").splitlines(), ">"], start=1):
        text = line.strip()
        if text.startswith(">"):
            if name:
                found.append(_motif(name, rows, path, began))
            name, rows, began = text[1:].strip() or "unnamed", [], number
        elif text and not text.startswith("#"):
            if not name:
                raise MotifsDamaged(f"{path}, line {number}: {short(text)} stands before the first >name. JASPAR's .pfm is read")
            rows.append((number, text))
    if not found:
        raise MotifsDamaged(f"{path} holds no motif: one begins with >name. JASPAR's .pfm is read")
    return found


def _motif(name: str, rows: Sequence[tuple[int, str]], path: Path, began: int) -> Motif:
    counts, letters = [], []
    for number, text in rows:
        if (letter := re.match(r"([ACGT])\s*\[?", text)) is not None:
            letters.append(letter[1])
            text = text[letter.end() :].rstrip("] \t")
        try:
            counts.append([float(part) for part in text.split()])
        except ValueError:
            raise MotifsDamaged(f"{path}, line {number}: {short(text)} is no row of counts of motif {short(name)}") from None
    across = letters == list("ACGT")
    if len({len(row) for row in counts}) != 1 or (letters and not across) or (not across and len(counts[0]) != 4):
        raise MotifsDamaged(f"{path}, line {began}: motif {short(name)} is neither rows of four counts nor four rows A C G T")
    matrix = np.asarray(counts, dtype=np.float64)
    matrix = matrix.T if across else matrix
    if not np.isfinite(matrix).all() or (matrix < 0).any() or (matrix.sum(axis=1) == 0).any() or not 0 < len(matrix) <= LONGEST:
        raise MotifsDamaged(
            f"{path}, line {began}: motif {short(name)} has counts below 0, a position without any, or over {LONGEST} positions"
        )
    return Motif(name, matrix / matrix.sum(axis=1, keepdims=True))


# --- where a motif is ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """The best place of a motif in a sequence: from, strand (+ or -), and its log-odds in bits against even bases."""

    start: int
    strand: str
    score: float


def scan(matrix: Array, codes: Array) -> list[Hit]:
    """The best hit in each sequence of numbers (count, length), on either strand; an unknown base is worth 0 bits."""
    if codes.shape[1] < len(matrix):
        raise InputError(f"a motif of {len(matrix)} positions does not fit into sequences of {codes.shape[1]} bases")
    ahead, back = (_log_odds(matrix, codes) for matrix in (matrix, matrix[::-1, ::-1]))
    found = []
    for one, other in zip(ahead, back, strict=True):
        plus = one.max() >= other.max()
        best = one if plus else other
        found.append(Hit(int(best.argmax()), "+" if plus else "-", float(best.max())))
    return found


def _log_odds(matrix: Array, codes: Array) -> Array:
    """(count, places)."""
    bits = np.log2(np.clip(matrix, 1e-3, 1) * 4)
    table = np.concatenate([bits, np.zeros((len(bits), 1))], axis=1)  # the unknown base
    places = codes.shape[1] - len(matrix) + 1
    return sum(table[position][codes[:, position : position + places]] for position in range(len(matrix)))


# --- seqlets -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seqlets:
    """A motif made of pieces of sequences. `count`: pieces; `places`: (sequence, from, strand) of each."""

    matrix: Array
    count: int
    places: tuple[tuple[int, int, str], ...]


def seqlets(maps: Array, codes: Array, sureness: Array, width: int = WIDTH, most: int = SEQLETS) -> Seqlets:
    """Of the `most` sequences a network is surest of, the `width` bases that speak most for the class, aligned on each other.

    maps      signed attributions (count, length); codes: numbers (count, length); sureness: (count,)
    The first matrix is the piece that speaks loudest; in turns each piece is shifted by up to three bases, or turned round, to
    where it fits the matrix best, and the matrix is made anew. Aligning finds something by itself: look at an untrained one.
    """
    if codes.shape[1] < width:
        raise InputError(f"seqlets of {width} bases do not fit into sequences of {codes.shape[1]}")
    chosen = np.argsort(-sureness, kind="stable")[:most]
    window = np.ones(width)
    sums = np.stack([np.convolve(row, window, mode="valid") for row in maps[chosen]])
    starts = sums.argmax(axis=1)
    room = min(ROOM, width // 2)
    pieces = []  # what each may become: all shifts on both strands, with where it is
    for sequence, start in zip(chosen, starts, strict=True):
        first, last = max(0, start - room), min(codes.shape[1] - width, start + room)
        given = [(int(at), codes[sequence, at : at + width]) for at in range(first, last + 1)]
        pieces.append([(at, "+", piece) for at, piece in given] + [(at, "-", _turned(piece)) for at, piece in given])
    loudest = int(sums.max(axis=1).argmax())
    start = int(starts[loudest])
    counts = _counted([codes[chosen[loudest], start : start + width]])
    placed = [(int(start), "+") for start in starts]
    for _ in range(ROUNDS):
        shares = (counts + PSEUDOCOUNT) / (counts + PSEUDOCOUNT).sum(axis=1, keepdims=True)
        table = np.concatenate([np.log2(shares * 4), np.zeros((width, 1))], axis=1)
        index = np.arange(width)
        best = [max(choices, key=lambda one: float(table[index, one[2]].sum())) for choices in pieces]
        counts = _counted([piece for _, _, piece in best])
        before, placed = placed, [(at, strand) for at, strand, _ in best]
        if placed == before:
            break
    matrix = (counts + 1e-9) / (counts + 1e-9).sum(axis=1, keepdims=True)
    places = tuple((int(sequence), at, strand) for sequence, (at, strand) in zip(chosen, placed, strict=True))
    return Seqlets(matrix, len(places), places)


def _turned(piece: Array) -> Array:
    return np.where(piece[::-1] < 4, 3 - piece[::-1].astype(np.int64), 4).astype(piece.dtype)


def _counted(pieces: Sequence[Array]) -> Array:
    """(width, 4); an unknown base counts nowhere."""
    return np.stack([(np.stack(pieces) == number).sum(axis=0) for number in range(4)], axis=1).astype(np.float64)


# --- names ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """A known motif that is like one that was found: Tomtom's p, and q over all known ones (Benjamini and Hochberg)."""

    name: str
    p: float
    q: float


def can_match() -> bool:
    """Is memelite there?"""
    try:
        import memelite  # noqa: F401
    except ImportError:
        return False
    return True


def matches(queries: Sequence[Array], known: Sequence[Motif], count: int = 5) -> list[list[Match]]:
    """The nearest known motifs of each query, the smallest p first. Raises InputError without memelite.

    The first call compiles, which may take a minute or two.
    """
    try:
        from memelite import tomtom
    except ImportError:
        raise InputError("naming motifs needs memelite: pip install 'featherweight[evidence]'") from None
    with on_threads():  # numba sets those of the process: a torch that had one would train on all, each waiting for the others
        found = np.asarray(tomtom([query.T for query in queries], [motif.matrix.T for motif in known], n_jobs=1)[0])
    named = []
    for row in found.reshape(len(queries), len(known)):
        q = benjamini_hochberg(row.tolist())
        order = np.argsort(row, kind="stable")[:count]
        named.append([Match(known[number].name, float(row[number]), float(q[number])) for number in order])
    return named
