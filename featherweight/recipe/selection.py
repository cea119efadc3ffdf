"""Targets: which parameters of a network a rule means, and what each layer's kind makes of a view.

`"weights"` are the weights of linear, convolution (transposed ones, too), recurrent and attention layers, found by the modules'
types. Norms, biases and embeddings are none of them. Of them, and of what a pattern matches, frozen and tied parameters are left
out: a frozen one is not to be changed, and a code on one owner of a tied one would untie the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.conv import _ConvNd

from featherweight.errors import InputError
from featherweight.lowrank.factor import why_not
from featherweight.lowrank.layers import CHANNEL, SPATIAL, input_shapes, kind_of
from featherweight.network.calls import Example, Inputs
from featherweight.structure import trace
from featherweight.structure.errors import StructureError
from featherweight.weights.parameters import Parameters
from featherweight.weights.views import View

ROWS = View("o ... -> o (...)")
OF_TRANSPOSED = View("i o ... -> o (i ...)")  # a transposed convolution's weight has its inputs first
GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass
class Chosen:
    """The parameters that a rule means. `left_out`: parameter -> why it is no target though it might seem one. `computed`: those
    of them that are weights of layers, which something else computes."""

    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)


def weights_of(held: Parameters) -> Chosen:
    """The weights of layers, by the modules' types."""
    weights = held.values
    found, seen = Chosen(left_out=untouchable(held)), set[str]()
    for path, layer in held.model.named_modules():
        if "parametrizations" in path.split("."):
            continue
        for attribute in attributes_of(layer):
            name = f"{path}.{attribute}" if path else attribute
            seen.add(name)
            if name in found.left_out:
                continue
            if name in weights:
                found.names.append(name)
    for name, weight in weights.items():
        if weight.ndim > 1 and name not in seen and name not in found.left_out:
            kind = kind_of(held.layer(name)[0]).__name__
            found.left_out[name] = f"it is of a {kind}, no linear, convolution, recurrent or attention layer: name it to take it"
    found.left_out = {name: why for name, why in found.left_out.items() if name in seen or weights[name].ndim > 1}
    found.names.sort()
    found.computed = seen & held.computed.keys()
    return found


def attributes_of(layer: nn.Module) -> tuple[str, ...]:
    """The attributes of a layer that are its weights; none of a norm, an embedding, or a kind that is not known."""
    if isinstance(layer, (nn.Linear, nn.Bilinear, _ConvNd)):
        return ("weight",)
    if isinstance(layer, nn.RNNBase):
        return tuple(name for name in layer._flat_weights_names if name.startswith("weight"))
    if isinstance(layer, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    return ATTENTION if isinstance(layer, nn.MultiheadAttention) else ()


def view_of(view: View | str, held: Parameters, name: str) -> View:
    """The view of a parameter that a rule's word means: a layer's kind says where its outputs are, and how long its kernel is."""
    if isinstance(view, View):
        return view
    layer, attribute = held.layer(name)
    if view == "rows":
        if isinstance(layer, _ConvNd) and layer.transposed:
            return OF_TRANSPOSED
        gates = next((count for kind, count in GATES.items() if isinstance(layer, kind)), 1)
        return View("(g h) i -> h (g i)", (("g", gates),)) if gates > 1 and not attribute.startswith("weight_hr") else ROWS
    ndim = held.values[name].ndim
    if ndim == 4:
        return CHANNEL if view == "channel" else SPATIAL
    return {2: View("o i -> o i"), 3: View("o i w -> o (i w)")}.get(ndim, ROWS)


def untouchable(held: Parameters) -> dict[str, str]:
    """Parameter -> why it cannot be a target: it is frozen, tied, computed from others, or what another is computed from."""
    owners: dict[int, list[str]] = {}
    trained: dict[str, bool] = {}
    for name, parameter in held.model.named_parameters(remove_duplicate=False):
        if ".parametrizations." not in f".{name}":
            owners.setdefault(id(parameter), []).append(name)
            trained[name] = parameter.requires_grad
    for name in held.codes:
        layer, attribute = held.layer(name)
        trained[name] = any(free.requires_grad for free in layer.get_submodule(f"parametrizations.{attribute}").parameters())
    reasons = {name: "it is frozen (requires_grad=False)" for name, on in trained.items() if not on}
    for name, how in held.computed.items():
        reasons[name] = f"{how.by} computes it; to take it, make it an ordinary parameter first: {how.remove}"
        reasons |= dict.fromkeys(how.stored, f"{name} is computed from it by {how.by}")
    for tied in owners.values():
        if len(tied) > 1:
            reasons |= {
                one: f"it is tied: one tensor with {', '.join(n for n in tied if n != one)}; untie them first" for one in tied
            }
    return reasons


def of_two_layers(view: View | str, held: Parameters, found: Chosen, example: Example | Inputs | None) -> Chosen:
    """Without the weights that cannot be two thin layers: a low rank would be stored, and make nothing faster."""
    met = input_shapes(held.model, example) if example is not None else None
    left, reasons = [], {}
    for name in found.names:
        why = why_not(held.model, name, view_of(view, held, name))
        if why is None and met is not None and name.rpartition(".")[0] not in met:
            why = "its layer is not called with a tensor on the example"
        if why is None:
            left.append(name)
        else:
            reasons[name] = why
    return Chosen(left, found.left_out | reasons)


def is_watched(layer: nn.Module) -> bool:
    """Is it seen what a layer multiplies its weight by?"""
    return isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and not layer.transposed)


def of_watched_layers(held: Parameters, found: Chosen, example: Example | Inputs | None) -> Chosen:
    """Without the weights of layers whose inputs cannot be watched."""
    met = input_shapes(held.model, example) if example is not None else None
    left, reasons = [], {}
    for name in found.names:
        layer, attribute = held.layer(name)
        if not is_watched(layer):
            reasons[name] = f"what a {kind_of(layer).__name__} multiplies its weight by is not watched"
        elif attribute != "weight":
            reasons[name] = "it is no weight that multiplies a layer's inputs"
        elif met is not None and name.rpartition(".")[0] not in met:
            reasons[name] = "its layer is not called with a tensor on the example"
        else:
            left.append(name)
    return Chosen(left, found.left_out | reasons)


def head_of(model: nn.Module, example: Example | Inputs) -> str | None:
    """The last linear layer that runs, where it puts out a number for each row of an embedding: a language model's head."""
    sizes = {layer.num_embeddings for layer in model.modules() if isinstance(layer, nn.Embedding)}
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if not any(model.get_submodule(name).out_features in sizes for name in linear):
        return None
    last = [name for name in input_shapes(model, example) if name in linear][-1:]
    return last[0] if last and model.get_submodule(last[0]).out_features in sizes else None


def without_head(held: Parameters, found: Chosen, example: Example | Inputs) -> Chosen:
    """Without the head of a language model: each of its rows is a token's, and rare ones would go first."""
    name = f"{head_of(held.model, example)}.weight"
    if name not in found.names:
        return found
    why = "it is the head of a language model, a row a token: name it to take it"
    return Chosen([one for one in found.names if one != name], found.left_out | {name: why}, found.computed)


def of_rows_that_go(held: Parameters, found: Chosen, example: Example | Inputs) -> Chosen:
    """Without the weights whose rows must stay, such as those that make the network's outputs."""
    try:
        graph = trace(held.model, example)
    except StructureError as error:
        raise InputError(f"which rows may go is found on the network's graph: {error}. Or name the layers in `targets`") from None
    going = {parameter for site in graph.sites.values() for parameter in site.parameters}
    left, reasons = [], {}
    for name in found.names:
        layer, _ = held.layer(name)
        if (name, int(isinstance(layer, _ConvNd) and layer.transposed)) in going:
            left.append(name)
        else:
            reasons[name] = "its rows are outputs of the network, or cannot go for another reason"
    return Chosen(left, found.left_out | reasons)


def said(left_out: Mapping[str, str]) -> tuple[str, ...]:
    """One sentence a reason, naming whom it holds for."""
    groups: dict[str, list[str]] = {}
    for name, why in left_out.items():
        groups.setdefault(why, []).append(name)
    return tuple(f"no target: {', '.join(names)}: {why}" for why, names in groups.items())


def listed(left_out: Mapping[str, str]) -> str:
    return "; ".join(line.removeprefix("no target: ") for line in said(left_out))
