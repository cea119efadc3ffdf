"""Any device: a network on a GPU is compressed as on the CPU, nothing is moved behind its back, and nothing mixes devices.

The GPU is pretended (`tests/pretend.py` says what that models and what not), so these laws run everywhere; what they compute is
what the CPU computes. `tests/on_device` has a real one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import table
import torch
import torch.nn.functional as F
from on_both import GPU, all_there, network_on, on_both, task_on
from pretend import CPU, Pretend, is_there
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._pytree import tree_leaves, tree_map

from featherweight.criteria import CRITERIA, NEEDS, bound, refit
from featherweight.criteria.pairwise import Quadratic
from featherweight.criteria.statistics import STATISTICS, collect
from featherweight.structure import trace
from featherweight.weights.constrained import Constrained, freeze
from featherweight.weights.counts import ALLOCATORS
from featherweight.weights.drivers import Driver
from featherweight.weights.parametrized import attach, coded, plain
from featherweight.weights.sets import Codebook, Levels, LowRank, Set, SparseCodebook, TopK, TopRows
from featherweight.weights.targets import Target
from featherweight.weights.views import View

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
    assert torch.equal(result.cpu(), fine(x))


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


@pytest.mark.skipif(torch.__version__ < "2.11", reason="torch 2.10 does not compare devices while it exports")
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


@pytest.mark.third
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


@pytest.mark.third
@pytest.mark.parametrize("driver", table.ALL_DRIVERS, ids=repr)
def test_a_driver_imposes_every_set_where_the_network_is(driver: Driver | None) -> None:
    def work(device: Any) -> Any:
        found = []
        for chosen in (TopK(13), TopRows(2), LowRank(2), Levels("uniform", 2), Codebook(3), SparseCodebook(11, 3)):
            network, images = table.toy().to(device), table.images().to(device)
            optimizer = SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
            squares = {"out.weight": torch.ones_like(network.out.weight)}
            target = Target(chosen, View("o i -> o i"), masked=True, fisher=0.5 if chosen.selects else 0.0)
            with Constrained(driver, network, optimizer, {"out.weight": target}, squares=squares) as imposed:
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

    assert all(size >= 1 for size in on_both(work).values())


# --- statistics and criteria ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["loss", "outputs"])
def test_statistics_are_on_the_cpu(curvature: Any) -> None:
    def work(device: Any) -> Any:
        network, task = network_on(device), task_on(device)
        stats = collect(network, trace(network, task.example_inputs), task, STATISTICS, samples=32, curvature=curvature)
        fields = [getattr(stats, field.name) for field in dataclasses.fields(stats) if field.name not in ("task", "readers")]
        tensors = [
            leaf for held in fields for leaf in tree_leaves(tree_map(lambda v: v.matrix if hasattr(v, "matrix") else v, held))
        ]
        tensors = [leaf for leaf in tensors if isinstance(leaf, Tensor)]
        assert tensors and not any(map(is_there, tensors))
        return tensors

    on_both(work)


@pytest.mark.third
@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_ranks_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "FIRST", 25)  # rounds: a bound is a bound after any

    def work(device: Any) -> Any:
        network, task = network_on(device), task_on(device)
        graph = trace(network, task.example_inputs)
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
