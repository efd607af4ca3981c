"""Keeping a run's shipper alive from the training process, and waiting for what it delivers."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from rltrack.backoff import Backoff
from rltrack.processes import python_command, spawn
from rltrack.resources import not_of_training
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import is_delivered, read_bookmark
from rltrack.tracking.takeover import is_stalled

_logger = logging.getLogger("rltrack")

_LOOK_SECONDS = 1.0
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0
_REPLACEMENTS = 3
_POLL_SECONDS = 0.05
KNOWN_DOWN_SECONDS = 5.0
"""How long the end of a training waits for an MLflow that did not answer."""


class NoDelivery:
    """For a training whose records stay where they are."""

    def look(self) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def wait(self, timeout: float | None = None) -> bool:
        """Return that nothing is left to deliver."""
        return True


class Delivery:
    """A run's delivery, seen from the process that trains: the first `look` starts a shipper; none of them waits.

    Args:
        run: The run.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        self._looked = float("-inf")
        self._started = float("-inf")
        self._backoff = Backoff(_FIRST_WAIT, _LONGEST_WAIT, jitter=0.0)

    def look(self) -> None:
        """Start a shipper if there is none; at most once a second, and less often if they keep dying."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            self._backoff.failed(since=self._started)
        if self._process is None and self._backoff.is_due() and not self._run.is_shipped():
            self._start()

    def finish(self) -> None:
        """Make sure that a process delivers the rest, now that training has released the run."""
        self._looked = float("-inf")
        self._started = float("-inf")
        self._backoff.hurry()
        if not is_delivered(self._run):
            self.look()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is delivered, or no process tries any more; return whether it is.

        A process that a signal ends meanwhile is replaced, a few times.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        replacements = _REPLACEMENTS
        while not is_delivered(self._run):
            if (self._process is None or self._process.poll() is not None) and not self._run.is_shipped():
                was_killed = self._process is not None and self._process.returncode < 0
                if is_delivered(self._run) or not (was_killed and replacements):
                    return is_delivered(self._run)
                replacements -= 1
                self._start()
            found = read_bookmark(self._run)
            if found is not None and found.problem is not None and found.problem.kind == "person":
                return False
            if (deadline is not None and time.monotonic() >= deadline) or is_stalled(self._run):
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _start(self) -> None:
        self._started = time.monotonic()
        try:
            self._process = _start_shipper([str(self._run.path)], self._run.shipper_log)
        except OSError as error:  # no process or no memory to be had: training continues, and it is tried again
            self._backoff.failed(since=self._started)
            _logger.warning(
                f"Nothing is delivered to MLflow and TensorBoard for now: no process can be started ({error})."
            )
            return
        not_of_training(self._process.pid)


def wait_until_delivered(run: RunDirectory, wait: Callable[[float], bool], seconds: float) -> bool:
    """Wait for the end of a run's delivery, and only a moment where MLflow is known not to answer: it continues by itself.

    Args:
        run: The run.
        wait: Waits for so many seconds, or until no process tries any more; says whether everything is delivered.
        seconds: How long at most.
    """
    begun = time.monotonic()
    while (waited := time.monotonic() - begun) < seconds:
        slice_begun, slice_seconds = time.monotonic(), min(1.0, seconds - waited)
        if wait(slice_seconds):
            return True
        if time.monotonic() - slice_begun < slice_seconds * 0.9 or is_stalled(run):  # no process tries, or could
            return False
        found = read_bookmark(run)
        is_down = found is not None and found.problem is not None
        if is_down and time.monotonic() - begun >= KNOWN_DOWN_SECONDS:
            return False
    return is_delivered(run)


def deliver_left_behind(root: Root) -> int:
    """Deliver what dead processes left behind, in a process of its own; return how many runs that are."""
    from rltrack.tracking.shipper import left_behind

    runs = left_behind(root)
    if runs:
        _start_shipper(["--all", str(root.path)], root.path / "deliver.log")
    return len(runs)


def _start_shipper(arguments: list[str], log_file: Path) -> subprocess.Popen[bytes]:
    return spawn(python_command("rltrack.tracking.shipper", *arguments), log_file)
