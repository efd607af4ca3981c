"""What a configuration says about the returns that are counted."""

from __future__ import annotations

import pytest

from rltrack.identity import measured_environment

SECTION = {"id": "CartPole-v1", "kwargs": {}, "wrappers": [], "wrappers_inside_monitor": None}
WRAPPED = {**SECTION, "wrappers": ["a.b:Scale"]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SECTION, {"id": "CartPole-v1", "n_envs": 4, "normalize": True}),
        (SECTION, {**SECTION, "wrappers_inside_monitor": True}),  # nothing to be inside
        (WRAPPED, {**WRAPPED, "wrappers": [{"a.b.Scale": {}}], "wrappers_inside_monitor": False}),
    ],
)
def test_what_changes_no_return_is_equal(one, other):
    assert measured_environment({"environment": one}) == measured_environment({"environment": other})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SECTION, WRAPPED),
        (WRAPPED, {**WRAPPED, "wrappers": [{"a.b:Scale": {"factor": 10}}]}),
        (WRAPPED, {**WRAPPED, "wrappers_inside_monitor": True}),
        (SECTION, {**SECTION, "kwargs": {"gravity": 1}}),
    ],
)
def test_what_changes_them_is_not(one, other):
    assert measured_environment({"environment": one}) != measured_environment({"environment": other})


def test_the_limit_of_an_episode_counts():
    limited = {"environment": SECTION, "evaluation": {"max_steps_per_episode": 50}}
    assert measured_environment({"environment": SECTION}) != measured_environment(limited)
