"""What a run's records say about it: the only place that draws facts from a journal.

`RunHistory` takes the records in their order. Numbers over time are `MetricsTracker`'s, which has a `RunHistory` inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rltrack.hash_seed import RANDOM
from rltrack.journal import JournalReader, Record, read_journal, read_tail, unreadable
from rltrack.journal.values import means_of
from rltrack.ranking import rank
from rltrack.runs.completeness import JournalPosition, Numbering

_SUMMARY = ("seq", "time", "kind", "step", "mean", "std", "median", "iqm", "interval")


@dataclass(frozen=True, slots=True)
class RunStatus:
    """How a run stands, as its journal says.

    Attributes:
        state: ``running``, ``completed``, ``stopped``, ``failed``, or ``interrupted`` (its process died).
        reason: Why it ended, as text.
        env_steps: Env steps at the last record.
        last_time: Unix seconds of the last record.
        mean_return: Mean of the last evaluation; None without one.
        mean_infos: Means of its infos by their key; that of ``is_success`` is the success rate.
        is_finished: Whether there is nothing left to train.
    """

    state: str
    reason: str
    env_steps: int
    last_time: float
    mean_return: float | None
    mean_infos: Mapping[str, float] = field(default_factory=dict)
    is_finished: bool = False


class RunHistory:
    """The facts about a run, from its records.

    Attributes:
        configuration: The record of the configuration; None where the records that were taken hold none.
        attempts: The records of the processes that trained it.
        evaluations: The records of evaluations.
        evaluation_seconds: For each evaluation, seconds of training until then, over all attempts.
        decisions: The records of decisions.
        warnings: The recorded warnings.
        errors: What went wrong, in all attempts.
        error: What went wrong in the last attempt; empty for nothing.
        end: The record of the last attempt's end; None while it has none.
        reproduction: The record of the last time that it was trained again; None if it never was.
        episodes: Training episodes that ended.
        env_steps: Env steps at the last record.
        last_time: Unix seconds of the last record; 0 without any.
        mean_return: Mean return of the last evaluation; None without any.
        mean_infos: Means of its infos by their key.
        labelled_missing: What the journal lacks, as the attempts recorded it.
        missing: What it lacks, as text, where it was read whole (`read`).

    Args:
        is_bounded: Keep evaluations without the returns and lengths of their episodes.
    """

    def __init__(self, *, is_bounded: bool = False) -> None:
        self._is_bounded = is_bounded
        self.configuration: Record | None = None
        self.attempts: list[Record] = []
        self.evaluations: list[Record] = []
        self.evaluation_seconds: list[float] = []
        self.decisions: list[Record] = []
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.error = ""
        self.end: Record | None = None
        self.reproduction: Record | None = None
        self.episodes = 0
        self.env_steps = 0
        self.last_time = 0.0
        self.mean_return: float | None = None
        self.mean_infos: Mapping[str, float] = {}
        self.labelled_missing: list[str] = []
        self.missing: list[str] = []
        self._spent = self._began = 0.0

    @classmethod
    def read(cls, path: str | Path, position: JournalPosition | None = None, *, report: bool = True) -> RunHistory:
        """Read a whole journal; what is damaged is left out.

        Args:
            path: The journal.
            position: Where it must reach at least, for `missing`; omitted: only its numbers are looked at.
            report: Whether to report what is damaged.

        Raises:
            JournalDamaged: If the file is gone or cannot be read.
        """
        history, numbering, reader = cls(), Numbering(position), JournalReader(path)
        try:
            with open(path, "rb") as file:
                for record in reader.read(file, report=report):
                    history.observe(record)
                    numbering.observe(record, reader.position)
        except OSError as error:
            raise unreadable(path, error) from error
        history.missing = numbering.missing(reader)
        return history

    @classmethod
    def read_end(cls, path: str | Path) -> RunHistory:
        """Read the end of a journal, which is enough for `status`.

        Raises:
            JournalDamaged: If the file is gone or cannot be read.
        """
        history = cls()
        for record in read_tail(path):
            history.observe(record)
        return history

    def observe(self, record: Record) -> None:
        """Take the next record."""
        kind, time = record["kind"], record["time"]
        self.env_steps = max(self.env_steps, int(record.get("step") or record.get("env_steps") or 0))
        if kind == "configuration":
            self.configuration = self.configuration or record
        elif kind == "attempt":
            self._spent += self.last_time - self._began if self._began else 0.0
            self._began = time
            self.attempts.append(record)
            self.end, self.error = None, ""
            self.labelled_missing = record.get("missing") or self.labelled_missing
        elif kind == "episodes":
            self.episodes += len(record["returns"])
        elif kind == "evaluation":
            kept = {key: record[key] for key in _SUMMARY if key in record} if self._is_bounded else record
            self.evaluations.append(kept)
            self.evaluation_seconds.append(self._spent + time - self._began)
            self.mean_return, self.mean_infos = record["mean"], means_of(record.get("infos", {}))
        elif kind == "decision":
            self.decisions.append(record)
        elif kind == "warning":
            self.warnings.append(record["message"])
        elif kind == "error":
            self.error = f"{record['error']}: {record['message']}"
            self.errors.append(self.error)
        elif kind == "reproduction":
            self.reproduction = record
        elif kind == "end":
            self.end, self.mean_return = record, record["mean_return"]
            self.mean_infos = record.get("mean_infos", self.mean_infos)
        self.last_time = time

    def status(self) -> RunStatus:
        """Return how the run stands, if no process trains it now."""
        facts = self.env_steps, self.last_time, self.mean_return, self.mean_infos
        if self.end is None:
            return RunStatus("interrupted", "its process died", *facts)
        return RunStatus(self.end["state"], self.end["reason"], *facts, is_finished=not self.end["goes_on"])

    @property
    def seconds(self) -> float:
        """Seconds between the first and the last record of each attempt, added up."""
        return self._spent + (self.last_time - self._began if self._began else 0.0)

    @property
    def is_exact(self) -> bool:
        """Whether every attempt resumed exactly."""
        return all(record["exact"] for record in self.attempts)

    @property
    def environments(self) -> Mapping[str, Any] | None:
        """By which tier the environments of the last attempt take part in a resume."""
        return self.attempts[-1]["environments"] if self.attempts else None

    @property
    def hash_seed(self) -> str:
        """The seed of Python's hashes in the last attempt; ``random`` where it was not fixed in each, or is not known."""
        seeds = [str(attempt.get("hash_seed", RANDOM)) for attempt in self.attempts]
        return RANDOM if RANDOM in seeds or not seeds else seeds[-1]

    @property
    def tier(self) -> str:
        """The name of that tier."""
        return str((self.environments or {}).get("tier", "unknown"))

    @property
    def choices(self) -> Mapping[str, Any]:
        """What was chosen for the last attempt, with the reasons."""
        return (self.attempts[-1].get("choices") if self.attempts else None) or {}

    @property
    def best(self) -> Record | None:
        """The evaluation with the highest mean return, the first of equal ones; None without any evaluation."""
        return max(self.evaluations, key=lambda record: rank(record["mean"]), default=None)

    def evaluation_at(self, env_steps: int) -> Record | None:
        """Return the last evaluation at these env steps."""
        return next((record for record in reversed(self.evaluations) if record["step"] == env_steps), None)


def read_configuration(path: str | Path) -> Record | None:
    """Return a journal's record of the configuration, without reading on; None if it has none.

    Raises:
        JournalDamaged: If the file is gone or cannot be read.
    """
    return next((record for record in read_journal(path) if record["kind"] == "configuration"), None)
