"""Layer after layer, weights that lie in their sets and change the layer's outputs least, on what the layers before it, as they
are by then, make of training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from featherweight.criteria.inputs import in_order, matrix_of, second_moments
from featherweight.errors import InputError
from featherweight.recipe.schema import Layerwise
from featherweight.task import Task
from featherweight.weights.constrained import freeze
from featherweight.weights.layerwise import METHODS, Problem
from featherweight.weights.targets import Target


@torch.no_grad()
def fit(asked: Layerwise, model: nn.Module, task: Task, targets: Mapping[str, Target], epoch: int) -> list[str]:
    """Put all targets, weights of layers that can be watched, into their sets, in place. What is to be said of it.

    Raises InputError where there is no sample to look at.
    """
    layers = [name.rpartition(".")[0] for name in targets]
    errors: dict[str, float] = {}
    unseen = set(targets)
    for together, calls in in_order(model, task.example_inputs, layers).items():
        moments = second_moments(model, task, together, calls, asked.samples, epoch)
        for path in together:
            name, layer = f"{path}.weight" if path else "weight", model.get_submodule(path)
            if path in moments:
                weight = model.get_parameter(name)
                matrix = matrix_of(layer, weight).to(torch.promote_types(weight.dtype, torch.float32))
                problem = Problem(matrix, moments[path].to(weight.device), targets[name], tuple(weight.shape))
                new = METHODS[asked.method](problem)
                errors[name] = _error(problem, new)
                weight.copy_(new.reshape(weight.shape))
                unseen.discard(name)
            size = targets[name].set.shrunk(targets[name].view.to_matrix(model.get_parameter(name)))
            within = min(targets[name].set, size, key=lambda one: one.size())  # zeros among what stays are not stored
            freeze(model, name, replace(targets[name], set=within))
    if not errors:
        raise InputError(f"no layer saw a sample: is epoch {epoch} of the task empty?")
    said = f"of the outputs of {len(errors)} layers {100 * sum(errors.values()) / len(errors):.3g} % are lost on average, of "
    worst = max(errors, key=lambda name: errors[name])
    found = [said + f"{worst} most, {100 * errors[worst]:.3g} % (squares, {asked.method})"]
    if unseen:
        found.append(f"by magnitude, as no sample reached them: {', '.join(sorted(unseen))}")
    return found


def _error(problem: Problem, new: torch.Tensor) -> float:
    """mean |X (w - w0)|^2 over mean |X w0|^2."""
    dense, change = problem.weight.double(), (new - problem.weight).double()
    whole = float(((dense @ problem.moments) * dense).sum())
    return float(((change @ problem.moments) * change).sum()) / whole if whole > 0 else 0.0
