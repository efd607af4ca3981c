"""One trial of a sweep: its runs trained, its evaluations reported, its result told once.

A trial that was interrupted is taken up again: its values are Optuna's, its runs are found by their names and resumed.
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
"""What the reason begins with for which a pruned run ended."""

OWN_FAULT = (ConfigurationError, TrainingDiverged, MemoryLimitExceeded)
"""Errors that can lie in a trial's values: it failed then. After any other the trial is taken up again."""

TELL_SECONDS = 600.0
_logger = logging.getLogger("rltrack")


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What became of a trial.

    Attributes:
        number: Which.
        state: ``complete``, ``pruned``, ``failed``, or ``stopped`` (it goes on when it is taken up again).
        value: Its objective, in reward units; None without one.
        reason: Why it ended.
    """

    number: int
    state: str
    value: float | None
    reason: str


class ReportHook:
    """Tells Optuna each evaluation, and stops the run at that boundary where the pruner says so.

    Reports are numbered by evaluation, over the trial's seeds, so that trials of different rollout lengths compare. What is
    reported after the first seed is the mean of what the earlier seeds ended with and the present evaluation. A storage
    that is away is no reason to stop: nothing is pruned then.

    Args:
        trial: Optuna's.
        training: How often there are evaluations.
        earlier: What the earlier seeds ended with.
    """

    needs_evaluation = True

    def __init__(self, trial: Any, training: TrainingSection, earlier: list[float]) -> None:
        self._trial, self._training, self._earlier = trial, training, earlier

    def on_evaluation_end(self, progress: TrainingProgress, evaluation: Evaluation) -> None:
        """Report, and ask."""
        step = self._step(progress, evaluation)
        if step is None or not is_score(evaluation.mean):  # what cannot be compared is no reason to prune, nor to keep
            return
        try:
            if step not in self._trial.storage.get_trial(self._trial._trial_id).intermediate_values:
                self._trial.report(float(np.mean([*self._earlier, evaluation.mean])), step)
            prune = self._trial.should_prune()
        except Exception as error:  # whatever a database's driver raises
            _logger.warning(f"The sweep's storage does not take an evaluation: {' '.join(str(error).split())}")
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
    """Return a finished run's objective, and the reason for which it ended."""
    means = [float(record["mean"]) for record in run.history().evaluations]
    value = None if not means else max(means, key=rank) if objective == "best" else means[-1]
    return value, run.status().reason


def run_trial(
    search: Search,
    number: int,
    train: Callable[[TrainingConfig, ReportHook], RunDirectory | None],
) -> TrialResult:
    """Carry a trial out, or on.

    Args:
        search: The sweep, open.
        number: Which trial.
        train: Trains a configuration to its end with the hook and returns the finished run; None if it was stopped.

    Returns:
        What became of it. It was told to Optuna, unless it was stopped.

    Raises:
        Exception: Whatever training raises and does not lie in the trial's values; the trial can be taken up again.
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
        raise  # before anything of it is built, to find out whose fault it is
    except OWN_FAULT as error:
        if isinstance(error, ConfigurationError) and _can_be_built(search, number, values):
            raise  # not the values: a key, a module or a store that this machine lacks
        result = TrialResult(number, "failed", None, f"{type(error).__name__}: {' '.join(str(error).split())}")
    _tell(search, result)
    return result


def _can_be_built(search: Search, number: int, values: dict[str, Any]) -> bool:
    """Whether a trial's agent and environment can be built here."""
    try:
        _, env = build_agent(search.configs(number, values)[0])
    except ConfigurationError:
        return False
    close_all(env)
    return True


def _tell(search: Search, result: TrialResult) -> None:
    """Tell Optuna a result, once; a storage that is away is waited for."""
    deadline, wait = time.monotonic() + TELL_SECONDS, 1.0
    while True:
        try:
            search.tell(result.number, result.state, result.value, result.reason)
            return
        except (ValueError, TypeError):
            raise  # it was refused, and would be again
        except Exception as error:
            if time.monotonic() + wait > deadline:
                raise
            _logger.warning(f"The sweep's storage does not answer ({' '.join(str(error).split())}); trying again")
            time.sleep(wait)
            wait = min(2 * wait, 30.0)


def train_here(search: Search, *, console: bool) -> Callable[[TrainingConfig, ReportHook], RunDirectory | None]:
    """Return what trains a configuration in this process, for `run_trial`."""

    def train(config: TrainingConfig, hook: ReportHook) -> RunDirectory | None:
        trainer = Trainer(config, root=search.root.path, reporter=ProgressReporter(console=console), hooks=[hook])
        statistics = trainer.train()
        return None if statistics.state is TrainingState.STOPPED else trainer.run_directory

    return train
