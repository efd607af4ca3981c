"""The clock of a training: speed and time left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rltrack.training import clock
from rltrack.training.progress import TrainingProgress


def test_the_time_left_after_a_resume_counts_from_there(monkeypatch):
    now = 100.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    progress = TrainingProgress(env_steps=6_000)
    strategy = SimpleNamespace(
        budget=SimpleNamespace(max_seconds=None), remaining=lambda progress: 1.0 - progress.env_steps / 10_000
    )
    timer = clock.TrainingClock(progress, strategy)
    timer.start()
    progress.env_steps, now = 6_100, 101.0
    timer.advance()
    assert progress.steps_per_second == 100.0
    assert progress.eta_seconds == pytest.approx(39.0)
