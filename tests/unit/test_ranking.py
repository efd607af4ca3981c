"""NaN and infinities are no scores: never the best, last in a list, and no reason to stop early."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rltrack.checkpoints.retention import Retention, best_first
from rltrack.checkpoints.version import Version
from rltrack.config import TrainingSection
from rltrack.evaluation.episodes import Evaluation
from rltrack.ranking import is_better, rank
from rltrack.training.hooks import EarlyStoppingHook
from rltrack.training.progress import TrainingProgress, TrainingStatistics
from rltrack.training.strategies import Adaptive

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("value", "best", "expected"),
    [(1.0, None, True), (NAN, None, False), (INF, None, False), (1.0, NAN, True), (1.0, INF, True), (-INF, NAN, False),
     (1.0, 1.0, False), (2.0, 1.0, True), (NAN, 1.0, False), (None, 1.0, False)],
)  # fmt: skip
def test_what_is_better(value, best, expected):
    assert is_better(value, best) is expected


def test_the_order_of_a_list():
    assert sorted([3.0, None, NAN, -5.0, INF], key=rank)[-2:] == [-5.0, 3.0]


def version(number: int, score: float | None) -> Version:
    return Version(number, Path(f"v{number}"), 10 * number, ("loop", "policy"), score, 0.0)


def test_a_version_with_a_nan_is_not_the_best():
    versions = [version(1, NAN), version(2, 3.0), version(3, INF), version(4, -1.0), version(5, None)]
    assert [item.number for item in best_first(versions)] == [2, 4]
    kept = {item.number for item in versions} - {
        item.number for item in Retention(keep_last=1, keep_best=1).superseded(versions)
    }
    assert kept == {2, 5}


def evaluation(mean: float, step: int = 0) -> Evaluation:
    return Evaluation.of(step, [mean, mean])


def test_early_stopping_waits_for_a_number_and_says_what_it_saw():
    hook, progress = EarlyStoppingHook(patience=3, min_improvement=0.01), TrainingProgress()
    for mean in (NAN, 1.0, NAN, NAN):
        hook.on_evaluation_end(progress, evaluation(mean))
    assert (hook.best, progress.stop_reason) == (1.0, None)
    hook.on_evaluation_end(progress, evaluation(NAN))
    assert progress.stop_reason == "early stopping: no mean return above 1 + 0.01 for 3 evaluations"

    hook, progress = EarlyStoppingHook(patience=2), TrainingProgress()
    for _ in range(2):
        hook.on_evaluation_end(progress, evaluation(NAN))
    assert progress.stop_reason == "early stopping: no finite mean return for 2 evaluations"
    hook.load_state_dict({"best": NAN, "without_improvement": 0})  # a version of before
    assert hook.best is None


def test_adaptive_does_not_compare_with_a_nan():
    strategy = Adaptive(TrainingSection(strategy="adaptive", total_timesteps=1000, eval_freq=100))
    assert strategy.on_evaluation(evaluation(NAN)).name == "steady"
    assert strategy.best is None
    assert strategy.on_evaluation(evaluation(2.0)).name == "steady"
    assert strategy.best is not None
    assert strategy.best[0] == 2.0
    names = [strategy.on_evaluation(evaluation(NAN)).name for _ in range(strategy.PLATEAU_PATIENCE)]
    assert names == ["steady", "steady", "plateau"]
    assert strategy.best[0] == 2.0
    assert strategy.on_evaluation(evaluation(9.0)).name == "improving"


def test_statistics_without_a_finite_evaluation_have_no_best_one():
    statistics = TrainingStatistics()
    for step, mean in enumerate((NAN, 1.0, 5.0, INF)):
        statistics.history.observe({"kind": "evaluation", "time": 0.0, "step": step, **evaluation(mean).to_record()})
    assert statistics.best_evaluation is not None
    assert statistics.best_evaluation.mean == 5.0
    assert TrainingStatistics().best_evaluation is None
