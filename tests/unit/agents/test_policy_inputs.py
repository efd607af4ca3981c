"""Inputs of stored policies: what is converted without loss, and what is refused with one line."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from gymnasium import spaces

from rltrack.agents.policy_inputs import BadInput, read_inputs

BOX = spaces.Box(-2, 2, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 2, 3), np.uint8)
DICT = spaces.Dict([("z", BOX), ("a", spaces.Discrete(4, start=-1))])


def policy(space, actions=None, *, masked=False, recurrent=False):
    return SimpleNamespace(
        observation_space=space, action_space=actions or spaces.Discrete(2), is_masked=masked, is_recurrent=recurrent,
        state_shape=(2, 1, 4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("space", "given", "expected", "is_single"),
    [
        (BOX, [0.1, 1, -2], [[0.1, 1, -2]], True),
        (BOX, [[0.1, 1, -2]], [[0.1, 1, -2]], False),
        (BOX, np.ones((2, 3)), np.ones((2, 3)), False),
        (BOX, np.ones((2, 3), np.int64), np.ones((2, 3)), False),
        (IMAGE, np.full((2, 2, 3), 7.0), np.full((1, 2, 2, 3), 7), True),
        (IMAGE, np.full((5, 2, 2, 3), 255, np.uint8).tolist(), np.full((5, 2, 2, 3), 255), False),
        (spaces.Discrete(4, start=-1), 2, [2], True),
        (spaces.Discrete(4, start=-1), [2.0, -1], [2, -1], False),
        (spaces.MultiDiscrete([3, 2]), [2, 1], [[2, 1]], True),
        (spaces.MultiBinary(3), [[True, False, True]], [[1, 0, 1]], False),
        (spaces.Box(-1, 1, (1,), np.float64), [[0.1]], [[0.1]], False),
        (spaces.Box(-(2**62), 2**62, (1,), np.int64), [2**62], [[2**62]], True),
    ],
)
def test_what_is_converted(space, given, expected, is_single):
    found = read_inputs(policy(space), given)
    assert found.observation.dtype == space.dtype
    assert np.array_equal(found.observation, np.asarray(expected, space.dtype))
    assert (found.count, found.is_single) == (len(expected), is_single)


@pytest.mark.parametrize(
    ("space", "given", "word"),
    [
        (BOX, [0.0, 1.0], r"shape \(2,\).*\(3,\) for one"),
        (BOX, [], "shape"),
        (BOX, np.ones((0, 3)), "shape"),
        (BOX, [[[0.0, 1.0, 2.0]]], "shape"),
        (BOX, 1.0, "shape"),
        (BOX, [[0.0], [1.0, 2.0]], "differ in length"),
        (BOX, ["0", "1", "2"], "else than numbers"),
        (BOX, [None, 1.0, 2.0], "else than numbers"),
        (BOX, {"z": 1}, "else than numbers"),
        (BOX, [10**30, 0, 0], "else than numbers"),
        (BOX, [np.nan, 0, 0], "holds nan"),
        (BOX, [0, np.inf, 0], "holds inf"),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), [1e300], "no float32"),
        (BOX, [[0, 0, 0], [0, 0, 2.5]], r"at \[1, 2\] is 2.5. Allowed: -2.0 to 2.0"),
        (IMAGE, np.full((2, 2, 3), 0.5), "0.5, which is no uint8"),
        (IMAGE, np.full((2, 2, 3), -1), "-1, which is no uint8"),
        (IMAGE, np.full((2, 2, 3), 256), "256, which is no uint8"),
        (spaces.Discrete(4, start=-1), 3, "-1 to 2"),
        (spaces.MultiDiscrete([3, 2]), [2, 2], r"at \[1\] is 2. Allowed: 0 to 1"),
        (spaces.MultiBinary(2), [0, 2], "0 to 1"),
        (DICT, [1], "keys z, a"),
        (DICT, {"z": [0, 0, 0]}, "Missing keys of the observation: a"),
        (DICT, {"z": [0, 0, 0], "a": 1, "b": 1}, "Unknown keys of the observation: b"),
        (DICT, {"z": [[0, 0, 0]], "a": [1, 1]}, "different numbers"),
        (DICT, {"z": [0, 0, 0], "a": [1]}, "different numbers"),
    ],
)
def test_what_is_refused(space, given, word):
    with pytest.raises(BadInput, match=word) as refused:
        read_inputs(policy(space), given)
    assert "\n" not in str(refused.value)


def test_a_box_is_clipped_on_request_and_nothing_else():
    assert read_inputs(policy(BOX), [5, -5, 1.5], clip=True).observation.tolist() == [[2, -2, 1.5]]
    for space, given in ((spaces.Discrete(3), 7), (BOX, [np.inf, 0, 0]), (BOX, [np.nan, 0, 0])):
        with pytest.raises(BadInput):
            read_inputs(policy(space), given, clip=True)


def test_a_dictionary_keeps_the_order_of_its_space():
    found = read_inputs(policy(DICT), {"a": [1, -1], "z": [[0, 0, 0], [1, 1, 1]]})
    assert list(found.observation) == ["z", "a"]
    assert found.observation["a"].tolist() == [1, -1]


def test_masks():
    masked = policy(BOX, spaces.MultiDiscrete([2, 3]), masked=True)
    found = read_inputs(masked, {"observation": [0, 0, 0], "action_masks": [1, 0, 0, 1, 1]})
    assert found.action_masks.tolist() == [[True, False, False, True, True]]
    for given, word in (
        ([0, 0, 0], "observation and action_masks"),
        ({"observation": [0, 0, 0]}, "action_masks is missing"),
        ({"action_masks": [1] * 5}, "missing or given twice"),
        ({"observation": [0, 0, 0], "action_masks": [1, 1]}, "shape"),
        ({"observation": [0, 0, 0], "action_masks": [1, 1, 0, 0, 0]}, "no action at all"),
        ({"observation": [0, 0, 0], "action_masks": [2] * 5}, "no bool"),
        ({"observation": [[0, 0, 0]] * 2, "action_masks": [[1] * 5]}, "2 were given"),
        ({"observation": [0, 0, 0], "action_masks": [1] * 5, "state": 0}, "Unknown keys: state"),
    ):
        with pytest.raises(BadInput, match=word):
            read_inputs(masked, given)


def test_a_recurrent_state():
    recurrent = policy(DICT, recurrent=True)
    observation = {"z": [[0, 0, 0]] * 2, "a": [0, 0]}
    first = read_inputs(recurrent, {"observation": observation})
    assert first.state.shape == (2, 2, 1, 4)
    assert first.episode_start.tolist() == [True, True]
    nested = {f"observation.{key}": value for key, value in observation.items()}
    later = read_inputs(recurrent, {**nested, "state": np.ones((2, 2, 1, 4)).tolist()})
    assert later.episode_start.tolist() == [False, False]
    for more, word in (
        ({"state": [[1.0]]}, "state has the shape"),
        ({"state": np.ones((1, 2, 1, 4))}, "for 1 observations"),
        ({"state": np.full((2, 2, 1, 4), np.nan)}, "finite"),
        ({"episode_start": [1]}, "for 1 observations"),
        ({"hidden": 1}, "Unknown keys: hidden"),
        ({"observation.z": 1}, "given twice"),
    ):
        with pytest.raises(BadInput, match=word):
            read_inputs(recurrent, {"observation": observation, **more})
