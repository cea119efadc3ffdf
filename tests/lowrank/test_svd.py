"""Truncated decompositions against numpy's float64 singular value decomposition; failures carry the layer's name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featherweight.errors import InputError
from featherweight.weights.svd import DecompositionError, squared_values, truncated, truncated_all

SHAPES = [(48, 48), (96, 192), (16, 144), (144, 16), (1, 7), (7, 1), (1, 1)]


def best(matrix: Tensor, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The projection and its UV^T, by numpy in float64."""
    u, s, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank], u[:, :rank] @ v[:rank]


def least_rank(matrix: Tensor, energy: float) -> int:
    squares = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    return min(rank for rank in range(squares.size + 1) if squares[rank:].sum() <= energy * squares.sum())


@pytest.mark.third
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_projection_and_pull_are_those_of_the_full_decomposition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape).to(dtype)
    accuracy = 1e-12 if dtype == torch.float64 else 1e-9
    for rank in {0, 1, min(shape) // 3, min(shape)}:
        thin = truncated(matrix, rank=rank)
        projection, pull = best(matrix, rank)
        size = np.linalg.norm(matrix.double().numpy())
        assert np.linalg.norm(thin.matrix().numpy() - projection) <= accuracy * size
        assert np.linalg.norm(thin.pull().numpy() - pull) <= 1e-7 * max(rank, 1)
        left, right = thin.factors()
        assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1]) and thin.rank == rank
        assert np.linalg.norm((left @ right).numpy() - projection) <= accuracy * size
        missed = np.linalg.norm(matrix.double().numpy() - projection) ** 2 / size**2
        assert abs(thin.dropped - missed) < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.99), st.integers(0, 10**6))
def test_the_energy_rule_finds_the_least_rank(rows: int, cols: int, energy: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, cols, generator=generator)
    thin = truncated(matrix, energy=energy)
    assert thin.rank == least_rank(matrix, energy)
    assert thin.dropped <= energy + 1e-12
    assert truncated(1e-12 * matrix, energy=energy).rank == thin.rank  # blind to scale


def test_deficient_matrices_are_told_from_full_ones() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(64, 5) @ torch.randn(5, 576)  # float32, so of rank 5 up to rounding
    assert truncated(matrix, energy=1e-10).rank == 5
    thin = truncated(matrix, rank=20)
    assert np.linalg.norm((thin.matrix() - matrix.double()).numpy()) < 2e-6 * float(matrix.norm())
    assert bool(torch.isfinite(thin.right).all()) and thin.rank == 20
    whole = torch.randint(-3, 4, (64, 5)).float() @ torch.randint(-3, 4, (5, 576)).float()  # without rounding
    assert truncated(whole, energy=0.0).rank == truncated(whole.T, energy=0.0).rank == 5
    exact = truncated(torch.randn(6, 2).double() @ torch.randn(2, 6).double(), energy=1e-20)
    assert exact.rank == 2


def test_the_zero_matrix_has_rank_zero() -> None:
    thin = truncated(torch.zeros(4, 6), energy=0.0)
    assert thin.rank == 0 and thin.dropped == 0 and torch.equal(thin.matrix(), torch.zeros(4, 6).double())
    assert torch.equal(truncated(torch.zeros(4, 6), rank=3).pull(), thin.pull()) or truncated(torch.zeros(4, 6), rank=3).rank == 3


def test_the_pull_is_a_subgradient_of_the_nuclear_norm_at_the_projection() -> None:
    generator = np.random.default_rng(0)
    for rank in (1, 3, 6):
        thin = truncated(torch.from_numpy(generator.normal(size=(6, 9))).float(), rank=rank)
        at, pull = thin.matrix().numpy(), thin.pull().numpy()
        nuclear = np.linalg.svd(at, compute_uv=False).sum()
        assert abs((pull * at).sum() - nuclear) < 1e-9 * nuclear
        for scale in (1e-3, 1.0, 30.0):
            other = at + scale * generator.normal(size=at.shape)
            assert np.linalg.svd(other, compute_uv=False).sum() >= nuclear + (pull * (other - at)).sum() - 1e-9


def test_many_matrices_are_each_decomposed_as_alone_and_one_call_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrices = {"a": torch.randn(8, 20), "b": torch.randn(20, 8), "c": torch.randn(8, 20), "d": torch.randn(8, 20).double()}
    alone = {name: truncated(matrix, energy=0.1) for name, matrix in matrices.items()}
    calls = []
    eigh = torch.linalg.eigh

    def counted(stack: Tensor) -> object:
        calls.append(stack.shape)
        return eigh(stack)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    together = truncated_all(matrices, energy=0.1)
    assert list(together) == list(matrices) and sorted(shape[0] for shape in calls) == [1, 2]
    for name, thin in together.items():
        assert thin.rank == alone[name].rank
        assert torch.allclose(thin.matrix(), alone[name].matrix(), atol=1e-12)
    ranks = {"a": 1, "b": 2, "c": 3, "d": 4}
    assert {name: thin.rank for name, thin in truncated_all(matrices, rank=ranks).items()} == ranks


def test_no_gradient_is_kept() -> None:
    assert not truncated(torch.randn(3, 4, requires_grad=True), rank=2).matrix().requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_is_not_finite_is_named(bad: float) -> None:
    matrices = {"stage1.0.conv1.weight": torch.ones(3, 3), "stage1.0.conv2.weight": torch.full((3, 3), bad)}
    with pytest.raises(DecompositionError, match=r"^stage1\.0\.conv2\.weight: NaN or infinite"):
        truncated_all(matrices, rank=1)


def test_a_failure_of_lapack_is_retried_and_then_carries_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **options: object) -> None:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    torch.manual_seed(0)
    matrices = {"fc1": torch.randn(4, 5), "fc2": torch.randn(4, 5)}
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    for name, thin in truncated_all(matrices, rank=2).items():  # by the singular value decomposition instead
        assert np.linalg.norm(thin.matrix().numpy() - best(matrices[name], 2)[0]) < 1e-9
    monkeypatch.setattr(torch.linalg, "svd", fails)
    with pytest.raises(DecompositionError, match=r"^fc1: LAPACK could not decompose its \(4, 5\)") as caught:
        truncated_all(matrices, rank=2)
    assert isinstance(caught.value.__cause__, torch.linalg.LinAlgError)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rank": 4}, "0 to 3, given 4"), ({"rank": -1}, "0 to 3, given -1"), ({"energy": 1.0}, r"in \[0, 1\), given 1"),
        ({"energy": -0.1}, "given -0.1"), ({}, "either a rank or an energy"), ({"rank": 1, "energy": 0.1}, "either a rank or an"),
    ],
)  # fmt: skip
def test_sizes_out_of_range_are_refused(asked: dict[str, float], says: str) -> None:
    with pytest.raises(InputError, match=says):
        truncated(torch.randn(3, 5), **asked)  # type: ignore[arg-type]


def test_only_matrices_are_taken() -> None:
    with pytest.raises(InputError, match="through a view"):
        truncated(torch.randn(3, 5, 2), rank=1)
    with pytest.raises(InputError, match="empty"):
        truncated(torch.randn(0, 5), rank=0)


@pytest.mark.third
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_squared_values_are_those_of_the_full_decomposition(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape).to(dtype)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    assert np.abs(squared_values(matrix).numpy() - expected).max() <= 1e-12 * expected[0]
    deficient = torch.outer(torch.randn(shape[0]), torch.randn(shape[1]))
    assert int((squared_values(deficient) > 1e-12 * squared_values(deficient)[0]).sum()) == 1
    with pytest.raises(DecompositionError, match="w: NaN"):
        squared_values(matrix * torch.nan, "w")
