"""Every metric's history, read from records; aggregates, exports and plots."""

from __future__ import annotations

import csv
import io
import json
import math
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltrack.files import replace_text
from rltrack.journal import JournalReader, Record, read_from, read_journal
from rltrack.journal.values import info_metrics, means_of
from rltrack.runs.history import RunHistory

EPISODE_WINDOW = 100
"""Training episodes over which a running mean is taken, as in SB3."""

EVALUATION_KEYS = frozenset(
    f"eval/{name}"
    for name in ("mean_reward", "std_reward", "median_reward", "iqm_reward", "mean_ep_length", "success_rate")
)
"""Metrics of every evaluation, whatever its environment reports."""

CALLBACK_KEYS = ("eval/mean_reward", "eval/mean_ep_length", "eval/success_rate")
"""What SB3's EvalCallback logs. Where its evaluations are the run's, these come with the records of evaluations."""

INTERVAL_KEYS = ("eval/ci_low", "eval/ci_high")
"""Bounds of an evaluation's interval. MLflow would draw each as a chart of its own, so it gets them as a file."""


class Series(NamedTuple):
    """The history of one metric.

    Attributes:
        steps: Env steps, int64, shape ``(n,)``.
        values: float64, shape ``(n,)``.
        times: Unix seconds, float64, shape ``(n,)``.
    """

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    times: NDArray[np.float64]


class _Column:
    """Steps, values and times of one metric; with a limit, every second point goes whenever there are twice as many."""

    def __init__(self, max_points: int | None) -> None:
        self.steps, self.values, self.times = array("q"), array("d"), array("d")
        self.last = math.nan
        self._max_points = max_points
        self._stride = 1
        self._seen = 0

    def append(self, step: int, value: float, time: float) -> None:
        self.last = value
        self._seen += 1
        if (self._seen - 1) % self._stride:
            return
        self.steps.append(step)
        self.values.append(value)
        self.times.append(time)
        if self._max_points is not None and len(self.steps) >= 2 * self._max_points:
            self.steps, self.values, self.times = self.steps[::2], self.values[::2], self.times[::2]
            self._stride *= 2


class MetricsTracker:
    """History per key, with aggregates and exports.

    Feed it by hand with `log`, or with a journal's records; the two look alike afterwards. Exports write the whole history
    in one step, so that a resumed run's export has every row once.

    Args:
        journal: Follow this journal: each question is answered from what it holds by then.
        max_points: Keep at most twice as many points of each metric, evenly thinned, so that memory is bounded; for plots.
    """

    def __init__(self, journal: str | Path | None = None, max_points: int | None = None) -> None:
        self._columns: dict[str, _Column] = {}
        self._max_points = max_points
        self._episodes: list[tuple[int, float, int]] = []
        self._recent_returns: deque[float] = deque(maxlen=EPISODE_WINDOW)
        self._episode_stride, self._episodes_seen = 1, 0
        self._running = _Column(max_points)
        self._facts = RunHistory(is_bounded=max_points is not None)
        self._journal = None if journal is None else Path(journal)
        self._position = 0
        self._reader = None if journal is None else JournalReader(journal)

    @classmethod
    def from_journal(cls, path: str | Path, max_points: int | None = None) -> MetricsTracker:
        """Read a run's whole history; what is damaged is left out, and reported.

        Raises:
            JournalDamaged: If the file is gone or cannot be read.
        """
        tracker = cls(max_points=max_points)
        for record in read_journal(path):
            tracker.observe(record)
        return tracker

    @property
    def episodes(self) -> list[tuple[int, float, int]]:
        """Finished training episodes: env steps at the end, return, length."""
        self._catch_up()
        return self._episodes

    @property
    def evaluations(self) -> list[Record]:
        """The journal's records of evaluations."""
        self._catch_up()
        return self._facts.evaluations

    @property
    def decisions(self) -> list[Record]:
        """The journal's records of decisions."""
        self._catch_up()
        return self._facts.decisions

    @property
    def facts(self) -> RunHistory:
        """What the records say about the run."""
        self._catch_up()
        return self._facts

    @property
    def running_returns(self) -> Series:
        """Mean return of the last 100 training episodes, at the end of each."""
        self._catch_up()
        return _series(self._running)

    def detach(self) -> None:
        """Read what the journal holds now, and follow it no longer: it may go away."""
        self._catch_up()
        self._journal = None

    def log(self, values: Mapping[str, float], step: int, time: float = math.nan) -> None:
        """Add one value to each of several metrics.

        Args:
            values: Numbers by key, such as ``rollout/ep_rew_mean``.
            step: Env steps.
            time: Unix seconds; NaN if unknown.
        """
        for key, value in values.items():
            column = self._columns.get(key)
            if column is None:
                column = self._columns[key] = _Column(self._max_points)
            column.append(int(step), float(value), float(time))

    def observe(self, record: Record) -> None:
        """Take over one of the journal's records."""
        self._facts.observe(record)
        kind = record["kind"]
        if kind == "metrics":
            self.log(record["values"], record["step"], record["time"])
        elif kind == "episodes":
            for episode in zip(record["steps"], record["returns"], record["lengths"], strict=True):
                self._add_episode(*episode, record["time"])
        elif kind == "evaluation":
            self.log(evaluation_metrics(record), record["step"], record["time"])

    def _add_episode(self, step: int, episode_return: float, length: int, time: float) -> None:
        self._recent_returns.append(episode_return)
        self._running.append(step, sum(self._recent_returns) / len(self._recent_returns), time)
        self._episodes_seen += 1
        if (self._episodes_seen - 1) % self._episode_stride == 0:
            self._episodes.append((step, episode_return, length))
            if self._max_points is not None and len(self._episodes) >= 2 * self._max_points:
                self._episodes = self._episodes[::2]
                self._episode_stride *= 2

    def _catch_up(self) -> None:
        """Read what the followed journal has beyond what was read."""
        if self._journal is None:
            return
        try:
            size = self._journal.stat().st_size
        except OSError:
            return
        while self._position < size:
            records, position = read_from(self._journal, self._position, size, reader=self._reader)
            for record in records:
                self.observe(record)
            if position == self._position:
                return
            self._position = position

    def __contains__(self, key: str) -> bool:
        self._catch_up()
        return key in self._columns

    def keys(self) -> list[str]:
        """Return the keys that have values, sorted."""
        self._catch_up()
        return sorted(self._columns)

    def history(self, key: str) -> Series:
        """Return all values of a metric.

        Raises:
            KeyError: If it has none; the known keys are named.
        """
        if key not in self:
            raise KeyError(f"No values of '{key}'. Known: {', '.join(self.keys()) or 'none yet'}.")
        return _series(self._columns[key])

    def latest(self, key: str) -> float | None:
        """Return the last value of a metric, or None."""
        return self._columns[key].last if key in self else None

    def aggregate(self, key: str, window: int | None = None) -> dict[str, float]:
        """Return count, mean, std, min, max and last over the newest `window` values (all by default).

        NaN is left out of mean, std, min and max.

        Raises:
            KeyError: If the metric has no values.
        """
        values = self.history(key).values[-window if window else None :]
        known = values[~np.isnan(values)]
        empty = known.size == 0
        return {
            "count": float(values.size),
            "mean": math.nan if empty else float(known.mean()),
            "std": math.nan if empty else float(known.std()),
            "min": math.nan if empty else float(known.min()),
            "max": math.nan if empty else float(known.max()),
            "last": float(values[-1]),
        }

    def rows(self) -> Iterable[dict[str, Any]]:
        """Yield one row per value: key, step, time, value; by key, then in order of logging."""
        for key in self.keys():
            column = self._columns[key]
            for step, value, time in zip(column.steps, column.values, column.times, strict=True):
                yield {"key": key, "step": step, "time": time, "value": value}

    def export_csv(self, path: str | Path) -> Path:
        """Write all values as CSV with the columns key, step, time, value."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["key", "step", "time", "value"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows())
        return _write(path, buffer.getvalue())

    def export_json(self, path: str | Path) -> Path:
        """Write metrics, episodes, evaluations and decisions as one JSON object; NaN and infinities as text."""
        return _write(path, json.dumps(self.to_mapping(), indent=1))

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as plain data that is valid JSON."""
        self._catch_up()
        metrics = {
            key: {
                "step": list(column.steps),
                "value": [_json_number(v) for v in column.values],
                "time": [_json_number(t) for t in column.times],
            }
            for key, column in sorted(self._columns.items())
        }
        steps, returns, lengths = zip(*self.episodes, strict=True) if self.episodes else ((), (), ())
        episodes = {"step": list(steps), "return": [_json_number(r) for r in returns], "length": list(lengths)}
        return {
            "metrics": metrics,
            "episodes": episodes,
            "evaluations": [_json_record(record) for record in self.evaluations],
            "decisions": [_json_record(record) for record in self.decisions],
        }

    def plot(self, folder: str | Path, title: str = "") -> list[Path]:
        """Draw learning curve, episode returns, losses and throughput as PNG files; return their paths."""
        from rltrack.tracking.plots import draw_run

        return draw_run(self, Path(folder), title)


def _series(column: _Column) -> Series:
    return Series(np.array(column.steps, dtype=np.int64), np.array(column.values), np.array(column.times))


def evaluation_metrics(record: Record) -> dict[str, float]:
    """Return the metrics of an evaluation under SB3's keys and a few more."""
    metrics = {
        "eval/mean_reward": record["mean"],
        "eval/std_reward": record["std"],
        "eval/median_reward": record["median"],
        "eval/iqm_reward": record["iqm"],
        **dict(zip(INTERVAL_KEYS, record["interval"], strict=True)),
        "eval/mean_ep_length": float(np.mean(record["lengths"])),
    }
    return metrics | info_metrics("eval", means_of(record.get("infos", {})), metrics)


def further_evaluation_metrics(record: Record, number: int) -> dict[str, float]:
    """Return the metrics of an evaluation by a second or further EvalCallback: ``eval_callback_2/mean_reward``, …"""
    return {
        key.replace("eval/", f"eval_callback_{number}/", 1): value for key, value in evaluation_metrics(record).items()
    }


def _json_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _json_record(value: Any) -> Any:
    if isinstance(value, float):
        return _json_number(value)
    if isinstance(value, dict):
        return {key: _json_record(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_record(item) for item in value]
    return value


def _write(path: str | Path, text: str) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)
    return path
