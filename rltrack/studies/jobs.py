"""Runs several commands at a time, each in a separate process, until all have ended.

With several GPUs, each command that runs at the same time sees one of them (``CUDA_VISIBLE_DEVICES``), in turn.
The same jobs can be run again at any time: a finished training ends at once, and an interrupted one resumes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rltrack.hash_seed import with_hash_seed
from rltrack.processes import spawn
from rltrack.resources import gpu_names

STOPPED = 3
"""Exit code of a training that was stopped with a version."""

RESUMABLE = "stopped with a version; the same command resumes it"
GPUS = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """One command.

    Attributes:
        name: Its name.
        command: The program and its arguments.
        log: Where its output goes.
        environment: Added to the environment of this process.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def run_jobs(jobs: Sequence[Job], at_a_time: int, notify: Callable[[str], None]) -> dict[str, int]:
    """Run all jobs; if one fails, the others still run.

    On KeyboardInterrupt the running jobs get SIGTERM, on which trainings stop at their next boundary with a version, and are
    waited for.

    Args:
        jobs: What to run.
        at_a_time: How many at a time, at least 1.
        notify: Called with each progress message.

    Returns:
        The exit code of each job that ended, by name.
    """
    waiting, running, codes = deque(jobs), dict[str, subprocess.Popen[bytes]](), dict[str, int]()
    gpus, places = visible_gpus(), dict[str, int]()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.popleft()
                place = min(set(range(at_a_time)) - set(places.values()))
                places[job.name] = place
                running[job.name] = _start(job, _one_gpu(gpus, place))
                notify(f"{job.name}: started")
            for name, process in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[name], places[name]
                    codes[name] = code
                    notify(f"{name}: {'done' if code == 0 else f'ended with exit code {code}'}")
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        notify(f"stopping {', '.join(running)} at the next boundary")
        raise
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
    return codes


def why_unfinished(code: int | None, log: Path) -> str:
    """Return why a job is not done, as a message.

    Args:
        code: Its exit code; None if it was not started.
        log: Where its output went.
    """
    if code == STOPPED:
        return RESUMABLE
    return f"{'not started' if code is None else f'exit code {code}'}; see {log}"


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, in the notation of `CUDA_VISIBLE_DEVICES`."""
    given = os.environ.get(GPUS)
    if given is not None:
        return [item.strip() for item in given.split(",") if item.strip()]
    return [str(index) for index in range(len(gpu_names()))]


def _one_gpu(gpus: Sequence[str], place: int) -> dict[str, str]:
    """Return the environment variables that show a command one GPU, numbered as the driver does."""
    if not gpus:
        return {}
    return {GPUS: gpus[place % len(gpus)], "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a job; Ctrl-C reaches it once, through us."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    return spawn(
        job.command, job.log, with_hash_seed({**os.environ, "NO_COLOR": "1", **environment, **job.environment})
    )
