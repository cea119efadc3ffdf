"""Recurrent modules layer by layer: nn.LSTM, nn.GRU and nn.RNN run all layers in one call, and show what the last puts out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS: dict[str, Any] = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def is_stacked(module: nn.Module) -> bool:
    """torch's own LSTM, GRU or RNN of one direction and without projections: each layer reads what the one before puts out."""
    return type(module) in (nn.LSTM, nn.GRU, nn.RNN) and not module.bidirectional and not module.proj_size


def tensors_of_layer(module: nn.RNNBase, layer: int) -> list[str]:
    """Names of a layer's weights, and of its biases where it has any: of the inputs, of the hidden units."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    return [f"{name}_l{layer}" for name in names]


def by_layer(module: nn.RNNBase, x: Tensor, state: Any = None) -> tuple[Tensor, Any, list[Tensor]]:
    """What `module(x, state)` returns, and the outputs of every layer.

    x  (batch, steps, features), or (steps, batch, features), as the module takes it. The module `is_stacked`
    """
    lstm = module.mode == "LSTM"
    if state is None:
        batch = x.shape[0 if module.batch_first else 1]
        zeros = x.new_zeros(module.num_layers, batch, module.hidden_size)
        state = (zeros, zeros) if lstm else zeros
    outputs: list[Tensor] = []
    finals: list[Any] = []
    for layer in range(module.num_layers):
        if layer:
            x = F.dropout(x, module.dropout, module.training)
        weights = [getattr(module, name) for name in tensors_of_layer(module, layer)]
        start = tuple(one[layer : layer + 1] for one in state) if lstm else state[layer : layer + 1]
        x, *final = _STEPS[module.mode](x, start, weights, module.bias, 1, 0.0, module.training, False, module.batch_first)
        outputs.append(x)
        finals.append(final)
    ends = tuple(torch.cat(each) for each in zip(*finals, strict=True))
    return x, ends if lstm else ends[0], outputs
