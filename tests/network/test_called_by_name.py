"""Networks that are called by name: every recipe, budget and count takes them, or says in a sentence what it needs."""

from __future__ import annotations

import dataclasses
import inspect
from collections import UserDict
from typing import Any

import pytest
import torch
from ordinary import ORDINARY, ROW, numbers, seeded
from torch import Tensor, nn

import featherweight as fw
from featherweight.cli import console, inputs, jobs
from featherweight.criteria.auxiliary import default_pivots, trained_heads
from featherweight.criteria.statistics import collect
from featherweight.errors import InputError
from featherweight.lowrank.layers import input_shapes
from featherweight.network.calls import Inputs, changed, first_tensor, tensors_of
from featherweight.recipes import RECIPES
from featherweight.run import latency_budget
from featherweight.run.agent import judged
from featherweight.run.contract import check_task
from featherweight.structure import trace
from featherweight.structure.count import count_macs

NAMED = ORDINARY["inputs by name, dataclass"]
ENCODER = ORDINARY["encoder, keyword, dict"]
FEW = {"keep": ("2x",), "bits": (4,), "candidates": 1}


def task_of(ordinary: Any, **changes: Any) -> fw.Task:
    made = fw.Task(
        ordinary.example,
        lambda epoch: [0, 1, 2],
        lambda network, batch: ordinary.loss(network),
        lambda network: -float(ordinary.loss(network).detach()),
        lambda parameters: torch.optim.SGD(parameters, 0.01),
        logits=ordinary.logits,
        classes=ordinary.classes,
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.third
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"nisp", "drop_blocks"}))  # no softmax, no network without blocks
def test_every_recipe_takes_a_network_that_is_called_by_name(name: str) -> None:
    known = inspect.signature(RECIPES[name]).parameters
    few = {key: 1 for key in known if key.endswith("epochs")} | {
        key: few for key, few in FEW.items() if key in known and name not in ("soft_filters", "layerwise_admm")
    }
    few |= {"bits": 4} if name == "quantize_aware" else {}  # one stage, not several
    network = NAMED.make()
    done = fw.compress(network, RECIPES[name](**few), task_of(NAMED))
    assert done.rows[0].measured.macs == 12 * 16 + 16 * 4, "of one example"
    assert done.rows[-1].measured.macs is not None
    whole = name in ("decompose", "trained_rank_pruning")  # matrices so small that a low rank may not pay
    assert done.rows[-1].measured.bits < done.rows[0].measured.bits + whole
    assert tensors_of(NAMED.run(done.model))[0].shape == (4, 4)


@pytest.mark.parametrize(
    "example",
    [ROW, (ROW,), [ROW], {"input": ROW}, Inputs((ROW,)), Inputs((), {"input": ROW})],
    ids=["tensor", "tuple", "list", "by name", "inputs", "inputs by name"],
)
def test_an_example_is_given_in_any_way_and_counts_the_same(example: Any) -> None:
    ordinary = ORDINARY["tabular"]
    network = ordinary.make()
    check_task(task_of(ordinary, example_inputs=example), network)
    assert count_macs(network, example) == (12 * 24 + 24 * 16 + 16 * 4, ())
    assert input_shapes(network, example)["3"] == [(4, 24)]
    assert len(latency_budget.timed({"dense": network}, example, 2)["dense"]) == 2


class ByName(nn.Module):
    """Calls its own layers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, row: Tensor) -> Tensor:
        return self.out(input=torch.relu(self.first(input=row)))


def test_layers_that_the_network_calls_by_name_are_watched() -> None:
    network = seeded(ByName)()
    task = task_of(ORDINARY["tabular"], example_inputs={"row": ROW})
    stats = collect(network, trace(network, task.example_inputs), task, ["gradients", "zeros", "gram"])
    assert stats.sites == ("first",) and float(stats.magnitudes["first"].max()) > 0
    assert input_shapes(network, task.example_inputs)["out"] == [(4, 8)]


# --- outputs of several parts --------------------------------------------------------------------------------------------


def test_heads_give_the_logits_where_the_output_is_more_than_those() -> None:
    network = ENCODER.make().eval()
    graph = trace(network, ENCODER.example)
    pivots = default_pivots(network, graph)
    assert "layers.layers.0.self_attn" not in pivots, "it gives a tuple"
    task = task_of(ENCODER)
    stats = collect(network, graph, task, ["zeros"], samples=12)
    heads = trained_heads(network, stats, pivots, rounds=1)
    assert all(head.output == (6, 5) and head.linear.in_features in (16, 24) for head in heads.values())  # type: ignore[union-attr]
    for without, says in ((None, "say which part of it is the logits"), (lambda output: output["logits"] + 0, "not compute one")):
        with pytest.raises(InputError, match=says):
            trained_heads(network, dataclasses.replace(stats, task=dataclasses.replace(task, logits=without)), pivots, rounds=1)


def test_curvature_of_outputs_is_that_of_the_logits() -> None:
    network, task = NAMED.make(), task_of(NAMED)
    graph = trace(network, NAMED.example)
    stats = collect(network, graph, task, ["pairs"], curvature="outputs")
    assert float(stats.pairs["first"].diagonal().min()) >= 0 < float(stats.pairs["first"].abs().max())
    with pytest.raises(InputError, match=r"curvature='outputs' is that of one tensor, and the network gives a Answer: say which"):
        collect(network, graph, dataclasses.replace(task, logits=None), ["pairs"], curvature="outputs")


def test_a_search_is_judged_by_right_answers_also_of_a_network_with_other_outputs() -> None:
    network = NAMED.make().eval()
    best = network(row=ROW).logits.argmax(1)
    task = task_of(NAMED, loss=lambda model, batch: model(row=batch[0]).logits.square().mean())
    assert judged(network, task, (ROW, best)) == 1.0
    assert judged(network, task, (ROW, (best + 1) % 4)) == 0.0
    assert judged(network, dataclasses.replace(task, logits=None), (ROW, best)) < 0, "minus the loss"


@dataclasses.dataclass(frozen=True)
class Held:
    """An output that cannot be written to and holds itself."""

    logits: Tensor
    more: Any = None


def test_an_output_is_changed_within_its_own_classes() -> None:
    ring: dict[str, Any] = {}
    output = (Held(numbers(4, 3), [UserDict(a=numbers(4)), "text", None]), 3)
    ring["self"] = ring
    got = changed(output, lambda tensor: tensor + 1)
    assert type(got[0]) is Held and type(got[0].more[0]) is UserDict and got[0].more[1:] == ["text", None] and got[1] == 3
    for one, other in zip(tensors_of(output), tensors_of(got), strict=True):
        assert torch.equal(one + 1, other)
    assert first_tensor((None, torch.tensor(2.0), output)) is output[0].logits and first_tensor(("text", 1)) is None


# --- the command line ----------------------------------------------------------------------------------------------------


def test_the_command_line_takes_shapes_by_name() -> None:
    work = inputs.shapes(["4x12", "mask=4x4"])
    assert (
        isinstance(work.example_inputs, Inputs)
        and [*work.example_inputs.kwargs] == ["mask"]
        and work.example_inputs.args[0].shape == (4, 12)
    )
    inputs.check_fit(NAMED.make(), inputs.shapes(["row=2x12"]), "mine.py:net", "--input row=2x12")
    with pytest.raises(InputError, match=r"does not take the example of --input row=2x3 \(row=\(2, 3\) torch.float32\)"):
        inputs.check_fit(NAMED.make(), inputs.shapes(["row=2x3"]), "mine.py:net", "--input row=2x3")
    for wrong in (["a b=1x2"], ["row=1x2", "row=1x2"]):
        with pytest.raises(InputError, match="the name of one input, once"):
            inputs.shapes(wrong)


def test_a_plan_says_which_sites_and_weights_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    ordinary = ORDINARY["u-net"]
    made = jobs.Job("net", "task", ordinary.make(), task_of(ordinary), True, {})
    stages = jobs.plan(made, RECIPES["thinet"]())
    assert (
        "a transposed convolution, whose patches are not sampled" in next(s for s in stages if s["units"])["left_out"]["deep.0"]
    )
    console.plan(RECIPES["thinet"](), stages)
    assert "left out: deep.0: it is read by up" in " ".join(capsys.readouterr().out.split())
    made.network.out.weight.requires_grad_(False)
    weights = jobs.plan(made, RECIPES["admm_quantization"](bits=(4,)))
    assert any("it is frozen" in stage["left_out"].get("out.weight", "") for stage in weights)
