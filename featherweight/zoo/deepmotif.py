"""The three networks of the Deep Motif Dashboard (arXiv 1608.03644): does a factor bind this stretch of DNA?

As in the authors' Torch code, but for their log-softmax: the outputs are logits, so that cross-entropy is their loss. Input is
one-hot, (batch, 4, length), the bases in the order A C G T, an unknown base a column of zeros; class 1 is "binds". Any length
will do, from 28 bases on for the convolutional network and from one on for the others. Parameters are counted with torch's two
biases of an LSTM, where the authors' have one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from featherweight.errors import InputError

BASES, CHANNELS, HIDDEN, CLASSES = 4, 128, 32, 2
SHORTEST = 28  # bases that leave the last convolution of the convolutional network one place


class MotifCNN(nn.Module):
    """Three convolutions without padding, of 9, 5 and 3 bases, the best place of each channel, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(BASES, CHANNELS, 9)
        self.conv2 = nn.Conv1d(CHANNELS, CHANNELS, 5)
        self.conv3 = nn.Conv1d(CHANNELS, CHANNELS, 3)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, bases: Tensor) -> Tensor:
        """(batch, 4, length) -> logits (batch, 2). Raises InputError for fewer than 28 bases."""
        if bases.shape[-1] < SHORTEST:
            raise InputError(
                f"deepmotif_cnn reads at least {SHORTEST} bases at once, given {bases.shape[-1]}: give longer sequences, or take "
                "deepmotif_rnn or deepmotif_cnn_rnn"
            )
        hidden = self.dropout(F.max_pool1d(F.relu(self.conv1(bases)), 2))  # (batch, 128, 46) of 101 bases
        hidden = self.dropout(F.max_pool1d(F.relu(self.conv2(hidden)), 2))  # (batch, 128, 21)
        hidden = self.dropout(F.relu(self.conv3(hidden)))  # (batch, 128, 19)
        return self.fc(hidden.amax(dim=2))


class BothWays(nn.Module):
    """An LSTM and one of its own for the reversed sequence, each averaged over time, and a linear layer.

    Two layers and not a bidirectional one, which is the same function: the units of each can go by themselves.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(inputs, HIDDEN, batch_first=True)
        self.backwards = nn.LSTM(inputs, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(2 * HIDDEN, CLASSES)
        for layer in (self.forwards, self.backwards):
            _as_the_authors(layer)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, inputs, length) -> logits (batch, 2)."""
        steps = features.transpose(1, 2)
        ahead, _ = self.forwards(steps)
        back, _ = self.backwards(steps.flip(1))  # the mean is over all of time: there is no need to turn it round again
        seen = torch.cat([self.dropout(ahead).mean(dim=1), self.dropout(back).mean(dim=1)], dim=1)
        return self.fc(seen)


def _as_the_authors(layer: nn.LSTM) -> None:
    """Weights N(0, 1 / sqrt(hidden + inputs)), biases 0, of the forget gates 1 (gates are input, forget, cell, output)."""
    deviation, units = (layer.hidden_size + layer.input_size) ** -0.5, layer.hidden_size
    for name, parameter in layer.named_parameters():
        if name.startswith("weight"):
            nn.init.normal_(parameter, 0.0, deviation)
        else:
            nn.init.zeros_(parameter)
        if name == "bias_ih_l0":
            nn.init.ones_(parameter.data[units : 2 * units])


class MotifRNN(nn.Module):
    """LSTMs over the bases themselves. `features` and `head` are what scores of prefixes are made from."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = BothWays(BASES)

    def features(self, bases: Tensor) -> Tensor:
        """The bases as they are."""
        return bases

    def head(self, features: Tensor) -> Tensor:
        """(batch, 4, part of the length) -> logits (batch, 2)."""
        return self.recurrent(features)

    def forward(self, bases: Tensor) -> Tensor:
        """(batch, 4, length) -> logits (batch, 2)."""
        return self.recurrent(bases)


class MotifCNNRNN(nn.Module):
    """A convolution of 9 bases that keeps the length, and LSTMs over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(BASES, CHANNELS, 9, padding=4)
        self.recurrent = BothWays(CHANNELS)

    def features(self, bases: Tensor) -> Tensor:
        """(batch, 4, length) -> (batch, 128, length)."""
        return F.relu(self.conv(bases))

    def head(self, features: Tensor) -> Tensor:
        """(batch, 128, part of the length) -> logits (batch, 2)."""
        return self.recurrent(features)

    def forward(self, bases: Tensor) -> Tensor:
        """(batch, 4, length) -> logits (batch, 2)."""
        return self.head(self.features(bases))


def deepmotif_cnn() -> nn.Module:
    """The convolutional network of Deep Motif, input (batch, 4, length): 136,322 parameters, 4,803,328 MACs of 101 bases."""
    return MotifCNN()


def deepmotif_rnn() -> nn.Module:
    """The recurrent network of Deep Motif, input (batch, 4, length): 9,858 parameters, 930,944 MACs of 101 bases."""
    return MotifRNN()


def deepmotif_cnn_rnn() -> nn.Module:
    """Convolution and LSTMs of Deep Motif, input (batch, 4, length): 46,338 parameters, 4,602,496 MACs of 101 bases."""
    return MotifCNNRNN()
