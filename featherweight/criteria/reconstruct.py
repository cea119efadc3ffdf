"""Which units can the layers that read a site do without, and how should those layers' weights change then?

All is said by the second moments of the readers' inputs ("gram" in `stats`). Let Z_i be what unit i adds to the responses of the
site's readers, each reader's scaled to a response of mean square 1, so that none drowns the others. Then

    G_ij = mean <Z_i, Z_j>                                                      (units, units), `responses_of`

is all that selection needs, for a site with one reader as for a residual stream with many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featherweight.criteria.ranking import Ordered, Ranking, Rankings, ranked
from featherweight.criteria.readers import Reader, Readers
from featherweight.criteria.statistics import Moments, Stats
from featherweight.structure import Graph


def thinet(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """Units go one by one, each the one whose going leaves the least sum of squares of what all gone ones added.

    min over T of sum (sum_{i in T} Z_i)^2, greedily (ThiNet, Luo et al., ICCV 2017, equation 6 and algorithm 1).
    """
    stats.require("gram")
    return ranked(stats.sites, lambda site: _greedy(responses_of(model, graph, stats, site, centred=False)))


def channel_lasso(model: nn.Module, graph: Graph, stats: Stats) -> Rankings:
    """The units whose weights a LASSO leaves: min over b of 1/2 mean |Y - sum_i b_i Z_i|^2 + penalty |b|_1.

    Channel pruning (He et al., ICCV 2017, equation 1), Y = sum_i Z_i, with an intercept. For each k the penalty at which k units
    are left. The damage is the share of the response that the units kept, rescaled by least squares, do not explain.
    """
    stats.require("gram")
    return ranked(stats.sites, lambda site: Lasso(responses_of(model, graph, stats, site, centred=True)))


def responses_of(model: nn.Module, graph: Graph, stats: Stats, site: str, centred: bool) -> Tensor:
    """(units, units) G of a site. Centred: of what varies, since a bias takes the rest."""
    size = graph.site(site).size
    total = torch.zeros(size, size, dtype=torch.float64)
    for reader in stats.readers.of(site):
        moments = stats.gram[reader.module].matrix
        inputs = moments[:-1, :-1] - (moments[:-1, -1:] * moments[-1, :-1] if centred else 0)
        weight = _matrix(model, reader)
        products = (weight.T @ weight) * inputs  # (in k, in k)
        taps = len(products) // weight_of(model, reader).shape[1]
        channels = products.unflatten(1, (-1, taps)).sum(2).unflatten(0, (-1, taps)).sum(1)  # (in, in)
        power = float((torch.trace(weight @ inputs @ weight.T)).clamp_min(torch.finfo(torch.float64).tiny))
        for numbers in reader.units[site]:
            owned = numbers >= 0
            place = torch.zeros(len(channels), size, dtype=torch.float64)
            place[owned.nonzero().flatten(), numbers[owned]] = 1
            total += place.T @ channels @ place / power
    return total


def weight_of(model: nn.Module, reader: Reader, detached: bool = True) -> Tensor:
    """The reader's weight (out, in, k...)."""
    weight = model.get_submodule(reader.module).weight
    assert isinstance(weight, Tensor)
    return weight.detach() if detached else weight


def _matrix(model: nn.Module, reader: Reader) -> Tensor:
    """(out, in k) float64."""
    return weight_of(model, reader).flatten(1).double().cpu()


def _greedy(responses: Tensor) -> Ordered:
    size = len(responses)
    gone: list[int] = []
    losses = [0.0]
    reach = torch.zeros(size, dtype=torch.float64)
    left = torch.ones(size, dtype=torch.bool)
    for _ in range(size):
        step = (2 * reach + responses.diagonal()).masked_fill(~left, torch.inf)
        taken = int(step.argmin())
        losses.append(losses[-1] + float(step[taken]))
        gone.append(taken)
        left[taken] = False
        reach += responses[taken]
    return Ordered(tuple(reversed(gone)), tuple(reversed(losses)))


# --- lasso ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lasso(Ranking):
    """Keep the k units that min 1/2 (1 - b)^T G (1 - b) + penalty |b|_1 leaves, the penalty found by bisection."""

    responses: Tensor  # G
    _found: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.responses)

    def keep(self, k: int) -> tuple[int, ...]:
        if self.checked(k) not in self._found:
            self._found[k] = tuple(range(self.size)) if k == self.size else self._kept(k)
        return self._found[k]

    def loss(self, k: int) -> float:
        kept = list(self.keep(k))
        total = self.responses.sum(1)
        fitted = torch.linalg.lstsq(self.responses[kept][:, kept], total[kept][:, None], driver="gelsd").solution[:, 0]
        power = float(self.responses.sum())
        return max(float(total.sum() - total[kept] @ fitted), 0.0) / power if power > 0 else 0.0

    def _kept(self, k: int) -> tuple[int, ...]:
        low, high = 0.0, float(self.responses.sum(1).abs().max())  # at `high` nothing is left
        factors = torch.zeros(self.size, dtype=torch.float64)
        for _ in range(5):
            penalties = torch.linspace(low, high, 33, dtype=torch.float64)
            tried = self.shrunk(penalties)
            left = (tried != 0).sum(1)
            at = max([0, *(left >= k).nonzero().flatten().tolist()])
            factors, low, high = tried[at], float(penalties[at]), float(penalties[min(at + 1, 32)])
            if int(left[at]) == k:
                break
        return tuple(sorted(factors.abs().argsort(descending=True, stable=True)[:k].tolist()))

    def shrunk(self, penalties: Tensor, steps: int = 500) -> Tensor:
        """(p,) -> (p, units): argmin over b of 1/2 (1 - b)^T G (1 - b) + penalty |b|_1, by accelerated proximal gradients."""
        top = float(torch.linalg.eigvalsh(self.responses)[-1])
        if top <= 0:
            return torch.zeros(len(penalties), self.size, dtype=torch.float64)
        factors = ahead = (self.responses.diagonal() > 0).double().expand(len(penalties), -1)
        momentum, threshold = 1.0, penalties[:, None] / top
        for _ in range(steps):
            moved = ahead + (1 - ahead) @ self.responses / top
            after = moved.sign() * (moved.abs() - threshold).clamp_min(0)
            larger = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = after + (momentum - 1) / larger * (after - factors)
            factors, momentum = after, larger
        return factors


# --- refitting -----------------------------------------------------------------------------------------------------------


def refit(
    model: nn.Module, graph: Graph, stats: Stats, keep: Mapping[str, Iterable[int]], damping: float = 1e-6
) -> dict[str, Tensor]:
    """New weights for every layer that reads a site in `keep`, by least squares on what is kept of its input.

    min over W', b' of mean |W x + b - W' x_kept - b'|^2, W' = 0 where units go; b' only where the layer has a bias. Set before
    the cut they are part of the network's state, and no edit of their own. Returns parameter name -> values in its shape.
    `damping` times the mean square of an input holds W' at W where the data does not say more.

    Needs "gram" of these sites. A reader of which fewer patches were seen than it has weights to fit for an output keeps its
    weights: `unfitted` names it.
    """
    stats.require("gram")
    result: dict[str, Tensor] = {}
    for reader, stays in readers_cut(model, stats.readers, keep):
        result |= _refitted(model, graph, reader, stats.gram[reader.module], stays, damping)
    return result


def unfitted(model: nn.Module, stats: Stats, keep: Mapping[str, Iterable[int]]) -> dict[str, str]:
    """Reader -> why `refit` does not fit its weights anew."""
    reasons: dict[str, str] = {}
    for reader, stays in readers_cut(model, stats.readers, keep):
        rows, number = stats.gram[reader.module].rows, _unknowns(model, reader, stays)
        if rows < number:
            reasons[reader.module] = (
                f"it has {number} weights to fit for each output and {rows} patches to fit them to: give more `samples`"
            )
    return reasons


def readers_cut(model: nn.Module, found: Readers, keep: Mapping[str, Iterable[int]]) -> Iterator[tuple[Reader, Tensor]]:
    """The readers of these sites, with the columns of the matrix of each that stay."""
    kept = {site: set(units) for site, units in keep.items()}
    for reader in found.readers:
        if not set(reader.units).isdisjoint(kept):
            weight = weight_of(model, reader)
            stays = torch.ones(weight.shape[1], dtype=torch.bool)
            for site in set(reader.units) & set(kept):
                for numbers in reader.units[site]:
                    gone = [i for i, unit in enumerate(numbers.tolist()) if unit >= 0 and unit not in kept[site]]
                    stays[gone] = False
            yield reader, stays.repeat_interleave(weight[0].numel() // len(stays))


def _unknowns(model: nn.Module, reader: Reader, stays: Tensor) -> int:
    return int(stays.sum()) + ("bias" in dict(model.get_submodule(reader.module).named_parameters(recurse=False)))


def _refitted(
    model: nn.Module, graph: Graph, reader: Reader, moments: Moments, stays: Tensor, damping: float
) -> dict[str, Tensor]:
    weight, matrix = weight_of(model, reader), _matrix(model, reader)
    bias = dict(model.get_submodule(reader.module).named_parameters(recurse=False)).get("bias")
    if moments.rows < _unknowns(model, reader, stays):
        return {reader.weight: (matrix * stays).reshape(weight.shape).to(weight)}
    used = torch.cat([stays, torch.tensor([bias is not None])])
    lost = torch.cat([~stays, torch.tensor([False])])
    square = moments.matrix[used][:, used]
    size = float(moments.matrix.diagonal()[:-1].mean()) or 1.0  # inputs that are 0 throughout
    held = damping * size * torch.eye(len(square), dtype=torch.float64)
    # what the lost inputs gave is taken over by the others: (A + held) change = A_lost W_lost^T
    change = torch.linalg.solve(square + held, moments.matrix[used][:, lost] @ matrix[:, ~stays].T).T  # (out, used)
    new = torch.zeros_like(matrix)
    new[:, stays] = matrix[:, stays] + change[:, : int(stays.sum())]
    result = {reader.weight: new.reshape(weight.shape).to(weight)}
    if bias is not None:
        name = f"{reader.module}.bias"
        result[graph.captured.tied.get(name, name)] = bias.detach() + change[:, -1].to(bias)
    return result
