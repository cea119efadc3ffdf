"""Class optimisation (arXiv 1608.03644): the input that a network takes for the clearest member of a class.

The authors' settings are the defaults: X from U(0, 1), RMSprop at 0.05, 1,000 steps of NLL(class) + 0.009 |X|^2. Here several
starts run at once, and the sequence of the largest entries is scored beside X itself, which is no DNA.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.evidence.attribute import Logits, logits_of
from featherweight.network.devices import device_of
from featherweight.network.evaluating import evaluating
from featherweight.task import itself

RATE, STEPS, PENALTY, SMOOTHING = 0.05, 1000, 0.009, 0.01


@dataclass(frozen=True)
class Optimised:
    """One network's ideal sequence of a class.

    weights    (length, bases), rows sum to 1: X clamped to 0..1, over its largest entry, plus 0.01, normalised
    codes      (length,), the largest entry of each row
    probability, probability_of_codes   of the class: of X itself, and of the sequence `codes` in one-hot
    probabilities_of_starts             of the one-hot sequence of every start; the best one is kept
    """

    weights: Tensor
    codes: Tensor
    probability: float
    probability_of_codes: float
    probabilities_of_starts: tuple[float, ...]


def optimise(
    network: nn.Module,
    bases: int,
    length: int,
    wanted: int = 1,
    *,
    starts: int = 2,
    seed: int = 0,
    steps: int = STEPS,
    rate: float = RATE,
    penalty: float = PENALTY,
    logits: Logits = itself,
) -> Optimised:
    """The best of `starts` inputs (bases, length) for class `wanted`, in eval mode."""
    device = device_of(network)
    dice = torch.Generator().manual_seed(seed)
    given = torch.rand((starts, bases, length), generator=dice).to(device).requires_grad_()
    optimizer = torch.optim.RMSprop([given], lr=rate)  # alpha 0.99 and epsilon 1e-8 are Torch's, too
    target = torch.full((starts,), wanted, device=device)
    with evaluating(network), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        for _ in range(steps):
            loss = F.cross_entropy(logits_of(network, given, logits), target, reduction="sum") + penalty * given.square().sum()
            (given.grad,) = torch.autograd.grad(loss, given)
            optimizer.step()
    with evaluating(network), torch.inference_mode():
        codes = given.argmax(dim=1)
        sequence = F.one_hot(codes, bases).transpose(1, 2).to(given.dtype)
        itself_scored = logits_of(network, given, logits).softmax(dim=1)[:, wanted]
        scored = logits_of(network, sequence, logits).softmax(dim=1)[:, wanted]
    best = int(scored.argmax())
    return Optimised(
        normalised(given[best].detach().cpu()).T,
        codes[best].cpu(),
        float(itself_scored[best]),
        float(scored[best]),
        tuple(scored.tolist()),
    )


def normalised(x: Tensor) -> Tensor:
    """(bases, length) -> columns that sum to 1, as the authors make a weight matrix of X."""
    clamped = x.clamp(0, 1)
    scaled = clamped / clamped.max().clamp(min=1e-12) + SMOOTHING
    return scaled / scaled.sum(dim=0, keepdim=True)
