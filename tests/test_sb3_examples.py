"""What Stable-Baselines3's documentation shows runs with rltrack as docs/sb3-examples.md says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")
from tests.support.sb3_examples import EXAMPLES, tried

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sb3-examples.md"
NEEDS = {"atari": "ale_py", "video": "moviepy"}
CHEAP = [key for key, example in EXAMPLES.items() if example.every_run]


def test_the_page_has_each_example_with_what_came_out():
    rows = re.findall(
        r"^\| (.+) \| (.+) \| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    shown = {title: tuple(cells) for title, *cells in rows}
    for example in EXAMPLES.values():
        assert shown[example.title] == example.cells, example.title


@pytest.mark.parametrize("key", CHEAP)
@pytest.mark.slow
def test_runs_through_each_door(key):
    """Equal bits to `learn()`, with a stop and a resume where the table does not say otherwise."""
    assert tried(key) == EXAMPLES[key].cells


@pytest.mark.nightly
@pytest.mark.parametrize("key", [key for key in EXAMPLES if key not in CHEAP])
def test_runs_through_each_door_too(key):
    if key in NEEDS:
        pytest.importorskip(NEEDS[key])
    assert tried(key) == EXAMPLES[key].cells
