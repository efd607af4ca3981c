"""Several commands at a time, each in a process of its own, until all have ended.

With several GPUs each of the commands that run beside each other sees one (``CUDA_VISIBLE_DEVICES``), in turn.
Nobody here decides what is left to do: a training that is finished says so and ends, and one that was interrupted goes on.
So whatever happened to this process, the same jobs can be given again.
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

from rltrack.processes import spawn
from rltrack.resources import gpu_names

STOPPED = 3
"""Exit code of a training that was stopped with a version."""

GOES_ON = "stopped with a version; the same command goes on"
GPUS = "CUDA_VISIBLE_DEVICES"
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Job:
    """One command.

    Attributes:
        name: How it is called.
        command: The program and its arguments.
        log: Where its output goes.
        environment: Added to ours.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def run_jobs(jobs: Sequence[Job], at_a_time: int, tell: Callable[[str], None]) -> dict[str, int]:
    """Run all jobs; one that fails does not keep the others from running.

    Where this is interrupted (KeyboardInterrupt), the running ones are asked to stop, which trainings do at their next
    boundary with a version, and are waited for.

    Args:
        jobs: What to run.
        at_a_time: How many at a time, at least 1.
        tell: Hears what begins and ends.

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
                tell(f"{job.name}: begun")
            for name, process in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[name], places[name]
                    codes[name] = code
                    tell(f"{name}: {'done' if code == 0 else f'ended with exit code {code}'}")
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        tell(f"stopping {', '.join(running)} at the next boundary")
        raise
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
    return codes


def why_unfinished(code: int | None, log: Path) -> str:
    """Return in words why a job is not done.

    Args:
        code: Its exit code; None if it was not begun.
        log: Where its output went.
    """
    if code == STOPPED:
        return GOES_ON
    return f"{'not begun' if code is None else f'exit code {code}'}; see {log}"


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` writes them."""
    given = os.environ.get(GPUS)
    if given is not None:
        return [item.strip() for item in given.split(",") if item.strip()]
    return [str(index) for index in range(len(gpu_names()))]


def _one_gpu(gpus: Sequence[str], place: int) -> dict[str, str]:
    """The environment in which a command sees one GPU, counted as the driver counts them."""
    if not gpus:
        return {}
    return {GPUS: gpus[place % len(gpus)], "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a job; Ctrl-C reaches it once, through us."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    return spawn(job.command, job.log, {**os.environ, "NO_COLOR": "1", **environment, **job.environment})
