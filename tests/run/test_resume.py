"""Killed at any moment, a run that is taken up again ends with bit-identical weights; a full disk costs nothing saved before."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import table
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, TensorDataset

from featherweight import measurement
from featherweight.compression import Compressed, compress
from featherweight.errors import ArtifactError, FeatherweightError, InputError, StorageError
from featherweight.files import checkpoint
from featherweight.recipe.schema import Constrain, Recipe, Rule, Train
from featherweight.run.state import CHECKPOINT, NETWORK
from featherweight.run.watch import Progress
from featherweight.task import Task, itself
from featherweight.training.schedule import Distillation, Training
from featherweight.weights.drivers import ADMM, Periodic
from featherweight.weights.sets import Codebook, LowRank, TopK
from featherweight.weights.views import View
from featherweight.zoo.networks import lenet_300_100
from featherweight.zoo.tasks import digits


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed leaves its writes to the kernel; only a power cut asks for fsync, and it is slow."""
    if "fsync" not in request.node.name:
        monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def no_counting_of_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exports the network after every stage, which is most of the time of these runs and no part of what is tested."""
    monkeypatch.setattr(measurement, "count_macs", lambda model, example: (1, ()))


class Killed(BaseException):
    """A kill that a test can give at an exact step; nothing is saved on its way out."""


def same(left: Compressed, right: Compressed) -> bool:
    a, b = left.snapshot.state, right.snapshot.state
    return left.snapshot.edits == right.snapshot.edits and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- SIGKILL on digits ---------------------------------------------------------------------------------------------------

DIGITS = Recipe(
    "kill me",
    (
        Train("dense", train=Training(1)),
        Constrain(
            "prune",
            (Rule("*.weight", TopK()),),
            keep=0.1,
            driver=ADMM(0.01, 7, 1.2, 0.1),
            train=Training(2, shape="constant"),
            retrain=Training(1),
            distill=Distillation(),
            fisher=0.25,
            respread=True,
        ),
        Constrain(
            "share",
            (Rule("fc3.weight", Codebook(8)), Rule("fc2.weight", TopK(), keep=0.05)),
            driver=Periodic(5),
            train=Training(1),
            retrain=Training(1),
        ),
    ),
)


def fork(action: Callable[[], None]) -> int:
    """Run `action` in a child of this process, which has imported everything already; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        action()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.long
def test_killed_again_and_again_at_random_moments_the_weights_are_bit_identical(tmp_path: Path) -> None:
    """`featherweight reproduce kills`: 200 times."""
    most_kills = int(os.environ.get("KILLS", 3))
    dice = random.Random(time.time_ns())
    task, network = digits(), table_network()
    expected = compress(network, DIGITS, task)
    kills = runs = forks = 0
    while kills < most_kills:
        runs += 1
        workdir, done = tmp_path / str(runs), tmp_path / f"{runs}.pt"
        most = 1 if runs % 3 == 1 else 9  # some runs are killed once, some over and over
        while not done.exists():
            told, tell = os.pipe()
            child = fork(lambda tell=tell, workdir=workdir, done=done: run_and_tell(network, task, workdir, tell, done))
            os.close(tell)
            if most > 0 and kills < most_kills:
                if dice.random() < 0.8:  # else it may not even have begun
                    os.read(told, 1)
                time.sleep(dice.uniform(0, 0.2))
                if not done.exists():
                    os.kill(child, signal.SIGKILL)
                    kills, most = kills + 1, most - 1
            _, status = os.waitpid(child, 0)
            os.close(told)
            assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
            forks += 1
            assert forks <= 3 * most_kills, f"{kills} kills in {runs} runs and no end"
        state = torch.load(done, weights_only=True)
        assert state.keys() == expected.snapshot.state.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.snapshot.state.items())
    assert runs >= 2


def table_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lenet_300_100()


def run_and_tell(network: nn.Module, task: Task, workdir: Path, tell: int, done: Path) -> None:
    def monitor(progress: Progress) -> None:
        os.write(tell, b".")

    result = compress(network, DIGITS, task, workdir=workdir, monitor=monitor, checkpoint_seconds=0.05)
    checkpoint.write(done, result.snapshot.state)


# --- a run small enough to kill at every step ----------------------------------------------------------------------------


class Small(nn.Module):
    """A network with batch norm, and with dropout if asked for: its noise comes from torch's global generator."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(dropout), nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


def small(dropout: float = 0.0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Small(dropout)


INPUTS, LABELS = table.matrix(40, 8, seed=300, dtype=torch.float32), torch.arange(40) % 3


def shuffled(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
    return [(INPUTS[chosen], LABELS[chosen]) for chosen in order.split(10)]


def loader(epoch: int) -> Iterable[Any]:
    """A DataLoader draws a seed from the global generator each time it is iterated, shuffled or not."""
    return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=10)


def small_task(batches: Callable[[int], Any] = shuffled) -> Task:
    def loss(network: nn.Module, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(network(batch[0]), batch[1])

    def score(network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            return 100 * float((network(INPUTS).argmax(1) == LABELS).float().mean())

    return Task((INPUTS[:1],), batches, loss, score, lambda parameters: Adam(parameters, lr=0.01), logits=itself)


MATRIX = View("o i -> o i")
STAGES = (
    Train("dense", train=Training(2)),
    Constrain(
        "prune",
        (Rule("re:(first|last).weight", TopK()),),
        keep=0.5,
        fisher=0.5,  # so the sizes hang on gradients, and these on dropout
        driver=ADMM(0.1, 2, 1.3),
        train=Training(2),
        retrain=Training(1),
        distill=Distillation(),
    ),
    Constrain("thin", (Rule("first.weight", LowRank(2), MATRIX),), driver=Periodic(3, 0.01), train=Training(2), masked=False),
    Constrain("fewer", (Rule("first.weight", TopK(10)),), driver=ADMM(0.1, 3), train=Training(1), retrain=Training(1)),
)
SMALL = Recipe("small", STAGES)
CANDIDATES = Recipe("candidates", (STAGES[0], STAGES[1], *(
    Constrain(name, (Rule("first.weight", TopK(count)),), driver=ADMM(0.1, 2), train=Training(1), retrain=Training(1))
    for name, count in (("b", 16), ("c", 12), ("d", 9), ("e", 7))
)), candidates=3)  # fmt: skip


def killed_after(steps: int, error: type[BaseException] = Killed) -> Callable[[Progress], None]:
    seen = []

    def monitor(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == steps:
            raise error

    return monitor


def count_steps(recipe: Recipe, task: Task, network: nn.Module, **options: Any) -> tuple[int, Compressed]:
    steps = []
    torch.manual_seed(7)
    result = compress(network, recipe, task, monitor=steps.append, **options)
    return len(steps), result


def killed_and_resumed(
    steps: int, workdir: Path, recipe: Recipe, task: Task, network: nn.Module, every: float, error: type[BaseException] = Killed
) -> Compressed:
    torch.manual_seed(7)
    with pytest.raises(error):
        compress(network, recipe, task, workdir=workdir, monitor=killed_after(steps, error), checkpoint_seconds=every)
    torch.manual_seed(7)  # the same command again, from its beginning
    return compress(network, recipe, task, workdir=workdir)  # it is saved no more often than it has to be: that costs


def rows_but_seconds(result: Compressed) -> list[dict[str, Any]]:
    return [row.to_dict() | {"seconds": 0, "residuals": None} for row in result.rows]


@pytest.mark.third
@pytest.mark.parametrize("recipe", [SMALL, CANDIDATES], ids=lambda recipe: recipe.name)
def test_killed_at_every_step_of_an_epoch_weights_and_report_are_identical(recipe: Recipe, tmp_path: Path) -> None:
    """The loss of a row picks among candidates, so a resumed run that forgets half an epoch's losses can pick another network."""
    task = small_task()
    total, expected = count_steps(recipe, task, small())
    assert total == (36 if recipe is SMALL else 84)
    for steps in range(1, total + 1, 5 if recipe is SMALL else 19):  # an epoch has 6 steps, and each of the 6 comes up
        resumed = killed_and_resumed(steps, tmp_path / str(steps), recipe, task, small(), every=0.0)
        assert same(resumed, expected), f"killed after step {steps}"
        assert rows_but_seconds(resumed) == rows_but_seconds(expected), f"killed after step {steps}"


@pytest.mark.parametrize("every", [0.0, 1e9], ids=["saved each step", "saved between stages"])
def test_a_network_with_dropout_resumes_too(every: float, tmp_path: Path) -> None:
    """The generator's state must come back at the start of a stage as well as in its middle."""
    task = small_task()
    total, expected = count_steps(SMALL, task, small(0.5))
    for steps in (3, 17, 30):
        resumed = killed_and_resumed(steps, tmp_path / str(steps), SMALL, task, small(0.5), every)
        assert same(resumed, expected), f"killed after step {steps} of {total}"


def test_a_data_loader_that_draws_from_the_global_generator_resumes_too(tmp_path: Path) -> None:
    task = small_task(loader)
    total, expected = count_steps(SMALL, task, small(0.5))
    for steps in (3, 15):
        resumed = killed_and_resumed(steps, tmp_path / str(steps), SMALL, task, small(0.5), every=0.0)
        assert same(resumed, expected), f"killed after step {steps} of {total}"


def test_a_run_without_a_workdir_is_the_same_run(tmp_path: Path) -> None:
    task = small_task()
    _, without = count_steps(SMALL, task, small())
    _, within = count_steps(SMALL, task, small(), workdir=tmp_path, checkpoint_seconds=0.0)
    assert same(without, within)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    task = small_task()
    _, first = count_steps(SMALL, task, small(), workdir=tmp_path)
    steps, second = count_steps(SMALL, task, small(), workdir=tmp_path)
    assert steps == 0
    assert same(first, second)
    assert rows_but_seconds(first) == rows_but_seconds(second)


def test_the_report_has_each_epoch_of_training() -> None:
    _, done = count_steps(SMALL, small_task(), small())
    for stage, row in zip(SMALL.stages, done.rows, strict=True):
        assert len(row.course) == stage.epochs
        assert not row.course or row.course[-1][0] == row.loss
    constrained = [row for stage, row in zip(SMALL.stages, done.rows, strict=True) if isinstance(stage, Constrain)]
    assert any(residual is not None for row in constrained for _, residual in row.course)


def test_the_given_network_is_not_changed() -> None:
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_steps(SMALL, small_task(), network)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


# --- Ctrl-C --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 12, 19, 25])
def test_an_interrupt_by_the_monitor_is_saved_to_the_step(steps: int, tmp_path: Path) -> None:
    task = small_task()
    total, expected = count_steps(SMALL, task, small())
    with pytest.raises(KeyboardInterrupt):
        compress(small(), SMALL, task, workdir=tmp_path, monitor=killed_after(steps, KeyboardInterrupt), checkpoint_seconds=1e9)
    rest, resumed = count_steps(SMALL, task, small(), workdir=tmp_path, checkpoint_seconds=1e9)
    assert rest == total - steps
    assert same(resumed, expected)


def test_an_interrupt_without_a_workdir_is_still_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(small(), SMALL, small_task(), monitor=killed_after(5, KeyboardInterrupt))


# --- disks that are full -------------------------------------------------------------------------------------------------


def fail_on_call(number: int, real: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    calls = []

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) >= number:
            if hasattr(args[-1], "write"):
                args[-1].write(b"half of a checkpoint")
            raise error
        return real(*args, **kwargs)

    return sometimes


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FAILURES = {
    "the first save": ("save", 1, FULL),
    "a save": ("save", 9, FULL),
    "a save in torch's zip writer": (
        "save",
        9,
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ),
    "an fsync": ("fsync", 9, FULL),
    "a rename": ("replace", 9, FULL),
}


@pytest.mark.third
@pytest.mark.parametrize(("what", "number", "error"), FAILURES.values(), ids=FAILURES)
def test_a_full_disk_is_a_named_error_and_the_last_good_checkpoint_stays(
    what: str, number: int, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = small_task()
    _, expected = count_steps(SMALL, task, small())
    owner: Any = torch if what == "save" else checkpoint.os
    monkeypatch.setattr(owner, what, fail_on_call(number, getattr(owner, what), error))
    with pytest.raises(StorageError, match=r"cannot write the checkpoint .*Free space"):
        compress(small(), SMALL, task, workdir=tmp_path / "work", checkpoint_seconds=0.0)
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert left == ([CHECKPOINT, NETWORK.format(0)] if number > 1 else [])
    steps, resumed = count_steps(SMALL, task, small(), workdir=tmp_path / "work")
    assert same(resumed, expected)
    assert steps < 36 or number == 1


def test_a_disk_that_really_takes_no_more_is_a_named_error(tmp_path: Path) -> None:
    """The kernel refuses the write here: a limit on the size of a file, in a child so that nothing else feels it."""
    checkpoint.write(tmp_path / "good.pt", {"step": 1})

    def overflow() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            checkpoint.write(tmp_path / "good.pt", {"step": 2, "tensor": torch.zeros(100_000)})
        except StorageError:
            os._exit(42)

    _, status = os.waitpid(fork(overflow), 0)
    assert os.waitstatus_to_exitcode(status) == 42
    assert checkpoint.read(tmp_path / "good.pt") == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["good.pt"]


# --- checkpoints that are not ours ---------------------------------------------------------------------------------------


def interrupted(workdir: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        compress(small(), SMALL, small_task(), workdir=workdir, monitor=killed_after(12, KeyboardInterrupt))
    return workdir / CHECKPOINT


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    begun = replace(STAGES[1], driver=ADMM(0.2, 2, 1.3))
    for other in (replace(SMALL, stages=(STAGES[0], begun, *STAGES[2:])), replace(SMALL, stages=STAGES[1:])):
        with pytest.raises(InputError, match="another recipe"):
            compress(small(), other, small_task(), workdir=tmp_path)


def test_a_checkpoint_from_before_a_field_was_added_goes_on(tmp_path: Path) -> None:
    expected = compress(small(), SMALL, small_task())
    path = interrupted(tmp_path)
    saved = checkpoint.read(path)
    assert saved["recipe"]["stages"][0].pop("auxiliary") is False
    checkpoint.write(path, saved)
    assert same(compress(small(), SMALL, small_task(), workdir=tmp_path), expected)


def test_a_checkpoint_with_a_field_that_is_gone_is_refused(tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    saved = checkpoint.read(path)
    saved["recipe"]["stages"][0]["forgotten"] = 1
    checkpoint.write(path, saved)
    with pytest.raises(ArtifactError, match="delete it to start over"):
        compress(small(), SMALL, small_task(), workdir=tmp_path)


def test_stages_that_have_not_begun_may_change(tmp_path: Path) -> None:
    changed = replace(SMALL, stages=(*STAGES[:2], STAGES[3]))
    task = small_task()
    expected = compress(small(), changed, task)
    interrupted(tmp_path)
    assert same(compress(small(), changed, task, workdir=tmp_path), expected)


def test_the_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    other = small()
    other.first, other.norm, other.last = nn.Linear(8, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)
    with pytest.raises(FeatherweightError):
        compress(other, SMALL, small_task(), workdir=tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(share: float, tmp_path: Path) -> None:
    path = interrupted(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError, match="delete it to start over"):
        compress(small(), SMALL, small_task(), workdir=tmp_path)


def test_a_checkpoint_of_noise_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(random.Random(0).randbytes(4000))
    with pytest.raises(ArtifactError):
        compress(small(), SMALL, small_task(), workdir=tmp_path)


class Hostile:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not(tmp_path: Path) -> None:
    torch.save({"recipe": Hostile(tmp_path / "pwned")}, tmp_path / CHECKPOINT)
    with pytest.raises(ArtifactError):
        compress(small(), SMALL, small_task(), workdir=tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("payload", [[1, 2], {"epoch": 3}, 7], ids=str)
def test_a_checkpoint_of_another_program_is_refused(payload: Any, tmp_path: Path) -> None:
    torch.save(payload, tmp_path / CHECKPOINT)
    with pytest.raises(FeatherweightError):
        compress(small(), SMALL, small_task(), workdir=tmp_path)


# --- candidates ----------------------------------------------------------------------------------------------------------


def test_three_candidates_are_kept_alive_and_the_best_of_each_stage_goes_on() -> None:
    starts: list[tuple[str, int]] = []

    def monitor(progress: Progress) -> None:
        if progress.phase == "train" and progress.step == 1:
            starts.append((progress.stage, len(starts)))

    result = compress(small(), CANDIDATES, small_task(), monitor=monitor)
    runs = [sum(1 for name, _ in starts if name == stage.name) for stage in CANDIDATES.stages]
    assert runs == [1, 1, 1, 1, 3, 3]  # the pool holds three partial networks after "prune", "b" and "c"
    assert result.rows[-1].stage == "e"
    assert result.rows[-1].targets["first.weight"] == (7, 48)


def test_one_candidate_is_a_straight_line() -> None:
    result = compress(small(), SMALL, small_task())
    assert [row.stage for row in result.rows] == ["dense", "prune", "thin", "fewer"]
    assert [row.epochs for row in result.rows] == [2, 5, 7, 9]


def test_sgd_with_momentum_resumes_too(tmp_path: Path) -> None:
    task = dataclasses.replace(small_task(), optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3))
    _, expected = count_steps(SMALL, task, small())
    for steps in (4, 13, 19, 27, 35):
        assert same(killed_and_resumed(steps, tmp_path / str(steps), SMALL, task, small(), every=0.0), expected)
