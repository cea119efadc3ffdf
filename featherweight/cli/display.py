"""A run while it goes: live lines on a terminal, and Ctrl-C."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from featherweight.cli import console
from featherweight.run import report
from featherweight.run.watch import Progress

PLAIN_SECONDS = 30.0  # between two lines where none can be drawn anew


class Display:
    """A monitor of `compress`: live on a terminal, elsewhere one line a finished stage. Ctrl-C stops it at the next step.

    `with Display(...) as display: compress(..., monitor=display)`. The first SIGINT makes the monitor raise KeyboardInterrupt
    after the step in hand, so that compress saves; a second one raises it on the spot.
    """

    def __init__(self, stages: Sequence[str]):
        self.stages = list(stages)
        self.console = console.messages()
        self.progress: Progress | None = None
        self.mean_loss = math.nan
        self.stopping = False
        self.began = time.monotonic()
        self.live = Live(self, console=self.console, refresh_per_second=4, transient=True) if sys.stderr.isatty() else None
        self._before: Any = None
        self._said = 0.0  # when a line was last written, where none can be drawn anew

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def __call__(self, progress: Progress) -> None:
        before = self.progress
        if before is None or (before.stage, before.phase) != (progress.stage, progress.phase):
            if before is not None and before.stage != progress.stage:
                self.finished(before.stage, progress.score)
            self.mean_loss = progress.loss
            self._said = 0.0
        self.mean_loss += 0.1 * (progress.loss - self.mean_loss)
        self.progress = progress
        if self.live is None and time.monotonic() - self._said > PLAIN_SECONDS:
            self._said = time.monotonic()
            left = f", {clock(progress.seconds_left)} left" if progress.step > 1 else ""
            self.console.print(console.written(f"{self._where(progress)}: step {progress.step} of {progress.steps}{left}"))
        if self.stopping:
            raise KeyboardInterrupt

    def _where(self, seen: Progress) -> str:
        number = f" {self.stages.index(seen.stage) + 1}/{len(self.stages)}" if seen.stage in self.stages else ""
        return f"stage{number} {seen.stage}, {seen.phase}"

    def finished(self, stage: str, score: float | None) -> None:
        """A line for a stage that is done."""
        now = time.monotonic()
        scored = "" if score is None else f"score {report.score(score)}, "
        self.console.print(console.written(f"stage {stage} done: {scored}{clock(now - self.began)}"))
        self.began = now

    def __rich__(self) -> RenderableType:
        """The live lines."""
        seen = self.progress
        if seen is None:
            return console.written("preparing ...")
        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            line.add_column(ratio=ratio, no_wrap=True)
        what = self._where(seen)
        left = "stopping" if self.stopping else f"{clock(seen.seconds_left)} left"
        line.add_row(console.written(what), ProgressBar(total=seen.steps, completed=seen.step), f"{seen.step}/{seen.steps}", left)
        facts = [f"loss {self.mean_loss:.4f}"]
        if seen.score is not None:
            facts.append(f"last score {report.score(seen.score)}")
        if seen.residuals and seen.phase == "train":
            worst = max(seen.residuals, key=lambda name: seen.residuals[name])
            facts.append(f"residual {seen.residuals[worst]:.3f} at {worst}")
        return Group(line, Text(console.printable("   ".join(facts)), style="dim", no_wrap=True, overflow="ellipsis"))

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
