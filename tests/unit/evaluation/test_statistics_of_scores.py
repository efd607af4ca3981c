"""Statistics of scores against rliable's, and against what is known."""

from __future__ import annotations

import numpy as np
import pytest

from rltrack.evaluation.statistics import (
    improvement_interval,
    interquartile_mean,
    optimality_gap,
    permutation_p_value,
    probability_of_improvement,
    score_distribution,
    stratified_interval,
)


def scores(seed: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.minimum(rng.normal(450, 80, size=n).round(), 500.0)  # with ties, as CartPole has them


@pytest.mark.parametrize(("n", "m"), [(5, 5), (10, 7), (100, 101), (33, 2)])
def test_as_rliable(n, m):
    rliable = pytest.importorskip("rliable.metrics", reason="rliable is not installed")
    x, y = scores(n, n), scores(m + 1000, m)
    assert interquartile_mean(x) == pytest.approx(rliable.aggregate_iqm(x[:, None]), abs=1e-9)
    assert optimality_gap(x, 500.0) == pytest.approx(rliable.aggregate_optimality_gap(x[:, None], 500.0), abs=1e-9)
    theirs = rliable.probability_of_improvement(x[:, None], y[:, None])
    assert probability_of_improvement(x, y) == pytest.approx(theirs, abs=1e-12)


def test_probability_of_improvement_counts_ties_half():
    assert probability_of_improvement([1.0, 2.0], [1.0, 2.0]) == 0.5
    assert probability_of_improvement([3.0], [1.0, 2.0]) == 1.0
    assert probability_of_improvement([1.0], [1.0, 2.0]) == 0.25
    low, high = improvement_interval(scores(1, 50), scores(2, 50) - 50)
    assert 0.5 < low < probability_of_improvement(scores(1, 50), scores(2, 50) - 50) < high <= 1.0


def test_strata_that_differ_do_not_widen_a_stratified_interval():
    strata = [np.full(20, 100.0), np.full(20, 200.0)]
    assert stratified_interval(strata, statistic="mean") == (150.0, 150.0)
    noisy = [scores(1, 40), scores(2, 40)]
    low, high = stratified_interval(noisy)
    assert low < interquartile_mean(np.concatenate(noisy)) < high


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = stratified_interval([rng.normal(0, 1, 40), rng.normal(0, 2, 40)], seed=trial, statistic="mean")
        covered += low <= 0.0 <= high
    assert 0.90 <= covered / 300 <= 0.99


def test_score_distribution_falls_from_one_to_zero():
    assert score_distribution([1.0, 2.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]).tolist() == [1.0, 0.75, 0.25, 0.0]


def test_false_alarms_are_as_rare_as_stated():
    rng = np.random.default_rng(3)
    pool = scores(0, 2000)
    alarms = sum(
        permutation_p_value(rng.choice(pool, 100), rng.choice(pool, 50), seed=trial, resamples=500) <= 0.05
        for trial in range(300)
    )
    assert alarms / 300 <= 0.07
    assert permutation_p_value(scores(1, 100), scores(2, 50) - 60) < 0.001
    assert permutation_p_value([500.0] * 30, [500.0] * 30) == 1.0
