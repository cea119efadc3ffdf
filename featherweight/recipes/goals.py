"""Ways to a goal: recipes chained in an order of stages that fits together, each a function of one amount."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from featherweight.recipe.schema import Recipe, Stage
from featherweight.recipe.way import AS_IT_IS, Way
from featherweight.recipes.channels_and_layers import drop_blocks
from featherweight.recipes.joint import admm_joint
from featherweight.recipes.low_rank import decompose
from featherweight.recipes.one_shot import collaborative, l1_filters
from featherweight.recipes.pruning import progressive_admm
from featherweight.recipes.quantization import admm_quantization

BITS = (8.0, 6.0, 5.0, 4.0, 3.0, 2.0)
VALUES = 16  # that the weights left of a layer share
WITH_BITS = 4  # of what channels have left
BY_WEIGHT, BY_DAMAGE = "channels of the least |w|", "channels by their damage"
BLOCKS = "blocks that are missed least"
SOONER = 8.0  # times fewer weights, from which zeros come in two stages of falling density


def ways_to(what: str, runtimes: Collection[str], fastest: str) -> list[Way]:
    """The ways that can lead to less of `what` (weights, macs, parameters, bytes, latency_ms), the mildest first. `runtimes`: of
    a goal of time, those there are; `fastest`: that of the network as it is."""
    if what == "weights":
        return [Way("zeros", _zeros)]
    if what == "parameters":
        return [
            Way(BY_WEIGHT, lambda share, epochs: _named(l1_filters(parameters=share, epochs=epochs)), exact=True),
            Way(BY_DAMAGE, lambda share, epochs: _named(collaborative(parameters=share, epochs=epochs)), exact=True),
            Way(BLOCKS, lambda share, epochs: _named(drop_blocks(parameters=share, epochs=epochs)), exact=True),
        ]
    if what == "bytes":
        return [
            Way("fewer bits", lambda bits, epochs: _bits(int(bits), epochs), amounts=BITS),
            Way(f"zeros and {VALUES} shared values", _zeros_and_values),
            Way(f"channels and {WITH_BITS} bits", _channels_and_bits, beside=True),
        ]
    exact = what == "macs"
    by_weight = Way(BY_WEIGHT, lambda share, epochs: _named(l1_filters(macs=share, epochs=epochs)), exact=exact)
    by_damage = Way(BY_DAMAGE, lambda share, epochs: _named(collaborative(macs=share, epochs=epochs)), exact=exact)
    by_block = Way(BLOCKS, lambda share, epochs: _named(drop_blocks(macs=share, epochs=epochs)), exact=exact)
    low_rank = Way("low rank", lambda share, epochs: _named(decompose(macs=share, fine_tune_epochs=epochs)), exact=exact)
    if exact:
        return [by_weight, by_damage, by_block, low_rank]
    found = [Way("the network as it is", _as_it_is, fastest, (), loses=False)]
    found += [Way("activations in 8 bits", _as_it_is, "integers", ())] if "integers" in runtimes else []
    for way in (by_weight, by_block):
        found += [replace(way, runtime=fastest)]
        found += [replace(way, name=f"{way.name}, activations in 8 bits", runtime="integers")] if "integers" in runtimes else []
    found += [Way("zeros", _zeros, "c")] if "c" in runtimes else []
    found += [replace(by_damage, runtime=fastest), replace(low_rank, runtime=fastest)]
    return [way for way in found if way.runtime in runtimes]


def _named(recipe: Recipe) -> Recipe:
    return replace(recipe, name="shrink")


def _as_it_is(amount: float, epochs: int) -> Recipe:
    return AS_IT_IS


def _after(first: Recipe, second: Recipe) -> Recipe:
    """One recipe after another; the dense network is measured once."""
    stages: tuple[Stage, ...] = (*first.stages, *second.stages[1:])
    sources = dict.fromkeys(source for source in (first.source, second.source) if source)
    return Recipe("shrink", stages, ", ".join(sources))


def _halves(epochs: int) -> dict[str, int]:
    """Of a round: before the projection, and after it."""
    return {"epochs": epochs // 2, "retrain_epochs": epochs - epochs // 2}


def _densities(share: float, epochs: int) -> tuple[float, ...]:
    return (share**0.5, share) if share < 1 / SOONER and epochs >= 4 else (share,)


def _zeros(share: float, epochs: int) -> Recipe:
    steps = _densities(share, epochs)
    return _named(progressive_admm(keep=steps, **_halves(epochs // len(steps)), sweep=False, fisher=0.25 if epochs else 0.0))


def _bits(bits: int, epochs: int) -> Recipe:
    return _named(admm_quantization(bits=(bits,), per="row", **_halves(epochs)))


def _zeros_and_values(share: float, epochs: int) -> Recipe:
    steps, last = _densities(share, epochs), epochs // 3
    levels = {"level_epochs": last // 2, "level_retrain_epochs": last - last // 2}
    return _named(admm_joint(keep=steps, sizes=(VALUES,), sweep=False, **levels, **_halves((epochs - last) // len(steps))))


def _channels_and_bits(share: float, epochs: int) -> Recipe:
    return _after(l1_filters(parameters=share, epochs=epochs - epochs // 3), _bits(WITH_BITS, epochs // 3))
