"""How many parameters a network has, as one polynomial that can be differentiated: in the units that its sites keep and in the
shares of its residual blocks.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

import torch
from torch import Tensor

from featherweight.structure.graph import Graph


class ParameterCount:
    """params(k, p): the entries of all parameters where site l keeps k_l units and the branch of block b counts p_b of itself.

    At whole k and p in {0, 1} it is the number of parameters of the network so cut, as exact as `Graph.parameters` is. A
    parameter that several branches share goes with none of them: it is counted whole.
    sites, blocks  the names, in the order of k and of p
    """

    def __init__(self, graph: Graph) -> None:
        self.sites, self.blocks = tuple(graph.sites), tuple(graph.blocks)
        self.sizes = tuple(site.size for site in graph.sites.values())
        gone_with: dict[str, list[int]] = {}
        for number, block in enumerate(graph.blocks.values()):
            for name in block.parameters:
                gone_with.setdefault(name, []).append(len(self.sites) + number)
        terms: Counter[tuple[int, ...]] = Counter()
        for name, shape in graph.parameter_sizes().items():
            for chosen in product(*(size.terms for size in shape)):
                times, factors = 1, list(gone_with.get(name, ()))
                for term in chosen:
                    times *= term.times
                    factors += term.sites
                terms[tuple(sorted(factors))] += times
        one = len(self.sites) + len(self.blocks)  # where the vector of variables holds 1
        longest = max(map(len, terms), default=0)
        self._times = torch.tensor(list(terms.values()), dtype=torch.float64)  # (terms,)
        padded = [[*factors, *[one] * (longest - len(factors))] for factors in terms]
        self._factors = torch.tensor(padded, dtype=torch.int64).reshape(len(terms), longest)

    def at(self, units: Tensor, shares: Tensor) -> Tensor:
        """The count for units (sites,) and shares (blocks,), in float64; differentiable in both."""
        variables = torch.cat([units.double().cpu(), shares.double().cpu(), torch.ones(1, dtype=torch.float64)])
        return (self._times * variables[self._factors].prod(1)).sum()
