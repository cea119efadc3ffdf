"""Brute force, closed forms and plain loops, written from the definitions. The package under test is not imported here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# --- views: one element at a time ----------------------------------------------------------------------------------------


def view_by_loops(weight: Array, left: Sequence[Sequence[str]], right: Sequence[Sequence[str]], sizes: dict[str, int]) -> Array:
    """Element by element: an axis group is a number whose digits are its axes, the last one fastest. `sizes` has all axes."""
    extent = [math.prod(sizes[axis] for axis in group) for group in right]
    matrix = np.full(extent, np.nan)
    axes = [axis for group in left for axis in group]
    for digits in itertools.product(*(range(sizes[axis]) for axis in axes)):
        at = dict(zip(axes, digits, strict=True))
        matrix[_place(right, at, sizes)] = weight[_place(left, at, sizes)]
    return matrix


def _place(groups: Sequence[Sequence[str]], at: dict[str, int], sizes: dict[str, int]) -> tuple[int, ...]:
    place = []
    for group in groups:
        number = 0
        for axis in group:
            number = number * sizes[axis] + at[axis]
        place.append(number)
    return tuple(place)


# --- sets: the least squared distance from a matrix ----------------------------------------------------------------------


def sparse(matrix: Array, count: int) -> float:
    """min |m - z|^2, z with at most `count` non-zero entries: every choice of entries is tried."""
    squares = (matrix**2).ravel()
    return min(squares.sum() - sum(squares[i] for i in kept) for kept in itertools.combinations(range(squares.size), count))


def row_sparse(matrix: Array, count: int) -> float:
    """min |m - z|^2, z with at most `count` non-zero rows: every choice of rows is tried."""
    squares = (matrix**2).sum(1)
    return min(squares.sum() - sum(squares[i] for i in kept) for kept in itertools.combinations(range(squares.size), count))


def low_rank(matrix: Array, rank: int) -> float:
    """min |m - z|^2, rank(z) <= rank: the sum of the squared singular values past the first `rank` (Eckart and Young 1936)."""
    return float((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum())


def rank_for_energy(matrix: Array, energy: float) -> int:
    """The least rank whose dropped sum of squares is at most `energy` times the whole."""
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    return min(rank for rank in range(squares.size + 1) if squares[rank:].sum() <= energy * squares.sum())


def levels(row: Array, signed: Sequence[float]) -> tuple[float, float]:
    """min over a >= 0 of sum_i min_l (x_i - a l)^2, and the a: between two neighbouring breakpoints the assignment is fixed, so
    each of these intervals is visited, its assignment fitted by least squares, and the true error there is computed."""
    signed = np.sort(np.asarray(signed, dtype=np.float64))
    middles = (signed[1:] + signed[:-1]) / 2
    breaks = sorted({float(x / m) for x in row for m in middles if m != 0 and x / m > 0})
    probes = [(low + high) / 2 for low, high in itertools.pairwise([0.0, *breaks])] + [(breaks[-1] if breaks else 1.0) * 2]
    candidates = [0.0]
    for probe in probes:
        chosen = signed[np.abs(row[:, None] - probe * signed).argmin(1)]
        square = (chosen**2).sum()
        if square > 0:
            candidates.append(max(float((row * chosen).sum() / square), 0.0))
    errors = [float((np.abs(row[:, None] - scale * signed) ** 2).min(1).sum()) for scale in candidates]
    best = int(np.argmin(errors))
    return errors[best], candidates[best]


def codebook(values: Array, count: int) -> float:
    """min |x - z|^2, z with at most `count` different values: every split of the sorted values into intervals is tried."""
    ordered = np.sort(values.ravel())
    count = min(count, ordered.size)
    if count == 0:
        return 0.0
    splits = itertools.combinations(range(1, ordered.size), count - 1)
    return min(sum(_scatter(part) for part in np.split(ordered, list(cuts))) for cuts in splits)


def codebook_any_partition(values: Array, count: int) -> float:
    """The same by trying every assignment of values to clusters, intervals or not: proof that intervals suffice."""
    flat = values.ravel()
    labels = (np.array(chosen) for chosen in itertools.product(range(count), repeat=flat.size))
    return min(sum(_scatter(flat[label == c]) for c in range(count)) for label in labels)


def sparse_codebook(matrix: Array, count: int, shared: int) -> float:
    """min |m - z|^2, z with at most `count` non-zeros of at most `shared` values: every support, every split."""
    flat = matrix.ravel()
    return min(
        float((np.delete(flat, kept) ** 2).sum()) + codebook(flat[list(kept)], shared)
        for kept in itertools.combinations(range(flat.size), count)
    )


def prune_then_cluster(matrix: Array, count: int, shared: int) -> float:
    """The squared distance of the two-step approximation: the largest `count` entries, and then the best clusters of those."""
    flat = matrix.ravel()
    order = np.argsort(np.abs(flat))
    return float((flat[order[: flat.size - count]] ** 2).sum()) + codebook(flat[order[flat.size - count :]], shared)


def _scatter(part: Array) -> float:
    return float(((part - part.mean()) ** 2).sum()) if part.size else 0.0


# --- surrogates: the convex functions that `pull` is a subgradient of ----------------------------------------------------


def l1(matrix: Array) -> float:
    return float(np.abs(matrix).sum())


def group_lasso(matrix: Array) -> float:
    return float(np.sqrt((matrix**2).sum(1)).sum())


def ky_fan(matrix: Array, rank: int) -> float:
    """The sum of the `rank` largest singular values; of all of them, it is the nuclear norm."""
    return float(np.linalg.svd(matrix, compute_uv=False)[:rank].sum())


def slope(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """Central finite differences of a scalar function."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (function(up) - function(down)) / (2 * step)
    return gradient


# --- storage -------------------------------------------------------------------------------------------------------------


def choose_bits(total: int, chosen: int) -> int:
    """ceil(log2(total choose chosen)), in integers."""
    return (math.comb(total, chosen) - 1).bit_length()


def index_bits(entries: int, count: int) -> int:
    """ceil(entries log2(count)): the bits that tell apart count^entries tables."""
    return (count**entries - 1).bit_length()


# --- ADMM on 1/2 |W - A|^2 with at most k non-zeros ----------------------------------------------------------------------


def keep_largest(flat: Array, count: int) -> Array:
    kept = np.zeros_like(flat)
    order = np.argsort(-np.abs(flat), kind="stable")[:count]
    kept[order] = flat[order]
    return kept


def admm(
    start: Array, wanted: Array, count: int, rate: float, rho: float, every: int, growth: float, rho_max: float, steps: int
) -> Iterator[tuple[Array, Array, Array, float]]:
    """W, Z, U and rho after each gradient step on 1/2 |W - A|^2 + rho/2 |W - Z + U|^2 (arXiv 1804.03294, eq. 4 to 7)."""
    W, Z, U = start.copy(), keep_largest(start, count), np.zeros_like(start)
    for step in range(1, steps + 1):
        W = W - rate * ((W - wanted) + rho * (W - Z + U))
        if step % every == 0:
            Z = keep_largest(W + U, count)
            U = U + W - Z
            grown = min(rho * growth, rho_max)
            U = U * rho / grown
            rho = grown
        yield W, Z, U, rho


# --- allocation ----------------------------------------------------------------------------------------------------------


def global_largest(layers: dict[str, Array], total: int) -> dict[str, int]:
    """How many of the `total` largest magnitudes of all layers together lie in each."""
    ranked = sorted(((abs(x), name) for name, w in layers.items() for x in w.ravel()), reverse=True)[:total]
    return {name: sum(1 for _, owner in ranked if owner == name) for name in layers}


def lamp(layers: dict[str, Array], total: int) -> dict[str, int]:
    """score(u) = w_u^2 / sum of w_v^2 over v at or above u in its layer's order (Lee et al. 2021, eq. 4); the largest of all."""
    ranked = []
    for name, weight in layers.items():
        ascending = np.sort((weight**2).ravel())
        ranked += [(float(ascending[u] / ascending[u:].sum()), name) for u in range(ascending.size)]
    ranked = sorted(ranked, reverse=True)[:total]
    return {name: sum(1 for _, owner in ranked if owner == name) for name in layers}


def least_error(errors: dict[str, Sequence[float]], total: int) -> float:
    """min over sizes >= 1 with sum `total` of the sum of errors: every tuple of sizes is tried."""
    choices = [range(1, len(menu)) for menu in errors.values()]
    return min(
        sum(menu[size] for menu, size in zip(errors.values(), sizes, strict=True))
        for sizes in itertools.product(*choices)
        if sum(sizes) == total
    )


# --- choosing units ------------------------------------------------------------------------------------------------------


def least_quadratic(linear: Array, pairs: Array, count: int) -> tuple[float, tuple[int, ...]]:
    """min -u^T z + 1/2 z^T S z over z in {0, 1}^c with `count` ones, and the ones: every choice is tried."""
    best = (math.inf, ())
    for chosen in itertools.combinations(range(linear.size), count):
        ones = list(chosen)
        best = min(best, (float(pairs[np.ix_(ones, ones)].sum() / 2 - linear[ones].sum()), chosen))
    return best


def paper_quadratic(linear: Array, pairs: Array, kept: Sequence[int]) -> float:
    """b^T S_hat b with s_hat_ij = s_ij / 2 and s_hat_ii = s_ii / 2 + u_i - sum_j s_ij, plus the constant that the paper drops."""
    b = np.zeros(linear.size)
    b[list(kept)] = 1
    hat = pairs / 2 + np.diag(linear - pairs.sum(1))
    return float(b @ hat @ b + pairs.sum() / 2 - linear.sum())


def greedy_removal(contributions: Array) -> list[int]:
    """ThiNet on (samples, outputs, units): at each step every unit left is tried, and the least sum of squares goes."""
    units = contributions.shape[2]
    gone: list[int] = []
    while len(gone) < units:
        costs = {unit: float((contributions[:, :, [*gone, unit]].sum(2) ** 2).sum()) for unit in range(units) if unit not in gone}
        gone.append(min(costs, key=lambda unit: costs[unit]))
    return gone


def lasso_by_coordinates(responses: Array, penalty: float, rounds: int = 20000) -> Array:
    """min 1/2 (1 - b)^T G (1 - b) + penalty |b|_1, one coordinate at a time in closed form."""
    b = np.ones(len(responses))
    for _ in range(rounds):
        before = b.copy()
        for i in range(b.size):
            slope = float(responses[i] @ (1 - b)) + responses[i, i] * b[i]
            b[i] = np.sign(slope) * max(abs(slope) - penalty, 0.0) / responses[i, i]
        if np.abs(b - before).max() < 1e-13:
            break
    return b
