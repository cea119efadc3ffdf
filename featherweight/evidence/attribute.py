"""What in an input speaks for a class: gradients of the difference of two logits, and what is made of them.

The difference of logits and not the loss: where a network is sure, the gradient of its loss vanishes. For one-hot bases the
gradient is centred over the four of them (Majdandzic et al., Genome Biology 2023): only what a change of base would do is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import InputError, did_you_mean
from featherweight.network.devices import device_of
from featherweight.network.evaluating import evaluating
from featherweight.task import itself

BATCH = 128
STEPS = 32  # of integrated gradients

Logits = Callable[[Any], Tensor]  # output of a network -> its logits (count, classes)
Method = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # (inputs -> differences (count,)), inputs -> like the inputs


def logits_of(network: nn.Module, inputs: Tensor, logits: Logits = itself) -> Tensor:
    """(count, classes) of inputs with the batch first. Raises InputError for another output."""
    output = network(inputs)
    found = logits(output)
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == len(inputs) and found.shape[1] >= 2:
        return found
    given = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    raise InputError(
        f"evidence is of logits (examples, classes), two classes at least, and {len(inputs)} examples give {given}: say in the "
        "Task which output holds them, such as logits=lambda output: output['logits']"
    )


def all_logits(network: nn.Module, inputs: Tensor, logits: Logits = itself) -> Tensor:
    """The same in eval mode, batch by batch, without gradients; float32 on the CPU."""
    device = device_of(network)
    with evaluating(network), torch.inference_mode():
        parts = [logits_of(network, part.to(device), logits).float().cpu() for part in inputs.split(2 * BATCH)]
    return torch.cat(parts)


def difference(network: nn.Module, inputs: Tensor, of: Tensor, against: Tensor, logits: Logits = itself) -> Tensor:
    """How much larger the logit `of` is than the logit `against`, (count,); both are class numbers (count,)."""
    found = logits_of(network, inputs, logits)
    last = int(max(of.max(), against.max()))
    if last >= found.shape[1]:
        raise InputError(f"the network has {found.shape[1]} classes, and class {last} is asked for: is it of other data?")
    return (found.gather(1, of[:, None]) - found.gather(1, against[:, None])).squeeze(1)


def gradients(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The gradient of each score (count,) with respect to its input, like the inputs. No example may see another."""
    leaf = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return gradient


def saliency(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The plain gradient: what a small change of each number would do."""
    return gradients(score, inputs)


def centred_saliency(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Of one-hot inputs (count, bases, length): the gradient minus its mean over the bases, at the base that is there."""
    found = gradients(score, inputs)
    return (found - found.mean(dim=1, keepdim=True)) * inputs


def input_x_gradient(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The gradient times the input."""
    return gradients(score, inputs) * inputs


def integrated_gradients(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """The mean gradient on the way from zeros to the input, times the input: the parts sum to the difference of the scores at the
    two ends (Sundararajan et al. 2017). Midpoint rule, 32 steps."""
    total = torch.zeros_like(inputs)
    for step in range(STEPS):
        total += gradients(score, inputs * ((step + 0.5) / STEPS))
    return inputs * total / STEPS


METHODS: dict[str, Method] = {
    "saliency": saliency,
    "centred": centred_saliency,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": integrated_gradients,
}
CAPTUM = "captum:"


def method(name: str) -> Method:
    """A method by name; `captum:DeepLift` is that class of captum. Raises InputError."""
    if name in METHODS:
        return METHODS[name]
    if not name.startswith(CAPTUM):
        raise InputError(
            f"no attribution is named {name!r}.{did_you_mean(name, METHODS)} There are: {', '.join(METHODS)}, and captum:CLASS, "
            "such as captum:DeepLift"
        )
    try:
        from captum import attr
    except ImportError:
        raise InputError(
            f"{name} needs captum: pip install 'featherweight[evidence]'. Without it: {', '.join(METHODS)}"
        ) from None
    kind = getattr(attr, name.removeprefix(CAPTUM), None)
    if not isinstance(kind, type) or not issubclass(kind, attr.Attribution):
        raise InputError(f"captum has no attribution {name.removeprefix(CAPTUM)!r}; it has Saliency, InputXGradient, DeepLift ..")

    def found(score: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            result: Tensor = kind(_Module(score)).attribute(inputs.detach().clone().requires_grad_())
        return result.detach()

    return found


class _Module(nn.Module):
    """A score as a module, with the network inside it: what captum puts its hooks on."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.network = getattr(score, "network", None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.score(inputs)


class Score:
    """inputs -> differences of two logits, of one network, for as many examples as `of` and `against` have."""

    def __init__(self, network: nn.Module, of: Tensor, against: Tensor, logits: Logits) -> None:
        self.network, self.of, self.against, self.logits = network, of, against, logits

    def __call__(self, inputs: Tensor) -> Tensor:
        repeats = len(inputs) // len(self.of)  # DeepLift runs the input and its baseline in one batch
        return difference(self.network, inputs, self.of.repeat(repeats), self.against.repeat(repeats), self.logits)


def attributions(
    network: nn.Module, inputs: Tensor, of: Tensor, against: Tensor, how: Method = centred_saliency, logits: Logits = itself
) -> Tensor:
    """What each number of each input does for logit `of` against logit `against`: like the inputs, in eval mode, on the CPU.

    of, against   class numbers (count,)
    """
    device = device_of(network)
    parts = []
    # cuDNN's recurrent layers have no gradient in eval mode
    with evaluating(network), torch.backends.cudnn.flags(enabled=False):
        for start in range(0, len(inputs), BATCH):
            here = slice(start, start + BATCH)
            score = Score(network, of[here].to(device), against[here].to(device), logits)
            parts.append(how(score, inputs[here].to(device)).detach().float().cpu())
    return torch.cat(parts)


def of_positions(found: Tensor) -> Tensor:
    """Attributions (count, bases, length) -> signed, one number a position (count, length)."""
    return found.sum(dim=1)


def pooled(found: Tensor, cells: int = 8) -> Tensor:
    """Attributions (count, channels, height, width), or (count, anything) -> sizes of them, averaged over a grid of at most
    `cells` x `cells` for images: (count, cells of the grid)."""
    size = found.abs()
    if size.ndim == 4:
        summed = size.sum(dim=1, keepdim=True)
        grid = (min(cells, size.shape[2]), min(cells, size.shape[3]))
        return F.adaptive_avg_pool2d(summed, grid).flatten(1)
    return size.flatten(1)
