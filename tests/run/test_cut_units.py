"""Stages that cut units: by every criterion, within the budget, trained on, saved, resumed; and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from residual import toy_task
from torch import Tensor, nn

from featherweight import Constrain, CutUnits, Recipe, Rule, TopK, Train, compress, load
from featherweight.budget.amc import Search
from featherweight.budget.choices import Infeasible
from featherweight.budget.units import Stopping, allocate
from featherweight.criteria import CRITERIA, Ranking
from featherweight.criteria.statistics import Stats, collect
from featherweight.errors import FeatherweightError
from featherweight.recipe.reading import from_dict
from featherweight.recipe.schema import Stage
from featherweight.recipe.units import Criterion, Units
from featherweight.recipes import soft_filters
from featherweight.recipes.soft_pruning import macs_by_formula
from featherweight.run import agent, cut_units, ranked
from featherweight.run.ranked import Damage
from featherweight.run.report import Row, notes
from featherweight.structure import Graph, trace
from featherweight.task import Task
from featherweight.training.schedule import Distillation, Training


class Small(nn.Module):
    """Two convolutions with batch norms on a residual stream of eight channels, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))
        return self.last(x.mean((2, 3)))


TASK = toy_task(4, 1.0)
DENSE = Train("dense", train=Training(1))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Small()


def test_the_names_that_a_recipe_takes_are_those_that_there_are() -> None:
    assert set(get_args(Criterion)) == set(CRITERIA)


@pytest.mark.third
@pytest.mark.parametrize(("criterion", "refit"), [*((name, False) for name in CRITERIA), ("thinet", True), ("l1", True)])
def test_every_criterion_meets_its_budget_and_trains_on(criterion: Criterion, refit: bool, tmp_path: Path) -> None:
    units = Units(criterion, macs=0.5, samples=64, refit=refit)
    result = compress(network(), Recipe("r", (DENSE, CutUnits("cut", units=units, train=Training(1)))), TASK)
    dense, cut = (row.measured for row in result.rows)
    assert dense.macs is not None and cut.macs is not None
    assert 0.4 * dense.macs <= cut.macs <= 0.5 * dense.macs and result.rows[1].asked == 0.5
    assert cut.parameters < dense.parameters and cut.score == TASK.evaluate(result.model)
    result.save(tmp_path / "art")
    fresh = load(tmp_path / "art", Small()).eval()
    assert torch.equal(fresh(TASK.batches(7)[0][0]), result.model.eval()(TASK.batches(7)[0][0]))


def test_what_is_cut_is_what_the_criterion_says() -> None:
    """L1 by hand: of the block's inner channels the six with the largest filters stay."""
    made = network()
    norms = made.conv1.weight.detach().abs().sum((1, 2, 3))  # type: ignore[union-attr,operator]
    kept = norms.argsort(descending=True)[:6].sort().values
    share = (8 * 9 * 36 + 2 * 8 * 6 * 9 * 36 + 24) / (8 * 9 * 36 + 2 * 8 * 12 * 9 * 36 + 24)
    units = Units("l1", macs=share, sites="conv1")
    result = compress(made, Recipe("r", (CutUnits("cut", units=units),)), TASK)
    assert torch.equal(result.model.conv1.weight, made.conv1.weight[kept])  # type: ignore[union-attr,index]
    assert torch.equal(result.model.conv2.weight, made.conv2.weight[:, kept])  # type: ignore[union-attr,index]


def test_a_certified_cut_says_how_far_each_choice_is_from_the_best_of_all() -> None:
    units = Units("collaborative", macs=0.5, samples=64, certify=True)
    result = compress(network(), Recipe("cut", (CutUnits("cut", units=units),)), TASK)
    spent, dense = result.rows[-1].spent, network()
    graph = trace(dense, TASK.example_inputs)
    stats = collect(dense, graph, TASK, {"pairs", "gradients"}, sites=list(graph.sites), samples=64, epoch=0, curvature="outputs")
    kept = {name: site.size for name, site in trace(result.model, TASK.example_inputs).sites.items()}
    assert spent is not None and set(spent.gaps) == {name for name, size in kept.items() if size < graph.site(name).size} != set()
    for name, gap in spent.gaps.items():
        size, pairs = graph.site(name).size, stats.pairs[name]
        choices = torch.zeros(math.comb(size, size - kept[name]), size, dtype=torch.float64)
        gone = torch.tensor(list(itertools.combinations(range(size), size - kept[name])))
        damages = (choices.scatter_(1, gone, 1.0) @ pairs * choices).sum(1) / 2
        told = CRITERIA["collaborative"](dense, graph, stats)[name].loss(kept[name])
        assert damages.min() >= (1 - gap) * told - 1e-15 and 0 <= gap <= 0.01
    assert "no other choice" in notes(result.rows)[-1]
    assert Row.from_dict(json.loads(json.dumps(result.rows[-1].to_dict()))) == result.rows[-1]


def test_a_budget_of_parameters_and_one_that_holds_already() -> None:
    half = Recipe("r", (CutUnits("cut", units=Units("l2", parameters=0.5)),))
    result = compress(network(), half, TASK)
    assert result.rows[0].measured.parameters <= 0.5 * sum(p.numel() for p in network().parameters())
    whole = compress(network(), Recipe("r", (CutUnits("cut", units=Units("l2", macs=1.0)),)), TASK)
    assert whole.rows[0].measured.parameters == sum(p.numel() for p in network().parameters())


def test_two_cuts_then_masks_and_the_teacher_is_the_dense_network() -> None:
    stages = (
        DENSE,
        CutUnits("first", units=Units("taylor", macs=0.7, samples=32), train=Training(1), distill=Distillation(0.5)),
        CutUnits("second", units=Units("l1", macs=0.7), train=Training(1), distill=Distillation(0.5)),
        Constrain("masked", (Rule("*conv*.weight", TopK()),), keep=0.5, retrain=Training(1), distill=Distillation(0.5)),
    )
    result = compress(network(), Recipe("r", stages), TASK)
    macs = [row.measured.macs for row in result.rows]
    assert macs[0] > macs[1] > macs[2] == macs[3]  # type: ignore[operator]
    assert [edit["edit"] for edit in result.snapshot.edits] == ["structure", "structure", "code", "code"]


def test_a_run_that_stopped_in_a_cut_stage_ends_with_the_same_bits(tmp_path: Path) -> None:
    stage = CutUnits("cut", units=Units("collaborative", macs=0.5, samples=64), train=Training(2))
    recipe = Recipe("r", (DENSE, stage))
    whole = compress(network(), recipe, TASK)
    steps = 0

    def stop(progress: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:  # of 4 in the dense stage and 8 in the other
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(network(), recipe, TASK, workdir=tmp_path, monitor=stop, checkpoint_seconds=0)
    resumed = compress(network(), recipe, TASK, workdir=tmp_path)
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_auxiliary_losses_count_in_the_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are of a loss that is more than the network's own: by the heads' losses, which are about what a guess costs."""
    seen: list[tuple[float, float]] = []

    def spy(model: nn.Module, graph: Graph, task: Task, *given: Any, **options: Any) -> Stats:
        model.eval()
        seen.append((float(task.loss(model, task.batches(0)[0]).detach()), float(TASK.loss(model, TASK.batches(0)[0]).detach())))
        return collect(model, graph, task, *given, **options)

    monkeypatch.setattr(cut_units, "collect", spy)
    for on in (False, True):
        units = Units("collaborative", macs=0.5, samples=64)
        result = compress(network(), Recipe("r", (DENSE, CutUnits("cut", units=units, auxiliary=on))), TASK)
        assert result.model.state_dict().keys() == network().state_dict().keys()
    assert seen[0][0] == seen[0][1] and seen[1][0] > 1.5 * seen[1][1]


def test_the_heads_of_a_stage_learn_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer that trains is given the heads' parameters too, and the loss of a step is the network's and theirs."""
    given: list[tuple[int, float]] = []

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        every = list(parameters)  # type: ignore[call-overload]
        given.append((len(every), 0.0))
        return torch.optim.SGD(every, 1e-9)

    task = dataclasses.replace(TASK, optimizer=optimizer)
    lost = []
    for on in (False, True):
        stage = Train("tuned", train=Training(1), auxiliary=on)
        lost.append(compress(network(), Recipe("r", (stage,)), task).rows[0].loss)
    assert (
        given[3][0] - given[1][0] == 2 * 4
    )  # each run builds one to look at; two heads: a batch norm's two vectors, a matrix and a bias each
    assert lost[1] > lost[0] * 1.1


@pytest.mark.long
def test_a_run_with_auxiliary_heads_that_stopped_ends_with_the_same_bits(tmp_path: Path) -> None:
    cut = CutUnits("cut", units=Units("l1", macs=0.5), train=Training(1), auxiliary=True)
    recipe = Recipe("r", (cut, Train("tuned", train=Training(2), auxiliary=True)))
    whole = compress(network(), recipe, TASK)
    for stop in (2, 6, 10):  # of 4 steps in the first stage, and 8 in the second
        steps = iter(range(1, 100))

        def monitor(progress: object, steps: Iterator[int] = steps, stop: int = stop) -> None:
            if next(steps) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            compress(network(), recipe, TASK, workdir=tmp_path / str(stop), monitor=monitor, checkpoint_seconds=0)
        resumed = compress(network(), recipe, TASK, workdir=tmp_path / str(stop))
        for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
            assert torch.equal(one, other), (stop, name)


@pytest.mark.parametrize("ceiling", [1.0, 0.3])
def test_a_stopping_rule_gives_the_sizes_and_the_budget_is_a_ceiling(ceiling: float) -> None:
    units = Units("l2", macs=ceiling, allocate=Stopping(0.09))
    made = network()
    result = compress(made, Recipe("r", (CutUnits("cut", units=units),)), TASK)
    norms = made.conv1.weight.detach().square().sum((1, 2, 3)).sqrt().sort(descending=True).values.tolist()  # type: ignore[union-attr,operator]
    left = [sum(norms[k:]) for k in range(len(norms) + 1)]  # the damage where k are kept, by hand
    stops = next(k for k in range(1, 12) if (left[k] - left[k + 1]) / left[1] <= 0.09)
    kept = result.model.conv1.weight.shape[0]  # type: ignore[union-attr,index]
    spent = result.rows[0].spent
    assert spent is not None and result.rows[0].measured.macs == spent.after <= ceiling * spent.before
    if ceiling == 1.0:
        assert kept == stops and "stopping rule" in spent.note
    else:
        assert kept < stops and spent.after > 0.85 * spent.asked


def test_a_search_cuts_within_the_budget_never_asks_the_score_and_repeats() -> None:
    """The reward is of training batches that neither the criterion nor the fit looked at; the test's score counts its calls."""
    asked: list[nn.Module] = []

    def counted(model: nn.Module) -> float:
        asked.append(model)
        return TASK.evaluate(model)

    task = dataclasses.replace(TASK, evaluate=counted)
    units = Units("l1", macs=0.5, samples=64, refit=True, allocate=Search(6, 3))
    results = []
    for seed in (1, 1, 2):
        made = network()
        torch.manual_seed(seed)
        results.append(compress(made, Recipe("r", (CutUnits("cut", units=units),)), task))
    assert len(asked) == 6, "twice a run, to see that it is a number, and for its row"
    for result in results:
        macs, spent = result.rows[0].measured.macs, result.rows[0].spent
        assert macs is not None and spent is not None and macs == spent.after <= 0.5 * spent.before
    shapes = [[tuple(value.shape) for value in result.model.state_dict().values()] for result in results]
    assert shapes[0] == shapes[1] != shapes[2]


def test_a_search_is_rewarded_for_right_answers_on_batches_not_seen() -> None:
    """By hand: batches 2 and 3 of the epoch, since two of 32 hold the 64 samples that the fit looked at."""
    made = network()
    graph = trace(made, TASK.example_inputs)
    stats = collect(made, graph, TASK, ["gram"], samples=64)
    sites = tuple((name,) for name in graph.sites)
    held = ranked.Ranked(made, graph, stats, sites, CRITERIA["l1"](made, graph, stats), False)
    sizes = {name: site.size for name, site in graph.sites.items()}
    made.eval()
    right = [float((made(x).argmax(1) == y).float().mean()) for x, y in TASK.batches(0)[2:]]
    assert agent.reward_of(held, 64)(sizes) == pytest.approx(sum(right) / 2)
    assert agent.reward_of(held, 20)(sizes) == pytest.approx(right[0])
    place = agent.place_of(held, "conv1", (6, 12))
    assert (place.inputs, place.height, place.width, place.stride, place.kernel) == (8, 6, 6, 1, 3)


@pytest.mark.parametrize(
    ("units", "looked_at"),
    [
        (Units("taylor", macs=0.5, samples=1000), 128),
        (Units("thinet", macs=0.5, samples=129, refit=True), 128),
        (Units("l1", macs=0.5, samples=65, refit=True, allocate=Search(2, 1)), None),  # the reward takes the batch that is left
        (Units("taylor", macs=0.5, samples=128), None),
        (Units("l1", macs=0.5, samples=1000), None),
    ],
)
def test_a_criterion_takes_the_samples_there_are_and_says_so(units: Units, looked_at: int | None) -> None:
    """The task has four batches of 32."""
    row = compress(network(), Recipe("r", (CutUnits("cut", units=units),)), TASK).rows[0]
    assert row.spent is not None
    told = " ".join(row.spent.caveats)
    assert (told == "") == (looked_at is None) and (looked_at is None or f"{looked_at}" in told)
    assert all(any(caveat in note for note in notes([row])) for caveat in row.spent.caveats)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Units("l1"), "one budget"),
        (lambda: Units("l1", macs=0.5, parameters=0.5), "one budget"),
        (lambda: Train("s", auxiliary=True), "auxiliary needs training"),
        (lambda: Stopping(0.0), "tolerance"),
        (lambda: Units("l1", latency_ms=1.0, allocate=Search()), "along a path"),
        (lambda: run(Units("l1", macs=0.01, allocate=Search(2, 1))), "keeps 20% of every site"),
        (lambda: Units("l1", macs=1.5), r"in \(0, 1\]"),
        (lambda: Units("l1", macs=0.5, samples=0), "samples"),
        (lambda: both(rules=[{"targets": "*", "set": {"kind": "top_k"}}], units={"criterion": "l1", "macs": 0.5}), "2 stages"),
        (lambda: run(Units("l1", macs=0.001)), "Ask for"),
        (lambda: run(Units("l1", macs=0.5, sites="conv9")), "no units can go"),
        (lambda: run(Units("l1", macs=0.5), Constrain("s", (Rule("stem.weight", TopK(5)),))), "before weights are coded"),
    ],
)
def test_what_cannot_be_is_refused(make: object, says: str) -> None:
    with pytest.raises(FeatherweightError, match=says):
        make()  # type: ignore[operator]


def both(**fields: object) -> None:
    """A stage of a file that is of two kinds."""
    from_dict({"name": "r", "stages": [{"name": "s", **fields}]})


def run(units: Units, *before: Stage) -> None:
    compress(network(), Recipe("r", (*before, CutUnits("cut", units=units))), TASK)


def test_the_error_of_an_infeasible_budget_is_named() -> None:
    with pytest.raises(Infeasible, match="one unit a site"):
        run(Units("l2", parameters=0.01))


def test_an_even_share_asks_a_costly_ranking_for_few_sizes() -> None:
    """A collaborative ranking solves a programme for each size: of 500 units only those that are looked at."""
    asked = []

    class Costly(Ranking):
        size = 500

        def keep(self, k: int) -> tuple[int, ...]:
            return tuple(range(k))

        def loss(self, k: int) -> float:
            asked.append(k)
            return float((500 - k) ** 2)

    losses = {"wide": Damage(Costly())}
    sizes = allocate("uniform", losses, lambda sizes: sizes.get("wide", 500) * 10, 2505)
    assert sizes == {"wide": 250} and len(set(asked)) <= 4
    assert len(losses["wide"]) == 501 and losses["wide"][500] == 0 and len({*map(float, losses["wide"])}) > 490
    assert len(set(asked)) <= 33 and all(abs(losses["wide"][k] - (500 - k) ** 2) < 100 for k in range(1, 501))


@pytest.mark.parametrize(("pruned", "saved"), [(0.35, 46.98), (0.4, 52.63)])
def test_the_published_formula_gives_the_published_share(pruned: float, saved: float) -> None:
    assert (macs_by_formula(9), macs_by_formula(3)) == (125_485_696, 40_551_040)  # ResNet-56 and ResNet-20, counted by hand
    assert 100 * (1 - macs_by_formula(9, 1 - pruned) / macs_by_formula(9)) == pytest.approx(saved, abs=0.005)


def test_soft_filters_make_a_smaller_network_and_not_a_masked_one(tmp_path: Path) -> None:
    recipe = soft_filters(keep=0.5, targets="conv1.weight", every=4, epochs=3, rate=1.0)
    result = compress(network(), recipe, TASK)
    assert result.model.get_submodule("conv1").out_channels == 6
    dense, soft = (row.measured.macs for row in result.rows)
    assert dense is not None and soft is not None
    assert soft == dense - 2 * 36 * 9 * 8 * 6  # six units less, made and read by 3 x 3 kernels over 8 channels
    result.save(tmp_path / "small")
    example = TASK.example_inputs[0]
    assert torch.equal(load(tmp_path / "small", Small()).eval()(example), result.model.eval()(example))
