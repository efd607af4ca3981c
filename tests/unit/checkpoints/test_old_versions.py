"""Versions written by earlier releases are read by this one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rltrack.checkpoints import CheckpointStore
from rltrack.checkpoints.rings import fill

DATA = Path(__file__).resolve().parents[2] / "data"


def test_format_1():
    store = CheckpointStore(DATA / "format-1")
    assert store.problems() == []
    assert [(version.name, version.env_steps, version.score) for version in store.versions()] == [
        ("v2", 60, 8.5),
        ("v3", 60, None),
        ("v4", 92, None),
    ]
    assert all(store.verify(version) is None for version in store.versions())
    assert store.find("best").parts == ("policy", "normalization")
    newest = store.find("last")
    assert newest.details["environments"]["tier"] == "capture"
    state = store.read(newest)
    assert state["counters"]["_n_updates"] == 21
    assert np.abs(state["policy"]["policy"]["q_net.q_net.0.weight"]).sum() == pytest.approx(4.316005706787109)
    assert state["loop"]["progress"]["env_steps"] == 92
    ring = state["buffers"]["replay"]["rows"]
    assert (ring.first, ring.written, ring.capacity) == (52, 92, 40)
    observations = np.zeros((40, 1, 4), np.float32)
    fill(
        {"observations": observations},
        ((first, {"observations": rows["observations"]}) for first, rows in ring.chunks()),
    )
    assert observations.sum() == pytest.approx(18.83277130126953, rel=1e-6)
