"""What `rltrack stop`, `pause`, `continue` and `checkpoint` do, and `rltrack follow` prints."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rltrack.console.records import new_records
from rltrack.errors import RltrackError, RunDamaged
from rltrack.runs import requests
from rltrack.text import is_terminal, printable
from rltrack.training.reporter import format_duration

if TYPE_CHECKING:
    from rltrack.journal import Record
    from rltrack.runs import RunDirectory

_POLL_SECONDS = 0.1
_LINE_SECONDS = 10.0


def steer(run: RunDirectory, verb: str, timeout: float) -> str:
    """Ask the process that trains a run for something, and return what happened.

    Args:
        run: The run.
        verb: One of `rltrack.runs.requests.VERBS`.
        timeout: Seconds to wait for the next boundary, and after a stop for the end of the training.

    Raises:
        RltrackError: If no process trains it, it did not do what was asked, or gave no answer in time.
        RunBusy: If another request waits.
    """
    if not run.is_locked():
        raise RltrackError(f"No process on this machine trains run {run.name}: it is {run.status().state}.")
    request, deadline = requests.ask(run, verb), time.monotonic() + timeout
    answer = None
    while time.monotonic() < deadline:
        answer = answer or requests.answer_to(run, request)
        is_trained = run.is_locked()
        if not is_trained and verb == "stop":
            status = run.status()
            return f"{status.state} at {status.env_steps:,} env steps"
        if answer is not None and verb != "stop":
            if not answer.done:
                raise RltrackError(f"{verb} {run.name}: {answer.text}.")
            return answer.text
        if not is_trained:
            requests.withdraw(run)
            raise RltrackError(f"The training of run {run.name} ended first: it is {run.status().state}.")
        time.sleep(_POLL_SECONDS)
    if answer is not None:
        return f"{answer.text}; its end is not there yet: rltrack follow {run.name}"
    raise RltrackError(
        f"Run {run.name} did not come to a boundary within {timeout:g} s. The request stays, and is done there. An iteration that "
        "lasts long has a large n_steps or slow environments; wait longer with --timeout."
    )


def follow(run: RunDirectory) -> None:
    """Print progress, evaluations and events of a run until its training ends or Ctrl-C."""
    view = _View(_total(run))
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for record in new_records(run, follow=True):
            view.take(record)
    view.end()
    status = run.status()
    print(f"{status.state} at {status.env_steps:,} env steps{f': {printable(status.reason)}' if status.reason else ''}")


class _View:
    """One line of progress, which changes in place on a terminal; a line for each event above it."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._in_place = is_terminal(sys.stdout)
        self._progress = ""
        self._values: dict[str, float] = {}
        self._shown = 0.0
        self._began: tuple[float, int] | None = None

    def take(self, record: Record | None) -> None:
        """Show a record; None where the journal holds no further one by now."""
        if record is None:
            self._show(_LINE_SECONDS if not self._in_place else 0.0)
            return
        event = _event(record)
        if record["kind"] == "attempt":
            self._began = (record["time"], int(record.get("env_steps", 0)))
        if record["kind"] == "metrics":
            self._values |= record["values"]
            self._progress = self._line(record)
        if event is not None:
            self._print(event)

    def end(self) -> None:
        """Show the last progress."""
        self._show(0.0)
        if self._in_place and self._progress:
            print()

    def _line(self, record: Mapping[str, Any]) -> str:
        step = record["step"]
        parts = [f"{step:,}" + (f" / {self._total:,} ({100 * step / self._total:.0f} %)" if self._total else "")]
        if self._began is not None and record["time"] > self._began[0] and step > self._began[1]:
            speed = (step - self._began[1]) / (record["time"] - self._began[0])
            parts.append(f"{speed:,.0f}/s")
            if self._total:
                parts.append(f"{format_duration(max(self._total - step, 0) / speed)} left")
        if "rollout/ep_rew_mean" in self._values:
            parts.append(f"return {self._values['rollout/ep_rew_mean']:.5g}")
        return " · ".join(parts)

    def _show(self, every: float) -> None:
        now = time.monotonic()
        if self._progress and now - self._shown >= every:
            self._shown = now
            print(
                f"\r\x1b[K{self._progress}" if self._in_place else self._progress,
                end="" if self._in_place else "\n",
                flush=True,
            )
            self._progress = self._progress if self._in_place else ""

    def _print(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self._in_place else text, flush=True)
        self._shown = 0.0


def _event(record: Record) -> str | None:
    """Return a record that is no number as a line; None for one that is not shown."""
    kind, at = record["kind"], f"{record['step']:,}: " if "step" in record else ""
    if kind == "attempt":
        begin = record["resumed_from"] or "the start"
        return f"attempt {record['number']} on {printable(record['host'])}, from {printable(begin)}"
    if kind == "evaluation":
        low, high = record["interval"]
        return f"{at}evaluation: mean return {record['mean']:.5g} (95 % interval {low:.5g} to {high:.5g})"
    if kind == "checkpoint":
        return f"{at}{printable(record['version'])} is committed"
    if kind == "decision":
        return printable(f"{at}{record['decision']}: {record['reason']}")
    if kind in ("warning", "error"):
        return printable(f"{kind}: {record['message']}")
    if kind == "signal":
        return printable(record["name"])
    return None


def _total(run: RunDirectory) -> int | None:
    try:
        total = (run.read_config().get("training") or {}).get("total_timesteps")
    except (RunDamaged, AttributeError):
        return None
    return total if type(total) is int and total > 0 else None
