"""AMC (He et al., ECCV 2018): how much of each site to keep, searched for by an agent that is rewarded for what the network can.

An episode goes through the sites in order. At each the agent sees eleven numbers and answers with the share to keep, bounded so
that the budget can still be met with the least at the sites to come (the paper's algorithm 1); the reward of the episode is that
of the network so cut, and goes to all its steps. The agent is DDPG (Lillicrap et al., ICLR 2016), set as in the authors' code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.budget.choices import Infeasible
from featherweight.errors import InputError

Cost = Callable[[Mapping[str, int]], int]
Sizes = dict[str, int]

LEAST = 0.2  # share of its units that a site keeps at least
HIDDEN, BATCH, MEMORY = 300, 64, 2000  # MEMORY: steps remembered
ACTOR_RATE, CRITIC_RATE, FOLLOW = 1e-4, 1e-3, 0.01  # FOLLOW: the paper's tau
NOISE, DECAY = 0.5, 0.95
BASELINE = 0.5  # share of the last batch's mean reward in the moving mean that is taken off all rewards


@dataclass(frozen=True)
class Search:
    """Sizes found by AMC's agent. The paper takes 100 episodes to warm up, of random shares, and 300 more to learn in."""

    episodes: int = 60
    warm_up: int = 20
    kind: Literal["search"] = "search"

    def __post_init__(self) -> None:
        if not 0 < self.warm_up <= self.episodes:
            raise InputError(f"of a search's episodes 1 or more are to warm up, given {self.warm_up} of {self.episodes}")


@dataclass(frozen=True)
class Place:
    """What the agent is told of a site: the layer that makes its units, and the sizes on offer, rising, the whole one last."""

    name: str
    offered: tuple[int, ...]
    inputs: int = 0
    height: int = 0
    width: int = 0
    stride: int = 0
    kernel: int = 0

    @property
    def least(self) -> int:
        """The smallest size on offer that is LEAST of the whole."""
        return next(size for size in self.offered if size >= LEAST * self.offered[-1])


def allocate(
    places: Sequence[Place], cost: Cost, limit: float, reward: Callable[[Sizes], float], how: Search, seed: int
) -> Sizes:
    """The sizes of the largest reward among all that the episodes tried, whose cost is at most `limit`.

    reward  sizes -> how good the network so cut is; asked once for each choice of sizes

    Deterministic from `seed` where `reward` is. Raises Infeasible, with the nearest feasible budget, where LEAST of every site
    costs more.
    """
    smallest = {place.name: place.least for place in places}
    if cost(smallest) > limit:
        whole = cost({place.name: place.offered[-1] for place in places})
        raise Infeasible(
            f"a budget of {int(limit):,} cannot be met by a search that keeps {LEAST:.0%} of every site: that costs "
            f"{cost(smallest):,} of the network's {whole:,}. Ask for {np.ceil(1000 * cost(smallest) / whole) / 10:g} % or more, "
            "or take l1_filters, which can keep less"
        )
    known: dict[tuple[int, ...], float] = {}
    agent, random = _Agent(seed), np.random.default_rng(seed)
    for episode in range(how.episodes):
        noise = NOISE * DECAY ** (episode - how.warm_up)
        states, shares, sizes = list[Tensor](), list[float](), dict[str, int]()
        for number, place in enumerate(places):
            states.append(_state(places, number, sizes, cost, shares[-1] if shares else 1.0))
            if episode < how.warm_up:
                share = float(random.uniform(LEAST, 1))
            else:
                share = _truncated(random, agent.answer(states[-1]), noise)
            sizes[place.name], bounded = _bounded(place, share, smallest | sizes, cost, limit)
            shares.append(bounded)
        key = tuple(sizes.values())
        if key not in known:
            known[key] = reward(sizes)
        agent.remember(states, shares, known[key])
        if episode >= how.warm_up:
            for _ in places:
                agent.learn(random)
    best = max(known, key=lambda key: known[key])  # of equals the first
    return dict(zip(smallest, best, strict=True))


def _bounded(place: Place, share: float, sizes: Sizes, cost: Cost, limit: float) -> tuple[int, float]:
    """The paper's wall: the next size on offer from `share` on, or the largest that fits with `sizes` elsewhere; its share."""
    whole = place.offered[-1]
    low = place.offered.index(place.least)
    high = len(place.offered) - 1
    while low < high:  # what is left to the sites to come is their least, which fitted before: offered[low] fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(sizes | {place.name: place.offered[middle]}) <= limit else (low, middle - 1)
    largest = place.offered[low]
    wanted = next(size for size in place.offered if size >= min(max(share, LEAST), 1.0) * whole - 1e-9)
    size = max(place.least, min(wanted, largest))
    return size, size / whole


def _state(places: Sequence[Place], number: int, sizes: Sizes, cost: Cost, last: float) -> Tensor:
    """(11,) index, units, inputs, height, width, stride, kernel; cost here, saved so far, still to come; the last share.

    All as shares of the largest of their kind. A site's cost is what all its units but the first add to it.
    """
    whole = cost({})
    own = [whole - cost({place.name: place.offered[0]}) for place in places]
    place = places[number]
    most = [max(1.0, *(float(getattr(p, kind)) for p in places)) for kind in ("inputs", "height", "width", "stride", "kernel")]
    shapes = [place.inputs, place.height, place.width, place.stride, place.kernel]
    return torch.tensor([
        number / len(places), place.offered[-1] / max(p.offered[-1] for p in places),
        *(value / largest for value, largest in zip(shapes, most, strict=True)),
        own[number] / whole, (whole - cost(sizes)) / whole, sum(own[number + 1 :]) / whole, last,
    ])  # fmt: skip


def _truncated(random: np.random.Generator, mean: float, deviation: float) -> float:
    """A normal number, drawn again until it is a share that may be kept."""
    for _ in range(100):
        drawn = random.normal(mean, deviation)
        if LEAST <= drawn <= 1:
            return float(drawn)
    return min(max(mean, LEAST), 1.0)


class _Critic(nn.Module):
    """What a share is worth in a state: (n, 11), (n, 1) -> (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.share = nn.Linear(11, HIDDEN), nn.Linear(1, HIDDEN)
        self.hidden, self.out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)

    def forward(self, state: Tensor, share: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(F.relu(self.state(state) + self.share(share)))))


class _Agent:
    """DDPG: an actor that answers, a critic that judges, a slow copy of each, and a memory of steps."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = nn.Sequential(
                nn.Linear(11, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid()
            )
            self.critic = _Critic()
        self.slow_actor, self.slow_critic = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_steps = torch.optim.Adam(self.actor.parameters(), ACTOR_RATE)
        self.critic_steps = torch.optim.Adam(self.critic.parameters(), CRITIC_RATE)
        self.steps: list[tuple[Tensor, float, float, Tensor, float]] = []  # state, share, reward, state after, is there one?
        self.mean: float | None = None

    @torch.no_grad()
    def answer(self, state: Tensor) -> float:
        """The share that the actor would keep."""
        return float(self.actor(state[None]))

    def remember(self, states: Sequence[Tensor], shares: Sequence[float], reward: float) -> None:
        """One episode."""
        for i, (state, share) in enumerate(zip(states, shares, strict=True)):
            more = i + 1 < len(states)
            self.steps.append((state, share, reward, states[i + 1] if more else state, float(more)))
        del self.steps[:-MEMORY]

    def learn(self, random: np.random.Generator) -> None:
        """One step of critic and actor on a batch of the memory. Gamma is 1: the end counts in full at each step."""
        drawn = [self.steps[i] for i in random.integers(len(self.steps), size=BATCH)]
        state, after = (torch.stack([step[i] for step in drawn]) for i in (0, 3))
        share, reward, more = (torch.tensor([[step[i]] for step in drawn]) for i in (1, 2, 4))
        here = float(reward.mean())
        self.mean = here if self.mean is None else self.mean + BASELINE * (here - self.mean)
        with torch.no_grad():
            worth = reward - self.mean + more * self.slow_critic(after, self.slow_actor(after))
        lost = F.mse_loss(self.critic(state, share), worth)
        self.critic_steps.zero_grad()
        lost.backward()
        self.critic_steps.step()
        praised = -self.critic(state, self.actor(state)).mean()
        self.actor_steps.zero_grad()
        praised.backward()
        self.actor_steps.step()
        with torch.no_grad():
            for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
                for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                    one.lerp_(other, FOLLOW)
