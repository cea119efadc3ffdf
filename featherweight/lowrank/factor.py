"""Thin layers: one layer whose weight has low rank becomes two plain ones in a row, and the edit can be replayed.

A kernel axis belongs to the first or to the second layer; the view of the low-rank matrix says to which.

    o i h w -> o (i h w)     channel-wise: r filters of the full kernel, then 1 x 1 (Zhang et al. 2016)
    o i h w -> (i h) (o w)   spatial-wise: r filters h x 1, then 1 x w (Jaderberg et al. 2014)
    o i h w -> i (o h w)     1 x 1, then the full kernel
    o i w -> o (i w), o i w -> i (o w), o i -> o i, and the transposes of all these: Conv1d and Linear likewise

LSTM and GRU: `weight_ih_l0` of a one-directional layer becomes a linear layer before a narrower recurrent one (`ReducedLSTM`,
`ReducedGRU`, which stay an nn.LSTM and an nn.GRU). The other matrices stay coded: torch's kernels multiply by one dense matrix,
so their factors save bytes and no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import parametrize, skip_init
from torch.nn.utils.rnn import PackedSequence

from featherweight.errors import ArtifactError, InputError, did_you_mean, short
from featherweight.lowrank.layers import Conv, FactorError, Split, break_even, input_shapes, kind_of, split, split_of, weight_of
from featherweight.network.calls import Example, Inputs
from featherweight.weights.codes import Factors
from featherweight.weights.parametrized import attach, coded, detach, is_channels_last, owner
from featherweight.weights.svd import truncated
from featherweight.weights.views import View

Edit = dict[str, Any]  # plain JSON data; "edit" names the kind

SUPPORTED = "ungrouped Conv1d, Conv2d, Linear, and weight_ih_l0 of a one-directional LSTM or GRU"
KEPT_AS_CODE = "leave its low rank as a code (LowRank in a recipe): the factors are what is stored, which saves bytes and no time"
FITTING = {2: "'o i -> o i'", 3: "'o i w -> o (i w)'", 4: "'o i h w -> o (i h w)' or 'o i h w -> (i h) (o w)'"}
LONGEST_NAME = 200  # characters of a name that is looked up among the nearest
READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # of their children, instead of calling them


class _Reduced(nn.Module):
    """Put before nn.LSTM or nn.GRU among the bases: the input passes through the linear layer `reduce` first."""

    reduce: nn.Linear

    def forward(self, input: Any, hx: Any = None) -> Any:
        """The inputs and outputs of the recurrent layer that this one replaces."""
        if isinstance(input, PackedSequence):
            return super().forward(input._replace(data=self.reduce(input.data)), hx)
        return super().forward(self.reduce(input), hx)


class ReducedLSTM(_Reduced, nn.LSTM):
    """An nn.LSTM on a linear reduction of its input; `input_size` is the rank."""


class ReducedGRU(_Reduced, nn.GRU):
    """An nn.GRU on a linear reduction of its input; `input_size` is the rank."""


# --- one layer into two --------------------------------------------------------------------------------------------------


def why_not(model: nn.Module, name: str, view: View) -> str | None:
    """Why parameter `name` cannot become two layers, in words; None if it can. Raises FactorError for a name there is not."""
    layer, attribute = _named(model, name)
    kind = kind_of(layer)
    if kind in (nn.LSTM, nn.GRU):
        if attribute != "weight_ih_l0":
            return f"torch's {kind.__name__} multiplies by one dense {attribute}; {KEPT_AS_CODE}"
        if cast(nn.RNNBase, layer).bidirectional:
            return f"both directions of this {kind.__name__} read the same input; {KEPT_AS_CODE}"
    elif kind not in (nn.Linear, nn.Conv1d, nn.Conv2d):
        return f"it belongs to a {kind.__name__}; what can be factored is {SUPPORTED}"
    elif attribute != "weight":
        return f"it is the {attribute} of a {kind.__name__}; only its weight can be factored"
    if isinstance(layer, Conv) and layer.groups > 1:
        return f"its convolution has {layer.groups} groups, each with a matrix of its own; what can be factored is {SUPPORTED}"
    if layer is model:
        return "it is the layer itself that was given: put it into an nn.Sequential, where it can be replaced"
    if split_of(view, weight_of(layer).ndim) is None:
        return f"a low rank through {view.shown} is not two layers; through {FITTING[weight_of(layer).ndim]} it is"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "its layer has hooks, which would be lost: remove them first"
    stacks = [module for module in layer.modules() if isinstance(module, parametrize.ParametrizationList)]
    known = set(coded(layer)) if isinstance(layer, nn.RNNBase) else set(coded(layer)) & {attribute}
    if len(stacks) > len(known) or any(len(stack) > 1 for stack in stacks):
        return "its layer has parametrizations besides the code: remove them first (torch.nn.utils.parametrize)"
    for parent in model.modules():
        if isinstance(parent, READS_WEIGHTS) and any(child is layer for child in parent.children()):
            return f"its {type(parent).__name__} reads the weight instead of calling the layer"
    mine, inside = {id(parameter) for parameter in layer.parameters()}, set(layer.modules())
    for other, module in model.named_modules():
        if module not in inside and any(id(parameter) in mine for parameter in module.parameters(recurse=False)):
            return f"{other or 'the model'} shares it: untie the two first"
    return None


@torch.no_grad()
def factor(model: nn.Module, name: str, view: View, rank: int, shapes: Iterable[Sequence[int]] = ()) -> Edit:
    """Replace the layer of parameter `name`, in place, by two whose product is its projection onto `rank`; returns the edit.

    The pair is an nn.Sequential under the layer's own name (a recurrent layer: see `ReducedLSTM`), in its dtype, device, memory
    format and mode. Exact: the best rank-`rank` weight seen through `view`. Raises FactorError if it cannot be done or would
    take no fewer MACs or parameters, with the way out; `shapes` are those of the layer's inputs, see `break_even`.
    """
    layer, attribute = _named(model, name)
    reason = why_not(model, name, view)
    if reason is not None:
        raise FactorError(f"{name!r} cannot be factored: {reason}")
    limit = _limit(layer, attribute, view, shapes)
    if type(rank) is not int or not 1 <= rank < limit:
        raise FactorError(
            f"{name!r} can be factored at a rank from 1 to {limit - 1}, given {rank}: at {limit} two layers take as many "
            "multiplications or parameters as the one. Leave it whole, or choose a smaller rank"
        )
    weight = getattr(layer, attribute)
    left, right = truncated(view.to_matrix(weight), rank=rank, name=name).factors()
    if name in coded(model):
        detach(model, name)
    _replace(model, name, view, left.to(weight.dtype), right.to(weight.dtype))
    return _edit(name, view, rank)


@dataclass(frozen=True)
class Materialised:
    """What `materialise` did. `edits`: for replay, in order; `whole`: parameter -> why it did not become two layers."""

    edits: list[Edit] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def materialise(model: nn.Module, names: Iterable[str] | None = None, example: Example | Inputs | None = None) -> Materialised:
    """Turn parameters with a low-rank code (default: all) into two plain layers each, in place; the function stays the same.

    A rank at or above break-even (exact with `example`, the inputs of the network) leaves the layer whole: dense again, with the
    weight it had. A layer that cannot be two, such as a recurrent matrix, keeps its code. Both are said in `whole`.
    """
    codes = {name: viewed for name, viewed in sorted(coded(model).items()) if isinstance(viewed.code, Factors)}
    names = list(codes) if names is None else list(names)
    for name in names:
        if name not in codes:
            there = ", ".join(codes) or "none"
            raise FactorError(f"{name!r} has no low-rank code.{did_you_mean(name, codes)} There are: {there}")
    shapes = input_shapes(model, example) if example is not None else {}
    done = Materialised()
    for name in names:
        view, rank = codes[name].view, cast(Factors, codes[name].code).rank
        layer, attribute = _named(model, name)
        reason = why_not(model, name, view)
        if reason is None and rank == 0:
            reason = "its rank is 0: the weight is zero, and so are its factors"
        if reason is not None:
            done.whole[name] = reason
            continue
        limit = _limit(layer, attribute, view, shapes.get(name.rpartition(".")[0], ()))
        if rank >= limit:
            done.whole[name] = (
                f"its rank {rank} is not below {limit}, where two layers take as many multiplications or parameters as the one"
            )
            detach(model, name)
            continue
        left, right = _free(layer, attribute)
        detach(model, name)
        getattr(layer, attribute).requires_grad_(left.requires_grad)
        _replace(model, name, view, left.detach(), right.detach())
        done.edits.append(_edit(name, view, rank))
    return done


@torch.no_grad()
def replay_factor(model: nn.Module, edit: Mapping[str, Any], where: str = "the edit") -> None:
    """Give `model`, in place, the two layers that `edit` tells of; their values are 0 until a state is loaded.

    Only shapes are needed. Raises ArtifactError where the edit is malformed, does not fit the network, or would not make it
    smaller.
    """
    keys = {"edit", "parameter", "view", "rank"}
    if not isinstance(edit, Mapping) or set(edit) != keys or edit["edit"] != "factor":
        raise ArtifactError(f"{where} is not a well-formed factor edit: it must hold exactly {', '.join(sorted(keys))}")
    name, pattern, rank = edit["parameter"], edit["view"], edit["rank"]
    if not isinstance(name, str) or not isinstance(pattern, str) or type(rank) is not int:
        raise ArtifactError(f"{where} is not a well-formed factor edit: parameter and view are texts, rank is a whole number")
    try:
        view = View(pattern)
        layer, attribute = _named(model, name)
        reason = why_not(model, name, view)
        if reason is not None:
            raise FactorError(f"it cannot be factored: {reason}")
        rows, cols = view.matrix_shape(tuple(getattr(layer, attribute).shape))
    except InputError as error:
        raise ArtifactError(f"{where}: parameter {short(name)} of {type(model).__name__}: {error}") from None
    if not 1 <= rank < _smaller_below(rows, cols):
        raise ArtifactError(
            f"{where}: rank {short(rank)} is not one at which {short(name)}, a {rows} x {cols} matrix, becomes two smaller layers"
        )
    if name in coded(model):
        raise ArtifactError(f"{where}: {short(name)} is coded, and a factor edit is for a plain parameter")
    weight = getattr(layer, attribute)
    _replace(model, name, view, weight.new_zeros(rows, rank), weight.new_zeros(rank, cols))


def _edit(name: str, view: View, rank: int) -> Edit:
    return {"edit": "factor", "parameter": name, "view": view.pattern, "rank": rank}


def _replace(model: nn.Module, name: str, view: View, left: Tensor, right: Tensor) -> None:
    """Put two layers that hold left (rows, rank) and right (rank, cols) wherever the plain layer of `name` stood."""
    layer, _ = _named(model, name)
    others = {attribute: (viewed, _free(layer, attribute)) for attribute, viewed in coded(layer).items()}
    for attribute in others:  # the recurrent matrices of a layer whose input matrix goes: their codes move with it
        detach(layer, attribute)
    parts = split(layer, view)
    one, two = (right, left) if parts.rows_out else (left.T, right.T)  # (rank, i first axes), (o second axes, rank)
    rank = one.shape[0]
    pair = _pair(layer, parts, rank)
    first, second = _layers(pair)
    weight = weight_of(layer)
    outputs, inputs, *kernel = weight.shape
    sizes_one = [size if taken else 1 for size, taken in zip(kernel, parts.first, strict=True)]
    sizes_two = [1 if taken else size for size, taken in zip(kernel, parts.first, strict=True)]
    layout = torch.channels_last if is_channels_last(weight) else torch.contiguous_format
    _set(first, one.reshape(rank, inputs, *sizes_one).contiguous(memory_format=layout), weight.requires_grad)
    _set(second, two.T.reshape(rank, outputs, *sizes_two).transpose(0, 1).contiguous(memory_format=layout), weight.requires_grad)
    if not isinstance(layer, nn.RNNBase) and layer.bias is not None:
        second.bias = cast(Parameter, layer.bias)
    for attribute, (viewed, free) in others.items():
        attach(pair, attribute, viewed.view, viewed.code)
        for now, before in zip(_free(pair, attribute), free, strict=True):
            now.data.copy_(before)
    pair.train(layer.training)
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is layer:
                parent._modules[key] = pair


def _pair(layer: nn.Module, parts: Split, rank: int) -> nn.Module:
    """Two layers of the right sizes that do not hold their weights yet."""
    if isinstance(layer, Conv):
        return _pair_of_convs(layer, parts, rank)
    return _pair_of_linears(layer, rank) if isinstance(layer, nn.Linear) else _pair_of_recurrent(cast(nn.LSTM, layer), rank)


def _free(layer: nn.Module, attribute: str) -> list[Parameter]:
    """The free part of the code on a parameter, in the order of its `forward`."""
    return [parameter for _, parameter in layer.get_submodule(f"parametrizations.{attribute}").named_parameters()]


def _layers(pair: nn.Module) -> tuple[nn.Module, nn.Module]:
    return (pair.reduce, pair) if isinstance(pair, _Reduced) else (cast(nn.Sequential, pair)[0], cast(nn.Sequential, pair)[1])


def _set(layer: nn.Module, weight: Tensor, trained: bool) -> None:
    name = "weight_ih_l0" if isinstance(layer, nn.RNNBase) else "weight"
    setattr(layer, name, Parameter(weight, requires_grad=trained))


def _pair_of_linears(layer: nn.Linear, rank: int) -> nn.Sequential:
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    first = skip_init(nn.Linear, layer.in_features, rank, bias=False, **place)
    return nn.Sequential(first, skip_init(nn.Linear, rank, layer.out_features, bias=layer.bias is not None, **place))


def _pair_of_convs(layer: Conv, parts: Split, rank: int) -> nn.Sequential:
    """Stride, padding and dilation go with their kernel axis. Exact for every padding mode: the first layer has no bias, so it
    maps a padded border to what padding its own output gives."""

    def only(mine: Sequence[bool], values: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(value if taken else otherwise for taken, value in zip(mine, values, strict=True))

    def part(inputs: int, outputs: int, mine: Sequence[bool], bias: bool) -> nn.Module:
        padding = layer.padding if isinstance(layer.padding, str) else only(mine, layer.padding, 0)
        return skip_init(
            nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d,
            inputs,
            outputs,
            only(mine, layer.kernel_size, 1),
            stride=only(mine, layer.stride, 1),
            padding=padding,
            dilation=only(mine, layer.dilation, 1),
            bias=bias,
            padding_mode=layer.padding_mode,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )

    first = part(layer.in_channels, rank, parts.first, False)
    return nn.Sequential(first, part(rank, layer.out_channels, [not taken for taken in parts.first], layer.bias is not None))


def _pair_of_recurrent(layer: nn.LSTM | nn.GRU, rank: int) -> nn.Module:
    place = {"device": layer.weight_ih_l0.device, "dtype": layer.weight_ih_l0.dtype}
    sizes: dict[str, Any] = {
        "num_layers": layer.num_layers,
        "bias": layer.bias,
        "batch_first": layer.batch_first,
        "dropout": layer.dropout,
        "proj_size": layer.proj_size,
    }
    kind = ReducedLSTM if isinstance(layer, nn.LSTM) else ReducedGRU
    if kind is ReducedGRU:
        del sizes["proj_size"]
    pair = kind(rank, layer.hidden_size, **sizes, device="meta", dtype=layer.weight_ih_l0.dtype)
    for name, parameter in layer.named_parameters():
        if name != "weight_ih_l0":
            setattr(pair, name, parameter)
    pair.reduce = skip_init(nn.Linear, layer.input_size, rank, bias=False, **place)
    return pair


def _limit(layer: nn.Module, attribute: str, view: View, shapes: Iterable[Sequence[int]]) -> int:
    """The least rank at which two layers take as many MACs as the one, or as many parameters."""
    return min(break_even(layer, view, shapes), _smaller_below(*view.matrix_shape(tuple(getattr(layer, attribute).shape))))


def _smaller_below(rows: int, cols: int) -> int:
    """The least rank at which two factors of a matrix hold as many numbers as the matrix."""
    return -(-rows * cols // max(rows + cols, 1))


# --- small questions -----------------------------------------------------------------------------------------------------


def _named(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that has parameter `name`, and the attribute."""
    known = [*(n for n, _ in model.named_parameters(remove_duplicate=False) if "parametrizations." not in n), *coded(model)]
    if name not in known:
        raise FactorError(f"no parameter is named {short(name)}.{did_you_mean(name[:LONGEST_NAME], known)}")
    return owner(model, name)
