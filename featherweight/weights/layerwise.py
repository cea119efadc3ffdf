"""A layer's weights in a set, so that its outputs on given inputs change least: one function a method.

min over W of the sum over its rows of |X w - X w_0|^2 + damping |w - w_0|^2, W in the set. All that is asked of the inputs is
their second moments H = mean of x x^T, (groups, d, d), for W (groups, rows, d): a linear layer is one group, a convolution as
many as it has. Each function returns the new weights (groups, rows, d), in the set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from featherweight.weights.sets import LowRank, TopEach, TopK
from featherweight.weights.targets import Target

Method = Literal["admm", "sparsegpt", "wanda", "magnitude", "svd"]

DAMPING = 0.01  # of the mean of H's diagonal, added to it; of ALPS and of SparseGPT
RHO, CHECK_EVERY, MOST_STEPS, REFINED = 0.1, 3, 300, 10  # of ALPS: of the scaled problem, whose H has a diagonal of 1
CLOSED, RESTARTS = 0.02, 3  # |W - D| over |D| at which they are one; how often ADMM begins anew with a fifth of rho
BLOCK = 128  # columns whose places SparseGPT chooses at once


@dataclass(frozen=True)
class Problem:
    """A layer.

    weight   (groups, rows, d), what the layer has now
    moments  (groups, d, d) of its inputs, float64
    target   the set that the weights are to lie in, of the layer's weight in its own shape
    shape    of that weight: its first dimensions are groups times rows, its entries the d of each
    """

    weight: Tensor
    moments: Tensor
    target: Target
    shape: tuple[int, ...]

    @property
    def damped(self) -> Tensor:
        """H + DAMPING mean(diag H) I of each group; of inputs that are 0 throughout the unit matrix."""
        diagonal = self.moments.diagonal(dim1=1, dim2=2)
        size = diagonal.mean(1).where(diagonal.any(1), 1 / DAMPING)
        return self.moments + DAMPING * size[:, None, None] * torch.eye(diagonal.shape[1]).to(self.moments)

    def places(self, scores: Tensor, columns: tuple[int, int] | None = None) -> Tensor:
        """(groups, rows, d) bool: the places that the set keeps of these scores; those among `columns` only where they are given.

        Of a count for the whole layer the columns get their share. What is 0 in the weight stays so where the target says that.
        """
        target, d = self.target, scores.shape[-1]
        scores = scores.abs()
        if target.masked:
            scores = scores * (self.weight != 0)
        if columns is not None:
            begin, end = columns
            scores = torch.zeros_like(scores).index_copy_(
                2, torch.arange(begin, end, device=scores.device), scores[..., begin:end]
            )
            if isinstance(target.set, TopK) and target.set.count is not None:
                count = target.set.count
                target = replace(target, set=TopK(count * end // d - count * begin // d))
        code = target.set.encode(target.view.to_matrix(scores.reshape(self.shape)))
        ones = code(*(scores.new_ones(shape) for shape in code.free()))
        return (target.view.to_weight(ones, self.shape).reshape(scores.shape) != 0) & (scores > 0)


def magnitude(problem: Problem) -> Tensor:
    """The largest weights, as they are."""
    return problem.weight * problem.places(problem.weight)


def wanda(problem: Problem) -> Tensor:
    """The largest |w| |x|, as they are; of a count for the layer each row has its share (Sun et al. 2024, arXiv 2306.11695)."""
    scores, wanted = problem.weight.abs() * _norms(problem.moments).to(problem.weight), problem.target.set
    if not isinstance(wanted, TopK) or wanted.count is None:
        return problem.weight * problem.places(scores)
    if problem.target.masked:
        scores = scores * (problem.weight != 0)
    rows = scores.shape[0] * scores.shape[1]
    share, more = divmod(wanted.count, rows)
    counts = torch.full((rows,), share, device=scores.device)
    counts[:more] += 1
    ranks = scores.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    return problem.weight * (ranks < counts.reshape(*scores.shape[:2], 1))


def sparsegpt(problem: Problem) -> Tensor:
    """Column after column; what goes is made up for by the columns behind it (Frantar and Alistarh 2023, arXiv 2301.00774).

    The places of a block of columns, or of N:M in groups of neighbours of one group, are chosen when it begins, by w^2 over the
    squared diagonal of the Cholesky factor of H^-1.
    """
    weight, d = problem.weight.double().clone(), problem.weight.shape[-1]
    factor = torch.linalg.cholesky(torch.linalg.inv(problem.damped), upper=True)
    result, step = torch.zeros_like(weight), _step(problem)
    for begin in range(0, d, step):
        end = min(begin + step, d)
        diagonal = factor.diagonal(dim1=1, dim2=2)[:, None, :]
        places = problem.places(weight / diagonal, (begin, end))
        errors = torch.zeros_like(weight[..., begin:end])
        for column in range(begin, end):
            now = weight[..., column]
            kept = result[..., column] = now * places[..., column]
            error = errors[..., column - begin] = (now - kept) / factor[:, column, column, None]
            weight[..., column:end] -= error[..., None] * factor[:, None, column, column:end]
        weight[..., end:] -= errors @ factor[:, begin:end, end:]
    return result.to(problem.weight)


def _step(problem: Problem) -> int:
    """Columns whose places are chosen together: a share of a count for the layer; groups of neighbours one by one; else all."""
    d = problem.weight.shape[-1]
    if isinstance(problem.target.set, TopK):
        return BLOCK
    group = problem.target.view.matrix_shape(problem.shape)[1]
    numbers = torch.arange(problem.weight.numel()).reshape(problem.shape)
    neighbours = bool((problem.target.view.to_matrix(numbers).diff(dim=1) == 1).all())
    return group if isinstance(problem.target.set, TopEach) and neighbours and d % group == 0 else d


def admm(problem: Problem) -> Tensor:
    """Weights and places by ADMM, then the weights of these places by conjugate gradients (ALPS, Meng et al. 2024, arXiv
    2406.07831).

    In units in which H has a diagonal of 1: W = (H + rho)^-1 (H W0 - V + rho D), D = project(W + V / rho), V += rho (W - D).
    Every third step rho grows by how many places have changed. When none does and W is D, it is over. (The authors ask for the
    first only. In a layer of a few weights no place changes for three steps long before W is D; in a large one it makes no
    difference.)
    """
    damped = problem.damped
    scale = _norms(damped)  # (groups, 1, d)
    values, vectors = torch.linalg.eigh(damped / (scale * scale.mT))
    values, vectors = values[:, None].to(problem.weight), vectors.to(problem.weight)
    scale = scale.to(problem.weight)
    dense = problem.weight * scale
    goal = ((dense @ vectors) * values) @ vectors.mT  # H W0
    kept = max(int(problem.places(dense).sum()), 1)

    def start() -> tuple[Tensor, Tensor]:
        return dense * problem.places(dense), torch.zeros_like(dense)

    rho, risen, restarts = RHO, False, 0
    sparse, dual = start()
    before = sparse != 0
    for step in range(1, MOST_STEPS + 1):
        free = (((goal - dual + rho * sparse) @ vectors) / (values + rho)) @ vectors.mT
        candidate = free + dual / rho
        sparse = candidate * problem.places(candidate)
        dual += rho * (free - sparse)
        if step % CHECK_EVERY:
            continue
        now = sparse != 0
        changed, before = int((now ^ before).sum()), now
        if changed > 0.005 * kept:
            rho, risen = rho * (1.3 if changed > 0.1 * kept else 1.2), True
        elif not risen and restarts < RESTARTS:  # so strongly held that little ever moved
            rho, restarts = rho / 5, restarts + 1
            sparse, dual = start()
            before = sparse != 0
        elif changed or torch.linalg.vector_norm(free - sparse) > CLOSED * torch.linalg.vector_norm(sparse):
            rho, risen = rho * 1.1, True
        else:
            break
    return refined(damped / (scale * scale.mT).double(), dense, sparse) / scale


def refined(moments: Tensor, dense: Tensor, sparse: Tensor, steps: int = REFINED) -> Tensor:
    """min over W of tr (W - W0) H (W - W0)^T with the zeros of `sparse`, from there on, by conjugate gradients, all rows at once.

    Preconditioned by the diagonal of H. A row that is exact stays. All are (groups, rows, d), H (groups, d, d).
    """
    support = sparse != 0
    moments, weight = moments.to(dense), sparse.clone()
    inverse = 1 / moments.diagonal(dim1=1, dim2=2)[:, None, :]
    residual = ((dense - weight) @ moments) * support
    direction = residual * inverse
    power = (residual * direction).sum(-1, keepdim=True)
    for _ in range(steps):
        moved = (direction @ moments) * support
        length = power / (direction * moved).sum(-1, keepdim=True).clamp_min(torch.finfo(dense.dtype).tiny)
        weight += length * direction
        residual -= length * moved
        ahead = residual * inverse
        after = (residual * ahead).sum(-1, keepdim=True)
        direction = ahead + after / power.clamp_min(torch.finfo(dense.dtype).tiny) * direction
        power = after
    return weight


def svd(problem: Problem) -> Tensor:
    """The low rank that loses least of what the layer puts out, in closed form: M = W in the target's view, projected on the
    leading eigenvectors of M H M^T (Zhang et al. 2016, arXiv 1505.06798, sec. 3.1; Wang et al. 2025, arXiv 2403.07378).

    A view that puts a row of the kernel beside each output (`spatial`) has as many H as there are such rows, and their mean is
    taken: what two of them do together is not seen.
    """
    target, d = problem.target, problem.weight.shape[-1]
    matrix = target.view.to_matrix(problem.weight.reshape(problem.shape)).double()
    numbers = target.view.to_matrix(torch.arange(problem.weight.numel(), device=matrix.device).reshape(problem.shape))
    turned = bool((numbers[0] // d != numbers[0, 0] // d).any())  # a row is of inputs, not of an output
    matrix, numbers = (matrix.mT, numbers.mT) if turned else (matrix, numbers)
    inputs = (numbers % d).unique(dim=0)  # (kinds of row, columns): which input an entry multiplies
    moments = problem.moments[0].to(matrix)
    mean = torch.stack([moments[columns[:, None], columns] for columns in inputs]).mean(0)
    wanted = target.set
    assert isinstance(wanted, LowRank)
    leading = torch.linalg.eigh(matrix @ mean @ matrix.mT).eigenvectors[:, -wanted.rank_of(matrix) :]
    new = leading @ (leading.mT @ matrix)
    return target.view.to_weight(new.mT if turned else new, problem.shape).reshape(problem.weight.shape).to(problem.weight)


def _norms(moments: Tensor) -> Tensor:
    """(groups, 1, d) root mean squares of the inputs."""
    return moments.diagonal(dim1=1, dim2=2)[:, None, :].sqrt()


METHODS: dict[str, Callable[[Problem], Tensor]] = {
    "admm": admm,
    "sparsegpt": sparsegpt,
    "wanda": wanda,
    "magnitude": magnitude,
    "svd": svd,
}
