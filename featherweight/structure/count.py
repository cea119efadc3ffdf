"""How many multiply-accumulates one example takes, counted as the network runs on it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from featherweight.network.calls import Example, Inputs
from featherweight.network.copies import UnsupportedNetwork
from featherweight.structure.capture import check_example, evaluation
from featherweight.structure.errors import StructureError
from featherweight.structure.rules import RULES
from featherweight.structure.tracing import trace
from featherweight.weights.parametrized import plain

aten = torch.ops.aten


def count_macs(model: nn.Module, example: Example | Inputs) -> tuple[int | None, tuple[str, ...]]:
    """MACs of one example, and what they leave out: operations without a rule.

    They are those of the exported graph (`Graph.macs`), which takes many times as long to make: it is made only where the network
    runs an operation that may multiply for all that is known here. None where it cannot be made, with the reason.
    """
    try:
        network = plain(model)
        found, batch = as_it_runs(network, example), Inputs.of(example).batch
        if found is not None:
            return found // batch, ()
        graph = trace(network, example)
    except (StructureError, UnsupportedNetwork) as error:
        return None, (str(error),)
    return graph.macs() // batch, tuple(sorted(graph.uncounted))


def as_it_runs(network: nn.Module, example: Example | Inputs) -> int | None:
    """MACs of the whole example, summed over the operations of a run; None where one is not known, before it has run.

    So nothing random is drawn, and no value decides. `network` is a copy: whatever its `forward` keeps of the run is thrown away.
    Raises BadExample and NotExportable.
    """
    inputs, tally = check_example(network, example), _Tally()
    try:
        with evaluation(network), tally, _WithoutEinsum():
            inputs.call(network)
    except _FAILURES:
        return None
    return tally.macs


class _Unknown(Exception):
    """An operation that may multiply, for all that is known here."""


_FAILURES = (Exception,)  # of the network's own code too, as where a value decides: the export says what is the matter


class _WithoutEinsum(TorchFunctionMode):
    """An einsum that sums nothing runs as a product entry by entry, and counts in a graph."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.functional.einsum or func is torch.einsum:
            raise _Unknown("einsum")
        return func(*args, **kwargs or {})


class _Tally(TorchDispatchMode):
    """Adds up what each operation multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to ask it to, torch imports its whole compiler, which takes longer than the run."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        packet = func.overloadpacket
        if packet not in MACS and packet not in FREE and not _without_products(packet, func):
            raise _Unknown(str(packet))
        out = func(*args, **kwargs or {})
        if packet in MACS:
            self.macs += MACS[packet](out, *args)
        return out


def _without_products(packet: Any, func: Any) -> bool:
    """Is it entry by entry, a view, or an operation that the export keeps whole and that has a rule?"""
    return (
        func.namespace == "prim"
        or func.is_view
        or torch.Tag.pointwise in func.tags
        or packet in RULES
        or getattr(aten, packet.__name__.rstrip("_"), None) in RULES
    )


def _matrices(out: Tensor, first: Tensor, second: Tensor, *_: Any) -> int:
    return out.numel() * first.shape[-1]


def _added(out: Tensor, _: Tensor, first: Tensor, *__: Any) -> int:
    return out.numel() * first.shape[-1]


def _convolved(out: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> int:
    """Each entry of the output reads one of each of a filter's weights; transposed, each of the input meets them."""
    transposed = rest[4]
    return (x if transposed else out).numel() * prod(weight.shape[1:])


def _attended(out: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    """Every query meets every key, and every value: (..., heads, places, entries of a head)."""
    return prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _recurrent_layer(out: Any, x: Tensor, input_weight: Tensor, hidden_weight: Tensor, *_: Any) -> int:
    return prod(x.shape[:-1]) * (input_weight.numel() + hidden_weight.numel())


MACS: dict[Any, Callable[..., int]] = {
    aten.mm: _matrices,
    aten.bmm: _matrices,
    aten.mv: _matrices,
    aten.dot: _matrices,
    aten.addmm: _added,
    aten.baddbmm: _added,
    aten.addbmm: lambda out, _, first, *__: prod(first.shape) * out.shape[-1],
    aten.addmv: _added,
    aten.convolution: _convolved,
    aten._scaled_dot_product_flash_attention_for_cpu: _attended,
    aten._scaled_dot_product_flash_attention: _attended,
    aten._scaled_dot_product_efficient_attention: _attended,
    aten._scaled_dot_product_cudnn_attention: _attended,
    aten.mkldnn_rnn_layer: _recurrent_layer,
}
FREE = {  # what the operations that a graph keeps whole become in a run
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
    aten.cudnn_batch_norm,
    aten.native_layer_norm,
    aten.native_group_norm,
    aten._fused_rms_norm,
    aten._softmax,
    aten._log_softmax,
    aten._safe_softmax,
    aten.max_pool2d_with_indices,
    aten.max_pool3d_with_indices,
    aten._adaptive_avg_pool2d,
    aten._adaptive_avg_pool3d,
    aten._to_copy,
    aten._unsafe_view,
    aten._reshape_alias,
    aten.lift_fresh,
    aten.lift_fresh_copy,
    aten.copy_,
    aten.detach,
    aten.empty,
    aten.empty_strided,
    aten.new_empty,
    aten.new_zeros,
    aten._weight_norm_interface,
}
