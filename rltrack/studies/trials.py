"""One trial of a sweep: trains its runs, reports its evaluations, stores its result once.

An interrupted trial is resumed: its values are in Optuna's storage, its runs are found by name and resumed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rltrack.agents import build_agent
from rltrack.cleanup import close_all
from rltrack.config import TrainingConfig, TrainingSection
from rltrack.errors import ConfigurationError, MemoryLimitExceeded, NotAllowed, TrainingDiverged
from rltrack.ranking import is_score, rank
from rltrack.runs import RunDirectory
from rltrack.studies.search import Search
from rltrack.training.progress import TrainingState
from rltrack.training.reporter import ProgressReporter
from rltrack.training.trainer import Trainer

if TYPE_CHECKING:
    from rltrack.evaluation.episodes import Evaluation
    from rltrack.training.progress import TrainingProgress

PRUNED = "pruned"
"""The reason of a pruned run's end begins with this."""

OWN_FAULT = (ConfigurationError, TrainingDiverged, MemoryLimitExceeded)
"""Errors that a trial's values can cause: the trial failed. After any other error the trial can be resumed."""

TELL_SECONDS = 600.0
_logger = logging.getLogger("rltrack")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The outcome of a trial.

    Attributes:
        number: Which.
        state: ``complete``, ``pruned``, ``failed``, or ``stopped`` (it can be resumed).
        value: Its objective, in reward units; None without one.
        reason: Why it ended.
    """

    number: int
    state: str
    value: float | None
    reason: str


class ReportHook:
    """Reports each evaluation to Optuna, and stops the run at that boundary if the pruner decides so.

    Reports are numbered by evaluation, over the trial's seeds, so that trials of different rollout lengths are comparable.
    After the first seed, the reported value is the mean of the earlier seeds' objectives and the current evaluation. If the
    storage does not answer, nothing is pruned.

    Args:
        trial: Optuna's trial.
        training: The frequency of evaluations.
        earlier: The objectives of the earlier seeds.
    """

    needs_evaluation = True

    def __init__(self, trial: Any, training: TrainingSection, earlier: list[float]) -> None:
        self._trial, self._training, self._earlier = trial, training, earlier

    def on_evaluation_end(self, progress: TrainingProgress, evaluation: Evaluation) -> None:
        """Report the evaluation, and ask the pruner."""
        step = self._step(progress, evaluation)
        if step is None or not is_score(evaluation.mean):  # NaN and infinities cannot be compared
            return
        try:
            if step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
                self._trial.report(float(np.mean([*self._earlier, evaluation.mean])), step)
            prune = self._trial.should_prune()
        except Exception as error:  # any error of a database driver
            _logger.warning(f"The sweep's storage did not accept an evaluation: {' '.join(str(error).split())}")
            return
        if prune:
            progress.request_stop(f"{PRUNED} at evaluation {step}: mean return {evaluation.mean:.6g}")

    def _step(self, progress: TrainingProgress, evaluation: Evaluation) -> int | None:
        training = self._training
        frequency: int | None
        budget: int | None
        if training.strategy != "episodic" and training.eval_freq is not None:
            done, frequency, budget = evaluation.env_steps, training.eval_freq, training.total_timesteps
        else:
            done = progress.episodes
            frequency, budget = training.eval_freq or training.eval_freq_episodes, training.total_episodes
        if not frequency or not budget:
            return None
        count = max(1, budget // frequency)
        index = done // frequency
        return len(self._earlier) * count + index if 1 <= index <= count else None


def result_of(run: RunDirectory, objective: str) -> tuple[float | None, str]:
    """Return a finished run's objective, and why it ended."""
    means = [float(record["mean"]) for record in run.history().evaluations]
    value = None if not means else max(means, key=rank) if objective == "best" else means[-1]
    return value, run.status().reason


def run_trial(
    search: Search,
    number: int,
    train: Callable[[TrainingConfig, ReportHook], RunDirectory | None],
) -> TrialResult:
    """Run a trial, or resume it.

    Args:
        search: The sweep, open.
        number: Which trial.
        train: Trains a configuration to its end with the hook and returns the finished run; None if it was stopped.

    Returns:
        Its outcome, which is stored in Optuna's storage unless it was stopped.

    Raises:
        Exception: Any error of training that the trial's values did not cause; the trial can be resumed.
    """
    trial, values = search.begin(number)
    ends: list[float] = []
    try:
        for config in search.configs(number, values):
            run = train(config, ReportHook(trial, config.training, list(ends)))
            if run is None:
                return TrialResult(number, "stopped", None, "stopped with a version")
            value, reason = result_of(run, search.section.objective)
            if value is None:
                result = TrialResult(number, "failed", None, f"{run.name} ended without an evaluation: {reason}")
                break
            if reason.startswith(PRUNED):
                result = TrialResult(number, "pruned", float(np.mean([*ends, value])), reason)
                break
            if not is_score(value):
                result = TrialResult(
                    number, "failed", None, f"the {search.section.objective} mean return of {run.name} is {value}"
                )
                break
            ends.append(value)
        else:
            result = TrialResult(number, "complete", float(np.mean(ends)), "trained to the end")
    except NotAllowed:
        raise  # before `_can_be_built` builds anything
    except OWN_FAULT as error:
        if isinstance(error, ConfigurationError) and _can_be_built(search, number, values):
            raise  # not caused by the values: a key, a module or a store is missing on this machine
        result = TrialResult(number, "failed", None, f"{type(error).__name__}: {' '.join(str(error).split())}")
    _store_result(search, result)
    return result


def _can_be_built(search: Search, number: int, values: dict[str, Any]) -> bool:
    """Whether a trial's agent and environment can be built here."""
    try:
        _, env = build_agent(search.configs(number, values)[0])
    except ConfigurationError:
        return False
    close_all(env)
    return True


def _store_result(search: Search, result: TrialResult) -> None:
    """Store a result in Optuna's storage, with retries if the storage does not answer."""
    deadline, wait = time.monotonic() + TELL_SECONDS, 1.0
    while True:
        try:
            search.tell(result.number, result.state, result.value, result.reason)
            return
        except (ValueError, TypeError):
            raise  # a retry would fail too
        except Exception as error:
            if time.monotonic() + wait > deadline:
                raise
            _logger.warning(f"The sweep's storage does not answer ({' '.join(str(error).split())}); retrying")
            time.sleep(wait)
            wait = min(2 * wait, 30.0)


def train_here(search: Search, *, console: bool) -> Callable[[TrainingConfig, ReportHook], RunDirectory | None]:
    """Return a function that trains a configuration in this process, for `run_trial`."""

    def train(config: TrainingConfig, hook: ReportHook) -> RunDirectory | None:
        trainer = Trainer(config, root=search.root.path, reporter=ProgressReporter(console=console), hooks=[hook])
        statistics = trainer.train()
        return None if statistics.state is TrainingState.STOPPED else trainer.run_directory

    return train
