"""The promotion gate, by examples and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rltrack.errors import ConfigurationError
from rltrack.registry.gate import Gate, decide

EVEN = [float(value) for value in range(100)]


def test_a_better_challenger_is_promoted():
    result = decide([value + 1 for value in EVEN], EVEN, Gate())
    assert result.promoted
    assert result.difference == 1.0
    assert result.difference_interval == (1.0, 1.0)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_an_equal_or_worse_one_is_not(shift):
    result = decide([value + shift for value in EVEN], EVEN, Gate())
    assert not result.promoted
    assert "is not above 0" in result.reason


def test_not_inferior_allows_the_margin():
    slightly_worse = [value - 1 for value in EVEN]
    assert decide(slightly_worse, EVEN, Gate("not_inferior", margin=2.0)).promoted
    assert not decide(slightly_worse, EVEN, Gate("not_inferior", margin=0.5)).promoted


def test_pairs_count_and_not_the_spread_between_episodes():
    champion = np.random.default_rng(0).normal(0, 1000, 100)
    assert decide(champion + 1, champion, Gate()).promoted


def test_the_first_champion_must_reach_the_floor():
    assert decide(EVEN, None, Gate()).promoted
    assert decide(EVEN, None, Gate(floor=30.0)).promoted
    refused = decide(EVEN, None, Gate(floor=49.0))  # the mean is above it, the interval is not
    assert not refused.promoted
    assert "does not reach the floor of 49" in refused.reason


def test_a_floor_holds_for_later_ones_too():
    result = decide([value + 1 for value in EVEN], EVEN, Gate(floor=100.0))
    assert not result.promoted
    assert "floor" in result.reason


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_returns_decide_nothing(bad):
    for challenger, champion in (([*EVEN[:-1], bad], EVEN), (EVEN, [bad, *EVEN[1:]])):
        with pytest.raises(ConfigurationError, match="nothing was changed"):
            decide(challenger, champion, Gate())


def test_too_few_or_unpaired_episodes():
    with pytest.raises(ConfigurationError, match="at least 30"):
        Gate(episodes=10)
    with pytest.raises(ConfigurationError, match="needs 100"):
        decide(EVEN[:50], EVEN[:50], Gate())
    with pytest.raises(ConfigurationError, match="not pairs"):
        decide([*EVEN, 1.0], EVEN, Gate())


@pytest.mark.parametrize(
    "arguments",
    [{"kind": "better"}, {"margin": 1.0}, {"kind": "not_inferior"}, {"level": 1.0}, {"floor": math.nan},
     {"kind": "not_inferior", "margin": -1.0}],
)  # fmt: skip
def test_a_gate_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ConfigurationError):
        Gate(**arguments)


@pytest.mark.slow
def test_the_same_agent_is_rarely_promoted():
    rng = np.random.default_rng(0)
    pool = np.minimum(rng.normal(450, 80, 2000), 500.0)
    promoted = sum(
        decide(rng.choice(pool, 50), rng.choice(pool, 50), Gate(episodes=50), seed=n).promoted for n in range(300)
    )
    assert promoted / 300 <= 0.05
