"""DNA as data: letters, the two formats, shuffles counted pair by pair, the splits, planted motifs, and the task."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from featherweight.cli import inputs
from featherweight.errors import InputError
from featherweight.zoo import dna, sequences
from featherweight.zoo.datasets import DataDamaged, DataMissing


def drawn(count: int, length: int, seed: int = 0) -> list[str]:
    dice = random.Random(seed)
    return ["".join(dice.choice("ACGT") for _ in range(length)) for _ in range(count)]


def pairs(letters: str) -> Counter[str]:
    return Counter(a + b for a, b in itertools.pairwise(letters))


def fasta(path: Path, names: list[str], letters: list[str]) -> Path:
    path.write_text("".join(f">{name}\n{one}\n" for name, one in zip(names, letters, strict=True)))
    return path


# --- letters -------------------------------------------------------------------------------------------------------------


def test_one_hot_of_each_letter_in_either_case_and_of_unknown_ones() -> None:
    codes = dna.encoded(["ACGTacgtNn"])
    assert codes.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 4]]
    assert dna.decoded(codes) == ["ACGTACGTNN"]
    bases = dna.one_hot(codes)
    assert bases.shape == (1, 4, 10) and bases.dtype == torch.float32
    assert torch.equal(bases[0, :, :8], torch.eye(4).repeat(1, 2)) and bases[0, :, 8:].abs().sum() == 0


def test_the_other_strand() -> None:
    partner = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}
    letters = "AACGTTGCNA"
    turned = "".join(partner[letter] for letter in reversed(letters))
    ours = dna.reverse_complement(dna.one_hot(dna.encoded([letters])))
    assert torch.equal(ours, dna.one_hot(dna.encoded([turned])))


@pytest.mark.parametrize(
    ("letters", "says"),
    [
        (["ACGT", "ACUT"], "sequence 2 has 'U' at base 3.*RNA"),
        (["AC-T"], "'-' at base 3, which is no letter of DNA"),
        (["ACGT", "ACG"], "of 3 to 4 bases: give one length"),
        (["", ""], "hold no base"),
        (["ACĀT"], "no letter of DNA"),
    ],
)
def test_what_is_no_dna_of_one_length(letters: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        dna.encoded(letters)


# --- shuffles ------------------------------------------------------------------------------------------------------------


def test_a_shuffle_has_exactly_the_same_pairs() -> None:
    dice = random.Random(3)
    for letters in [
        *drawn(200, 101),
        "A" * 50,
        "ACACACACAC",
        "AC",
        "A",
        "",
        "NNACGTNNACG",
        "AAAT",
        "TAAA",
        *drawn(200, 7, seed=1),
    ]:
        other = dna.shuffled(letters, dice)
        assert pairs(other) == pairs(letters) and Counter(other) == Counter(letters)
        assert other[:1] == letters[:1] and other[-1:] == letters[-1:]


def test_a_shuffle_reaches_every_sequence_of_the_same_pairs_alike() -> None:
    """All sequences with these pairs are found by trying all; each has to come up as often as any other."""
    letters = "ACAGACTA"
    orders = {letters[0] + "".join(order) for order in itertools.permutations(letters[1:])}
    all_of_them = {order for order in orders if pairs(order) == pairs(letters)}
    dice = random.Random(0)
    found = Counter(dna.shuffled(letters, dice) for _ in range(200 * len(all_of_them)))
    assert set(found) == all_of_them and len(all_of_them) == 6
    assert max(abs(count - 200) for count in found.values()) < 5 * 200**0.5


def test_a_shuffle_is_seeded_and_a_shuffle() -> None:
    (letters,) = drawn(1, 101)
    once = dna.shuffled(letters, random.Random(1))
    assert once == dna.shuffled(letters, random.Random(1)) != dna.shuffled(letters, random.Random(2))
    assert sum(a != b for a, b in zip(letters, once, strict=True)) > 40


# --- files and splits ----------------------------------------------------------------------------------------------------


def test_fasta_over_lines_and_the_format_of_deepbind(tmp_path: Path) -> None:
    peaks = tmp_path / "peaks.fa"
    peaks.write_text(">chr1:5-9 677\nACG\nTa\n>chr2:5-9\r\nTTTTT\r\n")
    assert [(r.name, r.letters, r.label) for r in sequences.read(peaks)] == [
        ("chr1:5-9 677", "ACGTa", None),
        ("chr2:5-9", "TTTTT", None),
    ]
    labelled = fasta(tmp_path / "train.fa", ["1", "0"], ["ACGT", "TGCA"])
    assert [record.label for record in sequences.read(labelled)] == [1, 0]


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no file"):
        sequences.read(tmp_path / "none.fa")
    (tmp_path / "x.fa").write_text("chr1\t5\t9\n")
    with pytest.raises(DataDamaged, match="FASTA starts with >"):
        sequences.read(tmp_path / "x.fa")
    with pytest.raises(InputError, match="neither a file nor one of tfbs:planted"):
        sequences.sequences("mafq")
    with pytest.raises(DataMissing, match=r"mafk\.fa"):
        sequences.sequences("mafk")


def test_peaks_are_split_by_chromosome_with_their_shuffles(tmp_path: Path) -> None:
    names = [f"chr{1 + number % 10}:{number}-{number + 120}" for number in range(800)]
    held = sequences.from_records(sequences.read(fasta(tmp_path / "a.fa", names, drawn(800, 120))), "a")
    for part, chromosomes in (
        (held.test, {"8", "9"}),
        (held.validation, {"7"}),
        (held.train, {"1", "2", "3", "4", "5", "6", "10"}),
    ):
        count = len(part) // 2
        assert {name.partition("chr")[2].partition(":")[0] for name in part.names} == chromosomes
        assert part.labels.tolist() == [1] * count + [0] * count
        letters = dna.decoded(part.codes)
        assert all(pairs(letters[number]) == pairs(letters[number + count]) for number in range(count))
        assert [f"shuffle of {name}" for name in part.names[:count]] == list(part.names[count:])
    assert "chr8 and chr9 for testing" in held.how and held.window == 101


def test_few_peaks_there_are_split_by_a_seed(tmp_path: Path) -> None:
    names = [f"chr{1 + number % 22}:{number}" for number in range(400)]
    records = sequences.read(fasta(tmp_path / "a.fa", names, drawn(400, 101)))
    held = sequences.from_records(records, "a")
    assert [int(part.labels.sum()) for part in (held.train, held.validation, held.test)] == [260, 60, 80]
    every = [name for part in (held.train, held.validation, held.test) for name in part.names if not name.startswith("shuffle")]
    assert sorted(every) == sorted(names) and "by a seed" in held.how
    again = sequences.from_records(records, "a")
    assert again.test.names == held.test.names and torch.equal(again.test.codes, held.test.codes)


def test_labels_of_one_kind_are_refused(tmp_path: Path) -> None:
    for label, says in (("0", "no positive sequence"), ("1", "no negative sequence")):
        with pytest.raises(InputError, match=says):
            sequences.from_records(sequences.read(fasta(tmp_path / "a.fa", [label] * 40, drawn(40, 50))), "a")


def test_a_folder_of_the_authors_layout(tmp_path: Path) -> None:
    fasta(tmp_path / "train.fa", ["1", "0"] * 100, drawn(200, 60))
    fasta(tmp_path / "test.fa", ["1", "0"] * 10, drawn(20, 60, seed=1))
    held = sequences.sequences(str(tmp_path))
    assert (len(held.train), len(held.validation), len(held.test), held.window) == (170, 30, 20, 60)
    assert dna.decoded(held.test.codes) == drawn(20, 60, seed=1)
    fasta(tmp_path / "test.fa", ["chr1"], drawn(1, 60))
    with pytest.raises(InputError, match=r"test\.fa: headers must be >1 or >0"):
        sequences.sequences(str(tmp_path))


# --- planted motifs ------------------------------------------------------------------------------------------------------


def test_planted_sites_are_where_they_are_said_to_be_on_both_strands() -> None:
    certain = [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]  # TGCTAAG
    held = sequences.planted((300, 20, 20), matrix=certain)
    letters, found = dna.decoded(held.train.codes), Counter[str]()
    assert held.train.planted is not None
    for one, (start, end), label in zip(letters, held.train.planted.tolist(), held.train.labels.tolist(), strict=True):
        if label:
            found[one[start:end]] += 1
        else:
            assert (start, end) == (-1, -1)
    assert set(found) == {"TGCTAAG", "CTTAGCA"} and min(found.values()) > 100
    starts = held.train.planted[held.train.labels == 1, 0]
    assert starts.min() < 5 and starts.max() > 89
    count = len(letters) // 2
    assert all(pairs(letters[number]) == pairs(letters[number + count]) for number in range(count))


def test_planted_sites_follow_the_matrix_and_the_seed() -> None:
    held = sequences.planted((800, 1, 1))
    assert held.train.planted is not None
    drawn = np.zeros((15, 4))
    for codes, (start, end), label in zip(held.train.codes.numpy(), held.train.planted.tolist(), held.train.labels, strict=True):
        if label:
            site = codes[start:end]
            best = max((site, 3 - site[::-1]), key=lambda one: sum(sequences.MAFK[i][b] for i, b in enumerate(one)))
            drawn[np.arange(15), best] += 1
    matrix = np.asarray(sequences.MAFK, dtype=float)
    matrix /= matrix.sum(1, keepdims=True)
    assert np.abs(drawn / drawn.sum(1, keepdims=True) - matrix)[3:12].max() < 0.05
    again = sequences.planted((800, 1, 1))
    assert torch.equal(again.train.codes, held.train.codes)
    assert not torch.equal(sequences.planted((800, 1, 1), seed=1).train.codes, held.train.codes)


def test_the_window_keeps_the_place_of_the_site() -> None:
    held = sequences.planted((50, 1, 1), length=121)
    assert held.train.planted is not None
    cut = held.train.window(101)
    assert cut.codes.shape == (100, 101) and cut.planted is not None
    (start, end), (before, _) = cut.planted[0].tolist(), held.train.planted[0].tolist()
    assert start == before - 10
    if start >= 0:
        assert torch.equal(cut.codes[0, start:end], held.train.codes[0, before : before + 15])


# --- the task ------------------------------------------------------------------------------------------------------------


def test_area_under_the_curve_is_the_share_of_ordered_pairs() -> None:
    dice = torch.Generator().manual_seed(0)
    scores, labels = torch.randint(0, 6, (40,), generator=dice).float(), torch.randint(0, 2, (40,), generator=dice)
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[labels == 1].tolist() for n in scores[labels == 0].tolist()]
    assert sequences.auc(scores, labels) == pytest.approx(sum(wins) / len(wins), abs=1e-12)


class Counting(nn.Module):
    """Logits by the share of the base T: right for sequences that have more of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, bases: Tensor) -> Tensor:
        share = self.scale * bases[:, 3].mean(1)
        return torch.stack([-share, share], dim=1)


def test_the_score_is_of_the_central_window_of_the_test_part(tmp_path: Path) -> None:
    """Positives have T in the centre only, negatives outside of it only."""
    inside, outside = "A" * 50 + "T" * 101 + "A" * 49, "T" * 49 + "A" * 103 + "T" * 48
    fasta(tmp_path / "a.fa", ["1", "0"] * 60, [inside, outside] * 60)
    task = sequences.task(str(tmp_path / "a.fa"))
    assert task.evaluate(Counting()) == 100.0
    assert task.evaluate(nn.Sequential(Counting(), nn.Linear(2, 2)).requires_grad_(False)) in (0.0, 100.0)


def test_batches_are_windows_near_the_centre_on_either_strand() -> None:
    codes = dna.encoded(["A" * 60 + "C" * 140])
    held = sequences.Part(("x",) * 400, codes.repeat(400, 1), torch.arange(400) % 2)
    task = sequences.task_of(sequences.Sequences("x", held, held, held, 101, ""), seed=1)
    batch = torch.cat([bases for bases, _ in task.batches(0)])
    assert batch.shape == (400, 4, 101) and len(task.batches(0)) == 7
    turned = batch[:, 2].sum(1) > 0  # the complement of C
    assert 150 < int(turned.sum()) < 250
    starts = 60 - batch[:, [0, 3]].sum((1, 2))  # so many A, or T on the other strand, are left in the window
    assert set(starts.tolist()) == set(range(39, 60))
    assert batch[turned][:, 3, -1].all() and batch[~turned][:, 0, 0].all()  # the A are at the front, turned round at the end
    same = torch.cat([bases for bases, _ in task.batches(0)])
    assert torch.equal(batch, same) and not torch.equal(batch, torch.cat([bases for bases, _ in task.batches(1)]))


def test_the_gradient_is_shortened_before_each_step() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = sequences.clipped_adam([weight])
    weight.grad = torch.tensor([3.0, 4.0, 0.0]) * 1e4
    optimizer.step()
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_another_output_is_named() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 5\)"):
        sequences.margin(torch.zeros(3, 5), 3)
    with pytest.raises(InputError, match="a tuple"):
        sequences.margin((torch.zeros(3, 2),), 3)


def test_the_command_line_knows_the_names() -> None:
    assert inputs.task("tfbs:planted", 0).example_inputs[0].shape == (1, 4, 101)
    with pytest.raises(InputError, match="Did you mean 'tfbs:mafk'"):
        inputs.task("tfb:mafk", 0)
