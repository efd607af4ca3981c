from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rltrack.agents.environments import GymEvaluation, default_evaluation
from rltrack.evaluation.episodes import Evaluation, EvaluationInterrupted, episode_seeds, play_episodes
from rltrack.evaluation.statistics import bootstrap_interval, interquartile_mean
from tests.support.agents import TINY, ScriptedAgent, TinyEnv


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 20, 101])
def test_iqm_equals_scipys_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(0).normal(10, 3, size=60)
    ours = bootstrap_interval(values, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, random_state=1
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.05)
    assert ours.high == pytest.approx(theirs.high, abs=0.05)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = sum(
        low <= 0.0 <= high
        for low, high in (bootstrap_interval(rng.normal(size=40), resamples=400, seed=i) for i in range(300))
    )
    assert 0.88 <= hits / 300 <= 0.99


def test_interval_repeats_and_refuses():
    assert bootstrap_interval([1, 2, 3], seed=4) == bootstrap_interval([1, 2, 3], seed=4)
    assert bootstrap_interval([7.0]) == (7.0, 7.0)
    with pytest.raises(ValueError, match="No episodes"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0], level=1.5)


@pytest.mark.parametrize("n_envs", [1, 3, 7])
def test_each_seed_is_one_episode_however_many_environments(n_envs):
    agent = ScriptedAgent()
    agent.skill = 1.0
    seeds = episode_seeds(0, 7)
    alone = [play_episodes(agent, GymEvaluation([TinyEnv()]), [seed]).returns[0] for seed in seeds]
    together = play_episodes(agent, default_evaluation(TINY, n_envs), seeds)
    assert together.returns == tuple(alone)
    assert together.lengths == (5,) * 7


def test_short_episodes_are_not_preferred():
    class Uneven(TinyEnv):
        """Half of the seeds end after one step with 0, half after twenty with 20."""

        def reset(self, *, seed=None, options=None):
            result = super().reset(seed=seed)
            self.limit = 20 if self.np_random.random() < 0.5 else 1
            return result

        def step(self, action):
            observation, _, _, _, info = super().step(action)
            return observation, float(self.limit > 1), False, self._t >= self.limit, info

    evaluation = play_episodes(ScriptedAgent(), GymEvaluation([Uneven() for _ in range(5)]), episode_seeds(1, 200))
    assert 8 < evaluation.mean < 12


def test_seeds_are_distinct_and_belong_to_the_run():
    assert len(set(episode_seeds(0, 1000))) == 1000
    assert not set(episode_seeds(0, 100)) & set(episode_seeds(1, 100))
    assert episode_seeds(0, 10) == episode_seeds(0, 20)[:10]


def test_interruption_and_emptiness():
    with pytest.raises(EvaluationInterrupted):
        play_episodes(ScriptedAgent(), default_evaluation(TINY, 2), [1, 2, 3], should_abort=lambda: True)
    with pytest.raises(ValueError, match="There are no seeds"):
        play_episodes(ScriptedAgent(), default_evaluation(TINY, 1), [])


def test_record_round_trip():
    evaluation = Evaluation.of(100, [1.0, 2.0, 3.0], [4, 5, 6], seconds=1.5)
    assert Evaluation.from_record({"step": 100, **evaluation.to_record()}) == evaluation


@pytest.mark.slow
def test_in_other_processes_the_same(own_root):
    from rltrack.errors import ConfigurationError
    from rltrack.runs import Root
    from rltrack.training.trainer import evaluate_run
    from tests.support.models import train_tiny

    run = train_tiny(own_root, "apart")
    _, here = evaluate_run(run, "last", episodes=6, seed=4)
    _, apart = evaluate_run(Root(own_root).find("apart"), "last", episodes=6, seed=4, processes=2)
    assert apart.returns == here.returns
    with pytest.raises(ConfigurationError, match="processes is 0"):
        evaluate_run(run, "last", processes=0)


def test_the_summary_of_one_episode_has_no_interval():
    assert Evaluation.of(10, [8.0]).summary() == "mean return 8 (1 episode)"
    assert Evaluation.of(10, [8.0, 8.0]).summary() == "mean return 8 (95 % interval 8 to 8, 2 episodes)"
