"""Ordinary networks as strangers bring them: one small instance of each kind, called the way its owner calls it.

Every law about networks runs over `ORDINARY`. A network is added here when its kind has shown a fault once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Ordinary:
    """A network with what it takes.

    make      the network, seeded
    args      its positional inputs, a batch of 4
    kwargs    its inputs by keyword
    logits    where in the output the logits are: a function of the output; None where it has none
    classes   the dimension of the classes in them
    target    what a loss compares with, the same batch: class numbers, or values of the output's own shape
    """

    make: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    logits: Callable[[Any], Tensor] | None = None
    classes: int = 1
    target: Tensor = field(default_factory=lambda: torch.tensor([0, 1, 2, 3]))

    @property
    def example(self) -> Any:
        """Its inputs as the package takes them: by position, or by name."""
        return self.kwargs or self.args

    def run(self, network: nn.Module) -> Any:
        return network(*self.args, **self.kwargs)

    def loss(self, network: nn.Module) -> Tensor:
        """Cross-entropy of the logits, else the mean squared error of the first tensor of the output."""
        output = self.run(network)
        if self.logits is None:
            first = next(leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor))
            return F.mse_loss(first.float(), self.target)
        logits = self.logits(output)
        return F.cross_entropy(logits.movedim(self.classes, 1), self.target)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_numbers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def itself(output: Any) -> Any:
    return output


class Keywords(nn.Module):
    """A Conv1d and GRU network for sequences (batch, channels, time)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.gru = nn.GRU(8, 10, batch_first=True)
        self.out = nn.Linear(10, 4)

    def forward(self, sound: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.conv(sound))).transpose(1, 2)
        return self.out(self.gru(hidden)[0][:, -1])


class Encoder(nn.Module):
    """Token numbers in by keyword, a dict out, class logits for each token: (batch, time, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden = self.layers(self.embed(tokens))
        return {"hidden": hidden, "logits": self.head(hidden)}


class UNet(nn.Module):
    """A mask of two classes for each pixel: (batch, classes, height, width), with a skip and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.GroupNorm(3, 12), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        down = self.down(image)
        return self.out(torch.cat([down, self.up(self.deep(down))], 1))


class TwoInputs(nn.Module):
    """A table's row and an image, and one number out."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.row = nn.Linear(5, 6)
        self.out = nn.Linear(12, 1)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.out(torch.cat([self.picture(image), torch.relu(self.row(row))], 1))


class Auxiliary(nn.Module):
    """A second head that only training reads: a tuple in training, one tensor in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Any:
        early = torch.relu(self.first(image))
        out = self.head(torch.relu(self.second(early)).mean((2, 3)))
        return (out, self.aux(early.mean((2, 3)))) if self.training else out


def mlp(outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, outputs))


def frozen_backbone() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    network[0].requires_grad_(False)
    network[1].requires_grad_(False).eval()
    return network


def foreign_parametrizations() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(12, 16)),
        nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(16, 16)),
        nn.ReLU(),
        parametrizations.orthogonal(nn.Linear(16, 12)),
        nn.Linear(12, 4),
    )


def old_weight_norm() -> nn.Module:
    with torch.no_grad():
        return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(12, 16)), nn.ReLU(), nn.Linear(16, 4))


class Complex(nn.Module):
    """A spectrum beside the logits: a complex, an integer and a boolean output in a nested one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, row: Tensor) -> Any:
        hidden = torch.relu(self.first(row))
        logits = self.out(hidden)
        return logits, {"spectrum": torch.fft.rfft(logits), "best": logits.argmax(1), "sure": logits.max(1).values > 0}


class SplitNorms(nn.Module):
    """The second half of a training batch (altered samples) has a norm of its own, which eval mode never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.clean, self.altered = nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, affine=False)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.conv(image)
        if self.training:
            first, second = hidden.chunk(2)
            hidden = torch.cat([self.clean(first), self.altered(second)])
        else:
            hidden = self.clean(hidden)
        return self.out(torch.relu(hidden).mean((2, 3)))


@dataclass
class Answer:
    """An output by name that no one has told torch about."""

    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


class Answers(nn.Module):
    """Inputs by name only, one of them left out and one a number; a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, *, row: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Answer:
        hidden = torch.relu(self.first(row))
        scores = self.out(hidden) if mask is None else self.out(hidden) * mask
        return Answer(scores / temperature, (scores.softmax(1), scores.sum(1)))


class Masks(nn.Module):
    """Trained on logits; in eval mode only class numbers and truth values come out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> Any:
        logits = self.out(torch.relu(self.first(image)))
        return logits.mean((2, 3)) if self.training else [logits.argmax(1), logits[:, 0] > 0.1]


class RandomMask(nn.Module):
    """Three of six tokens, drawn in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = tokens[:, torch.rand(tokens.shape[1]).argsort()[:3]]
        return self.out(torch.relu(self.first(kept))).mean(1)


class Conditioned(nn.Module):
    """A list of tensors, a time step without a batch, and an input that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.time, self.out = nn.Linear(12, 16), nn.Linear(1, 16), nn.Linear(16, 4)

    def forward(self, parts: list[Tensor], step: Tensor, condition: Tensor | None = None) -> Tensor:
        hidden = self.first(parts[0] + parts[1]) + self.time(step.to(self.time.weight.dtype).view(1, 1))
        return self.out(torch.relu(hidden if condition is None else hidden + condition))


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make()

    return build


IMAGE, ROW = numbers(4, 3, 8, 8), numbers(4, 12)
ORDINARY: dict[str, Ordinary] = {
    "tabular": Ordinary(seeded(mlp), (ROW,), logits=itself),
    "regression": Ordinary(seeded(lambda: mlp(1)), (ROW,), target=numbers(4, 1, seed=3)),
    "conv1d and gru": Ordinary(seeded(Keywords), (numbers(4, 3, 10),), logits=itself),
    "encoder, keyword, dict": Ordinary(
        seeded(Encoder),
        kwargs={"tokens": whole_numbers(20, 4, 6)},
        logits=lambda output: output["logits"],
        classes=2,
        target=whole_numbers(5, 4, 6, seed=1),
    ),
    "u-net": Ordinary(seeded(UNet), (IMAGE,), logits=itself, target=whole_numbers(2, 4, 8, 8, seed=1)),
    "two inputs": Ordinary(seeded(TwoInputs), (numbers(4, 1, 6, 6), numbers(4, 5)), target=numbers(4, 1, seed=3)),
    "auxiliary head": Ordinary(
        seeded(Auxiliary), (IMAGE,), logits=lambda output: output[0] if isinstance(output, tuple) else output
    ),
    "frozen backbone": Ordinary(seeded(frozen_backbone), (IMAGE,), logits=itself),
    "foreign parametrizations": Ordinary(seeded(foreign_parametrizations), (ROW,), logits=itself),
    "old weight norm": Ordinary(seeded(old_weight_norm), (ROW,), logits=itself),
    "complex outputs": Ordinary(seeded(Complex), (ROW,), logits=lambda output: output[0]),
    "split norms": Ordinary(seeded(SplitNorms), (IMAGE,), logits=itself),
    "inputs by name, dataclass": Ordinary(
        seeded(Answers), kwargs={"row": ROW, "mask": None, "temperature": 2.0}, logits=lambda output: output.logits
    ),
    "whole numbers in eval": Ordinary(seeded(Masks), (IMAGE,), logits=itself),
    "random in eval": Ordinary(seeded(RandomMask), (numbers(4, 6, 12),), logits=itself),
    "list, step, none": Ordinary(seeded(Conditioned), ([ROW, numbers(4, 12, seed=1)], torch.tensor(3), None), logits=itself),
    "example of zeros": Ordinary(
        seeded(lambda: nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))),
        (torch.zeros(4, 12),),
        logits=itself,
    ),
}


# --- modules as their owners made them ---------------------------------------------------------------------------------


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


def pruning_masks() -> nn.Module:
    network = small()
    with torch.enable_grad():  # the masked weight is computed, as in a notebook
        torch.nn.utils.prune.l1_unstructured(network[0], "weight", 0.5)
        torch.nn.utils.prune.ln_structured(network[2], "weight", 0.25, n=2, dim=0)
    return network


def old_spectral_norm() -> nn.Module:
    network = small()
    torch.nn.utils.spectral_norm(network[2])
    return network


class Members(nn.Module):
    """What a module may hold beside its weights: locks, a lambda, a generator, a cached result, settings, and a
    method of its own as a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = small()
        self.lock, self.scale = threading.Lock(), lambda x: 2 * x
        self.numbers, self.random = (n for n in range(3)), torch.Generator().manual_seed(1)
        self.settings = [{"lock": threading.Lock()}, {"rates": [0.1, 0.2]}]
        self.cached = [self.layers(numbers(2, 12))]
        self.calls = 0
        self.layers[0].register_forward_hook(self.counted)

    def counted(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls += 1

    def forward(self, row: Tensor) -> Tensor:
        with self.lock:
            return self.scale(self.layers(row))


class TensorState(nn.Module):
    """Extra state that is a tensor, and a mark on a parameter that an optimizer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.largest = small(), torch.ones(1)
        self.layers[0].bias.no_decay = True
        self.layers[2].bias.requires_grad_(False)

    def get_extra_state(self) -> Tensor:
        return self.largest

    def set_extra_state(self, state: Tensor) -> None:
        self.largest = state

    def forward(self, row: Tensor) -> Tensor:
        return self.layers(row) * self.largest


class Shares(nn.Module):
    """A matrix under two names, two parameters in the same memory, and an expanded parameter and buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.third, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.again.weight = self.first.weight
        self.third.weight = nn.Parameter(self.first.weight.data)
        self.gain = nn.Parameter(torch.full((1,), 1.5).expand(12))
        self.register_buffer("shift", torch.full((1,), 0.5).expand(12))

    def forward(self, row: Tensor) -> Tensor:
        hidden = torch.relu(self.again(torch.relu(self.first(row))))
        return (self.out(torch.relu(self.third(hidden))) * self.gain + self.shift)[:, :4]


def in_float64() -> nn.Module:
    return small().double()


ORDINARY |= {
    "pruning masks": Ordinary(seeded(pruning_masks), (ROW,), logits=itself),
    "old spectral norm": Ordinary(seeded(old_spectral_norm), (ROW,), logits=itself, target=torch.tensor([1, 0, 3, 2])),
    "members that cannot be copied": Ordinary(seeded(Members), (ROW,), logits=itself),
    "extra state, marks": Ordinary(seeded(TensorState), (ROW,), logits=itself),
    "shared and expanded": Ordinary(seeded(Shares), (ROW,), logits=itself),
    "data parallel": Ordinary(seeded(lambda: nn.DataParallel(small())), (ROW,), logits=itself),
    "a wrapper inside": Ordinary(seeded(lambda: nn.Sequential(nn.DataParallel(small()), nn.Linear(4, 4))), (ROW,), logits=itself),
    "float64": Ordinary(seeded(in_float64), (ROW.double(),), logits=itself),
}
