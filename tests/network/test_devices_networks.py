"""Any device: what is done to whole networks on a GPU, pretended as in `test_devices.py`: cuts, recipes, files, tasks, times."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import table
import torch
from on_both import GPU, agree, all_there, moved, network_on, on_both, pruned, task_on
from ordinary import ORDINARY
from pretend import CPU, Pretend, is_there
from residual import residual
from torch import Tensor, nn

from featherweight import compress
from featherweight.criteria.readers import find_readers
from featherweight.errors import InputError
from featherweight.files import artifact, packed
from featherweight.lowrank.factor import factor, materialise
from featherweight.lowrank.layers import CHANNEL
from featherweight.measurement import measure
from featherweight.network.calls import Inputs, tensors_of
from featherweight.network.copies import unwrapped
from featherweight.network.devices import placed
from featherweight.recipe.schema import Constrain, CutUnits, Recipe, Stage
from featherweight.recipes import RECIPES
from featherweight.run import latency_budget
from featherweight.ship import bench
from featherweight.structure import drop, prune, replay, silence, sweep, trace
from featherweight.training.schedule import Training
from featherweight.weights.constrained import freeze
from featherweight.weights.sets import LowRank
from featherweight.weights.targets import Target
from featherweight.weights.views import View
from featherweight.zoo import datasets, tasks
from featherweight.zoo.datasets import Dataset

# --- structure -----------------------------------------------------------------------------------------------------------


def ordinary_on(name: str, device: Any) -> tuple[nn.Module, Inputs]:
    """The network and its inputs. On the CPU as moved, too: parameters in the same memory have their own after a move."""
    network = ORDINARY[name].make()
    moved_network = network._apply(torch.clone) if device == CPU else network.to(device)
    return moved_network.eval(), placed(Inputs(ORDINARY[name].args, ORDINARY[name].kwargs), device)


# one holds a tensor beside its state, which its owner's `to` leaves where it is
@pytest.mark.third
@pytest.mark.parametrize("name", [name for name in ORDINARY if name != "extra state, marks"])
def test_ordinary_networks_are_cut_where_they_are(name: str) -> None:
    """In the class and as a graph; what comes out is there, runs there and computes what the cut of the CPU does."""

    def work(device: Any) -> Any:
        network, example = ordinary_on(name, device)
        network = unwrapped(network)  # as `compress` does first
        graph = trace(network, example)
        keep = {site.name: list(range(0, site.size, 2)) for site in graph.sites.values()}
        outputs: list[Any] = [list(graph.sites), graph.macs()]
        find_readers(network, graph)
        for where in ("graph", "any"):  # the first leaves the network as it is
            cut = prune(network, graph, keep, where=where, any_batch=False)
            with torch.no_grad():
                made = tensors_of(example.call(cut.model))
            assert device == CPU or all_there(cut.model, made)
            outputs += [cut.where, sorted(cut.refused), made]
            if cut.edit is not None:
                assert device == CPU or all_there(replay(unwrapped(ordinary_on(name, device)[0]), [cut.edit]))
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
        return self.out(strided) + torch.arange(3, device=x.device)


def test_entries_picked_in_the_code_are_picked_there() -> None:
    def work(device: Any) -> Any:
        torch.manual_seed(0)
        network, example = Picks().eval().to(device), (torch.ones(2, 1, 6, 6, device=device),)
        graph = trace(network, example)
        keep = {site.name: list(range(0, site.size, 2)) or [0] for site in graph.sites.values()}
        cut = prune(network, graph, keep, where="graph", any_batch=False)
        assert cut.where == "graph"
        made = cut.model(*example)
        parameters = [
            parameter.detach() for parameter in cut.model.parameters()
        ]  # a buffer may be a constant of the CPU, as in the code
        assert device == CPU or all_there(parameters, made)
        return cut.model, made.detach(), example

    module, made, example = work(CPU)
    with Pretend():
        there, result, _ = work(GPU)
        assert torch.allclose(result.cpu(), made)
        for cut, device in ((module, GPU), (module, CPU), (there, CPU), (there, GPU)):  # the code makes tensors: they go along
            assert torch.allclose(cut.to(device)(*moved(example, device)).cpu(), made)


def test_sweep_silence_drop_and_factor_where_the_network_is() -> None:
    def work(device: Any) -> Any:
        network, example = residual(4, 3).to(device).eval(), (torch.ones(1, 1, 6, 6, device=device),)
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
        return [*found, network(*example).detach(), measure(network, example, task_on(device).evaluate)]

    on_both(work)


# --- runs, files ---------------------------------------------------------------------------------------------------------


# what makes each recipe a matter of steps: its arguments
TINY: dict[str, dict[str, Any]] = {
    "progressive_admm": {"keep": ("3x",), "narrow": 0.7},
    "admm_quantization": {"bits": (3,)},
    "admm_clustering": {"counts": (2,)},
    "admm_joint": {"keep": ("3x",), "sizes": (1,), "freezing": 0.5},
    "soft_filters": {"targets": "*conv*.weight"},
    "amc": {"episodes": 3, "warm_up": 2},
    "adaptive": {"parameters": 0.7, "weight": 30.0, "gate_rate": 0.2},
}


def short(recipe: Recipe) -> Recipe:
    """One epoch where a stage trains at all, projections at every step, and few samples."""

    def one(training: Training) -> Training:
        return dataclasses.replace(training, epochs=min(training.epochs, 1))

    def stage(given: Stage) -> Stage:
        changed: dict[str, Any] = {"train": one(given.train)}
        if isinstance(given, CutUnits):
            changed["units"] = dataclasses.replace(given.units, samples=16, refit=False)
        if isinstance(given, Constrain):
            changed |= {"retrain": one(given.retrain), "driver": given.driver and dataclasses.replace(given.driver, every=2)}
        return dataclasses.replace(given, **changed)

    return dataclasses.replace(recipe, stages=tuple(map(stage, recipe.stages)))


def kinds() -> list[str]:
    """The recipes but those that differ from an earlier one only in the criterion or the sets: `test_devices.py` has those."""
    found: dict[str, str] = {}
    for name, recipe in RECIPES.items():
        told = [dataclasses.asdict(stage) for stage in short(recipe(**TINY.get(name, {}))).stages]
        for stage in told:
            stage |= {"name": "", "rules": len(stage.get("rules", ())), "units": stage.get("units", {}) | {"criterion": ""}}
        found.setdefault(repr(told), name)
    return list(found.values())


@pytest.mark.third
@pytest.mark.parametrize("name", kinds())
def test_a_recipe_runs_where_the_network_is(name: str) -> None:
    with Pretend():
        done = compress(network_on(GPU), short(RECIPES[name](**TINY.get(name, {}))), task_on(GPU))
        assert all_there(done.model)
        assert done.rows[-1].measured.macs is not None and done.rows[-1].measured.uncounted == ()


@functools.cache
def uninterrupted() -> list[Tensor]:
    return list(compress(network_on(CPU), pruned(), task_on(CPU)).model.state_dict().values())


@pytest.mark.third
@pytest.mark.parametrize(("first", "then"), [(GPU, CPU), (CPU, GPU), (GPU, GPU)], ids=["to the cpu", "to the gpu", "on the gpu"])
def test_a_checkpoint_goes_on_on_any_device(first: Any, then: Any, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if (progress.phase, progress.step) == ("train", 4):
            raise KeyboardInterrupt

    with Pretend():
        with pytest.raises(KeyboardInterrupt):
            compress(network_on(first), pruned(), task_on(first), workdir=tmp_path, monitor=stop)
        resumed = compress(network_on(then), pruned(), task_on(then), workdir=tmp_path)
        assert then == CPU or all_there(resumed.model)
    assert agree(uninterrupted(), list(resumed.model.state_dict().values()))


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
        example, on_cpu = task_on(device).example_inputs, artifact.load(place, network_on(CPU))
        assert not any(map(is_there, on_cpu.state_dict().values()))
        graph = trace(network, example)
        cut = prune(network, graph, {site: [0, 1] for site in graph.sites}, where="graph", any_batch=False).model
        artifact.save_cut(place / "cut", cut)
        module = artifact.load(place / "cut").to(device)
        with torch.no_grad():
            return [net.eval()(*example).cpu() for net in (again, unpacked, done.model, on_cpu.to(device), module)]

    on_both(work)


# --- tasks, times --------------------------------------------------------------------------------------------------------


def test_a_built_in_task_moves_what_is_the_same_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn on the CPU, sent to the device, autocast by it; the score goes where the network is."""
    numbers = torch.randint(0, 256, (140, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(
        datasets, "cifar10", lambda: Dataset(numbers, torch.arange(140) % 10, numbers[:20], torch.arange(20) % 10)
    )
    asked: list[tuple[str, bool]] = []

    class Recorded(torch.autocast):
        def __init__(self, kind: str, *args: Any, **kwargs: Any) -> None:
            asked.append((kind, kwargs["enabled"]))
            super().__init__(kind, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", Recorded)
    monkeypatch.setattr(tasks, "multiplies_bfloat16", lambda device: device.type == "cuda")
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))
    here = tasks.cifar10(seed=1)
    with Pretend(), pytest.warns(UserWarning, match="CUDA is not available"):
        there = tasks.cifar10(seed=1, device=GPU)
        assert all_there(there.example_inputs, list(there.batches(3)))
        assert agree(list(here.batches(3)), list(there.batches(3)))
        expected = here.evaluate(network)
        network.to(GPU)
        assert there.evaluate(network) == expected and all_there(there.loss(network, next(iter(there.batches(0)))))
    assert asked == [("cpu", False), ("cuda", False), ("cuda", True)]


def test_compress_moves_a_copy_of_the_network_and_the_example() -> None:
    with Pretend():
        network, task = network_on(CPU), task_on(GPU)
        given = dataclasses.replace(task, example_inputs=moved(task.example_inputs, CPU))
        assert all_there(compress(network, pruned(), given, device="cuda").model)
        assert not any(map(is_there, (*network.state_dict().values(), *given.example_inputs)))


@pytest.mark.parametrize("there", [CPU, GPU])
def test_batches_on_another_device_are_refused_before_training_unless_the_loss_moves_them(there: Any) -> None:
    with Pretend():
        elsewhere = GPU if there == CPU else CPU
        given = dataclasses.replace(
            task_on(elsewhere), example_inputs=task_on(there).example_inputs, evaluate=lambda network: 0.0
        )
        steps: list[Any] = []
        with pytest.raises(InputError, match=f"a batch on {elsewhere}.*network is on {there}"):
            compress(network_on(there), pruned(), given, monitor=steps.append)
        assert not steps
        moving = dataclasses.replace(given, loss=lambda network, batch: given.loss(network, moved(batch, there)))
        done = compress(network_on(there), pruned(), moving).model
        assert all(is_there(tensor) == (there == GPU) for tensor in done.state_dict().values())


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "meta", "gpu"])
def test_a_device_that_is_not_there_is_refused_before_anything_runs(name: str) -> None:
    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match=f"there is no device '{name}' here .* give cpu"):
        compress(network_on(CPU), pruned(), task_on(CPU), device=name)


def test_times_on_a_gpu_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the clock starts and before it stops; eager only: a runtime that has no GPU is not timed under its name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with Pretend() as gpu:
        network, example, runs = table.toy().eval(), (table.images(1),), []
        handle = network.register_forward_hook(lambda *_: runs.append(1))
        found = bench.bench({"toy": network}, example, devices=["cuda"], rounds=5, warm_up=1)
        handle.remove()
        assert {timing.device for timing in found.timings} == {"cuda"}
        assert gpu.synchronised >= len(runs) >= 7  # of each run: a warm-up, one to see how often to repeat, five rounds
        before = gpu.synchronised
        latency_budget.timed({"a": network.to(GPU), "b": network}, moved(example, GPU), rounds=2)
        assert gpu.synchronised >= before + 8
        with pytest.raises(InputError, match="CUDAExecutionProvider"):
            bench.bench({"toy": network}, example, runtimes=["onnx"], devices=["cuda"], rounds=5)
