"""Two processes train as one does with the same batches; one that dies is noticed, and the run goes on from where it stood."""

from __future__ import annotations

import functools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import table
import torch
import torch.distributed.fsdp  # before the fork: it is large
from several import NEEDS_GLOO, in_two
from torch import Tensor, distributed, nn

from featherweight import measurement
from featherweight.compression import Compressed, compress
from featherweight.errors import InputError
from featherweight.files import checkpoint
from featherweight.recipe.schema import Constrain, CutUnits, Recipe, Rule, Train
from featherweight.recipe.units import Units
from featherweight.run.watch import Progress
from featherweight.task import Task, itself
from featherweight.training.engine import ALONE, Engine, Processes, ProcessLost, engine_of
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.drivers import ADMM, Periodic
from featherweight.weights.sets import Codebook, TopK
from featherweight.weights.sharded import shard

pytestmark = NEEDS_GLOO
DIED = 9
INPUTS, LABELS = table.matrix(41, 8, seed=310), torch.arange(41) % 3
RULES = (Rule("*.weight", TopK()),)
RECIPE = Recipe(
    "several",
    (
        Train("dense", train=Training(1)),
        CutUnits("cut", Units("taylor", parameters=0.8, multiple=1), train=Training(1)),
        Constrain(
            "prune", RULES, keep=0.5, driver=ADMM(0.01, 3, 1.2, 0.1), train=Training(2), retrain=Training(1),
            distill=Distillation(), fisher=0.25, sweep=True,
        ),
        Constrain("share", (Rule("*.weight", Codebook(4)),), driver=ADMM(0.01, 3, 1.2, 0.1), train=Training(1)),
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither MACs nor disks are the point."""
    monkeypatch.setattr(measurement, "count_macs", lambda model, example: (1, ()))
    monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: None)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)]
        return nn.Sequential(*layers).double()


def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
    """Of 13 samples, which two do not share evenly, and one of two."""
    order = torch.randperm(41, generator=torch.Generator().manual_seed(epoch))
    return [(INPUTS[part], LABELS[part]) for part in order.split(13)]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def evaluate(model: nn.Module) -> float:
    if distributed.is_initialized() and distributed.get_rank():
        raise AssertionError("one process scores")
    with torch.no_grad():
        return float((model.eval()(INPUTS).argmax(1) == LABELS).double().mean())


TASK = Task((INPUTS[:1],), batches, loss, evaluate, lambda ps: torch.optim.SGD(ps, 0.05, momentum=0.9), itself)


@functools.cache
def expected() -> Compressed:
    """What one process alone makes of it."""
    return compress(network(), RECIPE, TASK)


def run(rank: int, workdir: Path | None = None, **more: Any) -> Any:
    torch.manual_seed(rank)  # what they drew before does not matter
    done = compress(network(), RECIPE, TASK, workdir=workdir, engine=distributed.group.WORLD, **more)
    return done.snapshot.edits, done.snapshot.state, [row.loss for row in done.rows]


def require_near(found: Any, wanted: Compressed) -> None:
    edits, state, losses = found
    assert edits == wanted.snapshot.edits
    for name, tensor in wanted.snapshot.state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-9)
    assert losses == pytest.approx([row.loss for row in wanted.rows], rel=1e-6)


def dying_in_the_stage_that_prunes() -> Callable[[Progress], None]:
    """A monitor under which the process ends."""
    seen = 0

    def die(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == 14:
            os._exit(DIED)

    return die


def test_two_processes_end_where_one_does_and_a_dead_one_is_named_and_resumed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    first, second = in_two(tmp_path / "whole", run)
    require_near(first, expected())
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1]), "both have the same bits"

    def dying(rank: int) -> Any:
        die = dying_in_the_stage_that_prunes()
        began = time.monotonic()
        try:
            run(rank, work, monitor=die, checkpoint_seconds=0.0)
        except ProcessLost as error:
            torch.save((str(error), time.monotonic() - began), tmp_path / "said.pt")
            os._exit(1)

    assert in_two(tmp_path / "killed", dying) == [None, None]
    said, seconds = torch.load(tmp_path / "said.pt")
    assert "goes on from the last checkpoint" in said and seconds < 60
    assert not [path.name for path in work.iterdir() if ".part" in path.name]
    again = in_two(tmp_path / "again", lambda rank: run(rank, work))[0]
    assert again[0] == first[0] and all(torch.equal(again[1][name], first[1][name]) for name in first[1])


def test_one_that_does_not_decide_may_die_too_and_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    work = tmp_path / "work"

    def dying(rank: int) -> Any:
        calls = 0

        def fatal(model: nn.Module, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if (rank, calls) == (1, 14):  # in the stage that prunes
                os._exit(DIED)
            return loss(model, batch)

        try:
            compress(
                network(), RECIPE, replace(TASK, loss=fatal), workdir=work, engine=distributed.group.WORLD, checkpoint_seconds=0.0
            )
        except ProcessLost as error:
            torch.save((rank, str(error)), tmp_path / "said.pt")
            os._exit(1)

    assert in_two(tmp_path / "killed", dying) == [None, None]
    rank, said = torch.load(tmp_path / "said.pt")
    assert rank == 0 and "goes on from the last checkpoint" in said
    stage = checkpoint.read(work / "checkpoint.pt")["unfinished"]["phase"]
    assert stage == "train"
    alone = compress(network(), RECIPE, TASK, workdir=work)
    require_near((alone.snapshot.edits, alone.snapshot.state, [row.loss for row in alone.rows]), expected())


# --- in shards -----------------------------------------------------------------------------------------------------------

*FIRST, LAST = RECIPE.stages
IN_SHARDS = Recipe("in shards", (*FIRST[:2], replace(FIRST[2], respread=True), replace(LAST, masked=False)))


def in_shards(rank: int, workdir: Path | None = None, recipe: Recipe = IN_SHARDS, task: Task = TASK, **more: Any) -> Any:
    torch.manual_seed(rank)
    shares = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        shares.append(sum(shard(p).numel() for p in parameters) / sum(p.numel() for p in parameters))
        return TASK.optimizer(parameters)

    task = replace(task, optimizer=optimizer)
    done = compress(network(), recipe, task, workdir=workdir, engine=Processes(shard=True), **more)
    assert min(shares) < 0.6, "a process trains its part alone"
    return done.snapshot.edits, done.snapshot.state, [row.loss for row in done.rows]


def refused(rank: int) -> list[str]:
    """What is said, before any training, where shards are not for it."""

    def parts(model: Any, batch: Any) -> Tensor:
        return loss(model, batch) + model[0].weight.square().sum()

    dense, _, prune, share = RECIPE.stages
    cases = [
        (Recipe("mask", (dense, share)), TASK),
        (Recipe("soft", (dense, replace(prune, driver=Periodic(3)))), TASK),
        (Recipe("heads", (replace(dense, auxiliary=True),)), TASK),
        (IN_SHARDS, replace(TASK, loss=parts)),
    ]
    found = []
    for recipe, task in cases:
        with pytest.raises(InputError) as told:
            in_shards(rank, recipe=recipe, task=task)
        found.append(str(told.value))
    return found


def test_in_shards_two_processes_end_where_one_does_and_another_number_goes_on(tmp_path: Path) -> None:
    work = tmp_path / "work"

    def dying(rank: int) -> Any:
        torch.save(refused(rank), tmp_path / f"told{rank}.pt")
        die = dying_in_the_stage_that_prunes()
        try:
            in_shards(rank, work, monitor=die, checkpoint_seconds=0.0)
        except ProcessLost as error:
            torch.save(str(error), tmp_path / "said.pt")
            os._exit(1)

    assert in_two(tmp_path / "killed", dying) == [None, None]
    assert "goes on from the last checkpoint" in torch.load(tmp_path / "said.pt")
    told, told_too = (torch.load(tmp_path / f"told{rank}.pt") for rank in (0, 1))
    for said, wanted in zip(told, ("under a mask", "Periodic", "auxiliary", "does not train in shards"), strict=True):
        assert wanted in said
    assert told == told_too
    copied, alone = shutil.copytree(work, tmp_path / "copied"), compress(network(), IN_SHARDS, TASK)
    first, second = in_two(tmp_path / "again", lambda rank: in_shards(rank, work))
    require_near(first, alone)
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    one = compress(network(), IN_SHARDS, TASK, workdir=copied)
    require_near((one.snapshot.edits, one.snapshot.state, [row.loss for row in one.rows]), alone)


def test_accelerate_s_own_processes_do_the_same(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'featherweight[accelerate]'")

    def launched(rank: int) -> Any:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29511",
            "ACCELERATE_USE_CPU": "true",
        }  # unused: the group is there
        accelerator = accelerate.Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        done = compress(network(), RECIPE, TASK, engine=accelerator)
        return done.snapshot.edits, done.snapshot.state, [row.loss for row in done.rows]

    require_near(in_two(tmp_path / "run", launched)[0], expected())


def test_an_error_of_the_process_that_decides_is_every_process_s(tmp_path: Path) -> None:
    def wrong(rank: int) -> str:
        with pytest.raises(InputError) as told:
            compress(network(), RECIPE, replace(TASK, evaluate=lambda model: float("nan")), engine=distributed.group.WORLD)
        return str(told.value)

    one, other = in_two(tmp_path / "run", wrong)
    assert one == other and "finite number" in one


def test_shares_make_up_the_batch_and_a_process_without_one_has_no_weight(tmp_path: Path) -> None:
    batch = {"x": torch.arange(3), "scale": torch.tensor(2.0), "nest": (torch.arange(6).view(3, 2), "text")}

    def shared(rank: int) -> Any:
        engine = Processes()
        return engine.share(batch), engine.share(torch.arange(1)), engine.decided(lambda: rank), engine.mine(3)

    (one, alone, decided, mine), (other, none, decided_too, mine_too) = in_two(tmp_path / "run", shared)
    assert torch.equal(torch.cat([one[0]["x"], other[0]["x"]]), batch["x"]) and one[1] + other[1] == 1
    assert one[0]["scale"] == 2 and other[0]["nest"][0].tolist() == [[2, 3], [4, 5]]
    assert sorted([alone[1], none[1]]) == [0, 1] and len(none[0]) == 1
    assert (decided, decided_too) == (0, 0) and mine != mine_too


def test_what_is_no_engine_is_refused_by_name() -> None:
    assert engine_of(None) is ALONE
    with pytest.raises(InputError, match="Accelerator or a process group"):
        engine_of("ddp")

    class Sharding:
        num_processes, mixed_precision, distributed_type = 2, "no", type("Kind", (), {"value": "FSDP"})

        def autocast(self) -> None: ...

    with pytest.raises(InputError, match="shards the network"):
        engine_of(Sharding())
    Sharding.distributed_type, Sharding.mixed_precision, Sharding.num_processes = "NO", "fp16", 1
    with pytest.raises(InputError, match="scaled"):
        engine_of(Sharding())
    Sharding.mixed_precision = "bf16"
    assert isinstance(engine_of(Sharding()), Engine)
