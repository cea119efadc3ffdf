"""Temporal output scores (arXiv 1608.03644): what a recurrent network says after each prefix, and from each suffix on.

Each is the probability of class 1 of the prefix alone, through the whole network. Where a network has `features` and `head`, the
features are made once, of the whole sequence, and cut: as the authors do it with their convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from featherweight.evidence.attribute import Logits, logits_of
from featherweight.network.devices import device_of
from featherweight.network.evaluating import evaluating
from featherweight.task import itself


def is_recurrent(network: nn.Module) -> bool:
    """Has it a layer that reads step by step?"""
    return any(isinstance(module, nn.RNNBase) for module in network.modules())


def prefixes(network: nn.Module, inputs: Tensor, logits: Logits = itself) -> Tensor:
    """inputs (count, channels, length) -> P(class 1) of the first 1, 2, .. length steps, (count, length)."""
    return _scores(network, inputs, logits, forwards=True)


def suffixes(network: nn.Module, inputs: Tensor, logits: Logits = itself) -> Tensor:
    """The same of what is left from step 1, 2, .. length on, (count, length)."""
    return _scores(network, inputs, logits, forwards=False)


def _scores(network: nn.Module, inputs: Tensor, logits: Logits, forwards: bool) -> Tensor:
    features, head = getattr(network, "features", None), getattr(network, "head", None)
    split = callable(features) and callable(head)
    with evaluating(network), torch.inference_mode():
        given = inputs.to(device_of(network))
        made: Tensor = features(given) if split else given  # type: ignore[misc]
        length, found = made.shape[-1], []
        for step in range(length):
            part = made[..., : step + 1] if forwards else made[..., step:]
            output = logits_of(head, part, logits) if split else logits_of(network, part, logits)  # type: ignore[arg-type]
            found.append(output.float().softmax(dim=1)[:, 1].cpu())
    return torch.stack(found, dim=1)
