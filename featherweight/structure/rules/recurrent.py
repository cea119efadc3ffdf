"""LSTM, GRU and plain RNN: a hidden unit is one row in each gate and one column of the recurrence.

Layers and directions share the hidden label, since the states of all of them lie in one tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from featherweight.structure.labels import Planes
from featherweight.structure.nodes import operation
from featherweight.structure.rules.movement import joined
from featherweight.structure.rules.names import table
from featherweight.structure.values import NEVER, Proof, Reading, Value, both
from featherweight.structure.walk import Walk

_TIE = "units of a recurrent layer, where nothing of one can go"


def _recurrent(walk: Walk, node: fx.Node, bound: dict[str, Any]) -> Any:
    """`input` (..., I); per layer and direction: weight_ih (G H, I), weight_hh (G H, P), biases (G H), weight_hr (P, H)."""
    if "data" in bound or not isinstance(bound.get("input"), Value):
        return walk.opaque(node, "packed sequences")
    x: Value = bound["input"]
    lstm = operation(node) == "lstm"
    gates = 4 if lstm else 3 if operation(node) == "gru" else 1
    states: list[Value] = bound["hx"] if lstm else [bound["hx"]]
    parameters: list[Value] = bound["params"]
    directions = 2 if bound["bidirectional"] else 1
    layers = int(bound["num_layers"])
    per = len(parameters) // (layers * directions)
    biases = bool(bound["has_biases"])
    projected = per == (5 if biases else 3)
    hidden = parameters[0].shape[0] // gates
    steps = int(np.prod(x.shape[:-1]))
    walk.freeze(x, range(len(x.shape) - 1), node, "steps and sequences of a recurrent layer")
    for state in states:
        walk.freeze(state, range(len(state.shape) - 1), node, "layers and sequences of a recurrent layer")
    why = f"{_TIE} ({walk.where(node)})"
    labels = walk.labels
    unit = [labels.fresh(hidden)]  # the cell
    seen = [labels.fresh(states[0].shape[-1])] if projected else unit  # what the next step and layer see
    labels.equal(states[-1].planes[-1], unit, why)
    if lstm:
        labels.equal(states[0].planes[-1], seen, why)
    current = x
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = (layer * directions + direction) * per
            w_ih, w_hh, *rest = parameters[at : at + per]
            vectors = rest[:2] if biases else []
            walk.equal([(current, len(current.shape) - 1), (w_ih, 1)], node, _TIE)
            for value in (w_ih, w_hh, *vectors):
                labels.equal(value.planes[0], [np.tile(u, gates) for u in labels.resolve(unit)], why)
            labels.equal(w_hh.planes[1], seen, why)
            if projected:
                w_hr = rest[-1]
                labels.equal(w_hr.planes[0], seen, why)
                labels.equal(w_hr.planes[1], unit, why)
                walk.count(node, [walk.factor(w_hr, 0), walk.factor(w_hr, 1)], steps)
            walk.count(node, [walk.factor(w_ih, 0), walk.factor(w_ih, 1)], steps)
            walk.count(node, [walk.factor(w_hh, 0), walk.factor(w_hh, 1)], steps)
            out = Value.plain((*x.shape[:-1], seen[0].shape[0]))
            out.planes[-1] = list(seen)
            proof = rest[-1].zero[0] if projected else both(w_ih.zero[0], w_hh.zero[0])
            for value in () if projected else vectors:
                proof = both(proof, value.zero[0])
            for state in () if projected else states:
                proof = both(proof, state.zero[-1])
            out.zero[-1] = proof
            walk.readings.append(_reading(walk, node, current.planes[-1], current.zero[-1], w_ih))
            walk.readings.append(_reading(walk, node, seen, proof, w_hh))
            if projected:
                walk.readings.append(
                    _reading(walk, node, unit, both(w_ih.zero[0], w_hh.zero[0]) if not biases else NEVER, rest[-1])
                )
            outputs.append(out)
        current = outputs[0] if directions == 1 else joined(walk, node, outputs, len(x.shape) - 1)
    finals = []
    for state, planes in zip(states, [seen, unit] if lstm else [unit], strict=True):
        final = Value.plain(state.shape)
        final.planes[-1] = list(planes)
        final.zero[-1] = NEVER if projected else outputs[0].zero[-1]
        finals.append(final)
    return [current, *finals]


def _reading(walk: Walk, node: fx.Node, planes: Planes, zero: Proof, weight: Value) -> Reading:
    """The recurrence and the next layer read units through dimension 1 of a weight; a constant cannot be folded there."""
    owners = {id(walk.values[n]): name for n, name in walk.owner.items()}
    return Reading(node, planes, zero, owners.get(id(weight), ""), 1, "", NEVER, None, 0, False)


RULES = table(_recurrent, "lstm gru rnn_tanh rnn_relu")
