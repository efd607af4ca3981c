"""Skips tests that need an extra, without importing it: rl_zoo3 changes Gymnasium's classes for the whole process."""

from __future__ import annotations

import importlib.util

import pytest


def needs(package: str) -> None:
    """Skip the test if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
