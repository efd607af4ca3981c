"""Starting the delivery of a run's journal to MLflow and TensorBoard, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from rltrack.runs import RunDirectory


class Delivery:
    """A delivery under way; training never waits for it unless asked to."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end; return whether everything was delivered."""
        try:
            return self._process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            return False


def deliver(run: RunDirectory) -> Delivery:
    """Start delivering; its messages go to ``sync.log`` in the run's folder.

    It has a session of its own, so that Ctrl-C at the terminal does not cut it off.
    """
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
    with open(run.path / "sync.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rltrack.tracking.sync", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    return Delivery(process)
