"""A real upgrade: what the lowest allowed MLflow and Prefect wrote is read, delivered and continued with the highest."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.upgrade import upgrade

PROJECT = Path(__file__).resolve().parents[2]


def environment(which: str) -> str:
    """The interpreter of an environment that `make compat` builds; skips where it cannot be built from here."""
    built = subprocess.run(
        [PROJECT / "deploy" / "compat.sh", which, "--only-build"], capture_output=True, text=True, cwd=PROJECT
    )
    python = PROJECT / ".compat" / which / "bin" / "python"
    if built.returncode != 0 and not (python.parent.parent / ".built").exists():
        pytest.skip(f"the environment with the {which} releases cannot be built here: {built.stderr[-300:]}")
    return str(python)


@pytest.mark.nightly
def test_a_root_of_the_lowest_releases_goes_on_with_the_highest(tmp_path):
    upgrade(environment("lowest"), environment("highest"), tmp_path / "upgraded")
