"""What a run would take, told before it runs: epochs, multiply-accumulates and hours, by a few steps on random inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from featherweight.cli.jobs import Job
from featherweight.network.calls import Inputs
from featherweight.network.copies import copied
from featherweight.recipe.schema import Recipe
from featherweight.structure.count import count_macs
from featherweight.zoo import own_data

SAMPLES = 8  # of the step that is timed
BACKWARD = 2  # times the work of the forward pass, as is usual to say
TEACHER = 1 / 3  # more time a step where a dense network teaches


def estimate(job: Job, recipe: Recipe, stages: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of data by a path: epochs, samples an epoch and in all, MACs of a sample and in all, seconds a sample and hours in all, on
    this machine as it is now. None for other data, and where no step can be made of the example. Reading of data is not in it."""
    if not own_data.is_own(job.data) or not recipe.epochs():
        return None
    order = getattr(job.task.batches(0), "order", None)
    seconds = _seconds(job)
    if order is None or seconds is None:
        return None
    steps = {phase: sum(stage[phase]["epochs"] for stage in stages) for phase in ("train", "retrain")}
    taught = sum(stage.epochs for stage in recipe.stages if getattr(stage, "distill", None) is not None)
    epochs = sum(steps.values()) * (1 if recipe.candidates == 1 else recipe.candidates)
    samples = epochs * len(order)
    macs = count_macs(job.network, job.task.example_inputs)[0]
    hours = seconds * samples * (1 + TEACHER * taught / max(1, sum(steps.values()))) / 3600
    work = None if macs is None else macs * (1 + BACKWARD) * samples
    sizes = {"epochs": epochs, "samples_an_epoch": len(order), "samples": samples, "macs_a_sample": macs, "macs": work}
    return sizes | {"seconds_a_sample": seconds, "hours": hours, "device": job.device, "threads": torch.get_num_threads()}


def told(job: Job, recipe: Recipe, stages: Sequence[dict[str, Any]]) -> list[str]:
    """`estimate` in words; nothing where there is none."""
    found = estimate(job, recipe, stages)
    if found is None:
        return []
    work = "" if found["macs"] is None else f", {found['macs_a_sample']:,} MACs each, {found['macs']:.2g} in training"
    where = found["device"] if found["device"] != "cpu" else f"cpu, {found['threads']} threads"
    most = "up to " if recipe.candidates > 1 else ""
    return [
        f"{most}{found['epochs']:,} epochs of {found['samples_an_epoch']:,} samples{work}",
        f"about {found['hours']:.3g} hours on this machine ({where}): {1000 * found['seconds_a_sample']:.3g} ms a sample, "
        "forward and backward in full precision, before anything is cut; reading the data is not in it",
    ]


def _seconds(job: Job) -> float | None:
    """Of a training step, a sample: the example repeated, forward and backward, on a copy; the second of two."""
    inputs = Inputs.of(job.task.example_inputs)
    many = inputs.map(lambda tensor: tensor.repeat(SAMPLES, *[1] * (tensor.dim() - 1)) if inputs.has_batch(tensor) else tensor)
    network = copied(job.network).train()
    took = None
    for _ in range(2):
        begin = time.perf_counter()
        try:
            outputs = [
                one for one in _pytree.tree_leaves(_plain(many.call(network))) if isinstance(one, Tensor) and one.requires_grad
            ]
            sum(one.float().square().mean() for one in outputs).backward()  # type: ignore[union-attr]
        except (RuntimeError, ValueError, TypeError, AttributeError):  # a network that no repeated example suits
            return None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took = (time.perf_counter() - begin) / SAMPLES
    return took


def _plain(output: Any) -> Any:
    """A ModelOutput of transformers as a dict."""
    return dict(output) if hasattr(output, "keys") else output
