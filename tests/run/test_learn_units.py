"""Learned proportions: the count that is learned on, the masks, what is cut in the end, and runs of the recipe."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from residual import DOUBLE, EXAMPLE, Residual, held, residual, toy_task
from torch import Tensor, nn

from featherweight import (
    Compressed,
    Constrain,
    LearnUnits,
    Recipe,
    Rule,
    TopK,
    Train,
    compress,
    load,
    measurement,
    zoo,
)
from featherweight.budget.choices import Infeasible
from featherweight.budget.units import shifted
from featherweight.errors import FeatherweightError, InputError
from featherweight.recipe.reading import from_dict
from featherweight.recipe.schema import Stage
from featherweight.recipe.units import Adaptive
from featherweight.recipes import adaptive
from featherweight.run.learn_units import OPEN, Proportions, soft_top_k
from featherweight.ship.export import export
from featherweight.structure import ParameterCount, drop, prune, trace
from featherweight.training.schedule import Distillation, Training

TASK = toy_task(6, 2.0)


# --- the count -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_at_whole_sizes_the_count_is_that_of_the_rebuilt_network(seed: int) -> None:
    network, dice = residual(), torch.Generator().manual_seed(seed)
    graph = trace(network, EXAMPLE)
    count = ParameterCount(graph)
    assert count.sizes == (8, 12, 24, 10) and count.blocks == ("blocks.0", "blocks.1", "blocks.2")
    units = [int(torch.randint(1, size + 1, (), generator=dice)) for size in count.sizes]
    stay = [bool(torch.randint(0, 2, (), generator=dice)) for _ in count.blocks]
    keep = {name: range(number) for name, number in zip(count.sites, units, strict=True)}
    prune(network, graph, keep, where="class")
    gone = [name for name, stays in zip(count.blocks, stay, strict=True) if not stays]
    if gone:
        drop(network, trace(network, EXAMPLE), gone, where="class")
    assert float(count.at(torch.tensor(units), torch.tensor(stay))) == held(network)


def test_between_whole_sizes_the_count_has_the_slope_of_its_differences() -> None:
    graph = trace(residual(), EXAMPLE)
    count = ParameterCount(graph)
    units = torch.tensor([3.7, 5.1, 9.0, 2.2], dtype=torch.float64, requires_grad=True)
    shares = torch.tensor([0.3, 0.0, 0.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(count.at, (units, shares))
    whole = torch.tensor(count.sizes)
    alone = float(count.at(whole, torch.ones(3))) - float(count.at(whole, torch.tensor([1.0, 0.0, 1.0])))
    assert alone == 2 * 8 * 24 * 9 + 2 * 24 + 2 * 8  # the second block's own


# --- the masks -----------------------------------------------------------------------------------------------------------

GATES = torch.tensor([[0.9, -1.4, 0.3, 1.1, -0.2], [1.0, 0.5, 2.0, math.nan, math.nan]], dtype=torch.float64)
KEEP = torch.tensor([2.6, 1.2], dtype=torch.float64)


@pytest.mark.parametrize("width", [1.0, 0.3, 0.02])
def test_a_mask_adds_up_to_what_is_kept_and_follows_the_gates(width: float) -> None:
    mask = soft_top_k(GATES, KEEP, width)
    assert torch.allclose(mask.sum(1), KEEP, rtol=0, atol=1e-9)
    assert bool((mask[1, 3:] == 0).all()) and bool(((mask >= 0) & (mask <= 1)).all())
    assert mask[0].argsort().tolist() == GATES[0].abs().argsort().tolist()
    for row, number in ((0, 5), (1, 3)):  # what the definition says of any two units
        logits = torch.logit(mask[row, :number])
        heights = GATES[row, :number].abs() / width
        inside = (mask[row, :number] > 1e-6) & (mask[row, :number] < 1 - 1e-6)
        assert torch.allclose((logits - heights)[inside], (logits - heights)[inside][:1], atol=1e-4)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(soft_top_k(GATES[:1, order], KEEP[:1], width), mask[:1, order], atol=1e-12)


def test_a_sharp_mask_of_a_whole_number_is_that_of_the_largest() -> None:
    mask = soft_top_k(GATES, torch.tensor([2.0, 1.0]), 1e-3)
    assert torch.allclose(mask, torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]).double(), atol=1e-12)


def test_a_mask_has_the_gradient_of_its_differences() -> None:
    gates = GATES[:1].clone().requires_grad_()
    keep = KEEP[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda g, k: soft_top_k(g, k, 0.4), (gates, keep))
    mask = soft_top_k(gates, keep, 0.4)
    assert float(torch.autograd.grad(mask.sum(), keep)[0]) == pytest.approx(1)  # one more kept is one more in all


# --- sizes ---------------------------------------------------------------------------------------------------------------


def test_sizes_are_shifted_alike_until_the_budget_is_met_and_filled() -> None:
    learned = {"a": (0.0, 40), "b": (1.0, 40), "c": (-1.0, 40)}
    for limit in (7, 30, 59, 60, 61, 100, 119, 120, 500):
        sizes = shifted(learned, lambda sizes: sum(sizes.values()), limit)
        assert sum(sizes.values()) == min(limit, 120) and all(1 <= size <= 40 for size in sizes.values())
        assert sizes["c"] <= sizes["a"] <= sizes["b"]
    kept = shifted(learned, lambda sizes: sum(sizes.values()), 60)
    assert kept == {"a": 20, "b": 29, "c": 11}  # 40 sigmoid(t): this is what was learned
    with pytest.raises(Infeasible, match="one unit a site"):
        shifted(learned, lambda sizes: sum(sizes.values()), 2)


# --- inside and after ----------------------------------------------------------------------------------------------------


def proportions(network: nn.Module, parameters: float, **given: float) -> Proportions:
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    example = DOUBLE if next(network.parameters()).dtype == torch.float64 else EXAMPLE
    return Proportions(Adaptive(parameters, **given), network, example, optimizer, steps=10)


def test_everything_is_found_from_the_graph() -> None:
    found = proportions(residual(), 0.5)
    assert found.sites == ("stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1")
    assert found.branches == {f"blocks.{i}": f"blocks.{i}.norm2" for i in range(3)}
    weights = found.model.get_parameter("blocks.1.conv1.weight").detach()
    norms = weights.square().sum((1, 2, 3)).sqrt()
    assert torch.allclose(found.gates[2].detach(), norms / norms.mean(), atol=1e-6)
    share = 1 / (1 + math.exp(-OPEN))
    expected = found.count.at(share * torch.tensor(found.count.sizes), torch.full((3,), share))
    assert found.parameters().item() == pytest.approx(float(expected))
    assert found.penalty().item() == pytest.approx(3 * (float(expected) / held(residual()) - 0.5))
    assert proportions(residual(), 1.0).penalty().item() == 0


def test_sharp_gates_compute_what_the_cut_network_computes() -> None:
    network = residual().double()
    kept, x = {"stem": 5, "blocks.0.conv1": 7, "blocks.1.conv1": 10, "blocks.2.conv1": 3}, torch.randn(9, 1, 6, 6).double()
    count = ParameterCount(trace(network, DOUBLE))
    asked = float(count.at(torch.tensor(list(kept.values())), torch.tensor([1, 0, 1]))) / held(network)
    learned = proportions(network, asked)
    with torch.no_grad():
        learned.step = learned.steps
        ranks = torch.rand(4, 24).argsort(1).double()  # far apart: no unit on the edge
        learned.gates.copy_(torch.where(learned.gates.isnan(), torch.nan, ranks))
        learned.proportions.copy_(torch.logit(torch.tensor([5 / 8, 7 / 12, 10 / 24, 3 / 10], dtype=torch.float64)))
        learned.switches.copy_(torch.tensor([3.0, -3.0, 3.0]))
    network.eval()
    with torch.no_grad():
        whole = network(x)
        with learned:
            inside = network(x)
        assert torch.equal(network(x), whole)  # and outside nothing is left of the gates
        assert learned.chosen() == (kept | {"blocks.1.conv1": 24}, ["blocks.1"])  # units of what goes anyway cost nothing
        edits = learned.cut()
        assert torch.allclose(network(x), inside, rtol=0, atol=1e-12 * float(whole.abs().max()))
    assert float((inside - whole).abs().max()) > 1e-3
    assert [edit.kind for edit in edits] == ["cut", "drop"]
    assert dict(edits[0].sites) == {"stem": 5, "blocks.0.conv1": 7, "blocks.2.conv1": 3}
    assert isinstance(network.blocks[1], nn.Identity)  # type: ignore[index]


def test_blocks_go_until_the_budget_can_be_met() -> None:
    """Three blocks that would stay, and less room than they need with a unit each: the one of the least share goes."""
    count = ParameterCount(trace(residual(), EXAMPLE))
    least = float(count.at(torch.ones(4), torch.ones(3)))
    learned = proportions(residual(), (least - 1) / held(residual()))
    with torch.no_grad():
        learned.switches.copy_(torch.tensor([2.0, 1.0, 3.0]))
    sizes, gone = learned.chosen()
    assert gone == ["blocks.1"]
    assert float(count.at(torch.tensor(list(sizes.values())), torch.tensor([1, 0, 1]))) < least


def test_what_no_unit_of_is_read_counts_and_stays() -> None:
    network = residual()
    network.spare = nn.Parameter(torch.zeros(1000))
    learned = proportions(network, 0.5)
    learned.cut()
    assert held(network) <= 0.5 * (held(residual()) + 1000)
    assert held(network) > 0.49 * (held(residual()) + 1000)


# --- the recipe ----------------------------------------------------------------------------------------------------------

WIDE = (20, 32, 20)
RECIPE = adaptive(0.5, gate_rate=0.1, epochs=8, fine_tune_epochs=3, distill=0.5)


@pytest.mark.long
def test_the_recipe_meets_its_budget_and_a_block_goes(tmp_path: Path) -> None:
    """The widest block is put in after the others were trained: the task does without it."""
    network = residual(*WIDE)
    new, network.blocks[1] = network.blocks[1], nn.Identity()  # type: ignore[index]
    network = compress(network, Recipe("dense", (Train("dense", train=Training(4)),)), TASK).model
    network.blocks[1] = new  # type: ignore[index]
    result = compress(network, RECIPE, TASK)
    dense, learned, tuned = (row.measured for row in result.rows)
    assert dense.parameters == held(network) and result.rows[1].asked == 0.5
    assert 0.49 * dense.parameters < learned.parameters <= 0.5 * dense.parameters and learned.macs is not None
    assert learned.macs < dense.macs  # type: ignore[operator]
    dropped = [edit["change"]["sites"] for edit in result.snapshot.edits if edit["change"]["kind"] == "drop"]
    assert dropped == [{"blocks.1": 0}]
    assert isinstance(result.model.get_submodule("blocks.1"), nn.Identity)
    assert tuned.parameters == learned.parameters == held(result.model)
    assert tuned.score > 60  # of three classes
    x = TASK.batches(7)[0][0]
    result.save(tmp_path / "art")
    assert torch.equal(load(tmp_path / "art", Residual(*WIDE)).eval()(x), result.model.eval()(x))
    assert export(result.model, EXAMPLE, tmp_path / "model.pt2", "pt2").relative < 1e-4  # which runs the file to compare


STOPPED = LearnUnits("learned", train=Training(2), retrain=Training(1), adaptive=Adaptive(0.5, rate=0.3), distill=Distillation())


@pytest.fixture(scope="module")
def uninterrupted() -> Compressed:
    return compress(residual(*WIDE), Recipe("r", (STOPPED,)), TASK)


@pytest.mark.third
@pytest.mark.parametrize("stop_at", [7, 15])
def test_a_run_that_stopped_ends_with_the_same_bits(
    stop_at: int, uninterrupted: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first and in a later epoch of learning, and after the cut."""
    monkeypatch.setattr(measurement, "count_macs", lambda model, example: (1, ()))  # most of the time, and no part of this
    recipe, steps = Recipe("r", (STOPPED,)), itertools.count(1)

    def stop(progress: object) -> None:
        if next(steps) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(residual(*WIDE), recipe, TASK, workdir=tmp_path, monitor=stop, checkpoint_seconds=999)
    resumed = compress(residual(*WIDE), recipe, TASK, workdir=tmp_path)
    whole = uninterrupted.snapshot
    assert whole.edits and resumed.snapshot.edits == whole.edits
    for (name, one), other in zip(whole.state.items(), resumed.snapshot.state.values(), strict=True):
        assert torch.equal(one, other), name


def test_a_plain_network_loses_units_and_a_fixed_one_only_blocks() -> None:
    lenet = zoo.lenet_300_100()
    learned = Proportions(Adaptive(0.4), lenet, (torch.rand(1, 1, 28, 28),), torch.optim.SGD(lenet.parameters(), 0.1), 10)
    assert learned.sites == ("fc1", "fc2") and learned.blocks == ()
    optimizer = learned.optimizer
    with learned:
        lenet(torch.rand(4, 1, 28, 28)).sum().backward()
        optimizer.step()
    learned.cut()
    assert 0.39 < held(lenet) / 266_610 <= 0.4

    class Fixed(nn.Module):
        """The stream is the input itself, its inner units are in a sum that nothing may shrink."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(torch.softmax(self.one(x), 1))

    stack = nn.Sequential(Fixed(), Fixed())
    learned = Proportions(Adaptive(0.5), stack, (torch.rand(1, 4),), torch.optim.SGD(stack.parameters(), 0.1), 10)
    assert learned.sites == () and learned.blocks == ("0", "1")
    with learned:
        stack(torch.rand(4, 4)).sum().backward()
        learned.optimizer.step()
    learned.cut()
    assert held(stack) == 40 and sum(isinstance(module, nn.Identity) for module in stack) == 1


# --- what cannot be ------------------------------------------------------------------------------------------------------


def both(**fields: object) -> None:
    """A stage of a file that is of two kinds."""
    stage = {"name": "s", "adaptive": {"parameters": 0.5}, "train": {"epochs": 1}, **fields}
    from_dict({"name": "r", "stages": [stage]})


class Recurrent(nn.Module):
    """A convolution that a GRU alone reads: no Conv or Linear module is there to gate its units at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gru, self.out = nn.Conv1d(6, 8, 3, padding=1), nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.gru(torch.relu(self.conv(image.flatten(1, 2))).transpose(1, 2))[0][:, -1])


def run(network: nn.Module, asked: Adaptive, *before: Stage) -> None:
    compress(network, Recipe("r", (*before, LearnUnits("learned", adaptive=asked, train=Training(1)))), TASK)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Adaptive(0.0), r"in \(0, 1\]"),
        (lambda: Adaptive(1.5), r"in \(0, 1\]"),
        (lambda: Adaptive(0.5, weight=0.0), "weight"),
        (lambda: Adaptive(0.5, rate=math.inf), "rate"),
        (lambda: LearnUnits("s", Adaptive(0.5), Training(0)), "give it epochs"),
        (lambda: both(units={"criterion": "l1", "macs": 0.5}), "cut_units and learn_units at once: make it 2"),
        (lambda: both(rules=[{"targets": "*", "set": {"kind": "top_k", "count": 1}}]), "constrain and learn_units at once"),
        (lambda: run(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), Adaptive(0.5)), "nothing to learn.*Take progressive_admm"),
        (lambda: run(Recurrent(), Adaptive(0.5)), "conv: its units are read by gru.*Take l1_filters.*or progressive_admm"),
        (lambda: run(residual(), Adaptive(0.5), Constrain("s", (Rule("stem.weight", TopK(5)),))), "before weights are coded"),
        (lambda: run(residual(), Adaptive(0.001)), "Ask for .* or more"),
    ],
)
def test_what_cannot_be_is_refused(make: object, says: str) -> None:
    with pytest.raises(FeatherweightError, match=says):
        make()  # type: ignore[operator]


def test_the_least_budget_that_is_named_is_met() -> None:
    with pytest.raises(Infeasible, match="Ask for") as caught:
        proportions(residual(), 0.001)
    least = float(str(caught.value).split("Ask for ")[1].split(" %")[0]) / 100
    network = residual()
    learned = proportions(network, least * 1.01)  # printed in three digits
    learned.cut()
    assert held(network) <= 1.01 * least * held(residual())


def test_a_closure_is_a_step_and_the_hooks_go_with_an_error() -> None:
    found = []
    for closed in (False, True):
        network = residual()
        learned = proportions(network, 0.5)

        def closure(network: nn.Module = network) -> torch.Tensor:
            loss = network(EXAMPLE[0]).square().mean()
            loss.backward()
            return loss

        with learned:
            for _ in range(3):
                learned.optimizer.zero_grad()
                if closed:
                    learned.optimizer.step(closure)
                else:
                    closure()
                    learned.optimizer.step()
        assert learned.step == 3
        found.append(learned.gates.detach().clone())
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(InputError, match="stop"), learned:
        raise InputError("stop")
    learned.optimizer.step()
    assert learned.step == 3
    assert not network._forward_pre_hooks
