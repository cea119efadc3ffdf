"""The oracle of every exactness test: zero what a unit owns in a float64 copy of the untouched network and run that."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from featherweight.structure import Graph, Site


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def zeroed(model: nn.Module, graph: Graph, keep: dict[str, list[int]]) -> nn.Module:
    """A float64 copy whose parameters are 0 wherever a unit that is not kept owns them."""
    twin = copy.deepcopy(model).double()
    held = dict(twin.named_parameters(remove_duplicate=False))
    for name, kept in keep.items():
        site: Site = graph.sites[name]
        for number in set(range(site.size)) - set(kept):
            for part in site.unit(number):
                if part.parameter in held:
                    rows = slice(*part.rows) if part.rows else slice(None)
                    held[part.parameter].data[rows].index_fill_(part.dim, torch.tensor(part.index), 0.0)
    return twin


def inputs(example: tuple[Tensor, ...], batch: int = 2) -> tuple[Tensor, ...]:
    torch.manual_seed(7)
    return tuple(
        torch.randn(batch, *t.shape[1:], dtype=torch.float64)
        if t.is_floating_point()
        else torch.randint(0, 11, (batch, *t.shape[1:]))
        for t in example
    )


def output(model: nn.Module, x: tuple[Tensor, ...]) -> Tensor:
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        result = model(*x)
    torch.backends.mha.set_fastpath_enabled(True)
    return result[0] if isinstance(result, tuple) else result


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


def half(graph: Graph, seed: int = 0) -> dict[str, list[int]]:
    """A random half of the units of every site."""
    generator = torch.Generator().manual_seed(seed)
    return {n: sorted(torch.randperm(s.size, generator=generator)[: (s.size + 1) // 2].tolist()) for n, s in graph.sites.items()}
