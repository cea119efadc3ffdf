"""Layer after layer, weights that lie in their sets and change the layer's outputs least, on what the layers before it, as they
are by then, make of training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from featherweight.criteria.inputs import in_order, matrix_of, second_moments
from featherweight.errors import InputError
from featherweight.network.copies import copied
from featherweight.recipe.schema import Layerwise
from featherweight.recipe.selection import is_watched
from featherweight.task import Task
from featherweight.weights.constrained import freeze
from featherweight.weights.layerwise import METHODS, Problem
from featherweight.weights.sets import LowRank
from featherweight.weights.targets import Target


@torch.no_grad()
def fit(asked: Layerwise, model: nn.Module, task: Task, targets: Mapping[str, Target], epoch: int) -> list[str]:
    """Put all targets into their sets, in place; of layers that can be watched, by what they are given. What is to be said of it.

    A low rank is found on what the layers are given in `model` as it is: a cut before them moves statistics that batch norms
    take anew at the end only. Where a layer has a bias, that makes up for the mean. Raises InputError where there is no sample to
    look at.
    """
    low_rank = asked.method == "svd"
    source = copied(model) if low_rank else model
    if low_rank:  # the rank of the weight as it is: an energy of what is left would take some of it again
        targets = {name: _of_its_rank(target, model.get_parameter(name)) for name, target in targets.items()}
    owners = {name: name.rpartition(".")[::2] for name in targets}
    layers = [path for path, own in owners.values() if own == "weight" and is_watched(model.get_submodule(path))]
    errors: dict[str, float] = {}
    for together, calls in in_order(source, task.example_inputs, layers).items():
        moments = second_moments(source, task, together, calls, asked.samples, epoch, ones=low_rank)
        for path in together:
            name, layer = f"{path}.weight" if path else "weight", model.get_submodule(path)
            if path in moments:
                weight = model.get_parameter(name)
                matrix = matrix_of(layer, weight).to(torch.promote_types(weight.dtype, torch.float32))
                found = moments[path].to(weight.device)
                means = found[:, :-1, -1] if low_rank else None
                if means is not None:
                    found = found[:, :-1, :-1]
                    if isinstance(layer.bias, nn.Parameter):
                        found = found - means[:, :, None] * means[:, None, :]
                problem = Problem(matrix, found, targets[name], tuple(weight.shape))
                new = METHODS[asked.method](problem)
                errors[name] = _error(problem, new)
                if means is not None and isinstance(layer.bias, nn.Parameter):
                    layer.bias.add_(((matrix - new).double() @ means[:, :, None]).flatten().to(layer.bias))
                weight.copy_(new.reshape(weight.shape))
    if not errors and layers:
        raise InputError(f"no layer saw a sample: is epoch {epoch} of the task empty?")
    for name, target in targets.items():
        if target.set.selects:  # zeros among what stays are not stored
            size = target.set.shrunk(target.view.to_matrix(model.get_parameter(name)))
            target = replace(target, set=min(target.set, size, key=lambda one: one.size()))
        freeze(model, name, target)
    said = []
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        said.append(
            f"of the outputs of {len(errors)} layers {100 * sum(errors.values()) / len(errors):.3g} % are lost on average, of "
            f"{worst} most, {100 * errors[worst]:.3g} % (squares, {asked.method})"
        )
    if unseen := sorted(targets.keys() - errors.keys()):
        said.append(f"by {'the weights alone' if low_rank else 'magnitude'}, as no sample reached them: {', '.join(unseen)}")
    return said


def _of_its_rank(target: Target, weight: torch.Tensor) -> Target:
    assert isinstance(target.set, LowRank)
    return replace(target, set=LowRank(target.set.rank_of(target.view.to_matrix(weight))))


def _error(problem: Problem, new: torch.Tensor) -> float:
    """mean |X (w - w0)|^2 over mean |X w0|^2."""
    dense, change = problem.weight.double(), (new - problem.weight).double()
    whole = float(((dense @ problem.moments) * dense).sum())
    return float(((change @ problem.moments) * change).sum()) / whole if whole > 0 else 0.0
