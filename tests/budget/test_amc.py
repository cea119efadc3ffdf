"""AMC's agent: within the budget whatever it answers, better than an even share where the best is known, always the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

import pytest
import torch

from featherweight.budget import amc
from featherweight.budget.amc import Place, Search, allocate
from featherweight.budget.choices import Infeasible
from featherweight.budget.units import offered
from featherweight.errors import InputError

WHOLE = {"a": 20, "b": 24, "c": 16, "d": 10}
PLACES = [Place(name, offered(size, 1), inputs=size, height=8, width=8, stride=1, kernel=3) for name, size in WHOLE.items()]


def cost(sizes: Mapping[str, int]) -> int:
    """A chain of layers: neighbours share a matrix, so it is no sum over the sites."""
    row = [3, *(sizes.get(name, size) for name, size in WHOLE.items()), 5]
    return sum(one * two for one, two in itertools.pairwise(row))


def worth(sizes: Mapping[str, int]) -> float:
    """b and c are all that counts, and half of a; an even share wastes what it gives to d and a."""
    shares = {name: sizes[name] / size for name, size in WHOLE.items()}
    return min(shares["b"], 0.9) + min(shares["c"], 0.9) + 0.2 * min(shares["a"], 0.5) + 0.02 * shares["d"]


@pytest.mark.third
@pytest.mark.parametrize("limit", [0.15, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("multiple", [1, 4])
def test_every_episode_is_within_the_budget_and_keeps_the_least_of_every_site(limit: float, multiple: int) -> None:
    seen: list[dict[str, int]] = []

    def reward(sizes: dict[str, int]) -> float:
        seen.append(dict(sizes))
        return worth(sizes)

    places = [Place(name, offered(size, multiple)) for name, size in WHOLE.items()]
    allocate(places, cost, limit * cost({}), reward, Search(12, 8), 0)
    assert len(seen) > 3 or limit < 0.2  # where hardly more than the least fits
    assert len({sizes["a"] for sizes in seen}) > 1 or limit < 0.5, "the wall leaves a choice where there is one"
    for sizes in seen:
        assert cost(sizes) <= limit * cost({})
        for name, size in sizes.items():
            assert size >= 0.2 * WHOLE[name] and (size % multiple == 0 or size == WHOLE[name])


def test_the_wall_takes_no_more_than_it_must() -> None:
    """By trying all sizes: the largest that leaves the least to the others, where the share asked for is above it."""
    least = {place.name: place.least for place in PLACES}
    assert least == {"a": 4, "b": 5, "c": 4, "d": 2}
    source = random.Random(0)
    for _ in range(40):
        place = source.choice(PLACES)
        limit, share = source.uniform(cost(least), cost({})), source.uniform(0, 1)
        size, bounded = amc._bounded(place, share, least, cost, limit)
        fitting = [k for k in place.offered if cost(least | {place.name: k}) <= limit and k >= least[place.name]]
        wanted = [k for k in fitting if k >= max(share, 0.2) * WHOLE[place.name]]
        assert size == (wanted[0] if wanted else fitting[-1]) and bounded == size / WHOLE[place.name]


@pytest.mark.long
def test_the_agent_learns_to_beat_an_even_share_and_its_own_random_start() -> None:
    limit = 0.4 * cost({})
    even = max(
        ({name: max(1, int(share / 100 * size)) for name, size in WHOLE.items()} for share in range(20, 101)),
        key=lambda sizes: (cost(sizes) <= limit, cost(sizes)),
    )
    every = itertools.product(*(range(place.least, place.offered[-1] + 1, 2) for place in PLACES))
    best = max(worth(sizes) for row in every if cost(sizes := dict(zip(WHOLE, row, strict=True))) <= limit)
    rewards: list[float] = []

    def reward(sizes: dict[str, int]) -> float:
        rewards.append(worth(sizes))
        return rewards[-1]

    found = worth(allocate(PLACES, cost, limit, reward, Search(90, 30), 0))
    assert found == max(rewards) > worth(even) + 0.3 and found > 0.9 * best
    assert sum(rewards[-15:]) / 15 > sum(rewards[:30]) / 30 + 0.15, "it only guesses"


def test_the_same_seed_gives_the_same_sizes_and_no_generator_is_drawn_from() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two, other = (allocate(PLACES, cost, 0.4 * cost({}), lambda sizes: 0.0, Search(8, 4), seed) for seed in (0, 0, 1))
    assert one == two != other
    assert torch.equal(before, torch.get_rng_state())


def test_a_budget_below_the_least_names_the_nearest() -> None:
    least = cost({"a": 4, "b": 5, "c": 4, "d": 2})
    with pytest.raises(Infeasible, match=f"costs {least} of") as error:
        allocate(PLACES, cost, least - 1, worth, Search(2, 1), 0)
    share = float(str(error.value).split("Ask for ")[1].split(" %")[0])
    assert cost(allocate(PLACES, cost, share / 100 * cost({}), worth, Search(2, 1), 0)) <= share / 100 * cost({})


def test_a_search_without_a_start_is_refused() -> None:
    for given in ((0, 0), (5, 6), (5, 0)):
        with pytest.raises(InputError, match="episodes"):
            Search(*given)
