"""Runs that are trained once in a process, and copied for each test."""

from __future__ import annotations

import shutil

import pytest

from rltrack.runs import Root


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory):
    return tmp_path_factory.mktemp("exchange"), {}


@pytest.fixture
def trained(_trained_once, own_root):
    """Put the run ``first`` of an algorithm into the test's root."""
    from tests.exchange.test_sb3_files import train

    folder, runs = _trained_once

    def copy(algorithm):
        if algorithm not in runs:
            runs[algorithm] = train(folder / algorithm, algorithm, "first").path
        run = runs[algorithm]
        shutil.copytree(run, own_root / run.relative_to(folder / algorithm))
        return Root(own_root).find("first")

    return copy
