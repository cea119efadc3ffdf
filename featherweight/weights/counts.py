"""Allocators: how one budget is spread over the targets. Each takes menus and a total size, and gives every target its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from featherweight.errors import InputError
from featherweight.weights.sizes import PIECE, Menu, Part, keys_of, last_of

Allocator = Callable[[Mapping[str, Menu], int], dict[str, int]]
Scores = Callable[[Menu, Part], Tensor]  # of each step of a part of a menu

RANKED = 1 << 22  # steps of all menus together up to which all are ranked at once
BLOCK = 1 << 12  # neighbouring steps of a menu, of which the highest and lowest score are kept above that


def uniform(menus: Mapping[str, Menu], total: int) -> dict[str, int]:
    """The same share of every menu, rounded by Sainte-Lague's divisors: a larger total never takes from a target."""

    def scores(menu: Menu, part: Part) -> Tensor:
        return menu.most / (torch.arange(part.first, part.first + part.count, dtype=torch.float64) + 0.5)

    return _threshold(menus, total, scores)


def magnitude(menus: Mapping[str, Menu], total: int) -> dict[str, int]:
    """argmin over sizes of the sum of squared errors: for TopK the globally largest entries. Exact where menus are convex.

    Of equal entries the first menus' are taken. No menu is sorted: one threshold is found for all.
    """
    _checked(menus, total)
    values = [menu.values.detach().reshape(-1).cpu() for menu in menus.values()]
    lengths = [one if menu.squared else one.sqrt() for one, menu in zip(values, menus.values(), strict=True)]
    if any(one.dtype == torch.float64 for one in lengths):
        lengths = [one.double() for one in lengths]
    places = [int(one.abs().argmax()) if one.numel() else 0 for one in lengths]  # the first step of each menu is given
    rest = [[one[:place], one[place + 1 :]] for one, place in zip(lengths, places, strict=True)]
    bound, equal = last_of([part for parts in rest for part in parts], total - len(menus))
    sizes = {}
    for name, parts in zip(menus, rest, strict=True):
        keys = [keys_of(piece) for part in parts for piece in part.split(PIECE)]
        ties = min(equal, sum(int((one == bound).count_nonzero()) for one in keys))
        equal -= ties
        sizes[name] = 1 + ties + sum(int((one > bound).count_nonzero()) for one in keys)
    return sizes


def lamp(menus: Mapping[str, Menu], total: int) -> dict[str, int]:
    """Layer-adaptive magnitude (Lee et al., ICLR 2021): an entry's gain over all that is kept up to it; blind to layer scale."""

    def scores(menu: Menu, part: Part) -> Tensor:
        errors = part.errors()
        return (errors[:-1] - errors[1:]) / (part.whole() - errors[1:]).clamp_min(torch.finfo(torch.float64).tiny)

    return _threshold(menus, total, scores)


ALLOCATORS: dict[str, Allocator] = {"uniform": uniform, "magnitude": magnitude, "lamp": lamp}


def _threshold(menus: Mapping[str, Menu], total: int, scores: Scores) -> dict[str, int]:
    """The `total` best-scored steps of all menus together, and at least one a menu: a dead layer kills the network.

    Of more than RANKED steps only those near the threshold are ranked: two looks at each menu, one menu at a time, so that the
    scores of all are never held together. As exact as ranking all; of equal scores the first menus' come first.
    """
    whole = _checked(menus, total)
    free = total - len(menus)  # the first step of each menu is given
    if whole > RANKED:
        counts = _near_threshold(list(menus.values()), free, scores)
    else:
        steps = [torch.cat([scores(menu, part) for part in menu.parts(max(whole, 1))])[1:] for menu in menus.values()]
        owner = torch.cat([torch.full((s.numel(),), i) for i, s in enumerate(steps)])
        chosen = torch.cat(steps).topk(free, sorted=False).indices
        counts = torch.bincount(owner[chosen], minlength=len(menus))
    return dict(zip(menus, (counts + 1).tolist(), strict=True))


def _near_threshold(menus: list[Menu], free: int, scores: Scores) -> Tensor:
    """How many of the `free` best-scored steps each menu has, its first step left out."""
    if free == 0:
        return torch.zeros(len(menus), dtype=torch.int64)
    blocks = [_blocks(menu, scores) for menu in menus]
    owner = torch.cat([torch.full_like(sizes, i) for i, (sizes, _, _) in enumerate(blocks)])
    sizes, low, high = (torch.cat(column) for column in zip(*blocks, strict=True))
    # the score of the last chosen step is at least `least`, as so many lie in blocks above, and at most `most`
    least, most = _reached(low, sizes, free), _reached(high, sizes, free)
    sure, out = low > most, high < least
    level = ~sure & ~out & (low == high)  # of one score
    opened = ~sure & ~out & ~level
    counts = torch.zeros(len(menus), dtype=torch.int64).index_add_(0, owner[sure], sizes[sure])
    found = [low[level]]
    owners, weights = [owner[level]], [sizes[level]]
    for i, menu in enumerate(menus):
        inside = opened[owner == i]
        if bool(inside.any()):
            found.append(_opened(menu, scores, inside))
            owners.append(torch.full((found[-1].numel(),), i))
            weights.append(torch.ones_like(owners[-1]))
    values, owner, weight = torch.cat(found), torch.cat(owners), torch.cat(weights)
    order = owner.argsort(stable=True)
    order = order[values[order].argsort(descending=True, stable=True)]
    taken = (free - int(counts.sum()) - (weight[order].cumsum(0) - weight[order])).clamp(torch.zeros(()), weight[order])
    return counts.index_add_(0, owner[order], taken.long())


def _reached(score: Tensor, sizes: Tensor, free: int) -> float:
    """The score of the block with which the best blocks hold `free` steps."""
    order = score.argsort(descending=True)
    place = int((sizes[order].cumsum(0) < free).sum())
    return float(score[order[min(place, order.numel() - 1)]])


def _split(menu: Menu, scores: Scores, part: Part) -> list[Tensor]:
    """The scores of a part of a menu, by blocks; without the menu's first step."""
    found = scores(menu, part)
    return list((found[1:] if part.first == 0 else found).split(BLOCK))


def _blocks(menu: Menu, scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """(sizes, lowest score, highest score) of all blocks of a menu."""
    kept = [
        (len(block), float(block.min()), float(block.max()))
        for part in menu.parts(PIECE)
        for block in _split(menu, scores, part)
        if len(block)
    ]
    sizes, low, high = zip(*kept, strict=True) if kept else ((), (), ())
    return torch.tensor(sizes, dtype=torch.int64), torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def _opened(menu: Menu, scores: Scores, inside: Tensor) -> Tensor:
    """The scores of the blocks of a menu that are `inside`, one by one."""
    found, number = [], 0
    for part in menu.parts(PIECE):
        blocks = -(-(part.count - (part.first == 0)) // BLOCK)
        if bool(inside[number : number + blocks].any()):
            kept = zip(_split(menu, scores, part), inside[number : number + blocks].tolist(), strict=True)
            found += [block.clone() for block, wanted in kept if wanted]
        number += blocks
    return torch.cat(found)


def _checked(menus: Mapping[str, Menu], total: int) -> int:
    whole = sum(menu.most for menu in menus.values())
    if not len(menus) <= total <= whole:
        raise InputError(
            f"a total of {total} cannot be spread over {len(menus)} targets: it must be from {len(menus)} to {whole}"
        )
    return whole
