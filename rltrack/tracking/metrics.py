"""Every metric's history, read from records; aggregates, exports and plots."""

from __future__ import annotations

import csv
import io
import json
import math
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rltrack.files import replace_text
from rltrack.tracking.journal import Record, read_journal


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


class MetricsTracker:
    """History per key, with aggregates and exports.

    Feed it by hand with `log`, or with a journal's records; the two look alike afterwards. Exports write the whole history
    in one step, so that a resumed run's export has every row once.
    """

    def __init__(self) -> None:
        self._columns: dict[str, tuple[array[int], array[float], array[float]]] = {}
        self.episodes: list[tuple[int, float, int]] = []
        """Finished training episodes: env steps at the end, return, length."""
        self.evaluations: list[Record] = []
        self.decisions: list[Record] = []

    @classmethod
    def from_journal(cls, path: str | Path) -> MetricsTracker:
        """Read a run's whole history."""
        tracker = cls()
        for record in read_journal(path):
            tracker.observe(record)
        return tracker

    def log(self, values: Mapping[str, float], step: int, time: float = math.nan) -> None:
        """Add one value to each of several metrics.

        Args:
            values: Numbers by key, such as ``rollout/ep_rew_mean``.
            step: Env steps.
            time: Unix seconds; NaN if unknown.
        """
        for key, value in values.items():
            columns = self._columns.get(key)
            if columns is None:
                columns = self._columns[key] = (array("q"), array("d"), array("d"))
            columns[0].append(int(step))
            columns[1].append(float(value))
            columns[2].append(float(time))

    def observe(self, record: Record) -> None:
        """Take over one of the journal's records."""
        kind = record["kind"]
        if kind == "metrics":
            self.log(record["values"], record["step"], record["time"])
        elif kind == "episodes":
            self.episodes.extend(zip(record["steps"], record["returns"], record["lengths"], strict=True))
        elif kind == "evaluation":
            self.evaluations.append(record)
            self.log(evaluation_metrics(record), record["step"], record["time"])
        elif kind == "decision":
            self.decisions.append(record)

    def __contains__(self, key: str) -> bool:
        return key in self._columns

    def keys(self) -> list[str]:
        """Return the keys that have values, sorted."""
        return sorted(self._columns)

    def history(self, key: str) -> Series:
        """Return all values of a metric.

        Raises:
            KeyError: If it has none; the known keys are named.
        """
        if key not in self._columns:
            raise KeyError(f"No values of '{key}'. Known: {', '.join(self.keys()) or 'none yet'}.")
        steps, values, times = self._columns[key]
        return Series(np.array(steps, dtype=np.int64), np.array(values), np.array(times))

    def latest(self, key: str) -> float | None:
        """Return the last value of a metric, or None."""
        return self._columns[key][1][-1] if key in self._columns else None

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
            for step, value, time in zip(*self._columns[key], strict=True):
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
        metrics = {
            key: {
                "step": list(steps),
                "value": [_json_number(v) for v in values],
                "time": [_json_number(t) for t in times],
            }
            for key, (steps, values, times) in sorted(self._columns.items())
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


def evaluation_metrics(record: Record) -> dict[str, float]:
    """Return the metrics of an evaluation under SB3's keys and a few more."""
    low, high = record["interval"]
    lengths = record["lengths"]
    return {
        "eval/mean_reward": record["mean"],
        "eval/std_reward": record["std"],
        "eval/median_reward": record["median"],
        "eval/iqm_reward": record["iqm"],
        "eval/ci_low": low,
        "eval/ci_high": high,
        "eval/mean_ep_length": float(np.mean(lengths)),
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
