"""The laws of devices on a real GPU: what the pretended one refuses CUDA refuses, and the library's work is done there.

`python tests/on_device/run.py` runs these and times a network; without a GPU all are skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import on_both
import pytest
import test_devices as laws
import test_devices_networks as networks
import torch
from test_devices import (  # noqa: F401
    test_a_code_decodes_trains_and_comes_off_where_its_weight_is,
    test_a_criterion_ranks_on_the_cpu,
    test_a_driver_imposes_every_set_where_the_network_is,
    test_a_set_projects_where_the_matrix_is,
    test_an_allocator_takes_menus_from_any_device,
    test_statistics_are_on_the_cpu,
    test_the_law_fails_on_what_a_gpu_refuses,
    test_the_law_lets_pass_what_a_gpu_does,
)
from test_devices_networks import (  # noqa: F401
    test_a_checkpoint_goes_on_on_any_device,
    test_a_recipe_runs_where_the_network_is,
    test_compress_moves_a_copy_of_the_network_and_the_example,
    test_entries_picked_in_the_code_are_picked_there,
    test_files_are_written_from_and_loaded_to_the_device_of_the_network,
    test_ordinary_networks_are_cut_where_they_are,
    test_sweep_silence_drop_and_factor_where_the_network_is,
)

from featherweight import compress
from featherweight.files import artifact
from featherweight.network.devices import multiplies_bfloat16
from featherweight.ship import bench
from featherweight.zoo.networks import lenet5
from featherweight.zoo.tasks import cross_entropy_autocast, digits

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: tests/network/test_devices.py pretends one")


class Real:
    """In the place of `Pretend`: the GPU that there is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.synchronize()


@pytest.fixture(autouse=True)
def on_the_real_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The laws' own names, and float32 as the CPU has it: rounding in another order is all that may differ."""
    for module in (on_both, laws, networks):
        monkeypatch.setattr(module, "Pretend", Real)
        monkeypatch.setattr(module, "is_there", lambda tensor: tensor.is_cuda)
    monkeypatch.setattr(on_both, "CLOSE", {"rtol": 1e-2, "atol": 1e-3})
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_a_built_in_task_is_learned_on_the_gpu_and_loaded_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    task, network = digits(device="cuda"), lenet5()
    assert all(tensor.is_cuda for tensor in (*task.example_inputs, *next(iter(task.batches(0)))))
    done = compress(network, on_both.pruned(), task, device="cuda")
    assert not any(parameter.is_cuda for parameter in network.parameters())
    assert on_both.all_there(done.model)
    done.save(tmp_path / "art")
    on_cpu = artifact.load(tmp_path / "art", network)
    assert not any(tensor.is_cuda for tensor in on_cpu.state_dict().values())
    assert abs(digits().evaluate(on_cpu) - done.rows[-1].measured.score) <= 0.5


def test_the_loss_is_autocast_by_the_gpu() -> None:
    if not multiplies_bfloat16(torch.device("cuda")):
        pytest.skip("this GPU does not multiply bfloat16")
    seen: list[torch.dtype] = []
    network = lenet5().cuda()
    network.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    assert cross_entropy_autocast(network, next(iter(digits(device="cuda").batches(0)))).dtype == torch.float32
    assert seen == [torch.bfloat16]


def test_a_larger_network_is_slower_and_the_clock_waits() -> None:
    """Queued and not done, both would take the same few microseconds."""
    small, large = torch.nn.Linear(4096, 4096), torch.nn.Sequential(*(torch.nn.Linear(4096, 4096) for _ in range(16)))
    found = bench.bench({"large": large, "small": small}, (torch.ones(8192, 4096),), batches=[8192], devices=["cuda"], rounds=5)
    assert found.timings[0].median > 4 * found.timings[1].median
    assert not any(parameter.is_cuda for parameter in copy.deepcopy(small).parameters())
