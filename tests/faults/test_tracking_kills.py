"""Trainer, shipper and MLflow server are killed at random: every number is delivered once, and the status is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import postgres_database

pytest.importorskip("stable_baselines3")
PROJECT = Path(__file__).resolve().parents[2]


def survive(folder: Path, uri: str, kills: int, seed: int, python: str = sys.executable) -> None:
    done = subprocess.run(
        [python, "-m", "tests.support.tracking_kills", str(folder), uri, str(kills), str(seed)],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
    assert "each once, in MLflow and TensorBoard" in done.stdout


@pytest.mark.slow
def test_some_kills_on_the_roots_own_database(tmp_path, forks):
    survive(tmp_path / "kills", "embedded", 4, 1, forks.python)


@pytest.mark.nightly  # PostgreSQL each time: tests/registry/test_doors.py
def test_some_kills_on_a_server_over_postgresql(tmp_path, forks):
    with postgres_database() as uri:
        survive(tmp_path / "kills", uri, 3, 2, forks.python)


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["embedded", "sqlite", "postgresql"])
def test_30_random_kills(backend, tmp_path):
    if backend == "postgresql":
        with postgres_database() as uri:
            survive(tmp_path / "kills", uri, 30, 3)
    else:
        survive(tmp_path / "kills", backend if backend == "embedded" else f"sqlite:///{tmp_path / 'server.db'}", 30, 4)
