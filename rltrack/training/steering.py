"""Hears what another process asks of a training (`rltrack.runs.requests`), and says what happened."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rltrack.errors import RltrackError
from rltrack.runs import requests
from rltrack.training.progress import TrainingState

if TYPE_CHECKING:
    from rltrack.runs import RunDirectory
    from rltrack.runs.requests import Request
    from rltrack.training.control import Control
    from rltrack.training.progress import TrainingProgress

EVERY_SECONDS = 1.0
STOPPED = "rltrack stop"
"""The reason of a stop begins with it."""


class Steering:
    """Looks for a request at boundaries, once a second.

    Args:
        run: The run's folder.
        control: Is asked to stop, pause and resume.
        progress: Of the training.
        record: Called with what was asked and by whom, for the journal.
        checkpoint: Commits a version here, and returns what happened in words.
    """

    def __init__(
        self,
        run: RunDirectory,
        control: Control,
        progress: TrainingProgress,
        record: Callable[[str], None],
        checkpoint: Callable[[], str],
    ) -> None:
        self._run, self._control, self._progress = run, control, progress
        self._record, self._checkpoint = record, checkpoint
        self._next = 0.0
        self._pause: Request | None = None

    def start(self) -> None:
        """Remove a request that an earlier process was asked: it is not for this one."""
        requests.withdraw(self._run)

    def look(self, *, at_boundary: bool = True) -> None:
        """Do what is asked, if it is time to look; away from a boundary only a stop."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        request = requests.peek(self._run)
        if request is None or not (at_boundary or request.verb == "stop"):
            return
        requests.withdraw(self._run)
        self._record(f"rltrack {request.verb} by {request.by}")
        self._perform(request)

    def paused(self) -> None:
        """Called when training is paused: answer the request to pause."""
        if self._pause is not None:
            requests.answer(self._run, self._pause, self._at("paused"))
            self._pause = None

    def _perform(self, request: Request) -> None:
        is_paused = self._progress.state is TrainingState.PAUSED
        text, done = "", True
        if request.verb == "stop":
            self._control.stop(f"{STOPPED} by {request.by}")
            text = self._at("stopping")
        elif request.verb == "pause":
            self._control.pause()
            if not is_paused:
                self._pause = request
                return
            text = self._at("already paused")
        elif request.verb == "continue":
            self._control.resume()
            text, done = self._at("continues" if is_paused else "it is not paused"), is_paused
        else:
            try:
                text = self._checkpoint()
            except RltrackError as error:
                text, done = str(error), False
        requests.answer(self._run, request, text, done=done)

    def _at(self, what: str) -> str:
        return f"{what} at {self._progress.env_steps:,} env steps"
