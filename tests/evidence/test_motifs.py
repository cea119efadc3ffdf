"""Motifs: files, hits on both strands, seqlets that find a planted site, and names by Tomtom where memelite is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from featherweight.errors import InputError
from featherweight.evidence import motifs
from featherweight.zoo import dna, sequences

MAFK = np.asarray(sequences.MAFK, dtype=float) / np.asarray(sequences.MAFK, dtype=float).sum(1, keepdims=True)
ROWS = ">M1_Abc\n8 0 0 0\n0 8 0 0\n2 2 2 2\n>M2\n1 0 0 3\n"
COLUMNS = ">MA1 Abc\nA [ 8 0 2 ]\nC [ 0 8 2 ]\nG [ 0 0 2 ]\nT [ 0 0 2 ]\n"


def test_both_forms_of_a_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.pfm").write_text("# comment\n" + ROWS)
    first, second = motifs.read(tmp_path / "rows.pfm")
    assert first.name == "M1_Abc" and second.matrix.tolist() == [[0.25, 0, 0, 0.75]]
    assert first.matrix.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0.25] * 4]
    (tmp_path / "columns.pfm").write_text(COLUMNS)
    (other,) = motifs.read(tmp_path / "columns.pfm")
    assert np.array_equal(other.matrix, first.matrix)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no motif"),
        ("1 2 3 4\n>M\n", "line 1: '1 2 3 4' stands before"),
        (">M\n1 2 3\n", "neither rows of four counts nor four rows"),
        (">M\n1 2 3 4\n1 2 x 4\n", "line 3: '1 2 x 4' is no row of counts"),
        (">M\n", "neither rows of four counts"),
        (">M\n0 0 0 0\n", "a position without any"),
        (">M\n1 -2 3 4\n", "below 0"),
        (">M\nA [1 2]\nC [1 2]\nT [1 2]\nG [1 2]\n", "four rows A C G T"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.pfm").write_text(text)
    with pytest.raises(motifs.MotifsDamaged, match=says):
        motifs.read(tmp_path / "m.pfm")
    with pytest.raises(motifs.MotifsDamaged, match="cannot be read"):
        motifs.read(tmp_path / "none.pfm")


def test_information_consensus_and_trimming() -> None:
    matrix = np.array([[0.25] * 4, [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    assert motifs.information(matrix).tolist() == pytest.approx([0, 2, 1, 0], abs=1e-9)
    assert motifs.consensus(matrix)[1] == "A" and motifs.trimmed(matrix, 2).tolist() == matrix[1:3].tolist()
    assert len(motifs.trimmed(matrix, 9)) == 4


def test_hits_on_both_strands_and_across_unknown_bases() -> None:
    matrix = np.eye(4)[[3, 2, 1]] * 0.97 + 0.0075  # TGC
    ahead, back, none = "AATGCAAA", "AAAAGCAA", "NNNNNNNN"
    hits = motifs.scan(matrix, dna.encoded([ahead, back, none]).numpy())
    assert (hits[0].start, hits[0].strand) == (2, "+") and (hits[1].start, hits[1].strand) == (4, "-")
    best = 3 * np.log2(4 * 0.9775)
    assert hits[0].score == pytest.approx(best) == hits[1].score and hits[2].score == 0
    with pytest.raises(InputError, match="does not fit"):
        motifs.scan(matrix, dna.encoded(["AC"]).numpy())


def test_seqlets_find_the_planted_site() -> None:
    """Attributions that are loud at the site, blurred by up to two bases and noisy: the matrix is that of the site again."""
    held = sequences.planted((1, 1, 150))
    part, rng = held.test, np.random.default_rng(0)
    assert part.planted is not None
    codes, places = part.codes.numpy()[:150], part.planted.numpy()[:150]
    maps = 0.1 * rng.normal(size=codes.shape)
    for row, (start, end) in zip(maps, places, strict=True):
        shift = int(rng.integers(-2, 3))
        row[max(0, start + 1 + shift) : max(0, end - 1 + shift)] += 1
    found = motifs.seqlets(maps, codes, rng.random(150), most=120)
    assert found.count == 120 and np.allclose(found.matrix.sum(1), 1)

    def likeness(matrix: np.ndarray) -> float:
        """The best correlation over shifts by up to five."""
        shifted = [(matrix[max(0, s) : 15 + min(0, s)], MAFK[max(0, -s) : 15 + min(0, -s)]) for s in range(-5, 6)]
        return max(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in shifted)

    assert max(likeness(found.matrix), likeness(found.matrix[::-1, ::-1])) > 0.9
    chance = motifs.seqlets(0.1 * rng.normal(size=codes.shape), rng.integers(0, 4, codes.shape), rng.random(150))
    assert motifs.information(found.matrix).sum() > motifs.information(chance.matrix).sum() + 4
    with pytest.raises(InputError, match="do not fit"):
        motifs.seqlets(maps[:, :9], codes[:, :9], rng.random(150))


def test_names_by_tomtom(tmp_path: Path) -> None:
    pytest.importorskip("memelite", reason="memelite is not installed: pip install 'featherweight[evidence]'")
    rng = np.random.default_rng(0)
    known = [motifs.Motif(f"other {number}", rng.dirichlet([0.3] * 4, size=12)) for number in range(40)]
    known.insert(7, motifs.Motif("MAFK", MAFK))
    threads = torch.get_num_threads()
    ((first, *_),) = motifs.matches([MAFK[2:, :]], known)
    assert torch.get_num_threads() == threads
    assert first.name == "MAFK" and first.p < 1e-6 and first.q == pytest.approx(first.p * 41, rel=0.01)


def test_without_memelite_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "memelite", None)
    assert not motifs.can_match()
    with pytest.raises(InputError, match=r"featherweight\[evidence\]"):
        motifs.matches([MAFK], [motifs.Motif("MAFK", MAFK)])
