"""A sweep on this machine: its trials run one after another in this process, or several at a time in separate processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rltrack.errors import ConfigurationError, RltrackError, RunBusy
from rltrack.files import replace_text, take_lock
from rltrack.plain_data import to_yaml, with_values
from rltrack.processes import python_command
from rltrack.ranking import rank
from rltrack.studies.jobs import RESUMABLE, STOPPED, Job, run_jobs, why_unfinished
from rltrack.studies.search import Search, trial_name
from rltrack.studies.trials import run_trial, train_here


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A trial that has no result yet.

    Attributes:
        number: Which.
        why: The reason.
        stopped: Whether it was stopped by the user or a signal.
    """

    number: int
    why: str
    stopped: bool


def sweep_here(search: Search, *, jobs: int, console: bool, notify: Callable[[str], None]) -> list[Unfinished]:
    """Run every trial that has no result.

    Args:
        search: The sweep, open.
        jobs: Trials at a time; with one, in this process.
        console: Show progress bars.
        notify: Called with each progress message.

    Returns:
        The trials without a result, with the reasons.

    Raises:
        ConfigurationError: If `jobs` is less than 1.
        RunBusy: If another process on this machine runs the sweep.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}; at least one trial must run at a time.")
    search.root.check_writable()
    search.folder.mkdir(parents=True, exist_ok=True)
    lock = take_lock(search.folder / "lock", wait_seconds=1.0)
    if lock is None:
        raise RunBusy(f"Another process on this machine runs the sweep {search.name}. Wait for it.")
    try:
        numbers = search.unfinished()
        done = len(search.trials()) - len(numbers)
        if done:
            notify(f"{done} of {len(search.trials())} trials were finished before")
        return (
            _sequentially(search, numbers, console, notify)
            if jobs == 1
            else _in_processes(search, numbers, jobs, notify)
        )
    finally:
        os.close(lock)


def _sequentially(search: Search, numbers: list[int], console: bool, notify: Callable[[str], None]) -> list[Unfinished]:
    left = []
    for number in numbers:
        try:
            result = run_trial(search, number, train_here(search, console=console))
        except (RltrackError, OSError):
            raise  # an error of the machine, the storage or the configuration: the other trials would fail too
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            notify(f"{trial_name(search.name, number)}: {why}")
            left.append(Unfinished(number, f"{why}; the same command retries it", False))
            continue
        if result.state == "stopped":
            return [*left, Unfinished(number, RESUMABLE, True)]
        value = "" if result.value is None else f", {result.value:.6g}"
        notify(f"{trial_name(search.name, number)}: {result.state}{value}")
    return left


def _in_processes(search: Search, numbers: list[int], jobs: int, notify: Callable[[str], None]) -> list[Unfinished]:
    logs = {number: search.folder / f"t{number:04d}.log" for number in numbers}
    waiting = [
        Job(
            trial_name(search.name, number),
            python_command("rltrack", "--root", str(search.root.path), "carry-out-trial", search.name, str(number)),
            logs[number],
            search.environment,
        )
        for number in numbers
    ]
    codes = run_jobs(waiting, jobs, notify)
    left = []
    for number in search.unfinished():
        if number in logs:
            code = codes.get(trial_name(search.name, number))
            left.append(Unfinished(number, why_unfinished(code, logs[number]), code == STOPPED))
    return left


def trial_rows(search: Search) -> list[dict[str, Any]]:
    """Return every trial as plain data, the best first."""
    rows = [
        {
            "trial": trial.number,
            "state": {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "begun"}.get(
                trial.state.name, "waiting"
            ),
            "value": trial.value if trial.state.is_finished() else None,
            "values": dict(trial.params),
            "runs": search.run_names(trial.number),
            "reason": trial.user_attrs.get("reason"),
        }
        for trial in search.trials()
    ]
    order = {"complete": 0, "pruned": 1, "begun": 2, "failed": 3, "waiting": 4}
    return sorted(rows, key=lambda row: (order[row["state"]], -rank(row["value"]), row["trial"]))


def write_best(search: Search) -> Mapping[str, Any] | None:
    """Write ``best.yaml``, the best trial's configuration, which `rltrack train` takes; return it, or None without one."""
    best = search.best()
    if best is None:
        return None
    data = with_values(search.base, search.values_of(best.number))
    data.pop("name", None)
    search.folder.mkdir(parents=True, exist_ok=True)  # with a database elsewhere it may not exist yet
    head = f"# Best of sweep {search.name}: trial {best.number}, mean return {best.value:.6g}.\n"
    replace_text(search.folder / "best.yaml", head + to_yaml(data))
    return data
