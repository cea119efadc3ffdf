"""Sets: feasible, idempotent, scale-equivariant, optimal where `exact`, and `pull` is a subgradient."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import table
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table import COLS, ROWS, Sized

from featherweight.weights import kmeans, scales
from featherweight.weights.sets import Codebook, Levels, LowRank, Set, SetError, SparseCodebook, TopEach, TopK, TopRows

EVERY_SET = pytest.mark.parametrize("one", table.ALL_SETS, ids=str)
EVERY_MATRIX = pytest.mark.parametrize("matrix", table.MATRICES.values(), ids=table.MATRICES)
EVERY_SIZED = pytest.mark.parametrize("sized", table.SIZED.values(), ids=table.SIZED)


def closeness(matrix: torch.Tensor) -> float:
    return 1e-5 if matrix.dtype == torch.float32 else 1e-12


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left.double() - right.double()).square().sum())


# --- the laws ------------------------------------------------------------------------------------------------------------


@EVERY_MATRIX
@EVERY_SET
def test_a_projection_lies_in_the_set(one: Set, matrix: torch.Tensor) -> None:
    projected = one.project(matrix)
    assert projected.shape == matrix.shape
    assert projected.dtype == matrix.dtype
    assert one.violation(projected) <= 10 * closeness(matrix)
    assert is_member(one, projected, matrix)


@pytest.mark.parametrize("one", [one for one in table.ALL_SETS if one.exact], ids=str)
def test_a_member_near_a_matrix_is_no_further_than_the_one_it_was_found_from(one: Set) -> None:
    """And of a matrix that has not moved it is the projection's distance."""
    matrix = table.matrix(seed=311)
    if getattr(one, "sparse", False):
        matrix = matrix * (table.matrix(seed=312) > -0.5)
    member = one.project(matrix)
    moved = matrix + 0.05 * table.matrix(seed=313) * (matrix != 0)
    near = one.near(moved, member)
    assert near.dtype == matrix.dtype and is_member(one, near, moved)
    assert distance(near, moved) <= distance(member, moved) * (1 + 1e-9)
    assert distance(one.near(matrix, member), matrix) == pytest.approx(distance(member, matrix), rel=1e-9)


@pytest.mark.parametrize("one", [one for one in table.ALL_SETS if one.selects], ids=str)
def test_what_is_kept_is_what_the_projection_keeps_ties_included(one: Set) -> None:
    for matrix in table.MATRICES.values():
        kept = one.kept(matrix)
        assert kept.dtype == torch.bool
        assert torch.equal(torch.where(kept, matrix, 0.0), one.project(matrix))


def is_member(one: Set, z: torch.Tensor, matrix: torch.Tensor) -> bool:
    """By the set's definition, without asking the set."""
    match one:
        case TopK(count=count):
            return int(z.count_nonzero()) <= count
        case TopEach(count=count):
            return bool((z.count_nonzero(dim=1) <= count).all())
        case TopRows(count=count):
            return int((z != 0).any(1).sum()) <= count
        case LowRank(rank=None, energy=energy):
            rank = oracles.rank_for_energy(matrix.double().numpy(), energy)
            return bool((torch.linalg.svdvals(z.double())[rank:] <= 1e-5 * (1 + float(z.norm()))).all())
        case LowRank(rank=rank):
            return bool((torch.linalg.svdvals(z.double())[rank:] <= 1e-6 * (1 + float(z.norm()))).all())
        case Levels(sparse=False):
            return all(row_is_on_levels(one, row) for row in z.double())
        case Levels(sparse=True):
            dead = bool((z[matrix == 0] == 0).all())
            return dead and all(row_is_on_levels(one, row[was != 0]) for row, was in zip(z.double(), matrix, strict=True))
        case Codebook(count=count, sparse=True):
            return bool((z[matrix == 0] == 0).all()) and z[matrix != 0].unique().numel() <= count
        case Codebook(count=count):
            return z.unique().numel() <= count
        case SparseCodebook(count=count, shared=shared):
            return int(z.count_nonzero()) <= count and z[z != 0].unique().numel() <= shared
    raise AssertionError(f"say here what a member of {one} is")


def signed_levels(one: Levels) -> list[float]:
    positive = {
        "binary": [1.0],
        "ternary": [0.0, 1.0],
        "uniform": [float(i + 1) for i in range(2 ** ((one.bits or 1) - 1))],
        "power_of_two": [2.0**i for i in range(2 ** ((one.bits or 1) - 1))],
    }[one.levels]
    return sorted({sign * level for sign in (-1, 1) for level in positive})


def row_is_on_levels(one: Levels, row: torch.Tensor) -> bool:
    """Some entry is at some level, which fixes the scale; then every other must be at a level too."""
    if row.numel() == 0 or float(row.abs().max()) == 0:
        return True
    levels = torch.tensor(signed_levels(one), dtype=torch.float64)
    largest = row.abs().max()
    scaled = (row * (level / largest) for level in levels[levels > 0])
    return any(float((s[:, None] - levels).abs().amin(1).max()) < 1e-5 for s in scaled)


@EVERY_MATRIX
@EVERY_SET
def test_projecting_twice_is_projecting_once(one: Set, matrix: torch.Tensor) -> None:
    once = one.project(matrix)
    if isinstance(one, LowRank) and one.energy:  # its rank depends on the matrix, and a projected one can drop still more
        once = LowRank(rank=one.rank_of(matrix)).project(matrix)
        one = LowRank(rank=one.rank_of(matrix))
    twice = one.project(once)
    torch.testing.assert_close(twice, once, rtol=10 * closeness(matrix), atol=10 * closeness(matrix))


@pytest.mark.parametrize("factor", [2.0**-10, 0.5, 64.0])
@EVERY_SET
def test_a_scaled_matrix_has_the_scaled_projection(one: Set, factor: float) -> None:
    matrix = table.matrix()
    torch.testing.assert_close(one.project(factor * matrix), factor * one.project(matrix), rtol=1e-9, atol=0)
    torch.testing.assert_close(one.violation(factor * matrix), one.violation(matrix), rtol=1e-9, atol=1e-12)


@EVERY_SET
def test_the_negated_matrix_has_the_negated_projection(one: Set) -> None:
    matrix = table.matrix()
    torch.testing.assert_close(one.project(-matrix), -one.project(matrix), rtol=1e-9, atol=1e-12)


@EVERY_SET
def test_violation_is_the_relative_distance(one: Set) -> None:
    if isinstance(one, LowRank) and one.energy is not None:
        assert one.violation(table.matrix()) == 0.0  # an energy binds only at projection
        return
    for matrix in (table.matrix(), table.MATRICES["tied"], table.matrix(seed=9, dtype=torch.float32)):
        away = (distance(matrix, one.project(matrix)) / float(matrix.double().square().sum())) ** 0.5
        assert one.violation(matrix) == pytest.approx(away, rel=1e-6, abs=1e-6)
        assert 0 <= one.violation(matrix) <= 1 + 1e-12


@EVERY_SET
def test_the_zero_matrix_is_its_own_projection(one: Set) -> None:
    zero = table.MATRICES["zero"]
    assert torch.equal(one.project(zero), zero)
    assert one.violation(zero) == 0.0
    assert torch.isfinite(one.pull(zero)).all()


@EVERY_SET
def test_the_input_is_not_changed(one: Set) -> None:
    matrix = table.matrix()
    one.project(matrix), one.violation(matrix), one.pull(matrix)
    assert torch.equal(matrix, table.matrix())


@EVERY_SET
def test_a_transposed_matrix_in_memory_changes_nothing(one: Set) -> None:
    matrix = table.matrix()
    turned = matrix.t().contiguous().t()
    assert not turned.is_contiguous()
    torch.testing.assert_close(one.project(turned), one.project(matrix), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@EVERY_SET
def test_a_matrix_that_is_not_finite_is_refused(one: Set, bad: float) -> None:
    matrix = table.matrix()
    matrix[1, 2] = bad
    with pytest.raises(SetError, match="NaN or infinite"):
        one.project(matrix)


# --- sizes ---------------------------------------------------------------------------------------------------------------


@EVERY_SIZED
def test_sizes_out_of_range_are_refused(sized: Sized) -> None:
    for size in (sized.least - 1, sized.most(ROWS, COLS) + 1):
        for attempt in (sized.at(size).project, sized.at(size).encode, sized.at(size).violation):
            with pytest.raises(SetError, match=f"given {size}"):
                attempt(table.matrix())


@EVERY_SIZED
def test_the_largest_size_keeps_everything(sized: Sized) -> None:
    matrix = table.matrix()
    if isinstance(sized.at(1), SparseCodebook):
        assert int(sized.at(ROWS * COLS).project(matrix).count_nonzero()) == ROWS * COLS
        return
    torch.testing.assert_close(sized.at(sized.most(ROWS, COLS)).project(matrix), matrix, rtol=1e-12, atol=1e-12)


@EVERY_SIZED
def test_size_zero_keeps_nothing(sized: Sized) -> None:
    if sized.least == 1:
        assert sized.at(1).project(table.matrix()).unique().numel() == 1
        return
    assert int(sized.at(0).project(table.matrix()).count_nonzero()) == 0


@EVERY_SIZED
def test_a_set_without_its_size_is_incomplete_and_refuses(sized: Sized) -> None:
    unsized = type(sized.at(1))()
    assert not unsized.complete()
    assert unsized.sized(3).complete()
    assert sized.at(1).complete()
    with pytest.raises(SetError, match="has no"):
        unsized.project(table.matrix())


@EVERY_SIZED
def test_sized_is_the_same_set_of_that_size(sized: Sized) -> None:
    assert sized.at(1).sized(3) == sized.at(3)
    assert type(sized.at(1))().sized(3).project(table.matrix()).shape == (ROWS, COLS)


def test_what_cannot_be_is_refused_when_it_is_made() -> None:
    for attempt in (
        lambda: LowRank(rank=1, energy=0.1),
        lambda: LowRank(energy=1.0),
        lambda: LowRank(energy=-0.1),
        lambda: LowRank(energy=float("nan")),
        lambda: Levels("binary", 2),
        lambda: Levels("ternary", 2),
        lambda: Levels("uniform", 0),
        lambda: Levels("uniform", 9),
        lambda: Levels("power_of_two", 6),
        lambda: SparseCodebook(3, 0),
    ):
        with pytest.raises(SetError):
            attempt()
    with pytest.raises(SetError, match="needs its bits"):
        Levels("uniform").project(table.matrix())


@pytest.mark.parametrize("count", range(13))
def test_ties_never_keep_more_than_the_count(count: int) -> None:
    flat = torch.ones(3, 4)
    assert int(TopK(count).project(flat).count_nonzero()) == count
    assert int(SparseCodebook(count, 2).project(flat).count_nonzero()) == count
    assert int((TopRows(min(count, 3)).project(flat) != 0).any(1).sum()) == min(count, 3)


# --- menus ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, sized in table.SIZED.items() if sized.has_menu])
@EVERY_MATRIX
def test_a_menu_says_what_every_size_costs(name: str, matrix: torch.Tensor) -> None:
    sized = table.SIZED[name]
    # the menu of a codebook of pruned weights prices the pruning; its clusters are as fine as the size allows
    at = (lambda size: SparseCodebook(size, ROWS * COLS)) if name == "sparse_codebook" else sized.at
    menu = at(1).menu(matrix)
    assert menu.most == sized.most(ROWS, COLS)
    errors = menu.errors.tolist()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0
    whole = float(matrix.double().square().sum())
    for size in {0, 1, 2, menu.most // 2, menu.most - 1, menu.most}:
        assert errors[size] == pytest.approx(distance(matrix, at(size).project(matrix)), abs=1e-5 * (whole + 1))
        assert menu.bits(size) == at(size).encode(matrix).bits()


def test_a_set_without_a_size_has_no_menu() -> None:
    for one in (Levels("binary"), Codebook(3)):
        with pytest.raises(SetError, match="no size for an allocator"):
            one.menu(table.matrix())
    with pytest.raises(SetError, match="no size to set"):
        Levels("binary").sized(3)


def test_menus_refuse_what_is_not_finite() -> None:
    matrix = table.matrix()
    matrix[0, 0] = torch.nan
    for sized in table.SIZED.values():
        if sized.has_menu:
            with pytest.raises(SetError, match="NaN or infinite"):
                sized.at(1).menu(matrix)


# --- optimal, against brute force ----------------------------------------------------------------------------------------

SMALL = (table.matrix(3, 4, seed=20), table.matrix(4, 3, seed=21), torch.ones(3, 4).double(), table.matrix(1, 9, seed=22))


@pytest.mark.parametrize("matrix", SMALL, ids=str)
def test_top_k_is_the_best_of_all_choices(matrix: torch.Tensor) -> None:
    for count in range(matrix.numel() + 1):
        best = oracles.sparse(matrix.numpy(), count)
        assert distance(matrix, TopK(count).project(matrix)) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("matrix", SMALL, ids=str)
def test_top_rows_is_the_best_of_all_choices(matrix: torch.Tensor) -> None:
    for count in range(matrix.shape[0] + 1):
        best = oracles.row_sparse(matrix.numpy(), count)
        assert distance(matrix, TopRows(count).project(matrix)) == pytest.approx(best, abs=1e-12)


@EVERY_MATRIX
def test_low_rank_drops_only_the_smallest_singular_values(matrix: torch.Tensor) -> None:
    for rank in range(min(matrix.shape) + 1):
        best = oracles.low_rank(matrix.double().numpy(), rank)
        away = distance(matrix, LowRank(rank).project(matrix))
        assert away == pytest.approx(best, rel=1e-4, abs=1e-3 * closeness(matrix) * (1 + float(matrix.norm())))


@pytest.mark.parametrize("energy", [0.0, 0.01, 0.2, 0.5, 0.9])
def test_an_energy_gives_the_least_rank_that_drops_no_more(energy: float) -> None:
    for seed in range(5):
        matrix = table.matrix(seed=seed)
        code = LowRank(energy=energy).encode(matrix)
        assert code.rank == oracles.rank_for_energy(matrix.numpy(), energy)
    assert LowRank(energy=energy).encode(table.MATRICES["zero"]).rank == 0


LEVELS = [*table.INSTANCES[Levels], Levels("uniform", 2), Levels("uniform", 5), Levels("power_of_two", 4)]


@pytest.mark.parametrize("one", LEVELS, ids=str)
def test_levels_and_scale_are_the_best_of_all_breakpoints(one: Levels) -> None:
    rows = torch.cat([table.matrix(3, 7, seed=s) for s in range(4)])
    rows[3] = rows[3].sign()
    rows[4] = rows[4].exp()
    rows[5] *= 10.0 ** torch.arange(-3, 4)
    projected = one.project(rows)
    for row, found in zip(rows, projected, strict=True):
        best, _ = oracles.levels(row.numpy(), signed_levels(one))
        assert distance(row, found) == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=9), st.sampled_from(LEVELS))
@settings(max_examples=150, deadline=None)
def test_levels_are_the_best_for_any_row(row: list[float], one: Levels) -> None:
    matrix = torch.tensor([row], dtype=torch.float64)
    best, _ = oracles.levels(matrix[0].numpy(), signed_levels(one))
    assert distance(matrix, one.project(matrix)) <= best + 1e-9 * float(matrix.square().sum())


def test_best_scale_is_the_argmin() -> None:
    for seed in range(20):
        x = table.matrix(1, 11, seed=seed)[0].abs()
        for levels in ([1.0], [0.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 8.0]):
            best, _ = oracles.levels(x.numpy(), levels)
            scale = scales.best_scale(x, torch.tensor(levels).double())
            error = float((x[:, None] - scale * torch.tensor(levels).double()).square().amin(1).sum())
            assert error == pytest.approx(best, rel=1e-9)
    assert scales.best_scale(torch.zeros(4), torch.tensor([1.0])) == 0.0
    assert scales.best_scale(torch.zeros(0), torch.tensor([0.0, 1.0])) == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_intervals_suffice_for_clusters(count: int) -> None:
    for seed in range(3):
        values = table.matrix(1, 6, seed=seed).numpy()
        assert oracles.codebook(values, count) == pytest.approx(oracles.codebook_any_partition(values, count), abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 10])
def test_a_codebook_is_the_best_of_all_splits(count: int) -> None:
    for seed in range(8):
        matrix = table.matrix(2, 5, seed=seed)
        best = oracles.codebook(matrix.numpy(), count)
        assert distance(matrix, Codebook(count).project(matrix)) == pytest.approx(best, abs=1e-12)


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=10), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_codebook_is_the_best_with_repeated_values(values: list[int], count: int) -> None:
    matrix = torch.tensor([values], dtype=torch.float64)
    count = min(count, len(values))
    best = oracles.codebook(matrix.numpy(), count)
    assert distance(matrix, Codebook(count).project(matrix)) == pytest.approx(best, abs=1e-9)


def test_a_large_codebook_is_near_the_best_and_never_worse_than_equal_bins() -> None:
    values = table.matrix(1, kmeans.EXACT_LIMIT + 10_000, seed=30)
    approximate = kmeans.centroids(values[0], 4)
    exact = kmeans.centroids(values[0, : kmeans.EXACT_LIMIT - 1], 4)
    torch.testing.assert_close(approximate, exact, rtol=0.02, atol=0.02)
    assert bool((approximate[1:] >= approximate[:-1]).all())


@pytest.mark.parametrize("one", LEVELS, ids=str)
def test_under_a_mask_levels_are_the_best_for_what_is_left(one: Levels) -> None:
    matrix = table.matrix(4, 7, seed=3) * (table.matrix(4, 7, seed=5) > 0)
    matrix[2] = 0
    found = one.masked().project(matrix)
    assert int(found[matrix == 0].count_nonzero()) == 0
    for row, near in zip(matrix, found, strict=True):
        live = row[row != 0].numpy()
        best = oracles.levels(live, signed_levels(one))[0] if live.size else 0.0
        assert distance(row, near) == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_under_a_mask_a_codebook_is_the_best_for_what_is_left(count: int) -> None:
    for seed in range(4):
        matrix = table.matrix(2, 6, seed=seed) * (table.matrix(2, 6, seed=seed + 50) > 0)
        found = Codebook(count).masked().project(matrix)
        assert int(found[matrix == 0].count_nonzero()) == 0
        live = matrix[matrix != 0]
        best = oracles.codebook(live.numpy(), min(count, live.numel()))
        assert distance(matrix, found) == pytest.approx(best, abs=1e-12)


def test_without_zeros_a_mask_changes_nothing_not_even_the_code() -> None:
    matrix = table.matrix()
    for one in (*LEVELS, Codebook(3)):
        assert type(one.masked().encode(matrix)) is type(one.encode(matrix))
        assert torch.equal(one.masked().project(matrix), one.project(matrix))


def test_pruning_then_clustering_is_what_it_says_and_no_better_than_the_optimum() -> None:
    for seed in range(4):
        matrix = table.matrix(2, 4, seed=seed)
        for count, shared in ((0, 2), (1, 1), (3, 2), (5, 3), (8, 2)):
            away = distance(matrix, SparseCodebook(count, shared).project(matrix))
            assert away == pytest.approx(oracles.prune_then_cluster(matrix.numpy(), count, shared), abs=1e-12)
            assert away >= oracles.sparse_codebook(matrix.numpy(), count, shared) - 1e-12


def test_exactness_is_declared() -> None:
    assert [kind.exact for kind in table.INSTANCES] == [True, True, True, True, True, True, False]


# --- pull is a subgradient -----------------------------------------------------------------------------------------------


def assert_subgradient(function: object, at: torch.Tensor, pull: torch.Tensor) -> None:
    here = function(at.double().numpy())
    for seed in range(12):
        for size in (1e-2, 1.0, 30.0):
            other = at + size * table.matrix(seed=100 + seed)
            assert function(other.numpy()) >= here + float((pull * (other - at)).sum()) - 1e-9 * (1 + abs(here))


NOT_ROUNDED = [name for name in table.MATRICES if name != "float32"]


@pytest.mark.parametrize("name", NOT_ROUNDED)
def test_the_pull_of_top_k_is_of_the_l1_norm(name: str) -> None:
    matrix = table.MATRICES[name]
    assert_subgradient(oracles.l1, matrix, TopK(3).pull(matrix))


@pytest.mark.parametrize("name", NOT_ROUNDED)
def test_the_pull_of_top_rows_is_of_the_group_lasso(name: str) -> None:
    matrix = table.MATRICES[name]
    assert_subgradient(oracles.group_lasso, matrix, TopRows(3).pull(matrix))


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
@pytest.mark.parametrize("name", NOT_ROUNDED)
def test_the_pull_of_low_rank_is_of_the_nuclear_norm_inside_the_set(name: str, rank: int) -> None:
    """Outside, it is a subgradient of the sum of the `rank` largest singular values, which the nuclear norm is inside."""
    matrix = table.MATRICES[name]
    assert_subgradient(lambda m: oracles.ky_fan(m, rank), matrix, LowRank(rank).pull(matrix))
    inside = LowRank(rank).project(matrix)
    assert_subgradient(lambda m: oracles.ky_fan(m, min(m.shape)), inside, LowRank(rank).pull(inside))


@pytest.mark.parametrize("name", ["normal", "rank 1"])
def test_the_pulls_are_the_gradients_where_there_is_one(name: str) -> None:
    matrix = table.MATRICES[name]
    np.testing.assert_allclose(TopK(3).pull(matrix), oracles.slope(oracles.l1, matrix.numpy()), atol=1e-6)
    np.testing.assert_allclose(TopRows(3).pull(matrix), oracles.slope(oracles.group_lasso, matrix.numpy()), atol=1e-6)
    largest = oracles.slope(lambda m: oracles.ky_fan(m, 1), matrix.numpy())
    np.testing.assert_allclose(LowRank(1).pull(matrix), largest, atol=1e-6)


def test_the_pull_towards_levels_and_codebooks_is_the_slope_of_half_the_squared_distance() -> None:
    matrix = table.matrix(2, 4, seed=40)
    cases = [
        (Levels(kind, bits), lambda m, o: sum(oracles.levels(row, signed_levels(o))[0] for row in m))
        for kind, bits in (("binary", None), ("ternary", None), ("uniform", 2), ("power_of_two", 2))
    ]
    cases += [(Codebook(3), lambda m, o: oracles.codebook(m, 3))]
    cases += [(SparseCodebook(5, 2), lambda m, o: oracles.prune_then_cluster(m, 5, 2))]
    for one, squared in cases:
        expected = oracles.slope(lambda m, one=one, squared=squared: squared(m, one) / 2, matrix.numpy())
        np.testing.assert_allclose(one.pull(matrix), expected, atol=1e-5, err_msg=str(one))
