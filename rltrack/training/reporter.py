"""Shows how training goes: a progress bar, lines, a log file, TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rltrack.text import is_terminal, printable
from rltrack.training.notebook import line_in_place
from rltrack.training.progress import TrainingState

if TYPE_CHECKING:
    from rltrack.evaluation.episodes import Evaluation
    from rltrack.training.progress import TrainingProgress

_REFRESH_SECONDS = 1.0


def format_duration(seconds: float | None) -> str:
    """Return a duration in words: ``42s``, ``3m 07s``, ``2h 05m``, ``3d 04h``; ``–`` if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


class _Warnings(logging.Handler):
    """Shows warnings while a training is shown, above its bar."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


class ProgressReporter:
    """Shows the progress of a training.

    In a terminal it keeps one calm bar, in a notebook one line that changes in place; elsewhere it prints a line every
    `line_seconds`.

    Args:
        tensorboard_log_dir: Write the progress here as TensorBoard events while training; omitted: not. A run's own
            TensorBoard folder is filled from its journal in any case.
        log_file: Append what happens to this file.
        console: True: a bar in a terminal or notebook, lines elsewhere. False: nothing. None: a bar in a terminal or notebook, else
            nothing.
        line_seconds: Seconds between two lines where there is no terminal.
    """

    def __init__(
        self,
        tensorboard_log_dir: str | Path | None = None,
        *,
        log_file: str | Path | None = None,
        console: bool | None = None,
        line_seconds: float = 10.0,
    ) -> None:
        self.tensorboard_log_dir = tensorboard_log_dir
        self.log_file = log_file
        self.line_seconds = line_seconds
        self._wanted = console
        self._terminal = is_terminal(sys.stderr)
        self._bar: Any = None
        self._cell: Callable[[str], None] | None = None
        self._task: Any = None
        self._log: logging.FileHandler | None = None
        self._warnings: _Warnings | None = None
        self._tensorboard: Any = None
        self._next = 0.0
        self._title = self._evaluation = ""

    @contextlib.contextmanager
    def waiting(self, what: str = "getting ready") -> Iterator[None]:
        """Show on a terminal that something takes a while, before there is progress to show."""
        if self._wanted is False or not self._terminal:
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(f"{what} …"):
            yield

    def start(self, title: str, progress: TrainingProgress) -> None:
        """Begin to show a training."""
        self._title = title
        self._next = 0.0
        if self.log_file is not None:
            Path(self.log_file).parent.mkdir(parents=True, exist_ok=True)
            self._log = logging.FileHandler(self.log_file, encoding="utf-8")
            self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
            logger = logging.getLogger("rltrack")
            if (
                self._wanted is not False and not logger.hasHandlers()
            ):  # our file's would keep Python from showing warnings
                self._warnings = _Warnings(self._show)
                logger.addHandler(self._warnings)
            logger.addHandler(self._log)
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)
        if self.tensorboard_log_dir is not None:
            from rltrack.tracking.sinks.tensorboard import TensorBoardWriter

            self._tensorboard = TensorBoardWriter(self.tensorboard_log_dir)
        if self._wanted is not False and self._terminal:
            self._start_bar(progress)
        elif self._wanted is not False:
            self._cell = line_in_place()
        self.say(f"{title}: training begins at {progress.env_steps:,} env steps")

    def update(self, progress: TrainingProgress) -> None:
        """Show the progress now, if it is time to; called at boundaries."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REFRESH_SECONDS if self._bar or self._cell else self.line_seconds)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done(progress), tail=self._tail(progress))
            self._bar.refresh()
        elif self._cell is not None:
            self._cell(f"{self._title}: {self.line(progress)}")
        elif self._wanted:
            print(f"{self._title}: {self.line(progress)}", file=sys.stderr, flush=True)

    def show_evaluation(self, progress: TrainingProgress, episodes: int, steps: int) -> None:
        """Show now, if it is time to, how an evaluation goes.

        Args:
            progress: Of the training.
            episodes: How many have ended.
            steps: How many steps each environment of the evaluation has made.
        """
        if time.monotonic() >= self._next:
            self._evaluation = f" ({episodes:,} episodes done, {steps:,} steps)"
            self.update(progress)
            self._evaluation = ""

    def report_metrics(self, values: dict[str, float], step: int, when: float) -> None:
        """Write metrics to TensorBoard, if a folder was given."""
        if self._tensorboard is not None:
            from rltrack.tracking.sinks.tensorboard import finite

            self._tensorboard.scalars(finite(values), step, when)

    def report_evaluation(self, evaluation: Evaluation, *, best: bool) -> None:
        """Print an evaluation's result above the progress bar."""
        self.say(
            f"evaluation at {evaluation.env_steps:,} env steps: {evaluation.summary()}{', the best so far' if best else ''}",
            show=best,
        )
        self._next = 0.0

    def say(self, message: str, *, show: bool = False, level: int = logging.INFO) -> None:
        """Write a message to the log file, and with `show` to the console."""
        message = printable(message)
        if self._log is not None:
            self._log.handle(logging.LogRecord("rltrack", level, __file__, 0, message, None, None))
        if show and (self._bar is not None or self._wanted):
            self._show(message)

    def _show(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(printable(message), markup=False, highlight=False)
        else:
            print(f"{self._title}: {printable(message)}", file=sys.stderr, flush=True)

    def close(self, progress: TrainingProgress, message: str) -> None:
        """Show the end and release everything; harmless if called twice."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done(progress), tail=self._tail(progress))
            self._bar.stop()
            self._bar = None
        if self._cell is not None:
            self._cell(f"{self._title}: {self.line(progress)}  {message}")
            self._cell = None
        if self._log is not None:
            self.say(message)
            logger = logging.getLogger("rltrack")
            logger.removeHandler(self._log)
            self._log.close()
            self._log = None
            if self._warnings is not None:
                logger.removeHandler(self._warnings)
                self._warnings = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def line(self, progress: TrainingProgress) -> str:
        """Return the progress in one line."""
        return f"{100 * self._done(progress):.0f} %  {self._tail(progress)}"

    def _start_bar(self, progress: TrainingProgress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[tail]}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._task = self._bar.add_task(self._title, total=1.0, tail=self._tail(progress))
        self._bar.start()

    def _done(self, progress: TrainingProgress) -> float:
        return min(max(1.0 - progress.remaining, 0.0), 1.0)

    def _tail(self, progress: TrainingProgress) -> str:
        parts = [f"{progress.env_steps:,} steps", f"{progress.steps_per_second:,.0f}/s"]
        if progress.state is TrainingState.RUNNING:
            parts.append(f"{format_duration(progress.eta_seconds)} left")
        elif not progress.state.is_final:
            parts.append(f"{progress.state.value}{self._evaluation}")
        if progress.recent_returns:
            parts.append(f"return {progress.mean_return:.5g}")
        if progress.last_evaluation is not None:
            parts.append(f"eval {progress.last_evaluation.mean:.5g}")
        if progress.memory_mb is not None:
            parts.append(f"{progress.memory_mb:,.0f} MB")
        return " · ".join(parts)
