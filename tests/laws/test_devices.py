"""Any device: a network on a GPU is compressed as on the CPU, nothing is moved behind its back, and nothing mixes devices.

The GPU is pretended (`tests/pretend.py` says what that models and what not), so these laws run everywhere; what they compute is
what the CPU computes. `tests/on_device` has a real one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table
import torch
import torch.nn.functional as F
from ordinary import ORDINARY, Ordinary
from pretend import CPU, Pretend, is_there
from residual import residual
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._pytree import tree_leaves, tree_map

from featherweight import Task, artifact, compress, latency, pace, packed
from featherweight.allocate import ALLOCATORS
from featherweight.coding import attach, coded, plain
from featherweight.criteria import CRITERIA, NEEDS, refit
from featherweight.criteria.pairwise import Quadratic
from featherweight.drivers import ADMM, Driver, Imposed, Target, freeze
from featherweight.errors import InputError
from featherweight.factor import factor, materialise
from featherweight.gates import find_readers
from featherweight.measure import measure
from featherweight.ranks import CHANNEL
from featherweight.recipe import Recipe, Rule, Stage, Training
from featherweight.recipes import RECIPES
from featherweight.sets import Codebook, Levels, LowRank, Set, SparseCodebook, TopK, TopRows
from featherweight.stats import STATISTICS, collect
from featherweight.structure import drop, prune, replay, silence, sweep, trace
from featherweight.views import View

GPU = "cuda"


def moved(value: Any, device: Any) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def all_there(*values: Any) -> bool:
    """Are all tensors in these values, and of these modules, on the GPU?"""
    leaves = [
        leaf for value in values for leaf in (value.state_dict().values() if isinstance(value, nn.Module) else tree_leaves(value))
    ]
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return all(map(is_there, found)) and bool(found)


def agree(one: Any, other: Any) -> bool:
    """Equal, but for the rounding of sums in another order, whatever the values are nested in."""
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(
        torch.allclose(torch.as_tensor(a), torch.as_tensor(b), 1e-5, 1e-6, equal_nan=True)
        if isinstance(a, (Tensor, float))
        else a == b
        for a, b in zip(ones, others, strict=True)
    )


def on_both(work: Callable[[Any], Any]) -> Any:
    """What `work` gives on the CPU, after the GPU gave the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        here = work(CPU)
        with Pretend():
            torch.manual_seed(0)
            there = work(GPU)
    assert agree(here, there)
    return here


# --- the law itself ------------------------------------------------------------------------------------------------------

# what the code did before these laws, in one line each; every one raises on a GPU
FAULTS: dict[str, Callable[[Tensor], Any]] = {
    "gates: a sum over units": lambda x: x.new_zeros(2).index_add_(0, torch.tensor([0, 1, 1]), x[:3, 0]),
    "reconstruct: a sum begun on the CPU": lambda x: torch.zeros(3, 3).add_(x.T @ x),
    "reconstruct: least squares by gelsd": lambda x: torch.linalg.lstsq(x, x, driver="gelsd"),
    "reconstruct: moments by a CPU weight": lambda x: x.cpu() @ x.T,
    "pairwise: a mask of rows": lambda x: x.masked_fill(torch.eye(*x.shape) > 0, 0.0),
    "pairwise: rests": lambda x: (torch.zeros(len(x)) > 0) & (x[:, 0] > 0),
    "bound: an identity": lambda x: torch.eye(len(x)) @ x,
    "bound: an index of no dimension": lambda x: x[0].index_fill(0, torch.tensor(0), 1.0),
    "bound: a division by ranks": lambda x: x[:, 0] / torch.arange(1, len(x) + 1),
    "propagate: ones as gates": lambda x: x * torch.ones(x.shape[1]),
    "rewrite: picked entries": lambda x: torch.ops.aten.index_select.default(x, 1, torch.from_numpy(np.array([0, 2]))),
    "pace: the example where it was": lambda x: F.linear(torch.ones(1, 3), x),
    "a gradient into a sum of the CPU": lambda x: torch.zeros(3).copy_(x[0]).add_(x[0]),
    "numpy": lambda x: x.numpy(),
    "numpy by the back door": lambda x: np.asarray(x),
    "a CPU generator": lambda x: x.clone().normal_(generator=torch.Generator()),
    "a CPU generator for a factory": lambda x: torch.rand(2, device=x.device, generator=torch.Generator()),
    "an index of the GPU into the CPU": lambda x: torch.zeros(4)[x[:, 0].long()],
    "writing into a CPU scalar": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "rows of both": lambda x: torch.stack([x[0], torch.zeros(3)]),
    "the product of whole numbers": lambda x: x.long() @ x.long().T,
    "a value of the other device": lambda x: x.clone().index_put_((torch.tensor([0]),), torch.zeros(1, 3)),
}
FINE: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: x * 2 + torch.tensor(3.0),
    "an index of the CPU": lambda x: x[torch.tensor([0, 2])],
    "a mask of the CPU": lambda x: x[torch.tensor([True, False, True, True])],
    "a list": lambda x: x[[0, 1]],
    "copied in": lambda x: x.clone().copy_(torch.ones(4, 3)),
    "written by slices": lambda x: x.clone().__setitem__(slice(0, 2), torch.ones(2, 3)) or x,
    "like": lambda x: torch.zeros_like(x) + x.new_ones(3) + x.new_tensor([1.0, 2.0, 3.0]),
    "made there": lambda x: x * torch.arange(3, device=x.device),
    "moved there": lambda x: x + torch.ones(3).to(x.device) + torch.ones(3).to(x),
    "copied deeply": lambda x: copy.deepcopy(x) + copy.deepcopy(nn.Parameter(x)).data,
    "padded by torch": lambda x: nn.utils.rnn.pad_sequence([x[:, 0], x[:2, 0]]),
    "where": lambda x: torch.where(x > 0, x, 0.0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_law_fails_on_what_a_gpu_refuses(fault: Callable[[Tensor], Any]) -> None:
    x = table.matrix(4, 3, dtype=torch.float32)
    with Pretend():
        with pytest.raises((RuntimeError, TypeError)):
            fault(x.to(GPU))
        assert not is_there(x)


@pytest.mark.parametrize("fine", FINE.values(), ids=FINE)
def test_the_law_lets_pass_what_a_gpu_does(fine: Callable[[Tensor], Tensor]) -> None:
    x = table.matrix(4, 3, dtype=torch.float32)
    with Pretend():
        result = fine(x.to(GPU))
        assert result.device.type == "cuda" and is_there(result)
    assert torch.equal(result, fine(x))


def test_the_law_sees_hooks_gradients_and_optimizers() -> None:
    with Pretend() as gpu:
        network = table.toy().to(GPU)
        optimizer = torch.optim.Adam(network.parameters())
        seen: list[torch.device] = []
        images = table.images().to(GPU)
        hidden = network.conv(images)
        hidden.register_hook(lambda gradient: seen.append(gradient.device))
        F.dropout(hidden).sum().backward()
        optimizer.step()
        assert seen == [torch.device("cuda", 0)] and gpu.drawn == ["aten::bernoulli_"]
        assert all_there(network, network.conv.weight.grad, optimizer.state[network.conv.weight]["exp_avg"])
        broken = network.conv(images)
        broken.register_hook(lambda gradient: gradient + torch.ones(gradient.shape))
        with pytest.raises(RuntimeError, match="same device"):
            broken.sum().backward()
        with pytest.raises(RuntimeError, match="same device"):
            network(table.images())


def test_the_law_sees_what_an_export_makes() -> None:
    class Places(nn.Module):
        def __init__(self, made_on: str | None) -> None:
            super().__init__()
            self.made_on = made_on

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(x.shape[1], device=self.made_on or x.device)

    with Pretend():
        x = torch.ones(2, 3, device=GPU)
        program = torch.export.export(Places(None), (x,), strict=False)
        (made,) = (node for node in program.graph.nodes if "arange" in str(node.target))
        assert made.kwargs["device"].type == "cuda" and made.meta["val"].device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            torch.export.export(Places("cpu"), (x,), strict=False)


# --- sets, codes, drivers, allocators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", table.ALL_SETS, ids=repr)
def test_a_set_projects_where_the_matrix_is(chosen: Set) -> None:
    def work(device: Any) -> Any:
        matrix = table.MATRICES["float32"].to(device)
        code = chosen.encode(matrix)
        projected, pull = chosen.project(matrix), chosen.pull(matrix)
        if device == GPU:
            assert all_there(projected, pull) and all(map(is_there, code.buffers()))
        return projected, pull, chosen.violation(matrix), repr(chosen.shrunk(projected)), code.bits(), code.weights()

    on_both(work)


@pytest.mark.parametrize("kind", table.CODES)
def test_a_code_decodes_trains_and_comes_off_where_its_weight_is(kind: str) -> None:
    def work(device: Any) -> Any:
        holder = nn.ParameterDict({"w": nn.Parameter(table.suited(kind).float().to(device))}).to(device)
        freeze(holder, "w", Target(table.SAMPLE[kind], View("a b -> a b"), masked=kind == "sparse_scaled"))
        optimizer = SGD(holder.parameters(), 0.1)
        holder["w"].square().sum().backward()
        optimizer.step()
        twin = nn.ParameterDict({"w": nn.Parameter(torch.zeros(table.ROWS, table.COLS).to(device))})
        code = coded(holder)["w"].code
        attach(twin, "w", View("a b -> a b"), type(code).blank(table.ROWS, table.COLS, **code.sizes()), blank=True)
        twin.to(device).load_state_dict({name: value.cpu() for name, value in holder.state_dict().items()})
        if device == GPU:
            assert all_there(holder, twin, holder["w"], plain(holder))
        return holder["w"].detach(), twin["w"].detach(), code.problem()

    on_both(work)


@pytest.mark.parametrize("driver", table.ALL_DRIVERS, ids=repr)
def test_a_driver_imposes_every_set_where_the_network_is(driver: Driver | None) -> None:
    def work(device: Any) -> Any:
        found = []
        for chosen in (TopK(13), TopRows(2), LowRank(2), Levels("uniform", 2), Codebook(3), SparseCodebook(11, 3)):
            network, images = table.toy().to(device), table.images().to(device)
            optimizer = SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
            squares = {"out.weight": torch.ones_like(network.out.weight)}
            target = Target(chosen, View("o i -> o i"), masked=True, fisher=0.5 if chosen.selects else 0.0)
            with Imposed(driver, network, optimizer, {"out.weight": target}, squares=squares) as imposed:
                for _ in range(3):
                    optimizer.zero_grad()
                    network(images).square().mean().backward()
                    optimizer.step()
                if device == GPU:
                    state = [leaf for leaf in tree_leaves(imposed.state_dict()) if isinstance(leaf, Tensor)]
                    assert all(map(is_there, state))
            if device == GPU:
                assert all_there(network)
            found.append((network.state_dict(), imposed.residuals()))
        return found

    on_both(work)


@pytest.mark.parametrize("allocate", ALLOCATORS.values(), ids=ALLOCATORS)
def test_an_allocator_takes_menus_from_any_device(allocate: Callable[..., dict[str, int]]) -> None:
    def work(device: Any) -> Any:
        sets = {name: sized.at(sized.least) for name, sized in table.SIZED.items() if sized.has_menu}
        menus = {name: chosen.menu(table.matrix().to(device)) for name, chosen in sets.items()}
        return allocate(menus, sum(menu.most for menu in menus.values()) // 2)

    on_both(work)


# --- statistics and criteria ---------------------------------------------------------------------------------------------


def batches_of(count: int, device: Any) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(count, 16, 1, 6, 6, generator=generator), torch.randint(0, 3, (count, 16), generator=generator)
    return [(x.to(device), y.to(device)) for x, y in zip(images, labels, strict=True)]


def task_on(device: Any, count: int = 3) -> Task:
    """The task of `residual()` with batches on a device, as its owner puts them there."""
    held = batches_of(count, device)

    def loss(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(network(batch[0]), batch[1])

    def score(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network.eval()(held[0][0]).argmax(1) == held[0][1]).float().mean())

    return Task((held[0][0][:1],), lambda epoch: held, loss, score, lambda p: SGD(p, 0.05, momentum=0.9))


def network_on(device: Any) -> nn.Module:
    return residual(4, 3).to(device)


@pytest.mark.parametrize("curvature", ["loss", "outputs"])
def test_statistics_are_on_the_cpu(curvature: Any) -> None:
    def work(device: Any) -> Any:
        network, task = network_on(device), task_on(device)
        stats = collect(network, trace(network, task.example), task, STATISTICS, samples=32, curvature=curvature)
        fields = [getattr(stats, field.name) for field in dataclasses.fields(stats) if field.name not in ("task", "readers")]
        tensors = [
            leaf for held in fields for leaf in tree_leaves(tree_map(lambda v: v.matrix if hasattr(v, "matrix") else v, held))
        ]
        tensors = [leaf for leaf in tensors if isinstance(leaf, Tensor)]
        assert tensors and not any(map(is_there, tensors))
        return tensors

    on_both(work)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_ranks_on_the_cpu(name: str) -> None:
    def work(device: Any) -> Any:
        network, task = network_on(device), task_on(device)
        graph = trace(network, task.example)
        stats = collect(network, graph, task, NEEDS[name], samples=32)
        rankings = CRITERIA[name](network, graph, stats)
        found: list[Any] = []
        for ranking in rankings.values():
            found += [(ranking.keep(k), ranking.loss(k)) for k in (1, ranking.size // 2)]
            if isinstance(ranking, Quadratic):
                found.append(ranking.certificate(ranking.size // 2, splits=0).bound)
        if "gram" in NEEDS[name]:
            fitted = refit(
                network, graph, stats, {site: ranking.keep(3) for site, ranking in rankings.items() if ranking.size > 3}
            )
            assert device == CPU or all_there(fitted)
            found += fitted.values()
        assert device == CPU or all_there(network)
        return found

    on_both(work)


# --- structure -----------------------------------------------------------------------------------------------------------


def example_of(case: Ordinary) -> tuple[Any, ...]:
    return (*case.args, *case.kwargs.values())


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_networks_are_cut_where_they_are(name: str) -> None:
    """In the class and as a graph; what comes out is there, runs there and computes what the cut of the CPU does."""

    def work(device: Any) -> Any:
        network = ORDINARY[name].make().eval().to(device)
        example = moved(example_of(ORDINARY[name]), device)
        graph = trace(network, example)
        keep = {site.name: list(range(0, site.size, 2)) for site in graph.sites.values()}
        outputs: list[Any] = [list(graph.sites), graph.macs()]
        find_readers(network, graph)
        for where in ("graph", "any"):
            cut = prune(copy.deepcopy(network), trace(network, example), keep, where=where, any_batch=False)
            with torch.no_grad():
                made = cut.model(*example)
            assert device == CPU or all_there(cut.model, made)
            outputs += [cut.where, sorted(cut.refused), tree_leaves(made)]
            if cut.edit is not None:
                assert device == CPU or all_there(replay(ORDINARY[name].make().to(device), [cut.edit]))
        return outputs

    on_both(work)


class Picks(nn.Module):
    """Slices, steps and indices of channels, a shuffle and sizes made in the code: what a cut has to rewrite in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 12, 1, groups=2)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x))
        h = h[:, torch.arange(12, device=x.device).reshape(2, 6).T.reshape(-1)]
        h = torch.relu(self.mix(h)).mean((2, 3))
        picked = h.index_select(1, torch.tensor([0, 3, 5, 9]).to(x.device))
        strided = torch.cat([h[:, ::3], h[:, 1::3][:, :2], picked], 1)
        return self.out(strided)


def test_entries_picked_in_the_code_are_picked_there() -> None:
    def work(device: Any) -> Any:
        network, example = Picks().eval().to(device), (torch.ones(2, 1, 6, 6, device=device),)
        graph = trace(network, example)
        keep = {site.name: list(range(0, site.size, 2)) or [0] for site in graph.sites.values()}
        cut = prune(network, graph, keep, where="graph")
        assert cut.where == "graph"
        made = cut.model(*example)
        parameters = [
            parameter.detach() for parameter in cut.model.parameters()
        ]  # a buffer may be a constant of the CPU, as in the code
        assert device == CPU or all_there(parameters, made)
        return made.detach()

    on_both(work)


def test_sweep_silence_drop_and_factor_where_the_network_is() -> None:
    def work(device: Any) -> Any:
        network, example = network_on(device).eval(), (torch.ones(1, 1, 6, 6, device=device),)
        with torch.no_grad():
            network.blocks[0].conv1.weight[::2] = 0
            network.blocks[1].norm2.weight.zero_()
            network.blocks[1].norm2.bias.zero_()
        found: list[Any] = []
        graph = trace(network, example)
        found.append(silence(network, graph, ["blocks.0.conv1.weight"]))
        found.append(sweep(network, graph).where)
        found.append(drop(network, trace(network, example), "blocks.1").where)
        factor(network, "blocks.0.conv2.weight", CHANNEL, 1)
        attached = Target(LowRank(1), View("o i -> o i"))
        freeze(network, "last.weight", attached)
        materialise(network, example=example)
        assert device == CPU or all_there(network)
        return [*found, network(*example).detach(), measure(network, example, task_on(device).score)]

    on_both(work)


# --- runs, files ---------------------------------------------------------------------------------------------------------


# what makes each recipe a matter of steps: its arguments
TINY: dict[str, dict[str, Any]] = {
    "progressive_admm": {"ratios": (3.0,), "narrow": 0.7},
    "admm_quantization": {"bits": (3,)},
    "admm_clustering": {"counts": (2,)},
    "admm_joint": {"ratios": (3.0,), "sizes": (1,), "freezing": 0.5},
    "soft_filters": {"targets": "*conv*.weight"},
    "amc": {"episodes": 3, "warm_up": 2},
    "adaptive": {"parameters": 0.7, "weight": 30.0, "gate_rate": 0.2},
}


def short(recipe: Recipe) -> Recipe:
    """One epoch where a stage trains at all, projections at every step, and few samples."""

    def one(training: Training) -> Training:
        return dataclasses.replace(training, epochs=min(training.epochs, 1))

    def stage(given: Stage) -> Stage:
        units = given.units and dataclasses.replace(given.units, samples=16, refit=False)
        driver = given.driver and dataclasses.replace(given.driver, every=2)
        return dataclasses.replace(given, train=one(given.train), retrain=one(given.retrain), units=units, driver=driver)

    return dataclasses.replace(recipe, stages=tuple(map(stage, recipe.stages)))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_where_the_network_is(name: str) -> None:
    def work(device: Any) -> Any:
        done = compress(network_on(device), short(RECIPES[name](**TINY.get(name, {}))), task_on(device))
        assert device == CPU or all_there(done.model)
        row = done.rows[-1].to_dict()
        return list(done.model.state_dict()), row["measured"]["macs"], row["measured"]["parameters"]

    on_both(work)


def pruned() -> Recipe:
    rule = Rule("*.weight", TopK())
    return Recipe("pruned", (Stage("prune", (rule,), keep=0.5, driver=ADMM(0.1, 2), train=Training(2), retrain=Training(1)),))


@pytest.mark.parametrize(("first", "then"), [(GPU, CPU), (CPU, GPU), (GPU, GPU)], ids=["to the cpu", "to the gpu", "on the gpu"])
def test_a_checkpoint_goes_on_on_any_device(first: Any, then: Any, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if (progress.phase, progress.step) == ("train", 4):
            raise KeyboardInterrupt

    expected = compress(network_on(CPU), pruned(), task_on(CPU))
    with Pretend():
        with pytest.raises(KeyboardInterrupt):
            compress(network_on(first), pruned(), task_on(first), workdir=tmp_path, monitor=stop)
        resumed = compress(network_on(then), pruned(), task_on(then), workdir=tmp_path)
        assert then == CPU or all_there(resumed.model)
    assert agree(list(expected.model.state_dict().values()), list(resumed.model.state_dict().values()))


def test_files_are_written_from_and_loaded_to_the_device_of_the_network(tmp_path: Path) -> None:
    """Into the CPU's class and the GPU's: an artifact, a packed file, an exported module."""

    def work(device: Any) -> Any:
        network = network_on(device)
        done = compress(network, pruned(), task_on(device))
        place = tmp_path / str(device)
        done.save(place)
        packed.write(place / "model.fwz", done.snapshot, network)
        again, unpacked = artifact.load(place, network), artifact.load(place / "model.fwz", network)
        assert device == CPU or all_there(again, unpacked, done.model)
        example, on_cpu = task_on(device).example, artifact.load(place, network_on(CPU))
        assert not any(map(is_there, on_cpu.state_dict().values()))
        graph = trace(network, example)
        cut = prune(network, graph, {site: [0, 1] for site in graph.sites}, where="graph").model
        artifact.save_cut(place / "cut", cut)
        module = artifact.load(place / "cut").to(device)
        with torch.no_grad():
            return [net.eval()(*example).cpu() for net in (again, unpacked, done.model, on_cpu.to(device), module)]

    on_both(work)


# --- times, tasks --------------------------------------------------------------------------------------------------------


def test_times_on_a_gpu_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the clock starts and before it stops; eager only: a runtime that has no GPU is not timed under its name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with Pretend() as gpu:
        network, example = table.toy().eval(), (table.images(1),)
        found = latency.bench({"toy": network}, example, devices=["cuda"], rounds=5, warm_up=1)
        assert {timing.device for timing in found.timings} == {"cuda"}
        assert gpu.synchronised >= 10
        before = gpu.synchronised
        pace.timed({"a": network.to(GPU), "b": network}, moved(example, GPU), rounds=2)
        assert gpu.synchronised >= before + 8
        with pytest.raises(InputError, match="CUDAExecutionProvider"):
            latency.bench({"toy": network}, example, runtimes=["onnx"], devices=["cuda"], rounds=5)
