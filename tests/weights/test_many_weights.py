"""Many weights: what is done in pieces, or for all rows together, is what is done at once, or row by row."""

from __future__ import annotations

import pytest
import table
import torch

from featherweight.weights import scales, sets, sizes
from featherweight.weights.drivers import ADMM
from featherweight.weights.sets import Codebook, Levels, TopK
from featherweight.weights.sizes import largest
from featherweight.weights.targets import Target

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.third
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("step", [0.0, 0.5, 100.0], ids=lambda step: f"in steps of {step}")
def test_the_largest_by_their_digits_are_the_largest(
    dtype: torch.dtype, piece: int, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "RANKED", 0)
    monkeypatch.setattr(sizes, "PIECE", piece)
    values = table.matrix(1, 90, seed=3)[0] * 3
    values = ((values / step).round() * step if step else values).to(dtype)
    values[5] = -0.0
    for count in (0, 1, 2, 31, 89, 90):
        chosen = largest(values, count)
        assert chosen.numel() == count
        assert bool((chosen[1:] > chosen[:-1]).all())
        kept, wanted = values[chosen].abs().sort().values, values.abs().sort().values[90 - count :]
        assert torch.equal(kept, wanted)
        if step:  # of equal ones the first
            gone = torch.ones(90, dtype=torch.bool).index_fill_(0, chosen, False)
            same = gone & (values.abs() == kept[0]) if count else torch.zeros(90, dtype=torch.bool)
            tied = chosen[values[chosen].abs() == kept[0]] if count else chosen
            assert not bool(same.any()) or int(same.nonzero().min()) > int(tied.max())


@pytest.mark.parametrize("n", [1000, 1001])
def test_the_projection_of_a_long_vector_is_by_magnitude(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "RANKED", 1000)
    matrix = table.matrix(1, n, seed=4, dtype=torch.float32)
    for count in (0, 1, n // 20, n - n // 20, n):
        projected = TopK(count).project(matrix)
        assert int(projected.count_nonzero()) == count
        assert torch.equal(TopK(count).kept(matrix), projected != 0)
        least = projected.abs()[projected != 0].min() if count else torch.inf
        assert float(matrix.abs()[projected == 0].max() if count < n else 0.0) <= float(least)


@pytest.mark.third
@pytest.mark.parametrize(
    "levels",
    [Levels("binary"), Levels("ternary"), Levels("uniform", 3), Levels("uniform", 5), Levels("power_of_two", 3)],
    ids=str,
)
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("room", [1 << 21, 1 << 9])
def test_the_scales_of_all_rows_are_those_of_each_bit_by_bit(
    levels: Levels, skip: bool, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`room` for a few intervals only: rows of more are searched by themselves, and rows are taken a few at a time."""
    monkeypatch.setattr(scales, "BATCH", max(room, 2 * scales.GRID * levels.positive().numel()))
    for seed, (rows, cols) in enumerate(((1, 9), (2, 3), (7, 5), (6, 40), (2, 90))):
        matrix = table.matrix(rows, cols, seed=50 + seed, dtype=torch.float32).abs()
        matrix[-1, ::2] = 0
        for one in (matrix, (2 * matrix).round(), matrix * 0, matrix.T.contiguous().T):
            found = scales.best_scales(one, levels.positive(), skip)
            each = [scales.best_scale(row[row != 0] if skip else row, levels.positive()) for row in one]
            assert torch.equal(found, torch.tensor(each, dtype=torch.float64))


@pytest.mark.parametrize("piece", [3, 16, 1000])
def test_levels_in_pieces_are_levels_at_once(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (Levels("uniform", 3), Levels("ternary"), Levels("uniform", 2, sparse=True)):
        for matrix in (table.matrix(), table.matrix(1, 48), table.tied_matrix()):
            whole, distance = one.project(matrix), one.violation(matrix)
            with monkeypatch.context() as patched:
                patched.setattr(sizes, "PIECE", piece)
                assert torch.equal(one.project(matrix), whole)
                assert one.violation(matrix) == pytest.approx(distance, rel=1e-12, abs=1e-15)


encode = Codebook.encode  # as it is


def test_a_projection_of_admm_holds_no_more_than_its_state_while_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held besides is let go before the new is made: at 1e9 weights a tensor is 4 GB. Of a mask, one is held and bits."""
    weight, target, driver = table.matrix(), Target(TopK(9)), ADMM(0.1, 1)
    state = driver.start(weight, target, None)
    held, kept = [], sets.among_largest
    monkeypatch.setattr(sets, "among_largest", lambda matrix, count: (held.append(sorted(state)), kept(matrix, count))[1])
    driver.project(state, weight, target, None)
    assert held == [["pulled_to", "rho"]]
    assert sorted(state) == ["kept", "pulled_to", "rho"] and state["kept"].nbytes == weight.numel() // 8
    other, book = driver.start(weight, Target(Codebook(3)), None), Target(Codebook(3))
    monkeypatch.setattr(Codebook, "encode", lambda one, matrix: (held.append(sorted(other)), encode(one, matrix))[1])
    driver.project(other, weight, book, None)
    assert held[1:] == [["U", "rho"]] and sorted(other) == ["U", "Z", "pulled_to", "rho"]
