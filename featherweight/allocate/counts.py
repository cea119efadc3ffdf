"""Allocators: how one budget is spread over the targets. Each takes menus and a total size, and gives every target its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.menus import Menu

Allocator = Callable[[Mapping[str, Menu], int], dict[str, int]]


def uniform(menus: Mapping[str, Menu], total: int) -> dict[str, int]:
    """The same share of every menu, rounded by Sainte-Lague's divisors: a larger total never takes from a target."""
    return _threshold(menus, total, lambda menu: menu.most / (torch.arange(menu.most, dtype=torch.float64) + 0.5))


def magnitude(menus: Mapping[str, Menu], total: int) -> dict[str, int]:
    """argmin over sizes of the sum of squared errors: for TopK the globally largest entries. Exact where menus are convex."""
    return _threshold(menus, total, lambda menu: menu.errors[:-1] - menu.errors[1:])


def lamp(menus: Mapping[str, Menu], total: int) -> dict[str, int]:
    """Layer-adaptive magnitude (Lee et al., ICLR 2021): an entry's gain over all that is kept up to it; blind to layer scale."""

    def scores(menu: Menu) -> Tensor:
        kept = menu.errors[0] - menu.errors[1:]
        return (menu.errors[:-1] - menu.errors[1:]) / kept.clamp_min(torch.finfo(torch.float64).tiny)

    return _threshold(menus, total, scores)


ALLOCATORS: dict[str, Allocator] = {"uniform": uniform, "magnitude": magnitude, "lamp": lamp}


def _threshold(menus: Mapping[str, Menu], total: int, scores: Callable[[Menu], Tensor]) -> dict[str, int]:
    """The `total` best-scored steps of all menus together, and at least one a menu: a dead layer kills the network."""
    _checked(menus, total)
    free = total - len(menus)  # the first step of each menu is given
    steps = [scores(menu)[1:] for menu in menus.values()]
    owner = torch.cat([torch.full((s.numel(),), i) for i, s in enumerate(steps)])
    chosen = torch.cat(steps).cpu().topk(free, sorted=False).indices
    counts = torch.bincount(owner[chosen], minlength=len(menus)) + 1
    return dict(zip(menus, counts.tolist(), strict=True))


def _checked(menus: Mapping[str, Menu], total: int) -> int:
    whole = sum(menu.most for menu in menus.values())
    if not len(menus) <= total <= whole:
        raise InputError(
            f"a total of {total} cannot be spread over {len(menus)} targets: it must be from {len(menus)} to {whole}"
        )
    return whole
