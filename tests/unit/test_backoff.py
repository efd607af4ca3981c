"""Waiting longer from failure to failure, without touching anybody's random streams."""

from __future__ import annotations

import random

from rltrack import backoff
from rltrack.backoff import Backoff


def test_waits_double_up_to_the_longest_and_begin_anew():
    waits = Backoff(1.0, 10.0, jitter=0.0)
    assert waits.is_due()
    assert [waits.failed() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert not waits.is_due()
    assert waits.failures == 6
    waits.hurry()
    assert waits.is_due()
    assert waits.failed() == 10.0
    waits.succeeded()
    assert waits.is_due()
    assert waits.failed() == 1.0


def test_jitter_shortens_a_wait_and_takes_nothing_from_a_trainings_random_streams():
    state = random.getstate()
    waits = [Backoff(8.0, 8.0, jitter=0.5).failed() for _ in range(50)]
    assert random.getstate() == state
    assert all(4.0 <= wait <= 8.0 for wait in waits)
    assert len(set(waits)) > 1


def test_a_wait_may_be_given_and_counts_from_any_moment(monkeypatch):
    monkeypatch.setattr(backoff.time, "monotonic", lambda: 100.0)
    waits = Backoff(1.0, 10.0, jitter=0.0)
    assert waits.failed(wait=30.0) == 30.0
    assert not waits.is_due()
    waits.failed(since=50.0)
    assert waits.is_due()
    for _ in range(5000):  # a number that grows for ever has a bound
        waits.failed()
    assert waits.failed() == 10.0
