"""How fast a journal is delivered to the root's own database and TensorBoard, and what memory that and training take."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rltrack.errors import RltrackError
from rltrack.files import lock_holder
from rltrack.journal import Journal
from rltrack.processes import python_command
from rltrack.runs import Root, RunDirectory
from rltrack.tracking.bookmark import is_delivered, read_bookmark

RATE_BAR = 8000.0
"""Metrics per second that delivery must reach."""

KEYS = 20
_GROWTH_BAR = 1.2
"""The plots at the end take some 30 MB, however long the journal is."""

_RECORD_BYTES = 212


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process over a long journal, in MB of 1e6 bytes.

    Attributes:
        process: Which one.
        records: Records in the journal.
        early_mb: At a tenth of the way.
        peak_mb: The most after that.
    """

    process: str
    records: int
    early_mb: float
    peak_mb: float

    @property
    def passed(self) -> bool:
        """Whether it stays flat."""
        return self.peak_mb <= _GROWTH_BAR * self.early_mb


def measure_rate(records: int = 20_000) -> float:
    """Deliver a journal of records with 20 metrics each; return metrics per second, from the process's start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        run = _write_journal(Path(folder), records, KEYS)
        from rltrack.tracking.sinks.embedded import ensure_database

        ensure_database(Path(folder))
        begin = time.perf_counter()
        _ship(run).wait()
        seconds = time.perf_counter() - begin
        if not is_delivered(run):
            raise RltrackError("The journal was not delivered.")
    return records * KEYS / seconds


def measure_shipper_memory(records: int = 1_000_000, notify: Callable[[str], None] = print) -> Memory:
    """Deliver a journal of many records with one metric each, and watch the shipper's memory."""
    with tempfile.TemporaryDirectory() as folder:
        run = _write_journal(Path(folder), records, 1)
        size = run.journal_file.stat().st_size
        process = _ship(run)

        def share() -> float:
            bookmark = read_bookmark(run)
            return 0.0 if bookmark is None else min(sink.journal for sink in bookmark.sinks.values()) / size

        early, peak = _watch(process, share, notify)
    return Memory("shipper", records, early, peak)


def measure_trainer_memory(records: int = 1_000_000, notify: Callable[[str], None] = print) -> Memory:
    """Train an agent that learns nothing and logs a metric each iteration, and watch the trainer's memory."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            python_command("rltrack.benchmarks.delivery", folder, str(records)), stdin=subprocess.DEVNULL
        )
        journal = Root(folder).runs_folder / "long" / "journal.jsonl"

        def share() -> float:
            return journal.stat().st_size / (records * _RECORD_BYTES) if journal.exists() else 0.0

        early, peak = _watch(process, share, notify)
        shipper = lock_holder(RunDirectory(journal.parent).shipper_lock)
        if shipper is not None and psutil.pid_exists(shipper):  # its delivery is the other measurement
            psutil.Process(shipper).kill()
    return Memory("trainer", records, early, peak)


def as_markdown(rate: float, memories: list[Memory]) -> str:
    """Return the figures as a table."""
    lines = [
        "| what | measured | target |",
        "|---|---:|---:|",
        f"| delivery to the root's own database and TensorBoard | {rate:,.0f} metrics/s | {RATE_BAR:,.0f} metrics/s |",
    ]
    lines += [
        f"| memory of the {item.process} over {item.records:,} records: at a tenth, most after that | "
        f"{item.early_mb:,.0f} MB, {item.peak_mb:,.0f} MB | growth of at most a fifth |"
        for item in memories
    ]
    return "\n".join(lines) + "\n"


def _write_journal(root: Path, records: int, keys: int) -> RunDirectory:
    run = Root(root).create("long", "")
    run.write_config({"name": "long", "tracking": {"video": False}})
    journal = Journal(run.journal_file)
    journal.note("configuration", run_id="long", identity={}, agent={"algorithm": "none"})
    for step, row in enumerate(np.random.default_rng(0).standard_normal((records, keys))):
        journal.write("metrics", step, values={f"train/key_{index}": float(value) for index, value in enumerate(row)})
    journal.note(
        "end", state="completed", reason="", env_steps=records, episodes=0, seconds=1.0, mean_return=None, goes_on=False
    )
    journal.close()
    return run


def _ship(run: RunDirectory) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        python_command("rltrack.tracking.shipper", str(run.path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def _watch(
    process: subprocess.Popen[bytes], share: Callable[[], float], notify: Callable[[str], None]
) -> tuple[float, float]:
    """Return the memory at a tenth of the way and the most after that, in MB."""
    early = peak = 0.0
    next_report = 0.1
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        time.sleep(0.25)
        try:
            memory = seen.memory_info().rss / 1e6
        except psutil.Error:
            break
        done = share()
        if done >= 0.1:
            early = early or memory
            peak = max(peak, memory)
        if done >= next_report:
            notify(f"{100 * done:.0f} %: {memory:,.0f} MB")
            next_report += 0.1
    if process.wait() != 0 or early == 0.0:
        raise RltrackError("The process that was measured failed, or was too short to measure.")
    return early, peak


def _train(folder: str, records: int) -> None:
    from rltrack import ProgressReporter, TrainingLoop
    from rltrack.agents.protocol import IterationStats

    class Idle:
        def __init__(self) -> None:
            self.env_steps = 0

        def bind(self, env: Any, seed: int | None) -> None:
            """Nothing to do."""

        def advance(self, observer: Any) -> IterationStats:
            self.env_steps += 1
            observer.on_step(1, None)
            return IterationStats(1, [(self.env_steps, {"train/loss": 0.5})], {})

        def predict(self, observation: Any, **_: Any) -> Any:
            raise NotImplementedError

        def set_schedule(self, remaining: float) -> None:
            """Nothing to do."""

    loop = TrainingLoop(
        Idle(), "CartPole-v1", total_timesteps=records, name="long", root=folder,
        reporter=ProgressReporter(console=False), video=False,
    )  # fmt: skip
    loop.run()


if __name__ == "__main__":
    _train(sys.argv[1], int(sys.argv[2]))
