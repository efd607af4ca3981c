"""What counts as training's use of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rltrack.resources import ResourceSampler, not_of_training

PROJECT = Path(__file__).resolve().parents[2]
HOLD = "data = bytearray(120_000_000); print('ready', flush=True); input()"


def child(**options):
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_workers_count_and_the_process_that_delivers_does_not():
    """In an interpreter of its own: other tests leave children here that end at any time."""
    code = "from tests.unit.test_resources import measure; measure()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT, timeout=60)


def measure():
    alone = ResourceSampler().memory_mb()
    worker, shipper = child(), child(start_new_session=True)
    not_of_training(shipper.pid)
    try:
        together = ResourceSampler().memory_mb()
        assert 100 < together - alone < 200
    finally:
        for process in (worker, shipper):
            process.kill()
            process.wait()


def test_another_process_can_be_watched():
    process = child()
    try:
        sample = ResourceSampler(process.pid).sample()
        assert 120 < sample.memory_mb < 200
        assert sample.to_metrics()["system/process_memory_megabytes"] == sample.memory_mb
        assert sample.system_memory_mb > sample.memory_mb
    finally:
        process.kill()
        process.wait()
    with pytest.raises(psutil.NoSuchProcess):
        ResourceSampler(process.pid)
